"""The server's half of questions about tables: the noise, and the stages that carry it out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.analytics.core.plan import Plan
from qsfl_flower.mechanisms.analytics.options import Question
from qsfl_flower.mechanisms.bounds.server import Clip
from qsfl_flower.mechanisms.masked_sum.server import MaskedSum
from qsfl_flower.mechanisms.privacy.server.distributed import DistributedDP
from qsfl_flower.mechanisms.secure_sum.server import Committee, SecureSum
from qsfl_flower.privacy.calibration import smallest_scale
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.events import ADD_OR_REMOVE, ZERO, Event
from qsfl_flower.privacy.record import RecordBatch
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.rounds.stages import Stage
from qsfl_flower.secure.pairwise.ring import RingCode

_ROOM = 40
"""Standard deviations of a share of the noise that have room in a coordinate."""

_BITS = 24

_FIELD, _FLOAT = 59, 52
"""Bits of the field of committee sums, and of float64, but for the sign and a rounding up."""


@dataclass(frozen=True)
class Guarantee:
    """How the rows are protected; the noise of every sum follows from it.

    Parameters
    ----------
    budget : PrivacyBudget
        Epsilon, delta and ledger; epsilon must be given.
    unit : str
        ``"record"``: a row more or less; ``"client"``: a client with all its rows.
    most_rows : float
        A client with more rows counts as if it had about so many, >= 1.
    clients : int
        Clients that are asked, >= 2.
    fewest : int
        Fewest clients in a sum, >= 2; the noise is sized for them.
    non_contributors : int
        Clients of a sum that may leave out their noise or show it to the server, >= 0.
    masks : bool
        Whether the sum is hidden by pairwise masks; otherwise by a committee.
    """

    budget: PrivacyBudget
    unit: Literal["record", "client"]
    most_rows: float
    clients: int
    fewest: int
    non_contributors: int = 0
    masks: bool = False

    def __post_init__(self) -> None:
        epsilon = self.budget.epsilon
        rules = (
            ("epsilon", epsilon is not None and epsilon > 0, "a number > 0"),
            ("unit", self.unit in ("record", "client"), "record or client"),
            ("most_rows", 1 <= self.most_rows < math.inf, "a number >= 1"),
            ("fewest", 2 <= self.fewest <= self.clients, f"from 2 to clients = {self.clients}"),
            (
                "non_contributors",
                0 <= self.non_contributors < self.fewest,
                f">= 0 and < fewest = {self.fewest}",
            ),
        )
        for name, valid, allowed in rules:
            if not valid:
                found = epsilon if name == "epsilon" else getattr(self, name)
                raise ConfigError(f"analytics: {name} is {found!r}; it must be {allowed}")

    @property
    def moved(self) -> float:
        """Return how far one unit moves the sum."""
        return 1.0 if self.unit == "record" else self.most_rows

    def bound(self, noise: float) -> float:
        """Return the largest coordinate of a client with its noise."""
        share = noise * self.moved / math.sqrt(self.fewest - self.non_contributors)
        return 1.05 * (self.most_rows + _ROOM * share) + 1.0

    def bits(self, noise: float) -> int:
        """Return the fractional bits of the sum."""
        if self.masks:
            return RingCode(self.bound(noise), self.clients).bits
        bound = self.bound(noise)
        whole = max(math.log2(bound) - _FLOAT, math.log2(bound * self.clients) - _FIELD)
        return min(_BITS, math.floor(-whole))

    def share(self, noise: float, size: int) -> NoiseShare:
        """Return what every client adds."""
        return NoiseShare(
            clip_norm=self.moved,
            noise_multiplier=noise,
            fewest=self.fewest,
            non_contributors=self.non_contributors,
            size=size,
            resolution=2.0 ** -self.bits(noise),
        )

    def noise_multiplier(self, rounds: int, size: int) -> float:
        """Return the least noise multiplier with which so many rounds stay within the budget.

        Raises
        ------
        ConfigError
            If the sum is too coarse for its shares.
        """
        relation = ADD_OR_REMOVE if self.unit == "record" else ZERO

        def events(noise: float) -> list[Event]:
            try:
                one = self.share(noise, size).event(relation=relation)
            except ConfigError:  # too little noise for the grid, which more may not be
                one = Event(noise, relation=relation)
            return [replace(one, count=rounds)]

        found = smallest_scale(events, self.budget.epsilon or 0.0, self.budget.delta)
        try:
            self.share(found, size)
        except ConfigError as error:
            raise ConfigError(
                f"analytics: {error}; lower most_rows, or hide the sums by a committee"
            ) from None
        return found


@dataclass(frozen=True)
class Inquiry:
    """Questions with their guarantee: what is asked, with which noise, before anybody is asked.

    Parameters
    ----------
    questions : tuple of Question
        See `qsfl_flower.mechanisms.analytics.options`.
    guarantee : Guarantee
        Unit, epsilon, cohort.
    level : float
        Probability with which each interval holds the number without noise, in (0, 1).
    """

    questions: tuple[Question, ...]
    guarantee: Guarantee
    level: float = 0.95
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ConfigError(f"analytics: level is {self.level!r}; it must be > 0 and < 1")
        object.__setattr__(self, "plan", Plan(self.questions))

    @cached_property
    def noise_multiplier(self) -> float:
        """Return the noise multiplier of every round: the least that stays within the budget."""
        return self.guarantee.noise_multiplier(self.plan.rounds, self.plan.size)

    def std(self, contributions: int) -> float:
        """Return the standard deviation of the noise in the largest round's sum."""
        return self.guarantee.share(self.noise_multiplier, self.plan.size).std(contributions)

    def stages(self, credentials: Credentials, **sums: Any) -> list[Stage]:
        """Return the stages of the rounds; `sums` are further arguments of the stage that sums."""
        p = self.guarantee
        bound, most = p.bound(self.noise_multiplier), float(p.most_rows)
        hidden: list[Stage]
        if p.masks:
            masked = MaskedSum(credentials, bound=bound, min_clients=p.fewest, metrics=(), **sums)
            hidden = [Clip(most), masked]
        else:
            given = sums.pop("committee", None) or Committee(5, 3, min_clients=p.fewest)
            hidden = [
                SecureSum(
                    most,
                    replace(given, min_clients=p.fewest),
                    bound=bound,
                    bits=p.bits(self.noise_multiplier),
                    weighted=False,
                    metrics=(),
                    **sums,
                )
            ]
        batch = None
        if p.unit == "record":
            batch = RecordBatch(clip_norm=1.0, sampling_rate=1.0, sum_norm=most)
        noise = DistributedDP(
            self.noise_multiplier,
            1.0,
            p.budget,
            batch=batch,
            non_contributors=p.non_contributors,
            rounds=self.plan.rounds,
        )
        return [*hidden, noise]
