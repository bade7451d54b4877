"""How training went, round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, details, element, folded_table
from qsfl_flower.simulations.report.outcome import last, reasons
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.runs import Record, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = {
    "eval": ("server's test set", figures.BLUE, "-"),
    "client_eval": ("clients' own test data", figures.ORANGE, "--"),
    "train": ("clients' training data", figures.GREY, ":"),
}
_STAGES = ("configure", "clients", "aggregate", "evaluate")


def curves(run: Run) -> Section:
    """Draw accuracy, loss, time and bytes; give the numbers as a table."""
    metrics = run.metrics
    if not metrics:
        return Section("training", "Training", (element("p", "No round was recorded."),))
    plots = (
        _learning(metrics, "accuracy", "Accuracy"),
        _learning(metrics, "loss", "Loss"),
        _time(metrics),
        _traffic(metrics),
    )
    drawn = tuple(plot for plot in plots if plot is not None)
    return Section("training", "Training", (Row(drawn), _table(metrics)))


def _learning(metrics: Sequence[Record], what: str, title: str) -> Plot | None:
    rounds = [record["round"] for record in metrics]
    lines = {key: figures.series(metrics, f"{key}_{what}") for key in _LINES}
    lines = {key: values for key, values in lines.items() if figures.has_data(values)}
    if not lines or len(metrics) < 2:
        return None
    write = text.percent if what == "accuracy" else text.decimal
    ends = {key: write(last(metrics, f"{key}_{what}")) for key in lines}

    def paint(axes: Axes) -> None:
        for key, values in lines.items():
            name, color, dashes = _LINES[key]
            points = [(x, y) for x, y in zip(rounds, values, strict=True) if not math.isnan(y)]
            axes.plot(
                *zip(*points, strict=True),
                dashes,
                color=color,
                linewidth=2,
                marker="o" if len(points) <= 30 else None,
                markersize=4,
                label=f"{name}: {ends[key]}",
            )
        _marks(axes, metrics)
        if what == "accuracy":
            figures.percents(axes.yaxis)
            axes.set_ylim(top=min(1.01, axes.get_ylim()[1]))
        else:
            drawn = [v for values in lines.values() for v in values if not math.isnan(v)]
            figures.log_if_wide(axes, drawn)
        figures.rounds_axis(axes, rounds)
        figures.legend(axes, columns=1)

    told = "; ".join(f"{_LINES[key][0]} ends at {ends[key]}" for key in lines)
    alt = f"{title} over rounds {min(rounds)} to {max(rounds)}: {told}."
    return figures.draw(what, title, alt, paint, height=3.0)


def _marks(axes: Axes, metrics: Sequence[Record]) -> None:
    """Show rounds that left the model unchanged and rounds that raised an alarm."""
    skipped = [record["round"] for record in metrics if record.get("skipped")]
    for at in skipped:
        name = "model unchanged" if at == skipped[0] else None
        axes.axvspan(at - 0.5, at + 0.5, color="#bbbbbb", alpha=0.5, linewidth=0, label=name)
    alarms = [record["round"] for record in metrics if record.get("alarm")]
    for at in alarms:
        name = "alarm" if at == alarms[0] else None
        axes.axvline(at, color=figures.PINK, linewidth=1.5, linestyle="-.", label=name)


def _time(metrics: Sequence[Record]) -> Plot | None:
    trained = [record for record in metrics if number(record.get("time_s")) is not None]
    trained = [record for record in trained if record["round"] > 0]
    whole = figures.series(trained, "time_s")
    if not trained or not figures.has_data(whole):
        return None
    rounds = [record["round"] for record in trained]
    timings = [t if isinstance(t := record.get("timing"), dict) else {} for record in trained]
    parts = {stage: figures.series(timings, stage) for stage in _STAGES}
    parts["other"] = [
        max(0.0, all_of_it - math.fsum(value for value in told if not math.isnan(value)))
        for all_of_it, *told in zip(whole, *parts.values(), strict=True)
    ]
    sums = {name: _sum(values) for name, values in parts.items()}
    parts = {
        name: values
        for name, values in parts.items()
        if any(value > 0.01 * all_of_it for value, all_of_it in zip(values, whole, strict=True))
    }

    def paint(axes: Axes) -> None:
        figures.stacked(axes, rounds, parts)
        figures.seconds(axes.yaxis, figures.cut_off(axes, rounds, whole, text.duration))
        figures.rounds_axis(axes, rounds)
        figures.legend(axes)

    mean = _sum(whole) / len(whole)
    # Nothing to divide by if the records are nonsense.
    total = math.fsum(sums.values()) or math.nan
    told = ", ".join(f"{name} {text.percent(sums[name] / total)}" for name in parts)
    alt = f"Wall time of each round, on average {text.duration(mean)}: {told}."
    return figures.draw("time", "Time per round", alt, paint)


def _sum(values: Sequence[float]) -> float:
    return math.fsum(value for value in values if not math.isnan(value))


def _traffic(metrics: Sequence[Record]) -> Plot | None:
    trained = [record for record in metrics if record["round"] > 0]
    rounds = [record["round"] for record in trained]
    down, up = (figures.series(trained, key) for key in ("bytes_down", "bytes_up"))
    if not (figures.has_data(down) or figures.has_data(up)):
        return None

    def paint(axes: Axes) -> None:
        figures.stacked(axes, rounds, {"to clients": down, "from clients": up})
        figures.sizes(axes.yaxis, axes.get_ylim()[1])
        figures.rounds_axis(axes, rounds)
        figures.legend(axes)

    alt = (
        "Bytes of each round: in all "
        f"{text.size(_sum(down))} to the clients and {text.size(_sum(up))} from them."
    )
    return figures.draw("bytes", "Bytes per round", alt, paint)


def _table(metrics: Sequence[Record]) -> Html:
    head = (
        "Round",
        "Accuracy",
        "Loss",
        "Clients' accuracy",
        "Training loss",
        "Time",
        "To clients",
        "From clients",
        "Accepted",
        "Rejected",
        "Remark",
    )
    rows = [
        (
            record["round"],
            text.percent(number(record.get("eval_accuracy"))),
            text.decimal(number(record.get("eval_loss"))),
            text.percent(number(record.get("client_eval_accuracy"))),
            text.decimal(number(record.get("train_loss"))),
            text.duration(number(record.get("time_s"))),
            text.size(number(record.get("bytes_down"))),
            text.size(number(record.get("bytes_up"))),
            text.decimal(number(record.get("accepted"))),
            text.decimal(float(sum(reasons(record).values()))),
            "; ".join(str(record[key]) for key in ("skipped", "alarm") if record.get(key)),
        )
        for record in metrics
    ]
    table = folded_table(head, rows, "All rounds", text=(0, 10), shown=100)
    return details("All rounds as a table", table)
