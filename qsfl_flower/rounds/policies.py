"""Policies by which a server chooses devices, from what it has seen of them in earlier rounds.

All of them know devices by rank and see only what every strategy sees anyway: who was asked, who
answered or refused, and what answers say about losses and labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from qsfl_flower.asynchrony import Draw, Selection
from qsfl_flower.errors import ConfigError
from qsfl_flower.rounds.update import Cohort

LABEL_METRIC = "label-"
"""Beginning of the metrics in which a client declares its share of each label (``label-3``)."""

_REFUSAL = "device-"
_MAX_REST = 5


@dataclass(frozen=True)
class Past:
    """What is known of one device.

    Parameters
    ----------
    asked, answered : int
        Rounds in which it was asked to train, and in which its update was usable.
    refusals : int
        Rounds in a row in which it refused, until now.
    last : int
        The last round in which it was asked.
    loss : float or None
        Training loss of its last answer: a claim.
    labels : tuple[float, ...]
        Declared share of each label; empty if it declares none.
    """

    asked: int = 0
    answered: int = 0
    refusals: int = 0
    last: int = 0
    loss: float | None = None
    labels: tuple[float, ...] = ()


NEVER = Past()


@dataclass(frozen=True)
class History:
    """What is known of all devices, by rank, and the number of the round."""

    server_round: int = 0
    past: MappingProxyType[int, Past] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, rank: int) -> Past:
        """Return what is known of a device."""
        return self.past.get(rank, NEVER)

    def ask(self, server_round: int, ranks: Iterable[int]) -> History:
        """Note who is asked in a round."""
        new = {
            rank: replace(p := self.of(rank), asked=p.asked + 1, last=server_round)
            for rank in ranks
        }
        past = self.past.copy()  # unpacking a proxy would take 25 times as long
        past.update(new)
        return History(server_round, MappingProxyType(past))

    def hear(self, cohort: Cohort) -> History:
        """Note what came of it."""
        new = self.past.copy()
        for update in cohort.updates:
            rank, past = update.sender.rank, self.of(update.sender.rank)
            new[rank] = replace(
                past,
                answered=past.answered + 1,
                refusals=0,
                loss=update.metrics.get("train-loss", past.loss),
                labels=_labels(update.metrics) or past.labels,
            )
        for rejection in cohort.rejections:
            if rejection.reason.startswith(_REFUSAL):
                rank, past = rejection.sender.rank, self.of(rejection.sender.rank)
                new[rank] = replace(past, refusals=past.refusals + 1)
        return replace(self, past=MappingProxyType(new))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, for a checkpoint."""
        return {"round": self.server_round, **{str(r): asdict(p) for r, p in self.past.items()}}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> History:
        """Read what `to_dict` returned."""
        past = {
            int(rank): Past(**{**known, "labels": tuple(known["labels"])})
            for rank, known in saved.items()
            if rank != "round"
        }
        return cls(int(saved["round"]), MappingProxyType(past))


class Policy(Selection):
    """A selection that knows the history; subclass it for a policy of your own.

    Examples
    --------
    >>> strategy = StableFedAvg(fraction_train=0.1, selection=POLICIES["fair"]())
    """

    looks_at_data: ClassVar[bool] = False
    """Whether it depends on what clients say about their data: no accountant of differential
    privacy counts that, and under secure aggregation nobody knows it."""

    @abstractmethod
    def pick(self, draw: Draw, history: History) -> list[int]:
        """Choose as many different devices as are wanted.

        Parameters
        ----------
        draw : Draw
            Ranks that can be asked, ascending, and how many are wanted.
        history : History
            What earlier rounds have shown.
        """

    def choose(self, draw: Draw) -> list[int]:
        """Choose without a history."""
        return self.pick(draw, History())


class Fair(Policy):
    """Whoever was asked least, by lot among equals: after any number of rounds, two devices that
    were always there differ by at most one.
    """

    def pick(self, draw: Draw, history: History) -> list[int]:
        """Choose the least asked."""
        return draw.smallest(np.array([history.of(c).asked for c in draw.clients]))


class Fast(Policy):
    """The fastest; whoever was never asked first, to learn how fast it is.

    Slow devices get no say: their data is not in the model. `FasterFirst` asks them sometimes.
    """

    def pick(self, draw: Draw, history: History) -> list[int]:
        """Choose the fastest."""
        new = np.array([history.of(c).asked == 0 for c in draw.clients])
        return draw.smallest(np.where(new, 0.0, draw.latencies.typical(draw.clients)))


class Diverse(Policy):
    """Devices whose labels together are as even as possible, among the least asked.

    Needs clients that declare their shares of labels; whoever has not yet done so comes first.

    Parameters
    ----------
    pool : float
        The choice is among this many times as many devices as are needed, >= 1.
    """

    looks_at_data = True

    def __init__(self, pool: float = 2.0) -> None:
        if not pool >= 1:
            raise ConfigError(f"diverse: pool is {pool!r}; it must be >= 1")
        self.pool = pool

    def pick(self, draw: Draw, history: History) -> list[int]:
        """Choose greedily whoever brings the common distribution nearest to an even one."""
        count = draw.count
        size = min(len(draw.clients), int(np.ceil(self.pool * count)))
        pool = Fair().pick(draw.among(draw.clients, size), history)
        declared = {c: history.of(c).labels for c in pool}
        width = max((len(shares) for shares in declared.values()), default=0)
        rest = [c for c in pool if width and len(declared[c]) == width]
        chosen = [c for c in pool if c not in set(rest)][:count]
        shares = np.array([declared[c] for c in rest]).reshape(len(rest), width)
        total, open_ = np.zeros(width), np.ones(len(rest), dtype=bool)
        while len(chosen) < count:
            evenness = ((total + shares) ** 2).sum(axis=1) / (total.sum() + 1) ** 2
            best = int(np.argmin(np.where(open_, evenness, np.inf)))
            open_[best] = False
            total += shares[best]
            chosen.append(rest[best])
        return chosen


class PowerOfChoice(Policy):
    """The highest losses among randomly drawn candidates; unknown losses count as highest.

    It uses the loss of each device's last answer instead of asking all candidates anew (the
    variant "rpow-d").

    Parameters
    ----------
    candidates : float
        Draw this many times as many as are needed, >= 1; 1 is uniform, more is more biased.

    References
    ----------
    Y. J. Cho, J. Wang, G. Joshi, "Client selection in federated learning: convergence analysis and
    power-of-choice selection strategies", 2020. arXiv:2010.01243.
    """

    looks_at_data = True

    def __init__(self, candidates: float = 2.0) -> None:
        if not candidates >= 1:
            raise ConfigError(f"power-of-choice: candidates is {candidates!r}; it must be >= 1")
        self.candidates = candidates

    def pick(self, draw: Draw, history: History) -> list[int]:
        """Choose the highest losses."""
        size = min(len(draw.clients), int(np.ceil(self.candidates * draw.count)))
        drawn = draw.among(draw.clients, size).lot()
        losses = [history.of(c).loss for c in drawn]
        keys = np.array([-np.inf if loss is None else -loss for loss in losses])
        return draw.among(drawn, draw.count).smallest(keys)


class Available(Policy):
    """Devices in proportion to how often they answered; one that refused is left alone for a while.

    After r refusals in a row a device is not asked for 2^r - 1 rounds (31 at most), unless there
    are too few others.
    """

    def pick(self, draw: Draw, history: History) -> list[int]:
        """Draw without replacement; those at rest last."""
        past = [history.of(c) for c in draw.clients]
        chance = np.array([(p.answered + 1) / (p.asked + 2) for p in past])
        now = history.server_round + 1
        rest = np.array(
            [p.refusals > 0 and now < p.last + 2 ** min(p.refusals, _MAX_REST) for p in past]
        )
        # Ordering exponential draws of these rates is drawing without replacement (Efraimidis).
        keys = draw.generator.exponential(size=len(past)) / chance
        return draw.smallest(np.where(rest, np.inf, keys))


POLICIES: dict[str, Callable[[], Policy | None]] = {
    "random": lambda: None,
    "fair": Fair,
    "fast": Fast,
    "diverse": Diverse,
    "power-of-choice": PowerOfChoice,
    "available": Available,
}
"""Policies by name; ``random`` is what a strategy does without one."""


def _labels(metrics: Mapping[str, float]) -> tuple[float, ...]:
    """Return the declared shares, normalized; empty if they are none."""
    found: list[float] = []
    while (value := metrics.get(f"{LABEL_METRIC}{len(found)}")) is not None:
        found.append(max(value, 0.0))
    total = sum(found)
    return tuple(value / total for value in found) if total > 0 else ()
