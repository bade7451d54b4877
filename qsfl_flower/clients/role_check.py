"""What the server says of a model's arrays, held against the device's own module.

A server that calls a weight a buffer has it sent beside the clip norm and the noise; one that takes
a frozen weight for a trained one adds noise to it. The device knows better: it has the module.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING

from qsfl_flower.errors import Refusal
from qsfl_flower.numerics import Layout
from qsfl_flower.numerics.roles import BUFFER, FROZEN, LOCAL, usual_role

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("qsfl_flower")

_SAID: ContextVar[Layout | None] = ContextVar("qsfl_layout", default=None)


@contextmanager
def saying(layout: Layout | None) -> Iterator[None]:
    """Let the app know the layout of the instruction that it trains on, if that matters."""
    before = _SAID.set(layout)
    try:
        yield
    finally:
        _SAID.reset(before)


def check_roles(model: nn.Module) -> None:
    """Compare the roles of the instruction with those that the arrays have on this device.

    `numpy_client_app` does it for clients that have their module as `model`, as those of the suite.
    Call it in a Message-API app before training. Arrays of other names are not compared.

    Parameters
    ----------
    model : torch.nn.Module
        What is trained.

    Raises
    ------
    Refusal
        ``policy-roles``: a weight that this device trains is called a buffer, which would leave it
        unclipped. Any other difference costs accuracy alone, and is logged.

    Examples
    --------
    >>> from torch import nn
    >>> check_roles(nn.Linear(2, 2))  # in an ``@app.train()`` function
    """
    if (layout := _SAID.get()) is None:
        return
    from qsfl_flower.clients.models import roles_of  # loads torch

    known, own = model.state_dict(), roles_of(model)
    for name, dtype, said in zip(layout.names, layout.dtypes, layout.roles, strict=True):
        mine = own.get(name, usual_role(dtype))
        if name not in known or said in (mine, LOCAL) or (said, mine) == (FROZEN, BUFFER):
            continue
        if said == BUFFER and mine != FROZEN:
            raise Refusal(
                "policy-roles",
                f"the strategy calls {name!r} a buffer, and on this device it is {mine}: it would "
                "be sent outside of clip norm and noise",
            )
        _warn(
            f"roles: the strategy calls {name!r} {said}, and on this device it is {mine}; give the "
            "strategy roles=roles_of(model)"
        )


@lru_cache(maxsize=256)
def _warn(text: str) -> None:
    """Log a sentence once."""
    log.warning("%s", text)
