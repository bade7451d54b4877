"""The schema of an experiment with what plugins have added: names, and sections of their own."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_type_hints

from pydantic import Field, ValidationError, create_model, model_validator

from qsfl_flower import plugins
from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import strategy
from qsfl_flower.simulations.config.attacks import AttackKeys, AttackSpec
from qsfl_flower.simulations.config.base import Contradiction, Section, refuse
from qsfl_flower.simulations.config.sections import (
    BUILT_IN_MODELS,
    ClientsSpec,
    DataSpec,
    ModelSpec,
    model_name,
)
from qsfl_flower.simulations.config.tree import shown

Fields = dict[str, Any]
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

_GIVEN = {
    "rule": ("num_byzantine", "num_selected"),
    "model": ("input_shape", "num_classes"),
    "algorithm": ("model", "data", "config", "seed", "client_id", "declare_labels", "state"),
}
"""What the suite hands over itself."""


def built_in(kind: str) -> tuple[str, ...]:
    """Return the names of a kind that come with the suite."""
    if kind == "mechanism":
        return tuple(_names(one, "stage")[0] for one in _union(strategy.StageSpec))
    if kind == "attack":
        return tuple(_names(one, "attack")[0] for one in _union(AttackSpec))
    if kind in ("model", ""):
        return BUILT_IN_MODELS if kind else ()
    place, key = {
        "rule": (strategy.RobustSpec, "rule"),
        "detector": (strategy.DetectSpec, "detector"),
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
    stages += [_own(one, "stage", Section) for one in plugins.added("mechanism").values()]
    attacks = list(_union(AttackSpec))
    attacks += [_own(one, "attack", AttackKeys) for one in plugins.added("attack").values()]
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


def _own(plugin: plugins.Plugin, tag: str, base: type[Section]) -> type[Section]:
    """Return the section of a stage or an attack that was added."""
    about = _described(plugin)
    make: Callable[..., Any] = plugin.options or plugin.make  # type: ignore[union-attr]
    known = set(base.model_fields) - {tag}

    def sensible(self: Any) -> Any:
        try:
            make(**{k: v for k, v in self if k != tag and k not in known})
        except ConfigError as error:
            place = "attacks" if tag == "attack" else "strategy.stages"
            refuse([Contradiction((place,), f"{plugin.name}: {error}")])
        return self

    own: type[Section] = _model(
        "".join(part.title() for part in plugin.name.replace("_", "-").split("-")) + "Spec",
        __base__=base,
        __doc__=about,
        __validators__={"sensible": model_validator(mode="after")(sensible)},
        **{tag: (Literal[plugin.name], Field(description="Name of the " + tag + "."))},
        **fields_of(plugin),
    )
    return own


def _described(plugin: plugins.Plugin) -> str:
    """Return the first sentence of what the author says about a plugin."""
    make = getattr(plugin, "make", None)
    text = inspect.getdoc(plugin.options or make) or inspect.getdoc(make) or plugin.name
    return text.partition("\n")[0]


def fields_of(plugin: plugins.Plugin) -> Fields:
    """Return the options of a plugin as pydantic's fields."""
    make: Any = plugin.options or plugin.make  # type: ignore[union-attr]
    return _fields(make, _GIVEN.get(plugin.kind, ()))


def _fields(make: Any, given: Iterable[str]) -> Fields:
    try:
        hints = get_type_hints(make if isinstance(make, type) else inspect.unwrap(make))
    except (NameError, TypeError):
        hints = {}
    found: Fields = {}
    if dataclasses.is_dataclass(make):
        for one in dataclasses.fields(make):
            if not one.init or one.name in given:
                continue
            about = one.metadata.get("about", plugins.About(f"Option {one.name}.", {}))
            default: Any = one.default if one.default is not dataclasses.MISSING else ...
            if one.default_factory is not dataclasses.MISSING:
                default = one.default_factory()
            found[one.name] = _field(hints.get(one.name, Any), default, about.text, about.limits)
        return found
    for name, parameter in inspect.signature(make).parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and name not in given:
            default = ... if parameter.default is parameter.empty else parameter.default
            found[name] = _field(hints.get(name, Any), default, f"Option {name}.", {})
    return found


def _field(hint: Any, default: Any, text: str, limits: Mapping[str, float]) -> Any:
    kwargs: Any = dict(limits)
    inner = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if any(getattr(one, "__origin__", one) is tuple for one in inner):
        kwargs["strict"] = False
    return (hint, Field(default=default, description=text, **kwargs))


def option_problems(plugin: plugins.Plugin, options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with options, a sentence each."""
    fields = fields_of(plugin)
    section = _model("Options", __base__=Section, **fields)
    try:
        section.model_validate(dict(options))
    except ValidationError as error:
        return [_sentence(one, fields, plugin) for one in error.errors(include_url=False)]
    return []


def _sentence(error: Any, fields: Fields, plugin: plugins.Plugin) -> str:
    key = str(error["loc"][0])
    if key not in fields:
        close = difflib.get_close_matches(key, fields, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        return f"{plugin.kind} {plugin.name!r} has no option {key!r:.60}{meant}; it has " + (
            ", ".join(fields) or "none"
        )
    hint, field = fields[key]
    limits = {
        name: getattr(one, name)
        for one in field.metadata
        for name in plugins.LIMITS
        if hasattr(one, name)
    }
    wanted = plugins.allowed(hint, limits)
    if error["type"] == "missing":
        return f"{plugin.kind} {plugin.name!r} needs the option {key!r}: {wanted}"
    return f"option {key!r} must be {wanted}, got {shown(error['input'])}"
