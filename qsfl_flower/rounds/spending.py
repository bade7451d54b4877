"""What a stage has spent so far, whether the next round may happen, and the ledger's part in it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from qsfl_flower.errors import BudgetExceeded, CompositionError, ConfigError
from qsfl_flower.privacy.accountant import Accountant
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import Event, event_from_dict
from qsfl_flower.privacy.gaussian import check_delta
from qsfl_flower.rounds.charges import Charge, merged
from qsfl_flower.rounds.context import RoundContext, State
from qsfl_flower.rounds.facts import Sentences, Topic
from qsfl_flower.rounds.update import Rejection, Sender

if TYPE_CHECKING:
    import qsfl_flower.privacy.ledger

log = logging.getLogger("qsfl_flower")

WARN_AT = 0.9
"""Share of the budget from which the log warns."""

NO_BUDGET = "no-budget"
"""The reason for which a client without a budget is not asked, and its reply not used."""

_NAMED = 5
"""So many accounts are named in a sentence."""


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
    accounts : sequence of str, or mapping of str to str
        The ledger's accounts whose data the run may use: every client that may take part. Or the
        account of each client, by the name that `Authenticate` proves.
    exhausted : str
        What becomes of an account without a budget for the next round: ``"stop"`` ends the run;
        ``"exclude"`` goes on without its client, for `CentralDP` with `Authenticate` only. The
        client is sampled as before, so that sampling stays as accounted, but not asked.

    Examples
    --------
    >>> budget = PrivacyBudget(epsilon=2.0, delta=1e-6)
    >>> stage = CentralDP(1.0, expected_cohort=100, budget=budget, rounds=10)
    """

    delta: float = 1e-5
    epsilon: float | None = None
    ledger: qsfl_flower.privacy.ledger.Ledger | None = None
    accounts: Sequence[str] | Mapping[str, str] = ()
    exhausted: Literal["stop", "exclude"] = "stop"

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ConfigError(f"epsilon must be greater than 0 and finite, found {self.epsilon!r}")
        if self.ledger is not None and not self.accounts:
            raise ConfigError("a ledger needs the accounts that are charged")
        if self.exhausted not in ("stop", "exclude"):
            raise ConfigError(f"exhausted must be 'stop' or 'exclude', found {self.exhausted!r}")
        if self.excludes and (self.ledger is None or not isinstance(self.accounts, Mapping)):
            raise ConfigError(
                "exhausted='exclude' needs a ledger, and as accounts a mapping from the clients' "
                "names to their accounts"
            )

    @property
    def excludes(self) -> bool:
        """Whether the run goes on without the clients whose accounts have no budget."""
        return self.exhausted == "exclude"

    @property
    def paths(self) -> list[str]:
        """All accounts."""
        accounts = self.accounts
        return list(accounts.values() if isinstance(accounts, Mapping) else accounts)


def on_devices(name: str, budget: PrivacyBudget | None) -> PrivacyBudget:
    """Return the budget of a stage whose noise is added on the devices.

    Raises
    ------
    CompositionError
        If it is to exclude clients.
    """
    budget = budget or PrivacyBudget()
    if budget.excludes:
        raise CompositionError(
            f"{name}: exhausted='exclude' is for central_dp only: here a release has happened when "
            "it leaves the device, before the server knows whose it is; set exhausted to 'stop', "
            "or a limit on the node (privacy.epsilon in its policy), which then refuses alone"
        )
    return budget


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
        ledger, run, at = budget.ledger, str(context.run_id), context.server_round
        planned = self._planned()
        if not budget.excludes:
            release = ledger.reserve(
                budget.paths, [event], run=run, server_round=at, planned=planned
            )
            return {**state, "release": release}
        release, without = ledger.reserve_within(
            budget.paths, [event], run=run, server_round=at, planned=planned
        )
        return {**self._excluding(state, without, at), "release": release}

    def _excluding(
        self, state: State, without: Mapping[str, BudgetExceeded], server_round: int
    ) -> State:
        """Return the state with the clients whose accounts have no budget, and log the changes."""
        before = state.get("excluded", {})
        after = {name: str(without[path]) for name, path in self._accounts if path in without}
        for name, why in after.items():
            if name not in before:
                log.warning(
                    "privacy: client %s is excluded from round %d on: %s; to include it, raise its "
                    "budget (qsfl privacy grant)",
                    name,
                    server_round,
                    why,
                )
        for name in before:
            if name not in after:
                log.info("privacy: client %s takes part again from round %d", name, server_round)
        return {**state, "excluded": after}

    @property
    def _accounts(self) -> Iterable[tuple[str, str]]:
        accounts = self.budget.accounts
        return accounts.items() if isinstance(accounts, Mapping) else ()

    def meet(self, state: State, sender: Sender) -> tuple[State, str | None]:
        """Note which client is at a node, and say why its reply cannot count, if so.

        Parameters
        ----------
        state : State
            The stage's state.
        sender : Sender
            Who has signed the reply.
        """
        nodes = {**state.get("nodes", {}), str(sender.node_id): sender.identity}
        return {**state, "nodes": nodes}, self._why(state, sender.identity)

    def withheld(self, state: State, sender: Sender) -> Rejection | None:
        """Return why a sampled node is not asked: if its client, as far as known, is excluded."""
        name = state.get("nodes", {}).get(str(sender.node_id))
        why = None if name is None else self._why(state, name)
        if why is None:
            return None
        return Rejection(replace(sender, name=name, identity=name), NO_BUDGET, why)

    def _why(self, state: State, name: str | None) -> str | None:
        if name not in dict(self._accounts):
            return f"{name!r} has no account in the ledger"
        why: str | None = state.get("excluded", {}).get(name)
        return why

    def commit(self, state: State, event: Event) -> State:
        """Return the state after the release."""
        self._accountant = self._after(state, event)
        if self.budget.ledger is not None and state.get("release") is not None:
            self.budget.ledger.commit(state["release"])
        events = self._known = merged(state.get("events", []), event.to_dict())
        return {**state, "events": events, "release": None, "pending": None}

    def rounds(self, state: State, planned: int, server_round: int, each: int = 1) -> int:
        """Return for how many rounds of `each` releases a promise has to stand in this one.

        Those that are planned, or more if more have begun. Not every round need be one of this
        stage: clients may be asked to evaluate in some only.
        """
        begun: int = sum(event["count"] for event in self.charged(state).events) // each
        return max(planned, min(server_round, begun))

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
        most = budget.epsilon
        end = "" if most is None else f"; nothing is released beyond epsilon {most:g}"
        sentence = (
            f"({epsilon:.3g}, {budget.delta:g})-DP for {unit} ({events[0].relation}), after all "
            f"rounds, against {against}: {how}{end}"
        )
        return {Topic.PRIVACY: [sentence, *self._forecast(events)]}

    def _forecast(self, events: Sequence[Event]) -> list[str]:
        """Say which accounts have no budget for all rounds, if some have not."""
        budget, rounds = self.budget, sum(event.count for event in events)
        if budget.ledger is None:
            return []
        once = [replace(events[0], count=1)]
        left = {path: budget.ledger.releases_left(path, once) for path in budget.paths}
        short = {path: n for path, n in left.items() if n is not None and n < rounds}
        if not short:
            return []
        some = [f"{path} for {n}" for path, n in sorted(short.items(), key=lambda x: x[1])]
        more = f" and {len(some) - _NAMED} more accounts" if len(some) > _NAMED else ""
        then = "is excluded then" if budget.excludes else "ends the run then"
        return [
            f"the ledger has no budget for all {rounds} releases, but: "
            f"{', '.join(some[:_NAMED])}{more}; whoever has none {then}"
        ]

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
