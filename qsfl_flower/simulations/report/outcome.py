"""The outcome of a run in numbers, whether it ended well, badly, or not yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsfl_flower.simulations.runs import Record, Run, number

SERVER_ACCURACY, CLIENT_ACCURACY = "eval_accuracy", "client_eval_accuracy"
SERVER_LOSS, CLIENT_LOSS = "eval_loss", "client_eval_loss"


@dataclass(frozen=True)
class Outcome:
    """Final numbers of a run; None where nothing was recorded.

    Parameters
    ----------
    status : str
        As in `Run.status`.
    rounds : int
        Rounds that were completed.
    accuracy, loss : float or None
        Last evaluation on the server's test set, else on the clients' own data.
    bytes_up, bytes_down, seconds, epsilon : float or None
        Totals over the run.
    rejected : mapping
        Number of updates that were rejected for each reason.
    error : str or None
        Why the run failed.
    """

    status: str
    rounds: int
    accuracy: float | None
    loss: float | None
    bytes_up: float | None
    bytes_down: float | None
    seconds: float | None
    epsilon: float | None
    rejected: Mapping[str, int]
    error: str | None


def outcome(run: Run) -> Outcome:
    """Take the outcome from the summary, and what is not there from the rounds."""
    summary: Record = run.summary or {}
    metrics = run.metrics

    def known(key: str, otherwise: float | None) -> float | None:
        value = number(summary.get(key))
        return otherwise if value is None else value

    return Outcome(
        status=run.status,
        rounds=max((record["round"] for record in metrics), default=0),
        accuracy=known("accuracy", last(metrics, accuracy_key(metrics))),
        loss=known("loss", last(metrics, loss_key(metrics))),
        bytes_up=known("bytes_up", total(metrics, "bytes_up")),
        bytes_down=known("bytes_down", total(metrics, "bytes_down")),
        seconds=known("seconds", last(metrics, "elapsed_s")),
        epsilon=known("epsilon", last(metrics, "epsilon")),
        rejected=_rejected(metrics),
        error=None if summary.get("error") is None else str(summary["error"]),
    )


def accuracy_key(metrics: Sequence[Record]) -> str:
    """Name the accuracy that counts: the server's if it was measured, else the clients'."""
    return CLIENT_ACCURACY if last(metrics, SERVER_ACCURACY) is None else SERVER_ACCURACY


def loss_key(metrics: Sequence[Record]) -> str:
    """Name the loss that counts: the server's if it was measured, else the clients'."""
    return CLIENT_LOSS if last(metrics, SERVER_LOSS) is None else SERVER_LOSS


def last(metrics: Sequence[Record], key: str) -> float | None:
    """Last recorded number; None if it was never recorded."""
    values = (number(record.get(key)) for record in reversed(metrics))
    return next((value for value in values if value is not None), None)


def total(metrics: Sequence[Record], key: str) -> float | None:
    """Sum of a number over the rounds; None if it was never recorded."""
    values = [value for record in metrics if (value := number(record.get(key))) is not None]
    return sum(values) if values else None


def reasons(record: Record) -> dict[str, int]:
    """Rejections of one round by reason."""
    found: Any = record.get("rejected")
    if not isinstance(found, dict):
        return {}
    return {
        str(name): amount
        for name, amount in found.items()
        if isinstance(amount, int) and not isinstance(amount, bool) and amount > 0
    }


def _rejected(metrics: Sequence[Record]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for record in metrics:
        counts.update(reasons(record))
    return dict(counts.most_common())
