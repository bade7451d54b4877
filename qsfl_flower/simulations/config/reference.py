"""The schema for editors and for the documentation."""

from __future__ import annotations

import itertools
from collections.abc import Set
from typing import Any

from qsfl_flower.simulations.config import shape
from qsfl_flower.simulations.config.tree import shown

_NOT_FOR_EDITORS = ("title", "discriminator", "x-allowed", "x-options-of", "required")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, for editors.

    A file may leave out what it extends and what has a default, so only list items have required
    keys here; the loader checks the completed experiment.

    Returns
    -------
    dict
        JSON Schema (draft 2020-12) with descriptions, ranges and choices.
    """
    schema = _for_editors(shape.root())
    schema["$defs"] = {name: _for_editors(one) for name, one in shape.root()["$defs"].items()}
    for one in shape.sections():
        if one.in_list and "required" in one.schema:
            schema["$defs"][one.schema["title"]]["required"] = one.schema["required"]
    name = {"type": "string", "minLength": 1}
    extends = {
        "description": "Path or name of a configuration to start from, or a list of those; "
        "later ones win over earlier ones, and this file wins over all of them.",
        "anyOf": [name, {"type": "array", "items": name}],
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "QSFL-Flower experiment",
        **schema,
    }


def _for_editors(schema: shape.Schema) -> shape.Schema:
    """Loosen a schema to one for partial files and drop what only this package reads."""
    out: shape.Schema = {}
    for key, value in schema.items():
        if key in _NOT_FOR_EDITORS or (key == "default" and isinstance(value, dict)):
            continue
        if key in ("properties", "$defs"):
            out[key] = {name: _for_editors(one) for name, one in value.items()}
        elif key in ("oneOf", "anyOf"):
            out["anyOf"] = [_for_editors(one) for one in value]
        elif key == "items":
            out[key] = _for_editors(value)
        else:
            out[key] = value
    return out


def markdown() -> str:
    """Return one table for each section, with every key: allowed values, default, meaning.

    Returns
    -------
    str
        Markdown, from headings of the third level on.
    """
    blocks: list[str] = []
    for (path, tag), group in itertools.groupby(shape.sections(), lambda one: (one.path, one.tag)):
        variants = list(group)
        item = " (each item of the list)" if variants[0].in_list else ""
        blocks.append(f"### {f'`{path}`' if path else 'Top level'}{item}")
        if not tag:
            blocks += [variants[0].schema["description"], _table(variants[0])]
            continue
        shared = set.intersection(*(set(one.schema["properties"]) for one in variants))
        common = _table(variants[0], shared - {tag})
        blocks += [f"`{tag}` is one of the following and decides which keys there are."]
        blocks += [f"With every `{tag}`:", common] if common else []
        for one in variants:
            blocks += [f"#### `{tag}: {one.kind}`", one.schema["description"]]
            own = _table(one, set(one.schema["properties"]) - shared)
            blocks += [own] if own else []
    return "\n\n".join(blocks) + "\n"


def _table(section: shape.SectionShape, keys: Set[str] | None = None) -> str:
    properties: dict[str, shape.Schema] = section.schema["properties"]
    required = section.schema.get("required", ())
    rows = [
        f"| `{key}` | {_allowed(one)} | {_default(one, key in required)} | {_meaning(one)} |"
        for key, one in properties.items()
        if keys is None or key in keys
    ]
    head = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows]) if rows else ""


def _is_section(schema: shape.Schema) -> bool:
    schema = shape.resolve(schema)
    return "properties" in schema or shape.tag_of(schema) is not None


def _allowed(schema: shape.Schema) -> str:
    if _is_section(schema):
        return "a section, see below"
    if shape.section_of(schema) is not schema:
        return "a section, see below, or null"
    if _is_section(schema.get("items", {})):
        return "a list of sections, see below"
    return shape.allowed(schema)


def _default(schema: shape.Schema, required: bool) -> str:
    if required:
        return "required"
    return "see below" if _is_section(schema) else f"`{shown(schema['default'])}`"


def _meaning(schema: shape.Schema) -> str:
    text: str = schema.get("description") or shape.resolve(schema)["description"]
    return text
