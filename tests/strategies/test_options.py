"""The options of ready strategies are those of `StableFedAvg`."""

import inspect

from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.strategies.options import StrategyOptions


def test_they_are_the_arguments_of_stable_fedavg():
    given = inspect.signature(StableFedAvg).parameters.values()
    names = {p.name for p in given if p.kind is not p.VAR_KEYWORD}
    assert set(StrategyOptions.__annotations__) == names
