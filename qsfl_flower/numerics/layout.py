"""How a model's named arrays lie in one flat vector."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, QSFLError, RejectedUpdate
from qsfl_flower.numerics.blocks import blocks

if TYPE_CHECKING:
    from qsfl_flower.numerics.vector import Vector

DTYPES = (
    "float16",
    "float32",
    "float64",
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
)
"""The number formats that a model may have."""


class CastOverflow(QSFLError, OverflowError):
    """A finite result does not fit the number format of the model."""


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of a model's arrays, in the model's order.

    Arrays of float16, float32 and float64 form the flat vector, one after the other, each in C
    order. Every other array (counters of batch normalisation, masks) is *carried* beside it.

    Parameters
    ----------
    names : tuple of str
        The keys of the arrays, in the model's order, without repetition.
    shapes : tuple of tuple of int
        One shape per name.
    dtypes : tuple of str
        One NumPy dtype name per name (``"float32"``): boolean, integer or float of at most 8 bytes.

    Raises
    ------
    ConfigError
        If the three tuples do not describe a model.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.shapes) == len(self.dtypes):
            raise ConfigError("a layout needs one shape and one dtype per name")
        if len(set(self.names)) != len(self.names):
            raise ConfigError("a layout needs different names")
        for name, dtype in zip(self.names, self.dtypes, strict=True):
            if dtype not in DTYPES:
                raise ConfigError(f"array {name!r} is {dtype}; allowed are {', '.join(DTYPES)}")

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Layout:
        """Take the layout of a model's arrays."""
        return cls(
            names=tuple(arrays),
            shapes=tuple(tuple(array.shape) for array in arrays.values()),
            dtypes=tuple(array.dtype.newbyteorder("=").name for array in arrays.values()),
        )

    @cached_property
    def size(self) -> int:
        """Number of coordinates of the flat vector."""
        return sum(span.stop - span.start for span in self.slices.values())

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each float array lies in the flat vector, in the model's order."""
        spans: dict[str, slice] = {}
        start = 0
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            if dtype.startswith("float"):
                spans[name] = slice(start, start + math.prod(shape))
                start = spans[name].stop
        return spans

    @cached_property
    def carried(self) -> tuple[str, ...]:
        """Names of the arrays that are not part of the flat vector."""
        return tuple(name for name in self.names if name not in self.slices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and dtypes, as 64 hexadecimal digits."""
        content = json.dumps([self.names, self.shapes, self.dtypes], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def _specs(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        dtypes = (np.dtype(dtype) for dtype in self.dtypes)
        return dict(zip(self.names, zip(self.shapes, dtypes, strict=True), strict=True))

    def views(self, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """View each float array inside a flat vector of shape ``(size,)``; nothing is copied."""
        if vector.shape != (self.size,):
            raise ConfigError(
                f"a vector of shape {vector.shape} does not fit a layout of {self.size} coordinates"
            )
        return {
            name: vector[span].reshape(self._specs[name][0]) for name, span in self.slices.items()
        }

    def unpack(
        self,
        vector: NDArray[np.float64],
        carried: Mapping[str, NDArray[Any]],
        base: Vector | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Turn a flat vector and the carried arrays back into the model's arrays.

        Each coordinate is rounded once, from float64 to the array's own dtype, after `base` has
        been added to it.

        Parameters
        ----------
        vector : ndarray of float64, shape (size,)
            The flat vector. It is not changed.
        carried : mapping of str to ndarray
            Exactly the arrays named in `carried`, of their own shapes and dtypes.
        base : Vector, optional
            What to add: for a step the model that it starts from.

        Returns
        -------
        dict of str to ndarray
            New float arrays and the given carried arrays, in the model's order.

        Raises
        ------
        CastOverflow
            If a finite coordinate becomes infinite in the array's dtype.
        RejectedUpdate
            If the carried arrays do not fit, as in `check`.
        ConfigError
            If the vectors do not fit.
        """
        self.check_carried(carried)
        if vector.shape != (self.size,) or (base is not None and base.size != self.size):
            raise ConfigError(f"the vectors do not fit a layout of {self.size} coordinates")
        arrays = {
            name: np.empty(shape, dtype) if name in self.slices else carried[name]
            for name, (shape, dtype) in self._specs.items()
        }
        for name, span in self.slices.items():
            flat = arrays[name].reshape(-1)
            try:
                with np.errstate(over="raise"):
                    for lo, hi in blocks(span.start, span.stop):
                        values = vector[lo:hi]
                        if base is not None:
                            values = np.empty(hi - lo)
                            base.read(lo, hi, values)
                            np.add(values, vector[lo:hi], out=values)
                        target = flat[lo - span.start : hi - span.start]
                        np.copyto(target, values, casting="same_kind")
            except FloatingPointError:
                limit = np.finfo(flat.dtype).max
                raise CastOverflow(
                    f"array {name!r} has a value beyond {limit:g}, the largest {flat.dtype}"
                ) from None
        return arrays

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check that arrays fit the layout exactly.

        Their order does not matter; nothing is broadcast or cast.

        Raises
        ------
        RejectedUpdate
            With reason ``"missing-array"``, ``"unknown-array"``, ``"wrong-shape"`` or
            ``"wrong-dtype"``.
        """
        _compare(arrays, self._specs)

    def check_carried(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check that arrays are exactly the carried ones; raises as `check` does."""
        _compare(arrays, {name: self._specs[name] for name in self.carried})


def _compare(
    arrays: Mapping[str, NDArray[Any]], specs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> None:
    if missing := [name for name in specs if name not in arrays]:
        raise RejectedUpdate(
            "missing-array", f"{len(missing)} arrays are missing, the first is {missing[0]!r}"
        )
    if unknown := [name for name in arrays if name not in specs]:
        raise RejectedUpdate(
            "unknown-array", f"{len(unknown)} arrays are unknown, the first is {unknown[0]!r:.80}"
        )
    for name, (shape, dtype) in specs.items():
        array = arrays[name]
        if array.shape != shape:
            raise RejectedUpdate(
                "wrong-shape", f"array {name!r} has shape {array.shape}; the model has {shape}"
            )
        if array.dtype != dtype:
            raise RejectedUpdate(
                "wrong-dtype", f"array {name!r} is {array.dtype}; the model has {dtype}"
            )
