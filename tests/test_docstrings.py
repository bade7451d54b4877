"""Every name that `strategies`, `stages`, `clients` and `testing` export has a running example."""

from __future__ import annotations

import doctest
import importlib
import logging

import numpy as np
import pytest

from qsfl_flower import stages, strategies

WITHOUT = {
    "POLICIES", "State",
    # what a stage is handed, and what it is derived from: docs/extending.md has a whole one
    "Chain", "ClientPhase", "CohortStage", "CombineStage", "Combined", "DecodeStage", "Outcome",
    "Phase", "RoundContext", "Snapshot", "Stage", "Update", "VectorStage",
}  # fmt: skip
"""Names that show nothing by themselves."""


def exported():
    for module in ("strategies", "stages", "clients", "testing"):
        public = importlib.import_module(f"qsfl_flower.{module}")
        own = {name: getattr(public, name) for name in public.__all__}
        names = {**vars(strategies), **vars(stages), **own}
        for name, value in own.items():
            if name not in WITHOUT or module == "testing":
                yield pytest.param(value, {**names, "np": np}, id=f"{module}.{name}")


@pytest.mark.parametrize(("value", "names"), list(exported()))
def test_the_example_of_an_exported_name_runs(value, names, caplog):
    caplog.set_level(logging.CRITICAL)
    text = (vars(value)["__doc__"] if isinstance(value, type) else value.__doc__) or ""
    test = doctest.DocTestParser().get_doctest(text, dict(names), value.__name__, None, None)
    assert test.examples, f"the docstring of {value.__name__} has no example"
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
    assert told == []
