"""What everybody agrees on before anything is shared: one value, named in every signature."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from qsfl_flower.crypto.codec import check_identifier
from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.secure.field import P
from qsfl_flower.secure.fixed_point import FixedPoint
from qsfl_flower.secure.shamir import Sharing
from qsfl_flower.secure.sizes import fewest_answers, least_quorum
from qsfl_flower.secure.zero_sharing import ZeroSharing

_TUPLES: Mapping[str, type] = {"tuple[str, ...]": str, "tuple[int, ...]": int}

MAX_WEIGHT = 1 << 6
"""Largest public integer weight: a sum with weights far apart would tell its terms apart."""


TRAIN = "train"
_DEFAULTS: Mapping[str, Any] = {"purpose": TRAIN, "fixed": False}
"""Fields that stand in the encoding only if they are something else: terms of training read, and
sign, as before there were others."""

MAX_CLIENTS = 1 << 18
"""Most clients in a sum."""


@dataclass(frozen=True)
class Terms:
    """The terms of one round of secure aggregation.

    They travel in the instruction to the clients and in the tasks to the members. Each client signs
    their digest with its shares, and a member works only with shares that were made under the very
    terms that it is shown, so nobody can lower a limit afterwards. Where shares of several rounds
    may come together, their terms must be the same in all but the round.

    Parameters
    ----------
    run, round : int
        Flower run and server round.
    members : tuple of str
        The committee by name; member j of it holds the value at the point j = 1 .. m.
    seats : tuple of str
        What each member has drawn at random when it was appointed. A member that has lost its
        memory no longer knows it, and can take none of the shares that were dealt to it before.
    threshold : int
        t: the members together can open a sum, t - 1 of them learn nothing. At least 2.
    quorum : int
        q, in [t, m] and at least `least_quorum`: how many members must answer for the same sum
        before it opens.
    min_clients, max_clients : int
        A sum of fewer clients is not released; more are not expected.
    weights : tuple of int
        Public integer weight of a client in a sum, by the number of rounds ago that it dealt its
        shares; shares that are older than that do not count. The first is the largest.
    bits : int
        Fractional bits of the fixed point.
    bound : float
        Largest magnitude of a coordinate.
    clip_norm : float
        Largest L2 norm of an update.
    extras : int
        Further integers behind the update, hidden weight and metrics: of magnitude below 2^41.
    distances, norms : bool
        Whether the members help to open the pairwise squared distances, and the squared norms, of
        the updates.
    purpose : str
        What the sum is for. Shares that were dealt for one purpose serve no other.
    fixed : bool
        Whether a client is added up with the same others in all sums of the run for this purpose:
        what such sums tell together is no more than they tell one by one.

    Raises
    ------
    ConfigError
        If they contradict each other.
    """

    run: int
    round: int
    members: tuple[str, ...]
    seats: tuple[str, ...]
    threshold: int
    quorum: int
    min_clients: int
    max_clients: int
    bits: int
    bound: float
    clip_norm: float
    weights: tuple[int, ...] = (1,)
    extras: int = 0
    distances: bool = False
    norms: bool = False
    purpose: str = TRAIN
    fixed: bool = False

    def __post_init__(self) -> None:
        check_identifier(self.purpose, "purpose of a sum")
        for name in self.members:
            check_identifier(name, "committee member")
        if len(set(self.members)) != len(self.members):
            raise ConfigError(f"committee {', '.join(self.members)}: a member is there twice")
        if len(self.seats) != len(self.members) or not all(self.seats):
            raise ConfigError(f"seats of {len(self.seats)} members, there are {len(self.members)}")
        m, t = self.sharing.members, self.sharing.threshold
        if not t <= self.quorum <= m:
            raise ConfigError(f"quorum {self.quorum} must be between threshold {t} and {m} members")
        if self.quorum < (least := least_quorum(m, t)):
            raise ConfigError(
                f"quorum {self.quorum} of {m} members with threshold {t}: a server with {t - 1} of "
                f"them on its side could open two different sums; take at least {least}"
            )
        if not 2 <= self.min_clients <= self.max_clients:
            raise ConfigError(
                f"min_clients {self.min_clients} must be at least 2 and at most max_clients "
                f"{self.max_clients}"
            )
        if not self.weights or not 1 <= min(self.weights) <= self.scale <= MAX_WEIGHT:
            raise ConfigError(f"weights {self.weights} must be in [1, {MAX_WEIGHT}], at least one")
        if self.scale != max(self.weights):
            raise ConfigError(f"weights {self.weights}: the first must be the largest")
        if not 0 < self.clip_norm <= self.bound < math.inf:
            raise ConfigError(
                f"clip norm {self.clip_norm} must be greater than 0 and at most the bound on a "
                f"coordinate, {self.bound}"
            )
        if self.extras < 0 or self.max_clients > MAX_CLIENTS:
            raise ConfigError(
                f"{self.extras} further integers of {self.max_clients} clients: there must be at "
                "most 2^18 clients"
            )
        if self.opens_products and m < 2 * t - 1:
            raise ConfigError(
                f"distances and norms are of degree {2 * t - 2}: {m} members with threshold {t} "
                f"cannot open them, take at least {2 * t - 1}"
            )
        self.fixed_point  # noqa: B018  # checks the room
        self.zero_sharings  # noqa: B018  # checks the number of seeds

    @property
    def sharing(self) -> Sharing:
        """M and t."""
        return Sharing(len(self.members), self.threshold)

    @property
    def answers(self) -> int:
        """How many members must answer alike before a distance or a norm opens."""
        return fewest_answers(len(self.members), self.threshold)

    @property
    def scale(self) -> int:
        """The weight that counts as 1."""
        return self.weights[0]

    @property
    def opens_products(self) -> bool:
        """Whether anything of degree 2 in the updates is opened."""
        return self.distances or self.norms

    @cached_property
    def fixed_point(self) -> FixedPoint:
        """The number format, with room for all clients at the largest weight."""
        return FixedPoint(self.bits, self.bound, self.max_clients * self.scale)

    @cached_property
    def zero_sharings(self) -> tuple[ZeroSharing | None, ZeroSharing | None]:
        """How released sums and opened products are masked, where they need it."""
        for_sums = self.quorum > self.threshold
        return (
            ZeroSharing(self.sharing, self.quorum - 1) if for_sums else None,
            ZeroSharing(self.sharing, self.answers - 1) if self.opens_products else None,
        )

    @property
    def zero_sets(self) -> ZeroSharing | None:
        """The sets of members for which a client draws seeds, or None if there are no masks."""
        for_sums, for_products = self.zero_sharings
        return for_sums or for_products

    def longest(self, size: int) -> float:
        """Return a bound on the norm of an encoded update of `size` coordinates, as integers.

        Rounding to the nearest moves each coordinate by at most 1/2, clipping in float64 by less.
        """
        return math.ldexp(self.clip_norm, self.bits) * (1 + 1e-12) + math.sqrt(size)

    def check_size(self, size: int) -> None:
        """Refuse updates of `size` coordinates whose squared distances could wrap."""
        norm = self.longest(size)
        if self.opens_products and (2 * norm) ** 2 >= P:
            raise ConfigError(
                f"a squared distance between updates of norm {self.clip_norm:g} with {self.bits} "
                f"fractional bits needs {math.log2(2 * norm) * 2:.1f} bits, the field has 61: "
                "lower the fractional bits or the clip norm"
            )

    def of_round(self, number: int) -> Terms:
        """Return the terms under which shares were dealt in a round.

        Raises
        ------
        RejectedUpdate
            ``stale-round`` or ``future-round`` if its shares may not come together with this one's.
        """
        age = self.round - number
        if age < 0:
            raise RejectedUpdate("future-round", f"round {number} is after round {self.round}")
        if age >= len(self.weights):
            raise RejectedUpdate(
                "stale-round",
                f"shares of round {number} may be opened until round "
                f"{number + len(self.weights) - 1}, this is round {self.round}",
            )
        return replace(self, round=number) if age else self

    def weight(self, dealt: int) -> int:
        """Return the weight of a client that has dealt its shares in a round."""
        return self.weights[self.round - dealt]

    def encode(self) -> str:
        """Return the canonical text."""
        return json.dumps(self.told, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def told(self) -> dict[str, Any]:
        """The fields as an instruction holds them."""
        return {k: v for k, v in asdict(self).items() if k not in _DEFAULTS or v != _DEFAULTS[k]}

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for the terms."""
        return hashlib.sha256(b"qsfl-flower/2/terms" + self.encode().encode()).digest()

    @classmethod
    def decode(cls, values: Mapping[str, Any]) -> Terms:
        """Read the fields strictly.

        Raises
        ------
        ConfigError
            If one is missing, unknown or of another type, or they contradict each other.
        """
        kinds = {f.name: str(f.type) for f in fields(cls)}
        if wrong := sorted({*values, *_DEFAULTS} ^ set(kinds)):
            raise ConfigError(f"terms of secure aggregation: missing or unknown {wrong}")
        read: dict[str, Any] = {}
        for name, value in values.items():
            if kinds[name] in _TUPLES:
                fits = isinstance(value, list | tuple) and all(
                    type(part) is _TUPLES[kinds[name]] for part in value
                )
                value = tuple(value) if fits else value
            elif kinds[name] == "float":
                fits = type(value) in (int, float)
                value = float(value) if fits else value
            else:
                fits = type(value).__name__ == kinds[name]
            if not fits:
                raise ConfigError(f"terms of secure aggregation: {name} is {value!r:.80}")
            read[name] = value
        return cls(**read)
