"""The outcome of a run in numbers, whether it ended well, badly, or not yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsfl_flower.simulations.runs import FINISHED, Record, Run, number

SERVER, CLIENTS = "eval", "client_eval"


@dataclass(frozen=True)
class Outcome:
    """Final numbers of a run; None where nothing was recorded.

    Parameters
    ----------
    status : str
        As in `Run.status`.
    rounds : int
        Rounds that were completed.
    side : str
        Whose evaluation counts: `SERVER` (its test set), or `CLIENTS` if the server has none.
    accuracy, loss : float or None
        Of the last evaluation.
    bytes_up, bytes_down, seconds, epsilon : float or None
        Totals over the run.
    unused : mapping
        Number of updates that were not used for each reason.
    error : str or None
        Why the run failed.
    """

    status: str
    rounds: int
    side: str
    accuracy: float | None
    loss: float | None
    bytes_up: float | None
    bytes_down: float | None
    seconds: float | None
    epsilon: float | None
    unused: Mapping[str, int]
    error: str | None


def outcome(run: Run) -> Outcome:
    """Take totals from the summary, or from the rounds as long as there is no summary."""
    summary: Record = run.summary or {}
    metrics = run.metrics
    side = evaluated_by(metrics)

    def known(key: str, otherwise: float | None) -> float | None:
        value = number(summary.get(key))
        return otherwise if value is None else value

    evaluation = next((r for r in reversed(metrics) if _is_evaluated(r, side)), None)
    if evaluation is None:
        accuracy, loss = known("accuracy", None), known("loss", None)
    else:
        accuracy, loss = (number(evaluation.get(f"{side}_{key}")) for key in ("accuracy", "loss"))
    return Outcome(
        status=run.status,
        rounds=max((record["round"] for record in metrics), default=0),
        side=side,
        accuracy=accuracy,
        loss=loss,
        bytes_up=known("bytes_up", total(metrics, "bytes_up")),
        bytes_down=known("bytes_down", total(metrics, "bytes_down")),
        seconds=known("seconds", last(metrics, "elapsed_s")),
        epsilon=known("epsilon", spent(run)),
        unused=_unused(metrics),
        error=None if summary.get("error") is None else str(summary["error"]),
    )


def spent(run: Run) -> float | None:
    """Epsilon of all rounds that were begun; None without differential privacy."""
    recorded = last(run.metrics, "epsilon")
    charged = None if run.status == FINISHED else run.charged
    return max((e for e in (recorded, charged) if e is not None), default=None)


def evaluated_by(metrics: Sequence[Record]) -> str:
    """Tell whose evaluation counts: the server's if there is one, else the clients'."""
    by_server = any(_is_evaluated(record, SERVER) for record in metrics)
    by_clients = any(_is_evaluated(record, CLIENTS) for record in metrics)
    return CLIENTS if by_clients and not by_server else SERVER


def _is_evaluated(record: Record, side: str) -> bool:
    return any(number(record.get(f"{side}_{key}")) is not None for key in ("accuracy", "loss"))


def last(metrics: Sequence[Record], key: str) -> float | None:
    """Last recorded number; None if it was never recorded."""
    values = (number(record.get(key)) for record in reversed(metrics))
    return next((value for value in values if value is not None), None)


def total(metrics: Sequence[Record], key: str) -> float | None:
    """Sum of a number over the rounds; None if it was never recorded."""
    values = [value for record in metrics if (value := number(record.get(key))) is not None]
    return sum(values) if values else None


def reasons(record: Record) -> dict[str, int]:
    """Updates of one round that were not used, by reason; older runs recorded rejections only."""
    found: Any = record.get("unused", record.get("rejected"))
    if not isinstance(found, dict):
        return {}
    return {
        str(name): amount
        for name, amount in found.items()
        if isinstance(amount, int) and not isinstance(amount, bool) and amount > 0
    }


def _unused(metrics: Sequence[Record]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for record in metrics:
        counts.update(reasons(record))
    return dict(counts.most_common())
