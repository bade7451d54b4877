"""Configuration as a tree whose every value remembers where it was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qsfl_flower.errors import ConfigError

Path = tuple[str | int, ...]

_MAX_DEPTH = 24
_MAX_VALUES = 50_000
_SHOWN = 60


@dataclass(frozen=True)
class Place:
    """Where a value was written.

    Parameters
    ----------
    source : str
        File as the user would name it, or the override itself.
    line : int or None
        Counted from 1; None where there are no lines.
    rank : int
        Order in which the sources were read.
    via : tuple of str
        Files that extend this one, the nearest first.
    """

    source: str
    line: int | None = None
    rank: int = 0
    via: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"

    def at(self, line: int) -> Place:
        """Return the same source at another line."""
        return Place(self.source, line, self.rank, self.via)


@dataclass(frozen=True)
class Node:
    """A value with its place: a dict of nodes, a list of nodes, or a scalar."""

    value: object
    place: Place


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is and one sentence about it."""

    place: Place
    text: str
    order: int = field(default=0)

    def __str__(self) -> str:
        via = f" (extended by {', '.join(self.place.via)})" if self.place.via else ""
        return f"{self.place}: {self.text}{via}"


def config_error(problems: Iterable[Problem]) -> ConfigError:
    """Put problems into one error, a line each, in the order of files and lines."""
    ordered = sorted(problems, key=lambda one: (one.place.rank, one.place.line or 0, one.order))
    return ConfigError("\n".join(dict.fromkeys(str(one) for one in ordered)))


class Budget:
    """Bounds a tree while it is built, so that no input makes it deep or huge.

    Parameters
    ----------
    place : Place
        Source to name when the bound is passed.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._left = _MAX_VALUES

    def spend(self, depth: int) -> None:
        """Count one more value at the given depth.

        Raises
        ------
        ConfigError
            The tree is deeper or has more values than any configuration needs.
        """
        self._left -= 1
        if depth > _MAX_DEPTH:
            text = f"nested deeper than {_MAX_DEPTH} levels"
        elif self._left < 0:
            text = f"more than {_MAX_VALUES} values (what an alias repeats counts too)"
        else:
            return
        raise config_error([Problem(self._place, text)])


def from_plain(value: object, place: Place) -> Node:
    """Turn plain Python data into a tree whose values all have the same place.

    Raises
    ------
    ConfigError
        Data is nested too deeply (or contains itself), is too large, or holds something other
        than text, numbers, booleans, None, lists and mappings.
    """
    budget = Budget(place)

    def build(part: object, path: Path) -> Node:
        budget.spend(len(path))
        if isinstance(part, Mapping):
            items = {str(key): one for key, one in part.items()}
            return Node({key: build(one, (*path, key)) for key, one in items.items()}, place)
        if isinstance(part, list | tuple):
            return Node([build(one, (*path, index)) for index, one in enumerate(part)], place)
        if part is not None and type(part) not in (str, int, float, bool):
            text = f"{dotted(path)}: must be plain data as in a file, got {shown(part)}"
            raise config_error([Problem(place, text)])
        return Node(part, place)

    return build(value, ())


def to_plain(node: Node) -> object:
    """Drop the places and return plain Python data."""
    if isinstance(node.value, dict):
        return {key: to_plain(one) for key, one in node.value.items()}
    if isinstance(node.value, list):
        return [to_plain(one) for one in node.value]
    return node.value


def deepest(node: Node, path: Path) -> Node:
    """Return the node at a path or, where there is none, the nearest one above."""
    here = node
    for key in path:
        if isinstance(here.value, dict) and key in here.value:
            here = here.value[key]
        elif isinstance(here.value, list) and key in range(len(here.value)):
            here = here.value[int(key)]
        else:
            break
    return here


def dotted(path: Iterable[str | int]) -> str:
    """Write a path as ``strategy.stages.0.clip_norm``, the way an override writes it."""
    return ".".join(shown_key(key) for key in path)


def shown_key(key: str | int) -> str:
    """Write a key so that it fits on the line of a message."""
    text = str(key)
    return text if re.fullmatch(r"[\w<$-]{1,60}", text) else shown(text)


def shown(value: object) -> str:
    """Write a value the way it looks in YAML, on one line and not too long."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{shown_key(str(k))}: {shown(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(one) for one in value) + "]"
    elif isinstance(value, str):
        text = repr(value) if value.isprintable() else ascii(value)
    elif isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 512):
        text = repr(value)
    else:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
