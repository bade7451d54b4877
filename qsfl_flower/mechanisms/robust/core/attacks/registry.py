"""Attacks by name, for configurations and for users' own evaluations."""

from __future__ import annotations

import difflib
from typing import Any

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.attacks.base import Attack
from qsfl_flower.mechanisms.robust.core.attacks.collusion import (
    Alie,
    InnerProduct,
    Mimic,
    MinMax,
    MinSum,
)
from qsfl_flower.mechanisms.robust.core.attacks.data import Backdoor, LabelFlip
from qsfl_flower.mechanisms.robust.core.attacks.fang import FangKrum, FangTrimmedMean
from qsfl_flower.mechanisms.robust.core.attacks.solo import (
    Gaussian,
    Replay,
    Scaling,
    SignFlip,
    Sparse,
    Zero,
)

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        SignFlip,
        Scaling,
        Gaussian,
        Zero,
        Replay,
        Sparse,
        Alie,
        InnerProduct,
        Mimic,
        MinMax,
        MinSum,
        FangKrum,
        FangTrimmedMean,
        LabelFlip,
        Backdoor,
    )
}
"""Every attack by its name; put your own class here to use it by name."""


def build_attack(name: str, **parameters: Any) -> Attack:
    """Make an attack.

    Parameters
    ----------
    name : str
        A key of `ATTACKS`.
    **parameters
        Fields of that class.

    Raises
    ------
    ConfigError
        If the name or a parameter is unknown, or a parameter is out of range.

    Examples
    --------
    >>> build_attack("scaling", factor=100)
    Scaling(factor=100)
    """
    if name not in ATTACKS:
        close = difflib.get_close_matches(name, ATTACKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"attacks: there is no {name!r}; there are {', '.join(ATTACKS)}{hint}")
    try:
        return ATTACKS[name](**parameters)
    except TypeError as error:
        raise ConfigError(f"attacks: {name}: {error}") from error
