"""The schema of an experiment with what plugins have added: names, and sections of their own."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import Field, create_model

from qsfl_flower import plugins
from qsfl_flower.simulations.config import strategy
from qsfl_flower.simulations.config.attacks import AttackKeys, AttackSpec
from qsfl_flower.simulations.config.base import Section
from qsfl_flower.simulations.config.data import DataSpec
from qsfl_flower.simulations.config.described import Fields, section_of
from qsfl_flower.simulations.config.sections import (
    BUILT_IN_MODELS,
    ClientsSpec,
    ModelSpec,
    model_name,
)

_tuples: Any = tuple
_model: Any = create_model  # whose types do not know of fields in a mapping

PLACES = {
    "stage": "mechanism",
    "rule": "rule",
    "attack": "attack",
    "detector": "detector",
    "name": "model",
    "dataset": "dataset",
    "selection": "selection",
    "algorithm": "algorithm",
}
"""The key of a configuration whose value names something of a kind."""


def built_in(kind: str) -> tuple[str, ...]:
    """Return the names of a kind that come with the suite."""
    if kind == "mechanism":
        return tuple(_names(one, "stage")[0] for one in _union(strategy.StageSpec))
    if kind == "attack":
        return tuple(_names(one, "attack")[0] for one in _union(AttackSpec))
    if kind in ("model", ""):
        return BUILT_IN_MODELS if kind else ()
    place, key = {
        "rule": (strategy.SECTIONS["robust"], "rule"),
        "detector": (strategy.SECTIONS["detect"], "detector"),
        "dataset": (DataSpec, "dataset"),
        "selection": (ClientsSpec, "selection"),
        "algorithm": (ClientsSpec, "algorithm"),
    }[kind]
    return _names(place, key)


def _names(section: Any, key: str) -> tuple[str, ...]:
    return get_args(section.model_fields[key].annotation)


def _union(spec: Any) -> tuple[type[Section], ...]:
    return get_args(get_args(spec)[0])


@cache
def extend(experiment: type[Section], state: tuple[tuple[str, str], ...]) -> type[Section]:
    """Return the class of experiments that may name what was added.

    Parameters
    ----------
    experiment : type
        The class without plugins.
    state : tuple of (kind, name)
        What was added.
    """
    if not state:
        return experiment
    stages = [_with_names(one) for one in _union(strategy.StageSpec)]
    stages += [section_of(one, "stage", Section) for one in plugins.added("mechanism").values()]
    attacks = list(_union(AttackSpec))
    attacks += [section_of(one, "attack", AttackKeys) for one in plugins.added("attack").values()]
    listed = _one_of(stages, "stage")
    kinds = [_changed(one, stages=(listed, ...)) for one in _union(strategy.StrategySpec)]
    return _changed(
        experiment,
        strategy=_one_of(kinds, "name"),
        attacks=(_one_of(attacks, "attack"), ...),
        data=_with_names(DataSpec),
        clients=_with_names(ClientsSpec),
        model=_with_names(ModelSpec),
    )


def _one_of(kinds: list[type[Section]], tag: str) -> Any:
    return Annotated[Union[tuple(kinds)], Field(discriminator=tag)]  # noqa: UP007


def _with_names(section: type[Section]) -> type[Section]:
    """Return a section whose names are also those that were added."""
    changed: Fields = {}
    for key, kind in PLACES.items():
        own = tuple(plugins.added(kind)) if kind not in ("mechanism", "attack", "model") else ()
        if own and key in section.model_fields:
            changed[key] = Literal[(*_names(section, key), *own)]
    if section is ModelSpec and plugins.added("model"):
        name = model_name((*BUILT_IN_MODELS, *plugins.added("model")))
        changed_model: type[Section] = _model(
            "ModelSpec", __base__=section, __doc__=section.__doc__, name=name
        )
        return changed_model
    return _changed(section, **changed) if changed else section


def _changed(section: type[Section], **annotations: Any) -> type[Section]:
    """Return a subclass, of the same name, some of whose fields have another type.

    A pair of a type and an ellipsis stands for a tuple of any length.
    """
    definitions: Fields = {}
    for key, annotation in annotations.items():
        info = section.model_fields[key]
        given: Fields = {"description": info.description} if info.description else {}
        if not info.is_required():
            given["default"] = info.default
        if any(getattr(one, "strict", None) is False for one in info.metadata):
            given["strict"] = False
        kind: Any = _tuples[annotation] if isinstance(annotation, tuple) else annotation
        definitions[key] = (kind, Field(**given))
    changed: type[Section] = _model(
        section.__name__,
        __base__=section,
        __module__=section.__module__,
        __doc__=section.__doc__,
        **definitions,
    )
    return changed
