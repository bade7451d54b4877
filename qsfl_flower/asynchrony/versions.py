"""The models that tasks under way started from and may still count, and no others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Generic, TypeVar

from qsfl_flower.errors import ConfigError

Model = TypeVar("Model")


@dataclass(frozen=True)
class Versions(Generic[Model]):
    """Models of the newest `capacity` versions.

    An old model is kept only while a task under way started from it: the difference between its
    answer and that model is the update. Models are referred to, not copied.

    Parameters
    ----------
    capacity : int
        How many versions may be held, the newest included, >= 1. A version that is `capacity` or
        more behind the newest is dropped: answers that started from it are too stale.
    held : Mapping[int, Model]
        Models by version, the oldest first.
    """

    capacity: int
    held: Mapping[int, Model] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ConfigError(f"versions: capacity is {self.capacity!r}; it must be >= 1")

    def add(self, version: int, model: Model, needed: Collection[int]) -> Versions[Model]:
        """Return the store with a new model, and of the old ones only those that are needed."""
        kept = {v: m for v, m in self.held.items() if v in needed} | {version: model}
        oldest = max(kept) - self.capacity + 1
        held = {v: kept[v] for v in sorted(kept) if v >= oldest}
        return replace(self, held=MappingProxyType(held))
