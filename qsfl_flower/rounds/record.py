"""What is known about a round when it is over, and who wants to hear of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qsfl_flower.rounds.update import Cohort, Opinion

log = logging.getLogger("flwr")  # the one that `flwr run` and `flwr log` show


@dataclass(frozen=True)
class ClientRow:
    """One node in one round.

    `num_examples`, losses and `seconds` are the client's claims; `sent_s` and `arrived_s` are times
    of the strategy's clock.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation(clients=2).run()
    >>> [(row.client, row.status, row.weight) for row in outcome.clients[-1]]
    [('client-0', 'accepted', 0.5), ('client-1', 'accepted', 0.5)]
    """

    round: int
    client: str
    node: str
    status: str
    detail: str | None = None
    num_examples: float | None = None
    weight: float | None = None
    score: float | None = None
    norm: float | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    bytes_up: int = 0
    seconds: float | None = None
    staleness: int | None = None
    sent_s: float | None = None
    arrived_s: float | None = None
    anomaly: float | None = None
    reputation: float | None = None
    flag: str = ""


@dataclass(frozen=True)
class RoundRecord:
    """One round. Sizes are payload bytes; times are seconds; unknown values are None.

    `dense_down` and `dense_up` are what the same messages would carry with a whole model in each
    instruction and each training reply: ``bytes_up / dense_up`` is the share that compression left.

    `accepted` updates made the model; `rejected` counts the replies that were refused by reason,
    and `unused` these and the updates that a rule did not select.

    `clock_s` is the strategy's clock after training: virtual seconds in simulations of devices.
    `stage_seconds` is what each stage took on the server, with its waiting for clients.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> record = LocalFederation(clients=3).run().rounds[-1]
    >>> record.round, record.accepted, record.rejected
    (1, 3, {})
    """

    round: int
    elapsed_s: float = 0.0
    time_s: float = 0.0
    clock_s: float | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    client_eval_loss: float | None = None
    client_eval_accuracy: float | None = None
    client_metrics: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    dense_down: int = 0
    dense_up: int = 0
    selected: int = 0
    replies: int = 0
    accepted: int = 0
    capped: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    update_norm: float | None = None
    skipped: str | None = None
    alarm: str | None = None
    reaction: str | None = None
    epsilon: float | None = None
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return asdict(self)


class RunObserver:
    """Told about a run while it goes on; override what is needed.

    Examples
    --------
    >>> class Printed(RunObserver):
    ...     def on_round(self, record, clients):
    ...         print(f"round {record.round}: {record.accepted} updates")
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation(clients=3).run(observer=Printed())
    round 0: 0 updates
    round 1: 3 updates
    """

    def should_stop(self) -> bool:
        """Asked several times a second; true ends the run with `RunInterrupted`."""
        return False

    def on_progress(self, server_round: int, phase: str, done: int, total: int) -> None:
        """Called when replies arrive: `done` of `total` in the phase "train" or "evaluate"."""

    def on_end(self, server_round: int, reason: str) -> None:
        """Called if training ends before this round, because a privacy budget is spent."""

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        """Called after every round, and with round 0 after the initial evaluation."""


class RoundLog(RunObserver):
    """Tells of every round in Flower's log; a strategy without an observer has this one.

    Examples
    --------
    >>> strategy = StableFedAvg(observer=RoundLog())  # what a strategy has without an observer
    """

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        """Log what came of a round, and what its stages measured."""
        told = {
            "train loss": record.train_loss,
            "loss": record.eval_loss,
            "accuracy": record.eval_accuracy,
        }
        parts = [f"{name} {value:.4f}" for name, value in told.items() if value is not None]
        if record.selected:
            parts.append(f"{record.accepted} of {record.selected} clients")
            parts.append(f"{record.bytes_up} bytes up, {record.bytes_down} down")
        parts += causes(record, clients)
        if record.skipped:
            parts.append(f"model unchanged: {record.skipped}")
        log.info("[ROUND %d] %s", record.round, ", ".join(parts))
        for stage, measured in record.stages.items():
            if values := describe_measured(measured):
                log.info("\t%s: %s", stage, values)


def describe_measured(measured: Mapping[str, float]) -> str:
    """Return what a stage measured as words, the fates of committee members together."""
    fates = {1.0: "answered", 0.0: "lost", -1.0: "lied"}
    parts, members = [], dict[str, list[str]]()
    for name, value in measured.items():
        if name.startswith("member ") and value in fates:
            members.setdefault(fates[value], []).append(name.removeprefix("member "))
        else:
            parts.append(f"{name} {value:.10g}")
    told = [f"{fate} {', '.join(names)}" for fate, names in members.items()]
    return ", ".join([*parts, *([f"committee members: {'; '.join(told)}"] if told else [])])


def causes(record: RoundRecord, clients: Iterable[ClientRow]) -> list[str]:
    """Return the rejections of a round by reason, each with the detail of the first client."""
    first_of = {row.status: row for row in reversed(tuple(clients))}
    return [
        f"{count} x {reason} (client {row.client}: {row.detail})"
        if (row := first_of.get(reason)) and row.detail
        else f"{count} x {reason}"
        for reason, count in (record.unused or record.rejected).items()
    ]


def client_rows(server_round: int, cohort: Cohort) -> tuple[ClientRow, ...]:
    """Describe every node of a round in canonical order."""
    rows = [
        ClientRow(
            round=server_round,
            client=u.sender.name,
            node=str(u.sender.node_id),
            status=u.status,
            num_examples=None if u.sealed is not None else u.num_examples,
            weight=u.weight,
            score=u.score,
            norm=None if u.measure is None else u.measure.norm,
            train_loss=first(u.metrics, "train-loss", "train_loss", "loss"),
            train_accuracy=first(u.metrics, "train-accuracy", "train_accuracy", "accuracy"),
            bytes_up=u.bytes_up,
            seconds=first(u.metrics, "seconds"),
            staleness=u.staleness,
            sent_s=u.sender.sent_at,
            arrived_s=u.sender.arrived_at,
            **_thought(u.opinion),
        )
        for u in cohort.updates
    ]
    rows += [
        ClientRow(
            round=server_round,
            client=r.sender.name,
            node=str(r.sender.node_id),
            status=r.reason,
            detail=r.detail,
            bytes_up=r.bytes_up,
            sent_s=r.sender.sent_at,
            arrived_s=r.sender.arrived_at,
            **_thought(r.opinion),
        )
        for r in cohort.rejections
    ]
    senders = [u.sender for u in cohort.updates] + [r.sender for r in cohort.rejections]
    order = sorted(range(len(rows)), key=lambda i: senders[i].rank)
    return tuple(rows[i] for i in order)


def _thought(opinion: Opinion | None) -> dict[str, Any]:
    return {} if opinion is None else asdict(opinion)


def first(metrics: Mapping[str, Any], *names: str) -> float | None:
    """Return the first of `names` that is a number in `metrics`; apps name their metrics freely."""
    for name in names:
        value = metrics.get(name)
        if isinstance(value, int | float):
            return float(value)
    return None
