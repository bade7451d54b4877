"""Which role each array of a model has in a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Layout
from qsfl_flower.numerics.roles import BUFFER, FROZEN, LOCAL, TRAINED, guess_roles, usual_role
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.composition import Trait


def fit_roles(
    declared: Mapping[str, str] | None, arrays: Mapping[str, NDArray[Any]], chain: Chain
) -> tuple[Layout, str]:
    """Return a model's layout as a chain needs it, and a warning where that needs one.

    Without declared roles, arrays with the names of statistics and arrays that hold infinity
    (masks) are buffers. Floating-point buffers are not noisy, so they stay the server's own where
    noise protects. A sum that hides single updates adds them up too, except masks, which stay the
    server's own; if it also bounds or compares the updates, all buffers stay on each device, since
    one client could set them. Integers need no role for that.

    Parameters
    ----------
    declared : Mapping[str, str] or None
        Roles by name; None: guess them by name.
    arrays : Mapping[str, numpy.ndarray]
        The model.
    chain : Chain
        What is done to the updates.

    Raises
    ------
    ConfigError
        If the roles do not fit the model.
    """
    masks = _masks(arrays)
    if declared is None:
        roles = guess_roles(arrays) | dict.fromkeys(masks, BUFFER)
    else:
        roles = dict(declared)
    layout = Layout.of(arrays, roles)
    for name in masks:
        if name in layout.slices:
            raise ConfigError(
                f"roles: array {name!r} holds infinity, so that it cannot be {TRAINED}; "
                f"declare it {BUFFER!r} or {FROZEN!r}"
            )
    buffers, bounding = layout.statistics, chain.bounds_hidden
    learned = [name for name in buffers if name not in masks]
    if chain.keeps_carried or chain.hides:
        fates: dict[str, str] = {}
        if bounding and learned:
            fates = dict.fromkeys(layout.carried, LOCAL)
        own = buffers if chain.keeps_carried else set(buffers) - set(learned)
        layout = Layout.of(arrays, roles | fates | dict.fromkeys(own, FROZEN))
    if not layout.size:
        if layout.declared:
            raise ConfigError(
                "roles: none of the model's arrays is trained; there is nothing to learn"
            )
        found = ", ".join(sorted({array.dtype.name for array in arrays.values()})) or "no arrays"
        raise ConfigError(
            f"initial_arrays: the model has no floating-point array to average (found: {found}); "
            "boosted trees cannot be averaged: keep Flower's FedXgbBagging or FedXgbCyclic for them"
        )
    if bounding and learned and not chain.keeps_carried:
        return layout, (
            f"roles: {len(learned)} buffers, the first is {learned[0]!r}, stay on each device: "
            f"{bounding} bounds or compares updates, and nothing would bound what one client does "
            "to them; the server's model keeps those that it began with: use group norm if it has "
            "to be right without a device's own"
        )
    stepped = [s.name for s in chain.stages if Trait.OPTIMISES in s.traits]
    if declared is not None:
        return layout, ""
    small = [
        name
        for name, dtype in zip(layout.names, layout.dtypes, strict=True)
        if name not in roles and usual_role(dtype) == FROZEN
    ]
    if small:
        return layout, (
            f"roles: {len(small)} arrays are integers of 8 or 16 bits, the first is {small[0]!r}: "
            "taken for quantized weights, they stay the server's own; to average them, give the "
            f"strategy roles={{{small[0]!r}: 'buffer', ...}}"
        )
    encoding = [s.name for s in chain.stages if Trait.ENCODES in s.traits]
    if (stepped or encoding or chain.keeps_carried) and (norm := _unnamed_norm(arrays)):
        return layout, (
            f"roles: arrays without names, of which {norm[0]!r} and {norm[1]!r} look like mean and "
            "variance of a batch norm: they are clipped, noised, stepped and compressed as if they "
            "were weights, which may ruin the model; give the strategy roles=roles_of(model), with "
            "numbered=True for the arrays of a torch module"
        )
    if not buffers or not (stepped or chain.keeps_carried):
        return layout, ""
    fate = "averaged, and not stepped by the server optimizer"
    if chain.keeps_carried:
        fate = "the server's own, since noise covers nothing of them: they stay as they began"
    return layout, (
        f"roles: {len(buffers)} arrays look like statistics of normalization or masks, the first "
        f"is {buffers[0]!r}: they are {fate}; to say it yourself, give the strategy "
        f"roles={{{buffers[0]!r}: 'buffer', ...}} (or roles=roles_of(model))"
    )


def _masks(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return the floats that hold infinity: nothing that is trained does."""
    found = []
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            with np.errstate(all="ignore"):
                total = array.sum()  # finite unless some value is not, and quickly computed
            if not np.isfinite(total) and np.isinf(array).any() and not np.isnan(array).any():
                found.append(name)
    return found


def _unnamed_norm(arrays: Mapping[str, NDArray[Any]]) -> tuple[str, str] | None:
    """Return mean and variance of a fresh batch norm: scale 1, shift 0, mean 0, variance 1."""
    if list(arrays) != [str(i) for i in range(len(arrays))]:
        return None
    values = list(arrays.values())
    for i in range(len(values) - 3):
        four = values[i : i + 4]
        if four[0].ndim == 1 and len({(a.shape, a.dtype) for a in four}) == 1:
            expected = zip(four, (1, 0, 0, 1), strict=True)
            if all(bool((array == value).all()) for array, value in expected):
                return str(i + 2), str(i + 3)
    return None
