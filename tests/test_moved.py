"""Modules of old names can be imported for one release, and say their new name."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from qsfl_flower import stages
from qsfl_flower.moved import MOVED
from qsfl_flower.strategies import SecureMultiKrum
from qsfl_flower.testing import LocalFederation


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_same_module_and_warns(old: str) -> None:
    new = importlib.import_module(f"qsfl_flower.{MOVED[old]}")
    spec = new.__spec__
    sys.modules.pop(f"qsfl_flower.{old}", None)
    with pytest.warns(FutureWarning, match=f"qsfl_flower.{old} is now qsfl_flower.{MOVED[old]};"):
        assert importlib.import_module(f"qsfl_flower.{old}") is new
    assert new.__spec__ == spec


def test_modules_inside_and_misspelt_ones() -> None:
    with pytest.warns(FutureWarning, match="is now qsfl_flower.mechanisms.robust.core.coordinates"):
        from qsfl_flower.robust.coordinates import Median  # type: ignore[import-untyped]
    from qsfl_flower.mechanisms.robust.core import Median as same

    assert Median is same
    with pytest.raises(ModuleNotFoundError, match=r"qsfl_flower\.strategies\.robustt"):
        importlib.import_module("qsfl_flower.strategies.robustt")


def test_the_suite_itself_uses_no_old_name() -> None:
    code = (
        "import warnings; warnings.simplefilter('error', FutureWarning); "
        "import qsfl_flower.simulations.app, qsfl_flower.simulations.cli, qsfl_flower.clients.mods"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stage_can_be_imported_from_its_old_place() -> None:
    from qsfl_flower import strategies

    with pytest.warns(FutureWarning, match=r"strategies\.Clip is now qsfl_flower\.stages\.Clip"):
        assert strategies.Clip is stages.Clip


def test_a_preset_has_its_old_name() -> None:
    from qsfl_flower import strategies

    with pytest.warns(FutureWarning, match=r"is now .*strategies\.full_chain"):
        assert strategies.FullChain is strategies.full_chain


@pytest.fixture(scope="module")
def keys():
    return LocalFederation(clients=5).credentials


RENAMED = [
    ("noise", "noise_multiplier", lambda _, **given: stages.CentralDP(expected_cohort=7, **given)),
    ("denominator", "expected_cohort", lambda _, **given: stages.DistributedDP(1.0, **given)),
    (
        "num_malicious_nodes", "num_byzantine",
        lambda keys, **given: SecureMultiKrum(credentials=keys, **given),
    ),
    (
        "num_nodes_to_select", "num_selected",
        lambda keys, **given: SecureMultiKrum(credentials=keys, num_byzantine=1, **given),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "make"), RENAMED)
def test_an_argument_has_its_old_name(old, new, make, keys) -> None:
    with pytest.warns(FutureWarning, match=f": {old} is now {new}; the old name goes with"):
        made = make(keys, **{old: 3})
    with pytest.warns(FutureWarning), pytest.raises(TypeError, match=f"{new} is given twice"):
        make(keys, **{old: 3, new: 3})
    assert told(made) == told(make(keys, **{new: 3}))


def told(made) -> object:
    """Return what a stage or strategy says of its numbers."""
    if isinstance(made, SecureMultiKrum):
        return made.chain.combiner
    return (made.denominator, getattr(made, "schedule", None))
