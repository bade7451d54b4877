"""What the schema says about a place: keys, kinds, allowed values; the source of every message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from qsfl_flower.simulations.config.experiment import Experiment, experiment_class
from qsfl_flower.simulations.config.tree import Path

Schema = dict[str, Any]


def root() -> Schema:
    """Return the JSON Schema of a complete experiment, as pydantic makes it."""
    return _schema(experiment_class())


@cache
def _schema(experiment: type[Experiment]) -> Schema:
    return experiment.model_json_schema()


def resolve(schema: Schema) -> Schema:
    """Follow a reference to a definition."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    return resolve(root()["$defs"][reference.rsplit("/", 1)[-1]])


def section_of(schema: Schema) -> Schema:
    """Return the section where a section or null is allowed, else the schema itself."""
    options = [resolve(one) for one in schema.get("anyOf", ())]
    sections = [one for one in options if "properties" in one]
    return sections[0] if len(sections) == 1 else schema


def tag_of(schema: Schema) -> str | None:
    """Return the key that tells the kinds of a section apart (``scheme``), if it has kinds."""
    tag: str | None = schema.get("discriminator", {}).get("propertyName")
    return tag


def kinds_of(schema: Schema) -> dict[str, Schema]:
    """Return the schema of each kind of a section that has kinds."""
    mapping: dict[str, str] = schema["discriminator"]["mapping"]
    variants = {name: resolve({"$ref": reference}) for name, reference in mapping.items()}
    order = [resolve(one) for one in schema["oneOf"]]
    return dict(sorted(variants.items(), key=lambda item: order.index(item[1])))


def child(schema: Schema, key: str | int, kind: object = None) -> Schema:
    """Return the schema of a key or list item; empty where the schema has none.

    Parameters
    ----------
    schema : dict
        Schema of the section or list.
    key : str or int
        The key or the index.
    kind : object
        Value of the section's tag, if it has kinds.
    """
    schema = section_of(resolve(schema))
    if tag_of(schema) is not None:
        kinds = kinds_of(schema)
        schema = kinds.get(kind, {}) if isinstance(kind, str) else {}
    if isinstance(key, int):
        lists = [one for one in (schema, *schema.get("oneOf", ())) if "items" in one]
        found: Schema = lists[0]["items"] if lists else {}
    else:
        found = schema.get("properties", {}).get(key, {})
    return resolve(found)


def walk(path: Path, data: object) -> Schema:
    """Return the schema at a path of the given data; empty where the schema has none."""
    schema = root()
    for key in path:
        tag = tag_of(schema)
        kind = data.get(tag) if tag is not None and isinstance(data, dict) else None
        schema = child(schema, key, kind)
        data = _step(data, key)
    return schema


def _step(data: object, key: str | int) -> object:
    if isinstance(data, dict):
        return data.get(key)
    if isinstance(data, list) and isinstance(key, int) and key < len(data):
        return data[key]
    return None


def without_labels(location: Path) -> Path:
    """Drop the labels of kinds that pydantic puts into the location of an error."""
    schema, path, kind = root(), [], None
    labelled = False
    for key in location:
        if not labelled and "oneOf" in schema:
            kind, labelled = key, True
            continue
        path.append(key)
        schema, kind, labelled = child(schema, key, kind), None, False
    return tuple(path)


def allowed(schema: Schema) -> str:
    """Say in words which values fit: ``a whole number from 1 to 100000``."""
    schema = resolve(schema)
    text: str | None = schema.get("x-allowed")
    if text is not None:
        return text
    if tag_of(schema) is not None:
        return f"a section with the key '{tag_of(schema)}' (one of {', '.join(kinds_of(schema))})"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(allowed(one) for one in schema[union])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "const" in schema:
        return f"'{schema['const']}'"
    match schema.get("type"):
        case "null":
            return "null"
        case "boolean":
            return "true or false"
        case "integer":
            return "a whole number" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "string":
            return "text of one line"
        case "array":
            return _list(schema)
    return f"a section with keys ({', '.join(schema.get('properties', ()))})"


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}" if high < 1e6 else f" from {low} to {high}"
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", low), ("<", below), ("<=", high))
        if bound is not None
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _list(schema: Schema) -> str:
    item = resolve(schema["items"])
    least = "non-empty list" if schema.get("minItems") else "list"
    if tag_of(item) is not None:
        return f"a {least} of {{{tag_of(item)}: ...}} ({', '.join(kinds_of(item))})"
    if "properties" in item:
        return f"a {least} of sections ({', '.join(item['properties'])})"
    return f"a {least}, each item {allowed(item)}"


def choices(schema: Schema) -> list[str]:
    """Return the words that a value can be, for a did-you-mean."""
    schema = resolve(schema)
    words = [*schema.get("enum", ()), *schema.get("examples", ())]
    if "const" in schema:
        words.append(schema["const"])
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        words.extend(choices(one))
    return words


def types(schema: Schema) -> set[str]:
    """Return the JSON types that a value can have."""
    schema = resolve(schema)
    found = {schema["type"]} if "type" in schema else set()
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= types(one)
    return found


def closest(word: str, words: Iterable[str]) -> str | None:
    """Return the word that was probably meant, ignoring case, '-' and '_'."""
    plain = {_plain(one): one for one in words}
    found = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def _plain(word: str) -> str:
    return re.sub(r"[-_\s]", "", word[:80].lower())


@dataclass(frozen=True)
class SectionShape:
    """A section of the schema, or one kind of a section that has kinds.

    Parameters
    ----------
    path : str
        Dotted path; empty for the top level. Items of a list have the path of the list.
    schema : dict
        Its JSON Schema.
    tag, kind : str
        Tag and its value for one kind (``"scheme"``, ``"iid"``), else empty.
    in_list : bool
        Whether it is an item of a list.
    """

    path: str
    schema: Schema
    tag: str = ""
    kind: str = ""
    in_list: bool = False


def sections() -> tuple[SectionShape, ...]:
    """Return every section and every kind once, in the order of the schema."""
    return _all_sections(experiment_class())


@cache
def _all_sections(experiment: type[Experiment]) -> tuple[SectionShape, ...]:
    del experiment  # whose `root` it is
    found = {(one.path, one.tag, one.kind): one for one in _sections("", root(), False)}
    return tuple(found.values())


def _sections(path: str, schema: Schema, in_list: bool) -> Iterator[SectionShape]:
    schema = section_of(resolve(schema))
    tag = tag_of(schema)
    if tag is not None:
        kinds = kinds_of(schema)
        for kind, one in kinds.items():
            yield SectionShape(path, one, tag, kind, in_list)
        for one in kinds.values():
            yield from _below(path, one)
    elif "items" in schema:
        yield from _sections(path, schema["items"], True)
    elif "properties" in schema:
        yield SectionShape(path, schema, in_list=in_list)
        yield from _below(path, schema)


def _below(path: str, schema: Schema) -> Iterator[SectionShape]:
    for key, one in schema["properties"].items():
        yield from _sections(f"{path}.{key}".lstrip("."), one, False)
