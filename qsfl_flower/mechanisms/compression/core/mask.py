"""Coordinates that are public and the same for all clients of a round.

Updates on one support can be added up unseen, compared, and noised like any short vector; the
coordinates themselves tell nothing about a client. Two kinds:

- *randomk*: a random set from the round's seed.
- *topk*: half of them where the last released step of the global model was largest, half random.
  The random half is needed: a step lies within its own support, so that the largest coordinates
  alone would never change again. What is released is public, so looking at it costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.mechanisms.compression.core.indices import decode_indices, encode_indices
from qsfl_flower.mechanisms.compression.core.select import Indices, keep_count, random_k, top_k
from qsfl_flower.mechanisms.compression.core.values import Floats
from qsfl_flower.mechanisms.compression.options import MaskOptions


@dataclass(frozen=True)
class Mask(MaskOptions):
    """How the public coordinates of a round are found, and how their values are sent.

    Parameters
    ----------
    select : str
        ``"randomk"`` or ``"topk"``.
    ratio : float
        Share of the coordinates, 0 < ratio <= 1.
    values : str
        Format of the values where they are sent in the clear, see `FORMATS`; levels are rounded
        stochastically. Hidden updates have a format of their own.
    feedback : bool
        Keep the other coordinates on the client for its next difference. Without it the values of
        ``randomk`` are multiplied by d / k, so that the update is right in expectation.
    """

    def leading(self, last_step: Floats | None) -> Indices:
        """Return the coordinates that come from the last released step, shape (d,), if any."""
        if self.select == "randomk" or last_step is None or not np.any(last_step):
            return np.empty(0, np.int64)
        return top_k(last_step, keep_count(last_step.size, self.ratio) // 2)

    def support(self, leading: Indices, size: int, seed: int) -> Indices:
        """Return the increasing coordinates of a round: the leading ones and random others."""
        count = keep_count(size, self.ratio)
        if leading.size > count:
            raise ConfigError(f"{leading.size} leading coordinates of {count}")
        others = np.ones(size, bool)
        others[leading] = False
        drawn = random_k(size - leading.size, count - leading.size, seed)
        others[np.flatnonzero(others)[drawn]] = False
        return np.flatnonzero(~others)

    def scale(self, size: int) -> float:
        """Return the factor on a client's values."""
        if self.feedback or self.select == "topk":
            return 1.0
        return size / keep_count(size, self.ratio)


def pack_leading(leading: Indices, size: int) -> bytes:
    """Write coordinates for the instruction: their number (4 bytes), Rice parameter, gaps."""
    rice, data = encode_indices(leading, size)
    return leading.size.to_bytes(4) + bytes([rice]) + data.tobytes()


def unpack_leading(data: bytes, size: int) -> Indices:
    """Return what `pack_leading` wrote.

    Raises
    ------
    RejectedUpdate
        ``bad-indices``: anything else.
    """
    if len(data) < 5:
        raise RejectedUpdate("bad-indices", f"{len(data)} bytes are too few for a list")
    body = np.frombuffer(data, np.uint8, offset=5)
    return decode_indices(body, int.from_bytes(data[:4]), size, data[4])
