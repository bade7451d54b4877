"""Modules and arguments that have another name now: the old one works for this release, with a
warning.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

_ENGINE = (
    "admission", "aggregate", "assignment", "chain", "charges", "checkpoint", "combine",
    "composition", "evaluation", "exchange", "explanation", "guard", "policies", "post", "record",
    "roles", "sampling", "spending", "stages", "update",
)  # fmt: skip

MOVED = {
    **{f"strategies.{name}": f"rounds.{name}" for name in _ENGINE},
    **{
        f"clients.{name}": f"node.{name}"
        for name in ("instructions", "made_mods", "memory", "policy", "steps")
    },
    "clients.authentication": "mechanisms.authentication.client",
    "clients.broadcast": "mechanisms.broadcast.client",
    "clients.committee": "mechanisms.secure_sum.client",
    "clients.compression": "mechanisms.compression.client",
    "clients.masked_sum": "mechanisms.masked_sum.client",
    "compression": "mechanisms.compression.core",
    "mechanisms.compress": "mechanisms.compression.options",
    "robust": "mechanisms.robust.core",
    "robust.detection": "mechanisms.detection.core",
    "strategies.authentication": "mechanisms.authentication.server",
    "strategies.bounds": "mechanisms.bounds.server",
    "strategies.broadcast": "mechanisms.broadcast.server",
    "strategies.committee": "mechanisms.secure_sum.session",
    "strategies.compression": "mechanisms.compression.server",
    "strategies.detection": "mechanisms.detection.server",
    "strategies.distributed_dp": "mechanisms.privacy.server.distributed",
    "strategies.masked_sum": "mechanisms.masked_sum.server",
    "strategies.privacy": "mechanisms.privacy.server",
    "strategies.robust": "mechanisms.robust.server",
    "strategies.secure_round": "mechanisms.secure_sum.attempt",
    "strategies.secure_sum": "mechanisms.secure_sum.server",
    "strategies.server_optimizers": "mechanisms.server_optimizers.server",
    "strategies.stale_step": "mechanisms.server_optimizers.stale",
}
"""New names by old ones, below ``qsfl_flower``; modules inside a package follow it."""

STAGES = {
    name.replace("_", "-"): name
    for name in ("adaptive_clip", "central_dp", "control_variates", "distributed_dp", "local_dp",
                 "record_dp", "stale_step")
}  # fmt: skip
"""Names of stages by those that checkpoints and charges of the release before know."""

_LONGEST_FIRST = sorted(MOVED, key=len, reverse=True)


class _Moved(MetaPathFinder, Loader):
    """Finds modules of old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a module of an old name."""
        return None if _new_name(fullname) is None else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Load the module under its new name."""
        if (new := _new_name(spec.name)) is None:
            return None
        warnings.warn(
            f"{spec.name} is now {new}; the old name goes with the next release",
            FutureWarning,
            stacklevel=2,
        )
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__  # which Python replaces by this one
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as its own loader made it."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def _new_name(fullname: str) -> str | None:
    package, _, old = fullname.partition(".")
    if package == "qsfl_flower":
        for name in _LONGEST_FIRST:
            if f"{old}.".startswith(f"{name}."):
                return f"{package}.{MOVED[name]}{old[len(name) :]}"
    return None


def install() -> None:
    """Let imports of old names work; modules inside a moved package would be loaded twice else."""
    sys.meta_path.insert(0, _Moved())


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function or class take arguments by their old names too: ``renamed(old="new")``."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        whose = function.__qualname__.removesuffix(".__init__")
        kind: Any = function if isinstance(function, type) else None
        made: Any = function if kind is None else kind.__init__

        @wraps(made)
        def take(*args: Any, **given: Any) -> R:
            for old in names.keys() & given.keys():
                new = names[old]
                warnings.warn(
                    f"{whose}: {old} is now {new}; the old name goes with the next release",
                    FutureWarning,
                    stacklevel=2,
                )
                if new in given:
                    raise TypeError(f"{whose}: {new} is given twice, as {old} too")
                given[new] = given.pop(old)
            return cast(R, made(*args, **given))

        if kind is None:
            return take
        kind.__init__ = take
        return function

    return wrap
