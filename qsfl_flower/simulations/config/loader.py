"""From a file, its bases and overrides to an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from qsfl_flower.simulations.config import document, shape
from qsfl_flower.simulations.config.experiment import Experiment
from qsfl_flower.simulations.config.explain import explain
from qsfl_flower.simulations.config.files import Unreadable, display, find_file, read
from qsfl_flower.simulations.config.merge import apply_overrides, merge
from qsfl_flower.simulations.config.tree import (
    Node,
    Place,
    Problem,
    config_error,
    from_plain,
    shown,
    to_plain,
)

_MAX_FILES = 50


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from a YAML file, with what it extends and with overrides.

    Parameters
    ----------
    path : Path or str
        A file, or the bare name of a shipped configuration (``"quickstart"``).
    overrides : sequence of str
        ``key.sub=value`` each, the value as YAML; applied in order after everything else.

    Returns
    -------
    Experiment
        Complete and checked.

    Raises
    ------
    ConfigError
        A file cannot be read or the result is not a valid experiment. The message has a line
        for each mistake: file and line, key, value, what is allowed.
    """
    tree = _defaults()
    for layer in _Files(str(path)).layers:
        tree = merge(tree, layer, shape.root())
    return _validated(apply_overrides(tree, overrides))


def experiment_from_dict(data: Mapping[str, object], source: str = "dict") -> Experiment:
    """Build an experiment from plain data, with the defaults and checks of a file.

    Parameters
    ----------
    data : mapping
        Sections and keys as in a file; ``extends`` is not available.
    source : str
        Name of the data in error messages.

    Returns
    -------
    Experiment
        Complete and checked.

    Raises
    ------
    ConfigError
        The data is not a valid experiment.
    """
    tree = from_plain(data, Place(source))
    _sections(tree)
    return _validated(merge(_defaults(), tree, shape.root()))


def dump_experiment(experiment: Experiment) -> str:
    """Write an experiment as a complete YAML file; loading it gives an equal experiment.

    Parameters
    ----------
    experiment : Experiment
        The experiment.

    Returns
    -------
    str
        YAML with every key, defaults included.
    """
    return document.dump(experiment.model_dump(mode="json"))


@cache
def _defaults() -> Node:
    return from_plain(Experiment().model_dump(mode="json"), Place("defaults", rank=-1))


def _validated(tree: Node) -> Experiment:
    try:
        return Experiment.model_validate(to_plain(tree))
    except ValidationError as error:
        raise config_error(explain(error, tree)) from None


class _Files:
    """Reads a file and what it extends; `layers` has the most basic file first.

    Parameters
    ----------
    name : str
        Path or bare name of the file.
    """

    def __init__(self, name: str) -> None:
        self.layers: list[Node] = []
        self._count = 0
        place = Place(display(Path(name)))
        try:
            path = find_file(name, Path())
            place = Place(display(path))
            text = read(path)
        except Unreadable as error:
            raise config_error([Problem(place, str(error))]) from None
        self._add(path, text, ())

    def _add(self, path: Path, text: str, above: tuple[Path, ...]) -> None:
        via = tuple(display(one) for one in reversed(above))
        place = Place(display(path), 1, self._count, via)
        self._count += 1
        tree = document.parse(text, place)
        if tree is None:
            hint = "the file is empty; a first line could be 'extends: quickstart'"
            raise config_error([Problem(place, hint)])
        entries = _sections(tree)
        extends = entries.pop("extends", None)
        for node in _names(extends) if extends is not None else ():
            self._extend(node, path, (*above, path))
        self.layers.append(tree)

    def _extend(self, node: Node, path: Path, above: tuple[Path, ...]) -> None:
        name = str(node.value)
        try:
            base = find_file(name, path.parent)
            if any(base.samefile(one) for one in above):
                circle = " -> ".join(display(one) for one in (*above, base))
                raise Unreadable(f"goes in a circle: {circle}")
            if self._count >= _MAX_FILES:
                raise Unreadable(f"makes more than {_MAX_FILES} files")
            text = read(base)
        except (Unreadable, OSError) as error:
            raise config_error([Problem(node.place, f"extends: {shown(name)}: {error}")]) from None
        self._add(base, text, above)


def _sections(tree: Node) -> dict[str, Node]:
    if not isinstance(tree.value, dict):
        keys = ", ".join(shape.root()["properties"])
        text = f"the top level must be a mapping with keys ({keys}), got {shown(to_plain(tree))}"
        raise config_error([Problem(tree.place, text)])
    return tree.value


def _names(node: Node) -> list[Node]:
    nodes: list[Node] = node.value if isinstance(node.value, list) else [node]
    for one in nodes:
        if not isinstance(one.value, str):
            wanted = "a path, the name of a configuration, or a list of those"
            text = f"extends: must be {wanted}, got {shown(to_plain(one))}"
            raise config_error([Problem(one.place, text)])
    return nodes
