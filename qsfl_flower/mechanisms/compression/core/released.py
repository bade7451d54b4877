"""A chain of models, each one released step after the other, named by digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.compression.core.record import decode_record
from qsfl_flower.numerics.layout import Layout
from qsfl_flower.numerics.vector import Vector

KEPT_STEPS = 16
"""Steps that are kept for clients that were away."""


def model_digest(vector: Vector) -> str:
    """Return the SHA-256 of a model's trained arrays in order, as 64 digits."""
    found = hashlib.sha256()
    for piece in vector.pieces:
        found.update(np.ascontiguousarray(piece).view(np.uint8).data)
    return found.hexdigest()


def follow(
    arrays: Mapping[str, NDArray[Any]], layout: Layout, steps: Sequence[bytes]
) -> dict[str, NDArray[Any]]:
    """Return a model after several records, with the additions and roundings of the server.

    Raises
    ------
    RejectedUpdate
        If a record is not one, see `decode_record`.
    """
    model, step = dict(arrays), np.empty(layout.size)
    beside = {name: arrays[name] for name in layout.beside}
    for record in steps:
        decode_record(record, layout.size).read(0, layout.size, step)
        model = layout.unpack(step, beside, base=Vector.of(model, layout))
    return model


@dataclass(frozen=True)
class Released:
    """The last models and the steps between them.

    Parameters
    ----------
    models : tuple of str
        Digests, the oldest first.
    steps : tuple of bytes
        The records between each model and the next: one fewer.
    """

    models: tuple[str, ...] = ()
    steps: tuple[bytes, ...] = ()

    def plus(self, before: str, record: bytes, after: str) -> Released:
        """Add a step; what does not lead up to it is forgotten."""
        if before not in self.models:
            return Released((before, after), (record,))
        place = self.models.index(before)
        models = (*self.models[: place + 1], after)[-KEPT_STEPS - 1 :]
        return Released(models, (*self.steps[:place], record)[-KEPT_STEPS:])

    def between(self, held: str | None, wanted: str) -> tuple[bytes, ...] | None:
        """Return the steps from one model to another, or None if there is no way."""
        if held not in self.models or wanted not in self.models:
            return None
        first, last = self.models.index(held), self.models.index(wanted)
        return self.steps[first:last] if first <= last else None

    def to_state(self) -> dict[str, Any]:
        """Return arrays and JSON values."""
        data = np.frombuffer(b"".join(self.steps), np.uint8)
        return {"models": list(self.models), "lengths": [len(s) for s in self.steps], "steps": data}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Released:
        """Read what `to_state` returned."""
        data, ends = state["steps"].tobytes(), np.cumsum([0, *state["lengths"]])
        steps = tuple(data[lo:hi] for lo, hi in pairwise(ends))
        return cls(tuple(state["models"]), steps)
