"""A strategy that asks questions about the clients' tables instead of training a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Never, Unpack

from flwr.app import RecordDict
from flwr.serverapp import Grid

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import ConfigError, RunError
from qsfl_flower.mechanisms.analytics.core.plan import Answers
from qsfl_flower.mechanisms.analytics.server import Guarantee, Inquiry
from qsfl_flower.mechanisms.authentication.server import Authenticate
from qsfl_flower.rounds.exchange import wait_for_nodes
from qsfl_flower.rounds.session import Session
from qsfl_flower.strategies.options import StrategyOptions, first, without_evaluation
from qsfl_flower.strategies.stable import StableFedAvg
from qsfl_flower.wire import PlanItem
from qsfl_flower.wire.keys import QUESTIONS
from qsfl_flower.wire.kinds import Purpose

__all__ = ["FederatedAnalytics", "Findings", "Guarantee", "Inquiry", "answers_of"]


@dataclass(frozen=True)
class Findings:
    """The answers to an inquiry.

    Parameters
    ----------
    answers : list of dict
        One for each question and one for the number of rows, first; JSON values. Every estimate
        has ``value``, ``low`` and ``high``.
    epsilon, delta : float
        What was spent.
    level : float
        Probability of each interval.
    cohorts : list of int
        Clients in the sum of each round.
    bytes_up, bytes_down : int
        What all clients have sent and received.
    """

    answers: list[dict[str, Any]]
    epsilon: float
    delta: float
    level: float
    cohorts: list[int]
    bytes_up: int
    bytes_down: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return the answer of a name."""
        for answer in self.answers:
            if answer["name"] == name:
                return answer
        names = ", ".join(answer["name"] for answer in self.answers)
        raise ConfigError(f"there is no answer {name!r}; there are {names}")


class FederatedAnalytics(StableFedAvg):
    r"""Ask questions about the clients' tables; only noisy sums over many clients are opened.

    Every client adds up what its rows say about all questions of a round in one vector of bounded
    norm per row, adds its share of discrete Gaussian noise, and hides the result in a secure sum
    (`SecureSum` or `MaskedSum`). One mechanism covers all questions; each takes its share of it.

    Parameters
    ----------
    inquiry : Inquiry
        Questions and guarantee.
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them.
    sums : Mapping[str, Any], optional
        Further arguments of the stage that sums, ``committee`` among them.
    **options
        Further arguments of `StableFedAvg`.

    Notes
    -----
    Guarantee: (epsilon, delta)-DP for adding or removing one row, or for one client's rows becoming
    none, for everything that leaves the clients in all rounds together. Against: the server, the
    analyst, and `non_contributors` clients on their side. Trusted: the secure sum and the other
    clients of a sum to add their noise. Not hidden: who took part.

    Who sees what: the server and the analyst see the noisy sums, nobody a table or a client's sum.
    A client can change the answers by what `most_rows` rows of its choice would; a sum that is
    longer than the bounds of all clients allow is not answered at all.

    Examples
    --------
    >>> from qsfl_flower.mechanisms.analytics.options import Mean
    >>> from qsfl_flower.strategies import PrivacyBudget
    >>> from qsfl_flower.strategies.analytics import Inquiry, Guarantee
    >>> from qsfl_flower.testing import LocalFederation
    >>> budget = PrivacyBudget(epsilon=1.0, delta=1e-6)
    >>> guarantee = Guarantee(budget, "record", most_rows=1000, clients=20, fewest=16)
    >>> inquiry = Inquiry((Mean(column="age", low=0, high=120),), guarantee)
    >>> keys = LocalFederation(clients=20).credentials  # or the path of the server's key folder
    >>> strategy = FederatedAnalytics(inquiry, credentials=keys)
    """

    def __init__(
        self,
        inquiry: Inquiry,
        *,
        credentials: Credentials | Path | str,
        sums: Mapping[str, Any] | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        sums = dict(sums or {})
        gate = Authenticate(credentials, clock=sums.get("clock", unix_time))
        super().__init__(**first(without_evaluation(options), gate))
        self.inquiry = inquiry
        stages = inquiry.stages(gate.credentials, **sums)
        self.session = Session(self.engine, Purpose.ANALYTICS, stages)

    def start(self, *args: Any, **options: Any) -> Never:
        """Refuse: there is no model to train."""
        raise ConfigError("FederatedAnalytics trains no model; call ask(grid)")

    def ask(
        self, grid: Grid, timeout: float = 3600.0, content: RecordDict | None = None
    ) -> Findings:
        """Ask all questions.

        Parameters
        ----------
        grid : Grid
            Flower's grid.
        timeout : float
            Seconds for each round.
        content : RecordDict, optional
            What the clients need besides, such as models to compare.

        Raises
        ------
        RunError
            If a round opens no sum: too few clients, or one that did not keep to its bounds.
        BudgetExceeded
            If the ledger has no budget for the next round.
        """
        self.engine.timeout = timeout
        self.engine.recover(None)
        return answers_of(self.session, self.inquiry, grid, content=content)


def answers_of(
    session: Session,
    inquiry: Inquiry,
    grid: Grid,
    after: int = 0,
    content: RecordDict | None = None,
) -> Findings:
    """Ask all questions in a session, which may be that of a strategy that trains.

    Parameters
    ----------
    session : Session
        For analytics, with the stages of `Inquiry.stages`.
    inquiry : Inquiry
        Questions and guarantee.
    grid : Grid
        Flower's grid.
    after : int
        The last round of the run, >= 0.
    content : RecordDict, optional
        As for `FederatedAnalytics.ask`.

    Raises
    ------
    RunError, BudgetExceeded
        As `FederatedAnalytics.ask`.
    """
    engine, guarantee = session.engine, inquiry.guarantee
    needs = {"clients of the questions": guarantee.clients}
    wait_for_nodes(grid, needs, engine.timeout, engine.observer.should_stop)
    answers, cohorts, up, down = Answers(inquiry.plan), [], 0, 0
    for number in range(1, inquiry.plan.rounds + 1):
        if (ask := answers.ask(number)) is None:
            break
        told = {
            "size": ask.size,
            "questions": ask.encode(),
            "most_rows": float(guarantee.most_rows),
        }
        released = session.ask(grid, after + number, PlanItem(QUESTIONS, told), ask.size, content)
        if released.sums is None:
            counted = ", ".join(f"{count} {why}" for why, count in released.rejected.items())
            raise RunError(
                f"round {after + number} opened no sum: {released.skipped}; rejected: "
                f"{counted or 'none'}. What was charged for the round stays charged"
            )
        traffic = session.inner.traffic
        up, down = up + traffic.up, down + traffic.down
        cohorts.append(released.clients)
        answers.take(number, released.sums, released.std)
    return Findings(
        answers.results(inquiry.level),
        session.epsilon or 0.0,
        guarantee.budget.delta,
        inquiry.level,
        cohorts,
        up,
        down,
    )
