"""What compression saved: bytes of every round beside those of whole models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import element, folded_table
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.runs import Record, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WAYS = {"up": ("from clients", figures.ORANGE), "down": ("to clients", figures.BLUE)}
_WORTH_TELLING = 0.95
"""A run that sends more than this share of whole models in both directions compresses nothing."""


def traffic(run: Run) -> Section | None:
    """Compare both directions with whole models, round by round and in all."""
    trained = [record for record in run.metrics if record["round"] > 0]
    totals = {way: _totals(trained, way) for way in _WAYS}
    shares = {way: sent / dense for way, (sent, dense) in totals.items() if sent and dense}
    if not shares or min(shares.values()) > _WORTH_TELLING:
        return None
    rows = [
        (
            _WAYS[way][0],
            text.size(totals[way][0]),
            text.size(totals[way][1]),
            text.percent(share),
            text.size(totals[way][0] / len(trained)),
        )
        for way, share in shares.items()
    ]
    head = ("Direction", "Sent", "Whole models", "Share", "Per round")
    table = folded_table(head, rows, "Bytes in both directions", text=(0,))
    note = element(
        "p",
        "Bytes are counted on the messages as they are sent: values, coordinates, names and "
        "metrics. Whole models are what the same messages would carry without compression.",
    )
    return Section("traffic", "Bytes saved", (Row((_plot(trained, shares),)), table, note))


def _totals(trained: Sequence[Record], way: str) -> tuple[float, float]:
    sent, dense = (figures.series(trained, key) for key in (f"bytes_{way}", f"dense_{way}"))
    return _sum(sent), _sum(dense)


def _sum(values: Sequence[float]) -> float:
    return math.fsum(value for value in values if not math.isnan(value))


def _plot(trained: Sequence[Record], shares: dict[str, float]) -> Plot:
    rounds = [record["round"] for record in trained]

    def paint(axes: Axes) -> None:
        drawn = {way: [_share(record, way) for record in trained] for way in shares}
        for way, values in drawn.items():
            name, color = _WAYS[way]
            axes.plot(rounds, values, color=color, linewidth=2, label=name)
        figures.log_if_wide(axes, [v for values in drawn.values() for v in values if v > 0])
        if axes.get_yscale() == "linear":
            axes.set_ylim(bottom=0)
        figures.percents(axes.yaxis)
        axes.set_ylabel("share of whole models")
        figures.rounds_axis(axes, rounds)
        figures.legend(axes)

    told = ", ".join(f"{text.percent(share)} {_WAYS[way][0]}" for way, share in shares.items())
    return figures.draw("bytes-saved", "Bytes beside whole models", f"Share: {told}.", paint)


def _share(record: Record, way: str) -> float:
    sent, dense = number(record.get(f"bytes_{way}")), number(record.get(f"dense_{way}"))
    return sent / dense if sent and dense else math.nan
