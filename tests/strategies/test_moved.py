"""Modules that have moved keep their old names for one release."""

from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["stages", "chain", "record", "checkpoint", "spending"])
def test_a_module_of_the_engine_has_its_old_name(name):
    assert import_module(f"qsfl_flower.strategies.{name}") is import_module(
        f"qsfl_flower.rounds.{name}"
    )
