"""Which role each array of a model has in a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Layout
from qsfl_flower.numerics.roles import FROZEN, SUMMED, guess_roles
from qsfl_flower.strategies.chain import Chain
from qsfl_flower.strategies.composition import Trait


def fit_roles(
    declared: Mapping[str, str] | None, arrays: Mapping[str, NDArray[Any]], chain: Chain
) -> tuple[Layout, str]:
    """Return a model's layout as a chain needs it, and a warning where roles were guessed.

    Floating-point buffers are not noisy, so they stay the server's own where noise protects. Where
    a sum hides single updates, they are averaged inside it. Integers need no role for that.

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
    roles = dict(guess_roles(arrays) if declared is None else declared)
    layout = Layout.of(arrays, roles)
    buffers = [name for name in layout.carried if arrays[name].dtype.kind == "f"]
    if chain.keeps_carried or chain.hides:
        fitting = FROZEN if chain.keeps_carried else SUMMED
        layout = Layout.of(arrays, roles | dict.fromkeys(buffers, fitting))
    if layout.declared and not layout.size:
        raise ConfigError("roles: none of the model's arrays is trained; there is nothing to learn")
    stepped = [s.name for s in chain.stages if Trait.OPTIMISES in s.traits]
    if declared is not None or not buffers or not (stepped or chain.keeps_carried):
        return layout, ""
    fate = "averaged, and not stepped by the server optimizer"
    if chain.keeps_carried:
        fate = "the server's own, since noise covers nothing of them: they stay as they began"
    return layout, (
        f"roles: {len(buffers)} arrays look like statistics of normalisation, the first is "
        f"{buffers[0]!r}: they are {fate}; to say it yourself, give the strategy "
        f"roles={{{buffers[0]!r}: 'buffer', ...}} (or roles=roles_of(model))"
    )
