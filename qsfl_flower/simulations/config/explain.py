"""Pydantic's errors as sentences: where, which key, what was found, what is allowed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from qsfl_flower.simulations.config import shape
from qsfl_flower.simulations.config.base import Contradiction
from qsfl_flower.simulations.config.tree import (
    Node,
    Path,
    Problem,
    deepest,
    dotted,
    shown,
    to_plain,
)

_BOOLEAN_WORDS = {
    **dict.fromkeys(("yes", "on", "true", "1"), "true"),
    **dict.fromkeys(("no", "off", "false", "0"), "false"),
}
_NULL_WORDS = ("none", "null", "nil", "~", "")
_MOST = 50
_LAST = 10**9


def explain(error: ValidationError, tree: Node) -> list[Problem]:
    """Turn a validation error into problems with places.

    Parameters
    ----------
    error : pydantic.ValidationError
        What the model said about the data of the tree.
    tree : Node
        The data with its places.

    Returns
    -------
    list of Problem
        One per mistake. An error of a list or section whose items have errors is left out.
    """
    data = to_plain(tree)
    found: list[tuple[Path, Problem]] = []
    errors = error.errors(include_url=False)
    for order, one in enumerate(errors[:_MOST]):
        path = shape.without_labels(one["loc"])
        if one["type"] == "contradiction":
            found += [
                ((*path, "contradiction"), _contradiction(each, tree, order))
                for each in one["ctx"]["found"]
            ]
            continue
        path, text = _sentence(one["type"], path, data)
        place = deepest(tree, path).place
        found.append((path, Problem(place, f"{dotted(path)}: {text}", order)))
    paths = [path for path, _ in found]
    problems = [one for path, one in found if not any(_is_above(path, other) for other in paths)]
    if len(errors) > _MOST:
        last = replace(tree.place, line=None, rank=_LAST)
        problems.append(Problem(last, f"{len(errors) - _MOST} more mistakes are not listed"))
    return problems


def _is_above(path: Path, other: Path) -> bool:
    return len(path) < len(other) and other[: len(path)] == path


def _contradiction(one: Contradiction, tree: Node, order: int) -> Problem:
    places = {key: deepest(tree, _parse_dotted(key)).place for key in one.keys}
    key = next((key for key in one.keys if places[key].rank >= 0), one.keys[0])
    return Problem(places[key], f"{key}: {one.text}", order)


def _parse_dotted(key: str) -> Path:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _sentence(kind: str, path: Path, data: object) -> tuple[Path, str]:
    value = _value(data, path)
    schema = shape.walk(path, data)
    if kind == "extra_forbidden":
        return path, _unknown_key(path, data)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = shape.tag_of(schema) or ""
        path = (*path, tag)
        names = list(shape.kinds_of(schema))
        wanted = f"must be one of {', '.join(names)}"
        if kind == "union_tag_not_found":
            return path, f"missing; {wanted}"
        return path, f"{wanted}, got {shown(value[tag])}{_suggestion(value[tag], names)}"
    if kind == "missing":
        return path, f"missing; must be {shape.allowed(schema)}"
    return path, f"must be {shape.allowed(schema)}, got {shown(value)}{_hint(value, schema)}"


def _value(data: Any, path: Path) -> Any:
    for key in path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _suggestion(value: object, words: list[str]) -> str:
    close = shape.closest(value, words) if isinstance(value, str) else None
    return f"; did you mean '{close}'?" if close else ""


def _hint(value: object, schema: shape.Schema) -> str:
    types = shape.types(schema)
    if isinstance(value, float) and "integer" in types and value % 1 == 0 and abs(value) < 1e15:
        return f"; write {int(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "; it must be finite"
    if not isinstance(value, str):
        return ""
    word = value.strip().lower()
    if "boolean" in types and word in _BOOLEAN_WORDS:
        return f"; write {_BOOLEAN_WORDS[word]}"
    if "null" in types and word in _NULL_WORDS:
        return "; write null"
    if types & {"integer", "number"}:
        return _number_hint(word, types)
    return _suggestion(value, shape.choices(schema))


def _number_hint(word: str, types: set[str]) -> str:
    try:
        number = int(word) if "integer" in types else float(word)
    except ValueError:
        return ""
    return f"; write {number} without quotes"


def _unknown_key(path: Path, data: object) -> str:
    *above, last = path
    parent = shape.section_of(shape.walk(tuple(above), data))
    tag = shape.tag_of(parent)
    kind = _value(data, (*above, tag)) if tag else None
    section = shape.kinds_of(parent)[str(kind)] if tag else parent
    keys = list(section["properties"])
    if not above and last != "extends":
        keys.append("extends")
    where = ".".join(str(part) for part in above if not isinstance(part, int))
    of_kind = f" for {tag} '{kind}'" if tag else ""
    return f"unknown key{of_kind}{_meant(str(last), where, keys)} allowed: {', '.join(keys)}"


def _meant(key: str, where: str, keys: list[str]) -> str:
    if key == "extends":
        return "; 'extends' stands at the top level of a file only;"
    if key == "<<":
        return "; YAML merges are not read, use 'extends';"
    homes = [one for one in shape.sections() if key in one.schema["properties"]]
    siblings = [one for one in homes if one.path == where]
    if siblings:
        return f"; it belongs to {siblings[0].tag} {' or '.join(one.kind for one in siblings)};"
    close = shape.closest(key, keys)
    if close:
        return f"; did you mean '{close}'?"
    if homes:
        paths = dict.fromkeys(f"'{one.path}.{key}'".replace("'.", "'") for one in homes)
        return f"; did you mean {' or '.join(paths)}?"
    return ";"
