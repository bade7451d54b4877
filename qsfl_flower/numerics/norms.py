"""Measure updates and clip them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.layout import Layout
from qsfl_flower.numerics.vector import Vector

BLOCK = 32_768


@dataclass(frozen=True)
class Measure:
    """Size of a vector.

    Attributes
    ----------
    norm : float
        Euclidean norm; NaN if the vector is not finite.
    max_abs : float
        Largest absolute value; NaN if the vector is not finite.
    finite : bool
        Whether no coordinate is NaN or infinite.
    layer_norms : tuple of float or None
        Norm of each float array of the layout, if a layout was given.
    """

    norm: float
    max_abs: float
    finite: bool
    layer_norms: tuple[float, ...] | None = None


def measure(vector: Vector, base: Vector | None = None, layout: Layout | None = None) -> Measure:
    """Measure ``vector - base`` in float64."""
    size = vector.size
    if base is not None and base.size != size:
        raise ConfigError(
            f"a vector of {size} coordinates cannot be compared with one of {base.size}"
        )
    spans = [slice(0, size)] if layout is None else list(layout.slices.values())
    norms: list[float] = []
    largest = 0.0
    buffer, other = np.empty(BLOCK), np.empty(BLOCK)
    for span in spans:
        pieces: list[float] = []
        for start in range(span.start, span.stop, BLOCK):
            stop = min(start + BLOCK, span.stop)
            values = buffer[: stop - start]
            vector.read(start, stop, values)
            if base is not None:
                base.read(start, stop, other[: stop - start])
                np.subtract(values, other[: stop - start], out=values)
            np.abs(values, out=values)
            top = float(values.max())
            if not math.isfinite(top):
                return Measure(math.nan, math.nan, False, None)
            largest = max(largest, top)
            if top > 1e150 or top < 1e-150:
                pieces.append(top * float(np.sqrt(np.sum(np.square(values / top)))) if top else 0.0)
            else:
                pieces.append(math.sqrt(float(np.dot(values, values))))
        norms.append(math.hypot(*pieces))
    return Measure(math.hypot(*norms), largest, True, tuple(norms) if layout is not None else None)


def clip_scale(norm: float, clip_norm: float) -> float:
    """Return the largest convenient factor s <= 1 with ``s * norm <= clip_norm``."""
    if norm <= clip_norm:
        return 1.0
    scale = clip_norm / norm
    while scale * norm > clip_norm:
        scale = math.nextafter(scale, 0.0)
    return scale


@dataclass(frozen=True)
class Clip:
    """Bound of the norm of one client's update."""

    clip_norm: float
    per_layer: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.clip_norm, int | float) and 0 < self.clip_norm < math.inf):
            raise ConfigError(f"clip_norm is {self.clip_norm!r}; a finite number above 0 is needed")

    def scales(self, measure: Measure) -> float | NDArray[np.float64]:
        """Return the factor of the update, or one factor per float layer."""
        if not self.per_layer:
            return clip_scale(measure.norm, self.clip_norm)
        if measure.layer_norms is None:
            raise ConfigError(
                "per-layer clipping needs the norms of the layers: measure with a layout"
            )
        share = self.clip_norm / math.sqrt(len(measure.layer_norms))
        return np.array([clip_scale(norm, share) for norm in measure.layer_norms])
