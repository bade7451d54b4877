"""Clients and committee members that follow the protocol except for one lie.

Each lie is a context manager that replaces a piece of the client's code while one message is
answered; signatures and encryption around it stay genuine. A simulated client has its process for
itself meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.secure import dealing
from qsfl_flower.secure.desk import Desk
from qsfl_flower.secure.field import Elements, P
from qsfl_flower.secure.fixed_point import FixedPoint
from qsfl_flower.secure.shamir import Shares, Sharing, share

_encode, _release = FixedPoint.encode, Desk.release


def _bad_shares(
    secret: Elements,
    sharing: Sharing,
    seeds: list[bytes] | None = None,
    out: Elements | None = None,
) -> Shares:
    shares = share(secret, sharing, seeds, out)
    shares.vectors[-1] += np.uint64(1)
    shares.vectors[-1] %= np.uint64(P)
    return shares


def _overflow(
    self: FixedPoint, values: NDArray[np.float64], out: Elements | None = None
) -> Elements:
    encoded = _encode(self, values, out)
    encoded[: encoded.size // 2 + 1] = P // 2
    return encoded


def _false_sum(
    self: Desk, server_round: int, clients: Collection[str], member: int, least_cohort: int
) -> tuple[Elements, Desk]:
    total, desk = _release(self, server_round, clients, member, least_cohort)
    return (total + np.uint64(member)) % np.uint64(P), desk


LIES: Mapping[str, Callable[[], AbstractContextManager[object]]] = {
    "bad-shares": lambda: patch.object(dealing, "share", _bad_shares),
    "overflow": lambda: patch.object(FixedPoint, "encode", _overflow),
    "false-sum": lambda: patch.object(Desk, "release", _false_sum),
}
"""By kind of fault: the last member's share does not fit the others; the update is far out of
range, so that a sum with it wraps; as a member, it releases another vector than the sum."""
