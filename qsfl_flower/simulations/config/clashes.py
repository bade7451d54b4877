"""Stages and keys that void each other's guarantees, by the table of `rounds.composition`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qsfl_flower import mechanisms
from qsfl_flower.rounds.composition import REFUSALS, Argument, Part
from qsfl_flower.simulations.config.base import Contradiction
from qsfl_flower.traits import Trait


def clashes(exp: Any) -> Iterator[Contradiction]:
    """Yield what the chain of an experiment will refuse, as far as its records tell.

    Parameters
    ----------
    exp : Experiment
        Whose stages are looked at; those without a record have no traits here.
    """
    places: dict[Part, str] = dict(_parts(exp))
    seen = set()
    for refusal in REFUSALS:
        for found in refusal.found(list(places)):
            if (parts := frozenset(found)) in seen:
                continue  # the first sentence about them is the one to read
            seen.add(parts)
            text = refusal.why.format(*(part.name for part in found)).removeprefix("stages: ")
            keys = sorted((places[part] for part in found), key=lambda k: not text.startswith(k))
            yield Contradiction((*keys,), text.removeprefix(f"{keys[0]}: "))


def _parts(exp: Any) -> Iterator[tuple[Argument, str]]:
    """Yield the parts of an experiment that matter to one another, and their keys."""
    for index, stage in enumerate(exp.strategy.stages):
        if (mechanism := mechanisms.find(stage.stage)) is not None:
            yield Argument(mechanism.name, mechanism.traits), f"strategy.stages.{index}"
    for given, key, trait in (
        (exp.clients.fraction_evaluate > 0, "clients.fraction_evaluate", Trait.TELLS_SINGLY),
        (exp.strategy.over_selection > 0, "strategy.over_selection", Trait.CUTS_OFF),
        (hasattr(exp.strategy, "max_staleness"), "strategy.name", Trait.OVERLAPS_VERSIONS),
    ):
        if given:
            yield Argument(key, frozenset({trait})), key
