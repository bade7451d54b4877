"""Whom detection suspected, of what, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import element, folded_table
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.runs import Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 6
_HEAD = ("Client", "Flagged", "Of", "First", "In quarantine", "Reputation", "Last reason")


@dataclass
class _Suspect:
    """What the records say of one client."""

    scores: list[tuple[float, float]] = field(default_factory=list)
    flagged: list[int] = field(default_factory=list)
    away: int = 0
    reputation: float = 1.0
    why: str = ""


def detection(run: Run) -> Section | None:
    """Draw the scores of the most suspicious clients and tabulate all that were flagged."""
    suspects = _suspects(run)
    if not suspects:
        return None
    flagged = {name: s for name, s in suspects.items() if s.flagged}
    order = sorted(flagged, key=lambda name: (-len(flagged[name].flagged), text.natural(name)))
    told = (
        f"{text.count(len(flagged), 'client')} of {len(suspects)} "
        f"{'was' if len(flagged) == 1 else 'were'} flagged at least once. A score above 0.5 is "
        "unusual by what earlier rounds showed; reputation falls with every flag and recovers with "
        "time. Suspicion is no proof: clients with rare data look unusual as well."
    )
    rows = [
        (
            text.shorten(name, 60),
            len(flagged[name].flagged),
            len(flagged[name].scores),
            f"round {flagged[name].flagged[0]}",
            text.count(flagged[name].away, "round") if flagged[name].away else "",
            f"{flagged[name].reputation:.2f}",
            text.shorten(flagged[name].why, 200),
        )
        for name in order
    ]
    words = element("p", told)
    plot = _plot({name: flagged[name].scores for name in order[:_SHOWN]})
    parts: tuple[Row, ...] = (Row((words, plot) if plot else (words,)),)
    if not rows:
        return Section("detection", "Detection", parts)
    return Section(
        "detection", "Detection", (*parts, folded_table(_HEAD, rows, "Flagged clients", (0, 6)))
    )


def _suspects(run: Run) -> dict[str, _Suspect]:
    suspects: dict[str, _Suspect] = {}
    for record in run.clients():
        score, at = number(record.get("anomaly")), number(record.get("round"))
        if score is None or at is None:
            continue
        suspect = suspects.setdefault(str(record.get("client")), _Suspect())
        suspect.scores.append((at, score))
        suspect.reputation = number(record.get("reputation")) or 0.0
        suspect.away += record.get("status") == "quarantined"
        if record.get("flag"):
            suspect.flagged.append(int(at))
            suspect.why = str(record["flag"])
    return suspects


def _plot(courses: dict[str, list[tuple[float, float]]]) -> Plot | None:
    if not courses:
        return None
    ends = ", ".join(f"client {name} {max(s for _, s in c):.2f}" for name, c in courses.items())

    def paint(axes: Axes) -> None:
        for (name, course), color in zip(courses.items(), figures.CYCLE, strict=False):
            axes.plot(*zip(*course, strict=True), color=color, label=figures.label(name, 12))
        axes.axhline(0.5, color=figures.BLACK, linewidth=1, linestyle=":")
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("round")
        axes.set_ylabel("anomaly score")
        figures.rounds_axis(axes, [at for course in courses.values() for at, _ in course])
        figures.legend(axes, columns=3)

    alt = f"Anomaly score by round; highest: {ends}. Scores above 0.5 are unusual."
    return figures.draw("detection", "The most suspicious clients", alt, paint)
