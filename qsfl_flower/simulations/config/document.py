"""YAML text to a tree with places, and back: YAML 1.2 words and numbers, one clear error."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from qsfl_flower.simulations.config.tree import (
    Budget,
    Node,
    Path,
    Place,
    Problem,
    config_error,
    dotted,
    shown,
)

# The core schema of YAML 1.2: `on`, `yes` and `12:30` are text, `1e-3` is a number.
_CORE: Final = (
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    (
        "tag:yaml.org,2002:int",
        re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
        list("-+0123456789"),
    ),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        list("-+.0123456789"),
    ),
)


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's pure parser with the resolver of YAML 1.2; only its `compose` step is used."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as in PyYAML


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would not read back as text."""

    def ignore_aliases(self, data: object) -> bool:
        """Repeat values instead of pointing at them."""
        return True


for _tag, _pattern, _first in _CORE:
    _exact = re.compile(rf"^(?:{_pattern.pattern})$")
    _CoreLoader.add_implicit_resolver(_tag, _exact, _first)
    _Dumper.add_implicit_resolver(_tag, _exact, _first)


def _represent_text(dumper: _Dumper, data: str) -> yaml.ScalarNode:
    # PyYAML writes these into single quotes, where they are read back as spaces.
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", data) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(data: object) -> str:
    """Write plain data as YAML that any YAML 1.1 or 1.2 reader understands alike."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return text


def parse(text: str, place: Place, path: Path = ()) -> Node | None:
    """Read one YAML document into a tree; None if there is nothing in it.

    Parameters
    ----------
    text : str
        The document.
    place : Place
        Its source; without a line (an override) values have none either.
    path : tuple
        Where the document will stand in the tree, for messages.

    Raises
    ------
    ConfigError
        Text is not one YAML document, or it uses tags, keys that are not text, or keys twice.
    """
    try:
        loader = _CoreLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise config_error([_syntax_problem(error, text, place)]) from None
    except RecursionError:
        raise config_error([Problem(place, "not valid YAML: nested too deeply")]) from None
    except (ValueError, OverflowError):
        text = "not valid YAML: an escape names a character that does not exist"
        raise config_error([Problem(place, text)]) from None
    if root is None or (root.tag == _CORE[0][0] and not root.value):
        return None
    return _Builder(place).build(root, path)


def _syntax_problem(error: yaml.YAMLError, text: str, place: Place) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        if "'\\t'" in what:
            what = "a tab cannot indent or separate; use spaces"
        elif "expected a single document" in (error.context or ""):
            what = "a second document starts here ('---'); one file describes one experiment"
        elif "mapping values are not allowed" in what:
            what = "': ' is not allowed here; quote the text, or check the indentation"
        elif "expected <block end>" in what:
            what = "the indentation does not fit the lines above"
        line = mark.line if mark is not None else 0
    elif isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position)
        what = f"the character {text[error.position : error.position + 1]!a} is not allowed"
    else:
        line, what = 0, " ".join(str(error).split())
    return Problem(_line(place, line), f"not valid YAML: {what}")


def _line(place: Place, line: int) -> Place:
    return place if place.line is None else place.at(line + 1)


class _Builder:
    """Turns PyYAML's nodes into ours and collects what is wrong with them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.budget = Budget(place)
        self.problems: list[Problem] = []

    def build(self, root: yaml.Node, path: Path) -> Node:
        node = self._node(root, path, _line(self.place, root.start_mark.line))
        if self.problems:
            raise config_error(self.problems)
        return node

    def _node(self, node: yaml.Node, path: Path, place: Place) -> Node:
        self.budget.spend(len(path))
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return Node(self._mapping(node, path), place)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            items = [
                self._node(one, (*path, index), _line(self.place, one.start_mark.line))
                for index, one in enumerate(node.value)
            ]
            return Node(items, place)
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node, path, place), place)
        self._tag_problem(node, path, place)
        return Node(None, place)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = _line(self.place, key_node.start_mark.line)
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(place, path, "a key must be text, not a list or a mapping")
                continue
            key = key_node.value
            if key in entries:
                first = entries[key].place.line
                since = "" if first is None else f", first on line {first}"
                self._add(place, (*path, key), f"given twice{since}")
                continue
            entries[key] = self._node(value_node, (*path, key), place)
        return entries

    def _scalar(
        self, node: yaml.ScalarNode, path: Path, place: Place
    ) -> str | int | float | bool | None:
        text: str = node.value
        try:
            match node.tag.removeprefix("tag:yaml.org,2002:"):
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text, 0 if text.startswith(("0o", "0x")) else 10)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            self._add(place, path, f"cannot be read as {node.tag.rsplit(':')[-1]}: {shown(text)}")
            return None
        self._tag_problem(node, path, place)
        return None

    def _tag_problem(self, node: Any, path: Path, place: Place) -> None:
        tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
        self._add(place, path, f"YAML tags are not allowed, got {shown(tag)}")

    def _add(self, place: Place, path: Path, text: str) -> None:
        where = f"{dotted(path)}: " if path else ""
        self.problems.append(Problem(place, where + text, len(self.problems)))
