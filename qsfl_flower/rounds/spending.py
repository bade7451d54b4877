"""What a stage has spent so far, whether the next round may happen, and the ledger's part in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsfl_flower.errors import BudgetExceeded, ConfigError
from qsfl_flower.privacy.accountant import Accountant
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import Event, event_from_dict
from qsfl_flower.privacy.gaussian import check_delta
from qsfl_flower.rounds.charges import Charge, merged
from qsfl_flower.rounds.context import RoundContext, State
from qsfl_flower.rounds.facts import Sentences, Topic

if TYPE_CHECKING:
    import qsfl_flower.privacy.ledger

log = logging.getLogger("qsfl_flower")

WARN_AT = 0.9
"""Share of the budget from which the log warns."""


@dataclass(frozen=True, kw_only=True)
class PrivacyBudget:
    """How a stage's loss is added up and limited.

    Parameters
    ----------
    delta : float
        Delta at which epsilon is told, in (0, 1).
    epsilon : float or None
        The run ends before the round that would go beyond, > 0; None tells epsilon only.
    ledger : qsfl_flower.privacy.ledger.Ledger or None
        Charged as well, and asked first.
    accounts : sequence of str
        The ledger's accounts whose data the run may use: every client that may take part.

    Examples
    --------
    >>> budget = PrivacyBudget(epsilon=2.0, delta=1e-6)
    >>> stage = CentralDP(1.0, expected_cohort=100, budget=budget, rounds=10)
    """

    delta: float = 1e-5
    epsilon: float | None = None
    ledger: qsfl_flower.privacy.ledger.Ledger | None = None
    accounts: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if self.epsilon is not None and not self.epsilon > 0:
            raise ConfigError(f"epsilon must be greater than 0, found {self.epsilon!r}")
        if self.ledger is not None and not self.accounts:
            raise ConfigError("a ledger needs the accounts that are charged")


def _most(state: State) -> int:
    """Return how often the client was asked that was asked most often."""
    return int(max(state["asked"].values(), default=state.get("before", 0)))


class Spending:
    """Keeps a stage's events in its state; the accountant is a cache of what the state says.

    Parameters
    ----------
    budget : PrivacyBudget
        Limits and ledger.
    planned : Callable[[], Sequence[Event]]
        Returns what all planned rounds cost, so that adding up is prepared for them.
    """

    def __init__(
        self, budget: PrivacyBudget, planned: Callable[[], Sequence[Event]] = tuple
    ) -> None:
        self.budget, self._planned = budget, planned
        self._accountant = Accountant()
        self._known: list[dict[str, Any]] | None = None
        self._ahead: tuple[Accountant, Event, Accountant] | None = None
        self._warned = False

    def anew(self) -> Spending:
        """Return an account for another chain, under the same budget."""
        return Spending(self.budget, self._planned)

    def reserve(self, state: State, event: Event, context: RoundContext) -> State:
        """Return the state with a reservation for the round.

        Raises
        ------
        BudgetExceeded
            If the round would overspend; nothing has happened then.
        """
        budget = self.budget
        if budget.epsilon is not None:
            epsilon = self._after(state, event).epsilon(budget.delta)
            if epsilon > budget.epsilon * (1 + 1e-9):
                raise BudgetExceeded("this run", epsilon, budget.epsilon, period=False)
        state = {**state, "pending": event.to_dict()}
        if budget.ledger is None:
            return state
        if (unused := state.get("release")) is not None:
            budget.ledger.cancel(unused)
        release = budget.ledger.reserve(
            budget.accounts, [event], run=str(context.run_id), server_round=context.server_round
        )
        return {**state, "release": release}

    def commit(self, state: State, event: Event) -> State:
        """Return the state after the release."""
        self._accountant = self._after(state, event)
        if self.budget.ledger is not None and state.get("release") is not None:
            self.budget.ledger.commit(state["release"])
        events = self._known = merged(state.get("events", []), event.to_dict())
        return {**state, "events": events, "release": None, "pending": None}

    def charged(self, state: State) -> Charge:
        """Return what has to last before the instructions of a prepared round leave."""
        return Charge(state, self.budget.delta)

    def recover(self, state: State) -> State:
        """Return the state with which a new process goes on after one that has ended.

        A round that was prepared counts: nobody knows how far it got. The ledger keeps its
        reservation. Nodes may come back in another order, so each counts like the one that was
        asked most often.
        """
        events = self.charged(state).events
        state = {**state, "events": events, "release": None, "pending": None}
        if "asked" not in state:
            return state
        return {**state, "asked": {}, "before": _most(state)}

    def charge_asked(self, state: State, event: Event, context: RoundContext) -> State:
        """Return the state after everybody who is asked was charged: what they send may be seen.

        The loss is that of the client asked most often, so a round that asks only others is free.

        Raises
        ------
        BudgetExceeded
            If the round would overspend; nothing has happened then.
        """
        asked: dict[str, int] = {**state["asked"]}
        known = int(state.get("before", 0))
        for sender in context.senders:
            rank = str(sender.rank)
            asked[rank] = asked.get(rank, known) + 1
        before, state = _most(state), {**state, "asked": asked}
        if _most(state) == before:
            return state
        return self.commit(self.reserve(state, event, context), event)

    def promise(self, events: Sequence[Event], unit: str, against: str, how: str) -> Sentences:
        """Say in words what holds after these events."""
        budget = self.budget
        epsilon = epsilon_of_events(events, budget.delta)
        end = "" if budget.epsilon is None else f"; the run ends before epsilon {budget.epsilon:g}"
        sentence = (
            f"({epsilon:.3g}, {budget.delta:g})-DP for {unit} ({events[0].relation}), after all "
            f"rounds, against {against}: {how}{end}"
        )
        return {Topic.PRIVACY: [sentence]}

    def epsilon(self, state: State) -> float:
        """Return what has been spent."""
        spent = self._of(state).epsilon(self.budget.delta)
        limit = self.budget.epsilon
        if limit is not None and spent >= WARN_AT * limit and not self._warned:
            self._warned = True
            log.warning("privacy: epsilon = %.3g of %g is spent", spent, limit)
        return spent

    def _after(self, state: State, event: Event) -> Accountant:
        """Return the accountant after an event; the last one is kept, to be composed once."""
        before = self._of(state)
        if self._ahead is None or self._ahead[:2] != (before, event):
            self._ahead = before, event, before.with_event(event)
        return self._ahead[2]

    def _of(self, state: State) -> Accountant:
        events = [*state.get("events", [])]
        if events != self._known:
            self._accountant = Accountant(map(event_from_dict, events), self._planned())
            self._known = events
        return self._accountant
