"""Measure updates and clip them, in float64 whatever the dtype of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.numerics.blocks import ROW, Floats, blocks, map_threads, threads_for
from qsfl_flower.numerics.layout import Layout
from qsfl_flower.numerics.vector import Vector

_BLOCK = 1 << 18
"""Coordinates measured at a time; one or two buffers of 2 MiB."""

_SMALL = 2.0**-900
"""Below this sum of squares, single squares may have vanished."""


@dataclass(frozen=True)
class Measure:
    """The size of one vector.

    Attributes
    ----------
    norm : float
        Euclidean norm. NaN if the vector is not finite; infinite only if it is finite but its
        norm exceeds the range of float64.
    finite : bool
        Whether no coordinate is NaN or infinite.
    layer_norms : tuple of float or None
        The norm of each float array in the layout's order; None if no layout was given or the
        vector is not finite.
    """

    norm: float
    finite: bool = True
    layer_norms: tuple[float, ...] | None = None


def measure(vector: Vector, base: Vector | None = None, layout: Layout | None = None) -> Measure:
    r"""Measure :math:`\delta = v - b` in float64.

    One pass in blocks. Squares of float32 would overflow above a norm of 1.8e19 and vanish below
    1e-23; squares of float64 do so beyond 1e154 and 1e-162, and then the vector is measured again
    after multiplication by a power of two. So every finite vector gets its norm, with about 13
    correct digits.

    Parameters
    ----------
    vector : Vector
        The vector v.
    base : Vector, optional
        The vector b, for an update the global model; zero by default. Given as one float64 array
        (`Vector.dense`) it is read without copying.
    layout : Layout, optional
        If given, the norm of each float array is measured as well.

    Returns
    -------
    Measure
        The same bits on every run on one machine; dot products are left to BLAS, so that the last
        bits may differ between kinds of processor.

    Raises
    ------
    ConfigError
        If the sizes do not fit together.
    """
    size = vector.size
    if base is not None and base.size != size:
        raise ConfigError(f"a vector of {size} cannot be compared with one of {base.size}")
    if layout is not None and layout.size != size:
        raise ConfigError(f"a vector of {size} does not fit a layout of {layout.size}")
    scale = 1.0
    rows, layers = _squares(vector, base, layout, scale)
    if not _SMALL < rows.sum() < math.inf:
        largest = _largest(vector, base)
        if not math.isfinite(largest):
            return Measure(math.nan, False)
        scale = math.ldexp(1.0, max(-1022, min(1022, -math.frexp(largest)[1])))
        rows, layers = _squares(vector, base, layout, scale)
    norms = tuple(math.sqrt(square) / scale for square in layers)
    norm = math.sqrt(rows.sum()) / scale
    return Measure(norm, layer_norms=None if layout is None else norms)


def from_square(square: float, vector: Vector, base: Vector | None) -> Measure:
    """Turn a sum of squares into what `measure` finds, measuring again where squares fail."""
    return Measure(math.sqrt(square)) if _SMALL < square < math.inf else measure(vector, base)


def rough_norms(vectors: Sequence[Vector]) -> list[float]:
    """Norms to about six digits, in the vectors' own precision: a cheap look at what was sent.

    Parameters
    ----------
    vectors : Sequence[Vector]
        Looked at in parallel.

    Returns
    -------
    list of float
        NaN or infinity where a vector is not finite, or where its squares overflow its own type;
        so a finite value proves that the vector is finite and at most a little larger.
    """
    return map_threads(_rough_norm, vectors, threads_for(len(vectors), None))


def _rough_norm(vector: Vector) -> float:
    square = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in vector.pieces:
            values = piece.astype(np.float32) if piece.itemsize < 4 else piece
            cut = values.size - values.size % ROW
            rows = values[:cut].reshape(-1, ROW)
            square += float(np.vecdot(rows, rows).sum(dtype=np.float64))
            square += float(np.vecdot(values[cut:], values[cut:]))
    return math.sqrt(square) if square >= 0 else math.nan


def square_rows(values: Floats, out: Floats) -> None:
    """Write the sums of squares of every `ROW` coordinates.

    Parameters
    ----------
    values : ndarray of float64, shape (vectors, coordinates)
        Beginning at a multiple of `ROW`.
    out : ndarray of float64, shape (vectors, at least coordinates / ROW)
        Only as many columns as needed are written.
    """
    count, size = values.shape
    cut = size - size % ROW
    if cut:
        rows = values[:, :cut].reshape(count, -1, ROW)
        np.vecdot(rows, rows, out=out[:, : cut // ROW])
    if cut < size:
        rest = values[:, cut:]
        np.vecdot(rest, rest, out=out[:, cut // ROW])


def clip_scale(norm: float, clip_norm: float) -> float:
    r"""Return the factor :math:`s = \min(1, C / \|\delta\|)`, rounded down.

    The floating-point product ``s * norm`` never exceeds `clip_norm`, not even by a last bit.

    Parameters
    ----------
    norm : float
        A measured norm, at least 0. Infinity (a finite vector whose norm is not) gives 0.
    clip_norm : float
        The bound C, finite and above 0.

    Raises
    ------
    RejectedUpdate
        With reason ``"not-finite"`` if the norm is NaN.
    """
    if math.isnan(norm):
        raise RejectedUpdate("not-finite", "an update without a norm cannot be clipped")
    if norm <= clip_norm:
        return 1.0
    if norm == math.inf:
        return 0.0
    scale = clip_norm / norm
    while Fraction(scale) * Fraction(norm) > Fraction(clip_norm):
        scale = math.nextafter(scale, 0.0)
    return scale


def clip_scales(
    measure: Measure, clip_norm: float, per_layer: bool = False
) -> float | NDArray[np.float64]:
    r"""Return the factor of a whole update, or one factor per float array (shape ``(L,)``).

    By default one factor is applied to all arrays together, which keeps the direction of the
    update. Per layer, each of L float arrays is clipped to :math:`C / \sqrt{L}`: the direction
    changes, but the norm of the whole update still is at most C. Clipping each of L arrays to C
    would allow a norm of :math:`C \sqrt{L}`, and a privacy guarantee that was calibrated to C
    would be false.

    Parameters
    ----------
    measure : Measure
        The size of the update.
    clip_norm : float
        The bound C, finite and above 0, in the unit of the model's parameters.
    per_layer : bool
        Whether every float array gets its own factor.

    Raises
    ------
    ConfigError
        If per-layer factors are wanted of a measure without layer norms.
    RejectedUpdate
        With reason ``"not-finite"`` if the update is not finite.
    """
    if not per_layer or not measure.finite:
        return clip_scale(measure.norm, float(clip_norm))
    if measure.layer_norms is None:
        raise ConfigError("per-layer clipping needs layer norms: measure with a layout")
    layers = max(1, len(measure.layer_norms))
    bound = clip_norm / math.sqrt(layers)
    while layers * Fraction(bound) ** 2 > Fraction(clip_norm) ** 2:
        bound = math.nextafter(bound, 0.0)
    return np.array([clip_scale(norm, bound) for norm in measure.layer_norms])


def _squares(
    vector: Vector, base: Vector | None, layout: Layout | None, scale: float
) -> tuple[Floats, Floats]:
    """Return the sums of squares of ``scale * (v - b)`` over each row and over each layer."""
    ends = [] if layout is None else [span.stop for span in layout.slices.values()]
    rows, layers = np.zeros(-(-vector.size // ROW)), np.zeros(len(ends))
    current = 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for start, delta in _differences(vector, base):
            if scale != 1.0:
                np.multiply(delta, scale, out=delta)
            square_rows(delta[np.newaxis], rows[np.newaxis, start // ROW :])
            position, stop = start, start + delta.size
            while position < stop and current < len(ends):
                end = min(stop, ends[current])
                layers[current] += _square_sum(delta[position - start : end - start])
                position = end
                current += end == ends[current]
    return rows, layers


def _largest(vector: Vector, base: Vector | None) -> float:
    """Return the largest ``|v - b|``; NaN or infinity if not all are finite."""
    largest = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for _, delta in _differences(vector, base):
            np.abs(delta, out=delta)
            largest = max(float(delta.max()), largest)  # in this order, a NaN stays
            if not math.isfinite(largest):
                break
    return largest


def _differences(vector: Vector, base: Vector | None) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield ``v - b`` block by block, in one buffer that the caller may overwrite."""
    values, other = np.empty((2, min(vector.size, _BLOCK)))
    for start, stop in blocks(0, vector.size, _BLOCK):
        delta = values[: stop - start]
        vector.read(start, stop, delta)
        if base is not None:
            np.subtract(delta, base.view(start, stop, other[: stop - start]), out=delta)
        yield start, delta


def _square_sum(values: NDArray[Any]) -> float:
    cut = values.size - values.size % ROW
    rest = float(np.vecdot(values[cut:], values[cut:]))
    if not cut:
        return rest
    rows = values[:cut].reshape(-1, ROW)
    return float(np.vecdot(rows, rows).sum(dtype=np.float64)) + rest
