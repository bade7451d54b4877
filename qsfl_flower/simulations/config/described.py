"""Sections and options of an experiment from the one description of each parameter."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_type_hints

from pydantic import Field, ValidationError, create_model, model_validator

from qsfl_flower import mechanisms, plugins
from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config.base import Contradiction, OptionValues, Section, refuse
from qsfl_flower.simulations.config.tree import shown

Fields = dict[str, Any]

_GIVEN = {
    "rule": ("num_byzantine", "num_selected"),
    "model": ("input_shape", "num_classes"),
    "algorithm": ("model", "data", "config", "seed", "client_id", "declare_labels", "state"),
}
"""What the suite hands over itself."""

_model: Any = create_model  # whose types do not know of fields in a mapping


def section_of(plugin: plugins.Plugin, tag: str, base: type[Section]) -> type[Section]:
    """Return the section of a stage or an attack: the options of a plugin, beside `tag`."""
    about = _described(plugin)
    known = {tag, *base.model_fields}

    def sensible(self: Any) -> Any:
        values = self.model_dump(exclude=known)
        try:
            if isinstance(plugin, plugins.Mechanism):
                plugin.options.of(values)
            else:
                (plugin.options or plugin.make)(**values)
        except ConfigError as error:
            place = "attacks" if tag == "attack" else "strategy.stages"
            refuse([Contradiction((place,), str(error))])
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


def parameters_of(spec: Any) -> Any:
    """Return the options that the section of a stage was made of."""
    mechanism: Any = mechanisms.find(spec.stage)
    return mechanism.options.of(spec.model_dump(exclude={"stage"}))


def _described(plugin: plugins.Plugin) -> str:
    """Return the first sentence of what the author says about a plugin."""
    make = getattr(plugin, "make", None)
    return _first(plugin.options or make) or _first(make) or plugin.name


def _first(made: Any) -> str:
    return (inspect.getdoc(made) or "").partition("\n")[0]


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
            if plugins.is_options(hints.get(one.name)):
                found |= _fields(hints[one.name], given)
                continue
            about = one.metadata.get("about", plugins.About(f"Option {one.name}.", {}))
            default: Any = one.default if one.default is not dataclasses.MISSING else ...
            if one.default_factory is not dataclasses.MISSING:
                default = one.default_factory()
            found[one.name] = _field(hints.get(one.name, Any), default, about)
        return found
    for name, parameter in inspect.signature(make).parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and name not in given:
            default = ... if parameter.default is parameter.empty else parameter.default
            about = plugins.About(f"Option {name}.", {})
            found[name] = _field(hints.get(name, Any), default, about)
    return found


def _field(hint: Any, default: Any, about: plugins.About) -> Any:
    extra: Any = {k: v for k, v in about.schema.items() if k.startswith("x-")}
    kwargs: Any = {**about.limits, **{k: about.schema[k] for k in about.schema.keys() - extra}}
    inner = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if any(getattr(one, "__origin__", one) is tuple for one in inner):
        kwargs["strict"] = False
    items = get_args(hint)[:1] if getattr(hint, "__origin__", None) is tuple else ()
    if items and plugins.is_options(items[0]):
        made = keys_of(items[0])
        hint = types.GenericAlias(tuple, (made, ...))
        if default is not ...:
            default = tuple(made(**one.to_dict()) for one in default)
    elif "x-options-of" in about.schema:
        hint, kwargs["validate_default"] = OptionValues, True
    elif any(map(plugins.is_options, inner)):
        hint = Union[tuple(keys_of(o) if plugins.is_options(o) else o for o in inner)]  # noqa: UP007
    return (hint, Field(default, description=about.text, json_schema_extra=extra or None, **kwargs))


@cache
def keys_of(made: type) -> Any:
    """Return a section of the fields of options."""
    name = made.__name__.removesuffix("Options") + "Spec"
    return _model(name, __base__=Section, __doc__=_first(made), **_fields(made, ()))


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
