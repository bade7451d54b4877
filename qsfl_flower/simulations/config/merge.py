"""Putting one tree over another: what `extends` and overrides mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import document, shape
from qsfl_flower.simulations.config.tree import (
    Budget,
    Node,
    Place,
    Problem,
    config_error,
    dotted,
    shown,
    shown_key,
    to_plain,
)


def merge(base: Node, top: Node, schema: shape.Schema) -> Node:
    """Put one tree over another: sections key by key, lists and single values as a whole.

    A section that changes its kind (``scheme``, ``name`` of the strategy, ``stage``) forgets the
    inherited keys that only the old kind has.

    Parameters
    ----------
    base, top : Node
        The inherited tree and the one whose values win.
    schema : dict
        Schema of the place where both stand.

    Returns
    -------
    Node
        The merged tree; every value keeps its own place.
    """
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged: dict[str, Node] = dict(base.value)
    kind = None
    tag = shape.tag_of(schema)
    if tag is not None:
        old, new = base.value.get(tag), top.value.get(tag)
        current = new or old
        kind = to_plain(current) if current is not None else None
        if old is not None and new is not None:
            merged = _forget(merged, schema, to_plain(old), kind)
    for key, one in schema.get("properties", {}).items():
        owner = one.get("x-options-of")
        old, new = base.value.get(owner), top.value.get(owner)
        if old is not None and new is not None and to_plain(old) != to_plain(new):
            merged.pop(key, None)  # options of something else
    for key, node in top.value.items():
        below = merged.get(key)
        merged[key] = node if below is None else merge(below, node, shape.child(schema, key, kind))
    return Node(merged, top.place)


def _forget(
    entries: dict[str, Node], schema: shape.Schema, old: object, new: object
) -> dict[str, Node]:
    kinds = shape.kinds_of(schema)
    if not (isinstance(old, str) and isinstance(new, str) and {old, new} <= kinds.keys()):
        return entries
    gone = kinds[old]["properties"].keys() - kinds[new]["properties"].keys()
    return {key: node for key, node in entries.items() if key not in gone}


def apply_overrides(tree: Node, overrides: Sequence[str]) -> Node:
    """Apply overrides of the form ``key.sub=value`` in order.

    Parameters
    ----------
    tree : Node
        A complete tree.
    overrides : sequence of str
        Dotted path (list items by index from 0), ``=``, and a YAML value.

    Returns
    -------
    Node
        The tree with the new values.

    Raises
    ------
    ConfigError
        An override has no ``=`` or no key, its value is not YAML, or its path leads nowhere.
    """
    for keys, node in read_overrides(overrides):
        tree = _put(tree, keys, 0, node, shape.root())
    return tree


def read_overrides(overrides: Sequence[str]) -> list[tuple[list[str], Node]]:
    """Return path and value of each override.

    Raises
    ------
    ConfigError
        An override has no ``=`` or no key, or its value is not YAML.
    """
    found = []
    for rank, text in enumerate(overrides):
        # Far behind any file, so that errors of overrides come last and in their order.
        place = Place(f"--set {_one_line(text)}", rank=1_000_000 + rank)
        path, equals, value = text.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise _error(place, "must be key.sub=value, for example clients.count=5")
        Budget(place).spend(len(keys))
        found.append((keys, document.parse(value, place, tuple(keys)) or Node(None, place)))
    return found


def _put(here: Node | None, keys: list[str], depth: int, value: Node, schema: shape.Schema) -> Node:
    if depth == len(keys):
        return value if here is None else merge(here, value, schema)
    key = keys[depth]
    if here is None:
        return Node({key: _put(None, keys, depth + 1, value, {})}, value.place)
    if isinstance(here.value, dict):
        tag = shape.tag_of(schema)
        kind = here.value.get(tag) if tag is not None else None
        below = shape.child(schema, key, to_plain(kind) if kind else None)
        layer = {key: _put(here.value.get(key), keys, depth + 1, value, below)}
        return merge(here, Node(layer, value.place), schema)
    where = dotted(keys[:depth])
    if not isinstance(here.value, list):
        found = shown(to_plain(here))
        raise _error(value.place, f"{where}: has no keys, it is the single value {found}")
    count = len(here.value)
    if not re.fullmatch(r"[0-9]{1,9}", key) or int(key) >= count:
        extent = f"the items 0 to {count - 1}" if count else "no items"
        raise _error(value.place, f"{where}: is a list with {extent}, got {shown_key(key)}")
    index, items = int(key), list(here.value)
    items[index] = _put(items[index], keys, depth + 1, value, shape.child(schema, index))
    return Node(items, here.place)


def _error(place: Place, text: str) -> ConfigError:
    return config_error([Problem(place, text)])


def _one_line(text: str) -> str:
    return text if text.isprintable() and len(text) <= 80 else shown(text)
