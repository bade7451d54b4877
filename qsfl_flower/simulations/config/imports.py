"""Which modules a configuration asks for, and importing them where a user has named it.

Code comes in through a configuration in three ways: ``plugins:``, an entry point that has the name
of something that the suite does not know, and an import path (of a model, of a loss).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint

from qsfl_flower import plugins
from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config.base import IMPORT_PATH, MODULE
from qsfl_flower.simulations.config.extended import PLACES, built_in
from qsfl_flower.simulations.config.tree import Node, Path, Place, Problem, config_error, dotted

_MODULE, _PATH = re.compile(MODULE), re.compile(IMPORT_PATH)
_PATHS = ("name", "loss")
"""The keys whose value can be an import path."""

_HOMES = {
    "rule": "qsfl_flower.mechanisms.robust.core.registry:RULES",
    "attack": "qsfl_flower.mechanisms.robust.core.attacks.registry:ATTACKS",
    "model": "qsfl_flower.clients.models:MODELS",
    "dataset": "qsfl_flower.clients.data:SOURCES",
    "selection": "qsfl_flower.rounds.policies:POLICIES",
}
"""Where the suite itself looks for a name."""


@dataclass(frozen=True)
class Import:
    """A module that a configuration asks for.

    Parameters
    ----------
    module : str
        Its name.
    why : str
        What asks for it.
    path : tuple
        The key that does.
    place : Place
        Where that was written.
    entry : EntryPoint or None
        The entry point behind it.
    """

    module: str
    why: str
    path: Path
    place: Place
    entry: EntryPoint | None = None


def imports_of(tree: Node) -> list[Import]:
    """Return what a tree asks for, in its order; imports nothing."""
    found: dict[str, Import] = {}
    listed = tree.value.get("plugins") if isinstance(tree.value, dict) else None
    if listed is not None and isinstance(listed.value, list):
        for index, one in enumerate(listed.value):
            if isinstance(one.value, str) and _MODULE.fullmatch(one.value):
                found[one.value] = Import(one.value, "plugins", ("plugins", index), one.place)
    unknown = [one for one in _names(tree, ()) if one[1] not in built_in(one[0])]
    entries = plugins.declared() if unknown else {}
    for kind, name, path, place in unknown:
        if _PATH.fullmatch(name):
            module = name.partition(":")[0]
            found.setdefault(name, Import(module, dotted(path), path, place))
        elif (entry := entries.get((kind, name))) is not None:
            dist = "" if entry.dist is None else f" of {entry.dist.name} {entry.dist.version}"
            why = f"entry point {name!r}{dist}, for {dotted(path)}"
            found.setdefault(f"{kind} {name}", Import(entry.module, why, path, place, entry))
    return list(found.values())


def load(tree: Node, allowed: Collection[str] | None) -> None:
    """Import what a tree asks for, so that its names are known from now on.

    Parameters
    ----------
    tree : Node
        The configuration.
    allowed : collection of str or None
        Modules that the user has named; None: any, since the user has named the configuration.

    Raises
    ------
    ConfigError
        If one is not allowed, cannot be imported, or is not a plugin.
    """
    for one in imports_of(tree):
        where = f"{dotted(one.path)}: "
        if allowed is not None and one.module not in allowed:
            raise config_error(
                [
                    Problem(
                        one.place,
                        f"{where}asks for module {one.module!r}, and a run folder imports nothing "
                        f"by itself: if you trust it, add --plugin {one.module}",
                    )
                ]
            )
        try:
            if one.entry is not None:
                _install(plugins.load_entry(one.entry))
            elif one.path[0] == "plugins":
                for plugin in plugins.load_module(one.module):
                    _install(plugin)
        except ConfigError as error:
            raise config_error([Problem(one.place, where + str(error))]) from error


def _install(plugin: plugins.Plugin) -> None:
    if plugin.name in built_in(plugin.kind):
        raise ConfigError(
            f"{plugin.kind} {plugin.name!r} comes with the suite; give yours another name"
        )
    plugins.add(plugin)
    if isinstance(plugin, plugins.Extension) and plugin.kind in _HOMES:
        plugins.attribute(_HOMES[plugin.kind])[plugin.name] = plugin.make


def _names(node: Node, path: Path) -> Iterator[tuple[str, str, Path, Place]]:
    """Yield kind, name, path and place of whatever can have the name of a plugin."""
    if isinstance(node.value, list):
        for index, one in enumerate(node.value):
            yield from _names(one, (*path, index))
    elif isinstance(node.value, dict):
        for key, one in node.value.items():
            asks = key in PLACES or key in _PATHS
            if asks and isinstance(one.value, str) and (key != "name" or path == ("model",)):
                yield PLACES.get(key, ""), one.value, (*path, key), one.place
            yield from _names(one, (*path, key))
