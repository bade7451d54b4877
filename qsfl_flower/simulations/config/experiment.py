"""The experiment: all sections, and nothing that contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

from pydantic import model_validator

from qsfl_flower import plugins
from qsfl_flower.simulations.config import imports
from qsfl_flower.simulations.config.base import refuse
from qsfl_flower.simulations.config.contradictions import contradictions
from qsfl_flower.simulations.config.extended import extend
from qsfl_flower.simulations.config.tree import Place, from_plain
from qsfl_flower.simulations.config.whole import Sections


class Experiment(Sections):
    """Everything that determines a simulated federation; one YAML file describes one."""

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        refuse(contradictions(self))
        return self

    def __reduce__(self) -> Any:
        """Travel as plain data: the other process has to import the plugins first."""
        return _again, (self.model_dump(mode="json"),)


def experiment_class() -> type[Experiment]:
    """Return the class of experiments, with the names that plugins have added in this process."""
    return cast(type[Experiment], extend(Experiment, plugins.state()))


def _again(values: Mapping[str, Any]) -> Experiment:
    imports.load(from_plain(values, Place("experiment of another process")), None)
    return experiment_class().model_validate(values)
