"""Statistics of normalization as integers that are summed under the same protection as the update.

They lie behind the update and the tally, so that no clip norm, no distance and no optimizer sees
them, and every client counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.numerics import Layout

BITS = 20
LARGEST = float(1 << 20)
_UNIT = 1 << BITS


@dataclass(frozen=True)
class Statistics:
    """The floating-point buffers of a model, and how they are added up.

    A value is sent as a multiple of 2^-20 of at most 2^20 in magnitude. Where the model's own value
    is no number (a mask), that stays.

    Parameters
    ----------
    layout : Layout
        The model's layout; its `statistics` are meant.
    """

    layout: Layout

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array, by name."""
        shapes = dict(zip(self.layout.names, self.layout.shapes, strict=True))
        return {name: shapes[name] for name in self.layout.statistics}

    @property
    def size(self) -> int:
        """How many integers there are."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def told(self) -> str:
        """Return what an explanation has to say about them, after "the updates"."""
        return f", of {self.size:,} statistics of normalization" if self.size else ""

    def take(
        self, values: Mapping[str, NDArray[Any]], own: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.int64]:
        """Return a client's integers, of magnitude at most 2^40.

        Parameters
        ----------
        values, own : Mapping[str, numpy.ndarray]
            The buffers that the client has trained, and those that it was sent.

        Raises
        ------
        RejectedUpdate
            ``out-of-range``, also for NaN and infinity, with the name of the array.
        """
        parts = [np.empty(0, np.int64)]
        for name in self.shapes:
            known = np.isfinite(own[name])
            found = np.where(known, values[name], 0).astype(np.float64).reshape(-1)
            largest = np.abs(found).max(initial=0.0)
            if not largest <= LARGEST:
                raise RejectedUpdate(
                    "out-of-range",
                    f"buffer {name!r} holds more than a hidden sum has room for, {LARGEST:g}: "
                    f"scale the data, or give the strategy roles={{{name!r}: 'local', ...}}",
                )
            parts.append(np.rint(found * _UNIT).astype(np.int64))
        return np.concatenate(parts)

    def read(
        self,
        sums: NDArray[np.int64],
        clients: int,
        own: Mapping[str, NDArray[Any]],
        share: float = 1.0,
    ) -> dict[str, NDArray[Any]]:
        """Return the next buffers from the sums over `clients`.

        Parameters
        ----------
        sums : numpy.ndarray
            Shape (size,), int64.
        clients : int
            How many clients are in the sums, >= 1.
        own : Mapping[str, numpy.ndarray]
            The buffers of this round's model.
        share : float
            In [0, 1]: what the mean counts for; the rest is the model's own.

        Raises
        ------
        RejectedUpdate
            ``implausible-sum`` if that cannot be the sum of so many clients' values.
        """
        new: dict[str, NDArray[Any]] = {}
        start = 0
        for name, shape in self.shapes.items():
            array, stop = own[name], start + math.prod(shape)
            part, start = sums[start:stop].reshape(shape), stop
            limit = clients * min(LARGEST, float(np.finfo(array.dtype).max)) * _UNIT
            if part.size and float(np.abs(part.astype(np.float64)).max()) > limit:
                raise RejectedUpdate(
                    "implausible-sum", f"the sum of {clients} clients' {name!r} is out of range"
                )
            mean = part / (clients * _UNIT)
            if share < 1:
                mean = share * mean + (1 - share) * np.where(np.isfinite(array), array, 0)
            new[name] = np.where(np.isfinite(array), mean, array).astype(array.dtype)
        return new
