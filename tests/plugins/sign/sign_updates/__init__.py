"""Clients send the signs of their updates and one magnitude: a stage with both halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.plugins import Mechanism, Options, option

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SignOptions(Options):
    """Clients send one bit per coordinate, and how large the coordinates are."""

    magnitude: Literal["mean", "median"] = option("What the sign is multiplied by.", "mean")
    largest: float = option("Larger magnitudes are rejected.", 10.0, gt=0)


def encode(values: Floats, options: SignOptions) -> bytes:
    """Return the signs of shape (d,) values in ceil(d / 8) + 8 bytes."""
    size = getattr(np, options.magnitude)(np.abs(values))
    return np.float64(size).tobytes() + np.packbits(values >= 0).tobytes()


def decode(data: bytes, size: int, options: SignOptions) -> Floats:
    """Return the `size` values that `encode` wrote."""
    if len(data) != 8 + -(-size // 8):
        raise RejectedUpdate("malformed", f"{len(data)} bytes for {size} signs")
    magnitude = float(np.frombuffer(data[:8])[0])
    if not 0 <= magnitude <= options.largest:
        raise RejectedUpdate("out-of-range", f"the magnitude is {magnitude:.3g}")
    signs = np.unpackbits(np.frombuffer(data[8:], np.uint8), count=size)
    return magnitude * (2.0 * signs - 1.0)


MECHANISM = Mechanism(
    "sign", SignOptions, server="sign_updates.server:Sign", client="sign_updates.client:STEPS"
)
