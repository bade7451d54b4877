"""How a model's named arrays lie in one flat vector."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, QSFLError, RejectedUpdate
from qsfl_flower.numerics.blocks import blocks
from qsfl_flower.numerics.roles import (
    BUFFER,
    FROZEN,
    LOCAL,
    TIED,
    TRAINED,
    bare_name,
    check_names,
    check_roles,
    usual_role,
)

T = TypeVar("T")

DTYPES = (
    "float16",
    "float32",
    "float64",
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
)
"""The number formats that a model may have."""


class Coordinates(Protocol):
    """What a layout reads of a flat vector; `Vector` is one."""

    @property
    def size(self) -> int:
        """How many coordinates there are."""

    def read(self, lo: int, hi: int, out: NDArray[np.float64]) -> None:
        """Write the coordinates ``lo <= i < hi`` into `out`."""


_MOST_TOLD = 4 * 1024 * 1024


class CastOverflow(QSFLError, OverflowError):
    """A finite result does not fit the number format of the model."""


@dataclass(frozen=True)
class Layout:
    """Names, shapes, dtypes and roles of a model's arrays, in the model's order.

    Arrays that are trained form the flat vector, one after the other, each in C order. Buffers
    (statistics and counters of normalization, masks) are *carried* beside it. Frozen arrays are
    the server's own, and tied ones follow another array: neither is sent by clients.

    Parameters
    ----------
    names : tuple of str
        The keys of the arrays, in the model's order, without repetition.
    shapes : tuple of tuple of int
        One shape per name.
    dtypes : tuple of str
        One NumPy dtype name per name (``"float32"``): boolean, integer or float of at most 8 bytes.
    roles : tuple of str
        One role per name, see `qsfl_flower.numerics.roles`; without any, floats are trained and
        the others are buffers.

    Raises
    ------
    ConfigError
        If the tuples do not describe a model.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.shapes) == len(self.dtypes):
            raise ConfigError("a layout needs one shape and one dtype per name")
        if len(set(self.names)) != len(self.names):
            raise ConfigError("a layout needs different names")
        for name, dtype in zip(self.names, self.dtypes, strict=True):
            if dtype not in DTYPES:
                raise ConfigError(f"array {name!r} is {dtype}; allowed are {', '.join(DTYPES)}")
        if not self.roles:
            object.__setattr__(self, "roles", tuple(map(usual_role, self.dtypes)))
        check_roles(self.names, self.shapes, self.dtypes, self.roles)

    @classmethod
    def of(
        cls, arrays: Mapping[str, NDArray[Any]], roles: Mapping[str, str] | None = None
    ) -> Layout:
        """Take the layout of a model's arrays; what is not in `roles` has its usual role."""
        roles = roles or {}
        check_names(roles, tuple(arrays))
        dtypes = [array.dtype.newbyteorder("=").name for array in arrays.values()]
        return cls(
            names=tuple(arrays),
            shapes=tuple(tuple(array.shape) for array in arrays.values()),
            dtypes=tuple(dtypes),
            roles=tuple(
                roles.get(name, usual_role(dtype))
                for name, dtype in zip(arrays, dtypes, strict=True)
            ),
        )

    @cached_property
    def declared(self) -> dict[str, str]:
        """The roles that differ from the usual ones, by name."""
        rows = zip(self.names, self.dtypes, self.roles, strict=True)
        return {name: role for name, dtype, role in rows if role != usual_role(dtype)}

    @cached_property
    def size(self) -> int:
        """Number of coordinates of the flat vector."""
        return sum(span.stop - span.start for span in self.slices.values())

    @cached_property
    def moved(self) -> int:
        """Number of floats that training moves: of the flat vector, and those that stay local."""
        rows = zip(self.shapes, self.dtypes, self.roles, strict=True)
        own = (math.prod(s) for s, kind, role in rows if role == LOCAL and kind.startswith("float"))
        return self.size + sum(own)

    @cached_property
    def told(self) -> str:
        """What the other end has to know to have the same layout; empty if all roles are usual."""
        if not self.declared:
            return ""
        return json.dumps({"layout": self.digest, "roles": self.declared}, separators=(",", ":"))

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]], told: object) -> Layout:
        """Return the layout of arrays with the roles that the other end told about, if it did.

        Raises
        ------
        ConfigError
            If they do not lead to the layout of the other end.
        """
        if told is None:
            return cls.of(arrays)
        try:
            body = json.loads(told) if isinstance(told, str) and len(told) <= _MOST_TOLD else None
        except (ValueError, RecursionError):
            body = None
        fields = body if isinstance(body, dict) else {}
        roles = fields.get("roles")
        if not isinstance(roles, dict) or not all(isinstance(r, str) for r in roles.values()):
            raise ConfigError("roles: expected JSON with the fields 'layout' and 'roles'")
        layout = cls.of(arrays, roles)
        if layout.digest != fields.get("layout"):
            raise ConfigError(
                f"roles: {len(layout.names)} arrays with these roles are not the layout of the "
                "strategy: names, shapes, number formats or their order differ"
            )
        return layout

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each trained array lies in the flat vector, in the model's order."""
        spans: dict[str, slice] = {}
        start = 0
        for name, shape, role in zip(self.names, self.shapes, self.roles, strict=True):
            if role == TRAINED:
                spans[name] = slice(start, start + math.prod(shape))
                start = spans[name].stop
        return spans

    @cached_property
    def carried(self) -> tuple[str, ...]:
        """Names of the buffers: their values travel beside the flat vector."""
        return self._with(BUFFER)

    @cached_property
    def frozen(self) -> tuple[str, ...]:
        """Names of the arrays of which the server never changes its own values."""
        return self._with(FROZEN, LOCAL)

    @cached_property
    def local(self) -> tuple[str, ...]:
        """Names of the arrays of which every device has its own values."""
        return self._with(LOCAL)

    @cached_property
    def beside(self) -> tuple[str, ...]:
        """Names of the arrays that neither lie in the flat vector nor follow another one."""
        return (*self.carried, *self.frozen)

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Names of the buffers of floats: where a sum hides updates, it hides these too."""
        rows = zip(self.names, self.dtypes, self.roles, strict=True)
        return tuple(n for n, dtype, role in rows if role == BUFFER and dtype.startswith("float"))

    @cached_property
    def tied(self) -> dict[str, str]:
        """The array that each tied one follows, by name."""
        rows = zip(self.names, self.roles, strict=True)
        return {name: role.removeprefix(TIED) for name, role in rows if role.startswith(TIED)}

    def _with(self, *roles: str) -> tuple[str, ...]:
        return tuple(name for name, own in zip(self.names, self.roles, strict=True) if own in roles)

    @cached_property
    def sent(self) -> Layout:
        """The layout of what clients send: neither frozen nor tied arrays."""
        rows = zip(self.names, self.shapes, self.dtypes, self.roles, strict=True)
        kept = [row for row in rows if row[0] in self.slices or row[3] == BUFFER]
        names, shapes, dtypes, roles = zip(*kept, strict=True) if kept else ((), (), (), ())
        return Layout(names, shapes, dtypes, roles)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes, dtypes and roles, as 64 hexadecimal digits."""
        content = json.dumps(
            [self.names, self.shapes, self.dtypes, self.roles], separators=(",", ":")
        )
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def _specs(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        dtypes = (np.dtype(dtype) for dtype in self.dtypes)
        return dict(zip(self.names, zip(self.shapes, dtypes, strict=True), strict=True))

    def views(self, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """View each trained array inside a flat vector of shape ``(size,)``; nothing is copied."""
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
        beside: Mapping[str, NDArray[Any]],
        base: Coordinates | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Turn a flat vector, buffers and frozen arrays back into the model's arrays.

        Each coordinate is rounded once, from float64 to the array's own dtype, after `base` has
        been added to it.

        Parameters
        ----------
        vector : ndarray of float64, shape (size,)
            The flat vector. It is not changed.
        beside : mapping of str to ndarray
            Exactly the arrays named in `beside`, of their own shapes and dtypes.
        base : Coordinates, optional
            What to add: for a step the model that it starts from.

        Returns
        -------
        dict of str to ndarray
            New trained arrays and those given, in the model's order; tied ones are the very arrays
            that they follow.

        Raises
        ------
        CastOverflow
            If a finite coordinate becomes infinite in the array's dtype.
        RejectedUpdate
            If the arrays beside the vector do not fit, as in `check`.
        ConfigError
            If the vectors do not fit.
        """
        _compare(beside, {name: self._specs[name] for name in self.beside})
        if vector.shape != (self.size,) or (base is not None and base.size != self.size):
            raise ConfigError(f"the vectors do not fit a layout of {self.size} coordinates")
        arrays = {name: beside[name] for name in self.beside}
        for name, span in self.slices.items():
            arrays[name] = np.empty(*self._specs[name])
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
        return {name: arrays[self.tied.get(name, name)] for name in self.names}

    def renamed(self, arrays: Mapping[str, T]) -> Mapping[str, T]:
        """Return arrays under the model's names, where they differ by prefixes of wrappers only.

        ``torch.compile``, Opacus and data parallelism put ``_orig_mod.``, ``_module.`` and
        ``module.`` before each name. Arrays that differ in more are returned as they are, so that
        `check` names what is missing.
        """
        if all(name in self._specs for name in arrays):
            return arrays
        own = {bare_name(name): name for name in self.names}
        bare = {bare_name(name): array for name, array in arrays.items()}
        if len(own) < len(self.names) or len(bare) < len(arrays) or not bare.keys() <= own.keys():
            return arrays
        return {own[name]: array for name, array in bare.items()}

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check that arrays fit the layout exactly.

        Their order does not matter; nothing is broadcast or cast. Frozen and tied arrays may be
        missing.

        Raises
        ------
        RejectedUpdate
            With reason ``"missing-array"``, ``"unknown-array"``, ``"wrong-shape"`` or
            ``"wrong-dtype"``.
        """
        optional = {name for name in (*self.frozen, *self.tied) if name not in arrays}
        _compare(arrays, {n: spec for n, spec in self._specs.items() if n not in optional})

    def check_carried(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check that arrays are exactly the buffers; raises as `check` does."""
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
