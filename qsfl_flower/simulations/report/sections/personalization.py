"""What personal models are worth to the clients, round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.html import element
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.runs import Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def personalization(run: Run) -> Section | None:
    """Draw the mean accuracy of common and personal models on the clients' held-out examples."""
    found = []
    for record in run.metrics:
        metrics = record.get("client_metrics")
        if not isinstance(metrics, dict):
            continue
        common, personal = number(metrics.get("accuracy")), number(metrics.get("personal-accuracy"))
        if common is not None and personal is not None:
            found.append((record["round"], common, personal))
    if not found:
        return None
    rounds, common_course, personal_course = (list(column) for column in zip(*found, strict=True))

    def paint(axes: Axes) -> None:
        axes.plot(rounds, common_course, color=figures.ORANGE, label="common model")
        axes.plot(rounds, personal_course, color=figures.BLUE, label="personal models")
        figures.percents(axes.yaxis)
        figures.rounds_axis(axes, rounds)
        figures.legend(axes)

    last = rounds[-1], common_course[-1], personal_course[-1]
    alt = (
        f"Mean accuracy on the clients' held-out examples; in round {last[0]} "
        f"{text.percent(last[1])} with the common and {text.percent(last[2])} with personal models."
    )
    plot = figures.draw("personal", "Common and personal models", alt, paint)
    words = element(
        "p",
        f"On examples that no client has learned from, personal models are right in "
        f"{text.percent(last[2])}, the common model in {text.percent(last[1])}: a difference of "
        f"{100 * (last[2] - last[1]):+.1f} points in round {last[0]}.",
    )
    return Section("personalization", "Personal models", (Row((words, plot)),))
