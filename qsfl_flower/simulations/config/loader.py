"""From a file, its bases and overrides to an experiment."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from qsfl_flower.simulations.config import document, imports, shape
from qsfl_flower.simulations.config.experiment import Experiment, experiment_class
from qsfl_flower.simulations.config.explain import explain
from qsfl_flower.simulations.config.files import Unreadable, display, find_file, read
from qsfl_flower.simulations.config.merge import apply_overrides, merge, read_overrides
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


def load_experiment(
    path: Path | str, overrides: Sequence[str] = (), *, allowed: Collection[str] | None = None
) -> Experiment:
    """Read an experiment from a YAML file, with what it extends and with overrides.

    Parameters
    ----------
    path : Path or str
        A file, or the bare name of a shipped configuration (``"quickstart"``).
    overrides : sequence of str
        ``key.sub=value`` each, the value as YAML; applied in order after everything else.
    allowed : collection of str, optional
        Modules that it may import; by default all that it asks for, since the user has named it.
        A file that a run has left is read with those that the user has named.

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
    layers = _read_layers(str(path))
    given = read_overrides(overrides)
    for layer in [*layers, *(_as_tree(keys, node) for keys, node in given)]:
        imports.load(layer, allowed)
    tree = _defaults()
    for layer in layers:
        tree = merge(tree, layer, shape.root())
    return _validated(apply_overrides(tree, overrides))


def asked_imports(experiment: Experiment) -> list[str]:
    """Return which modules an experiment imports, and what asks for each: a phrase each."""
    tree = from_plain(experiment.model_dump(mode="json"), Place("experiment"))
    return [f"{one.module} ({one.why})" for one in imports.imports_of(tree)]


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
    imports.load(tree, None)
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
        return experiment_class().model_validate(to_plain(tree))
    except ValidationError as error:
        raise config_error(explain(error, tree)) from None


def _as_tree(keys: list[str], node: Node) -> Node:
    """Return an override as the tree that a file with its value alone would be."""
    for key in reversed(keys):
        node = Node({key: node}, node.place)
    return node


def _read_layers(name: str) -> list[Node]:
    """Read a file and what it extends, the most basic file first."""
    place = Place(display(Path(name)))
    try:
        path = find_file(name, Path())
        place = Place(display(path))
        text = read(path)
    except Unreadable as error:
        raise config_error([Problem(place, str(error))]) from None
    ranks = itertools.count()
    return _layers_of(path, text, (), next(ranks), ranks)


def _layers_of(
    path: Path, text: str, above: tuple[Path, ...], rank: int, ranks: Iterator[int]
) -> list[Node]:
    place = Place(display(path), 1, rank, tuple(display(one) for one in reversed(above)))
    tree = document.parse(text, place)
    if tree is None:
        hint = "the file is empty; a first line could be 'extends: quickstart'"
        raise config_error([Problem(place, hint)])
    entries = _sections(tree)
    if "questions" in entries:
        text = "this file asks questions; run it with `qsfl analytics`"
        raise config_error([Problem(entries["questions"].place, text)])
    bases = _bases(entries["extends"]) if "extends" in entries else []
    layers: list[Node] = []
    for node in bases:
        layers += _layers_below(node, (*above, path), ranks)
    own = {key: one for key, one in entries.items() if key != "extends"}
    return [*layers, Node(own, tree.place)]


def _layers_below(node: Node, above: tuple[Path, ...], ranks: Iterator[int]) -> list[Node]:
    name = str(node.value)
    rank = next(ranks)
    try:
        path = find_file(name, above[-1].parent)
        if any(path.samefile(one) for one in above):
            circle = " -> ".join(display(one) for one in (*above, path))
            raise Unreadable(f"goes in a circle: {circle}")
        if rank >= _MAX_FILES:
            raise Unreadable(f"makes more than {_MAX_FILES} files")
        text = read(path)
    except (Unreadable, OSError) as error:
        raise config_error([Problem(node.place, f"extends: {shown(name)}: {error}")]) from None
    return _layers_of(path, text, above, rank, ranks)


def _bases(node: Node) -> list[Node]:
    nodes: list[Node] = node.value if isinstance(node.value, list) else [node]
    for one in nodes:
        if not isinstance(one.value, str):
            wanted = "a path, the name of a configuration, or a list of those"
            text = f"extends: must be {wanted}, got {shown(to_plain(one))}"
            raise config_error([Problem(one.place, text)])
    return nodes


def _sections(tree: Node) -> dict[str, Node]:
    if not isinstance(tree.value, dict):
        keys = ", ".join(shape.root()["properties"])
        text = f"the top level must be a mapping with keys ({keys}), got {shown(to_plain(tree))}"
        raise config_error([Problem(tree.place, text)])
    return tree.value
