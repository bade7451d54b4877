"""What the stages of the round measured, as one line a measurement.

Every stage may record numbers of its own (``stages: {stage: {measurement: number}}``); they show up
here without further ado, so that a new stage is visible before it has a section of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, element, folded_table
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.report.sections.committee import MEMBER
from qsfl_flower.simulations.runs import Record, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 110, 22
_POINTS = 200

_Series = list[tuple[int, float]]


def stages(run: Run) -> Section | None:
    """Tabulate the measurements of every stage with their course over the rounds."""
    courses = _courses(run)
    if not courses:
        return None
    rows = [
        (
            f"{stage}: {measurement}",
            _spark(course),
            text.decimal(min(value for _, value in course)),
            text.decimal(math.fsum(value for _, value in course) / len(course)),
            text.decimal(max(value for _, value in course)),
            text.decimal(course[-1][1]),
        )
        for (stage, measurement), course in courses.items()
    ]
    head = ("Measurement", "Course", "Least", "Mean", "Most", "Last")
    table = folded_table(head, rows, "Measurements", (0, 1))
    plot = _time(run.metrics)
    return Section("stages", "Stages", (Row((plot,)), table) if plot else (table,))


def _time(metrics: Sequence[Record]) -> Plot | None:
    """Draw how long the stages took on the server."""
    trained = [r for r in metrics if isinstance(r.get("stage_seconds"), dict) and r["round"] > 0]
    names = list(dict.fromkeys(name for r in trained for name in r["stage_seconds"]))
    parts = {n: [number(r["stage_seconds"].get(n)) or 0.0 for r in trained] for n in names}
    whole = [math.fsum(values) for values in zip(*parts.values(), strict=True)]
    parts = {n: v for n, v in parts.items() if math.fsum(v) > 0.01 * math.fsum(whole)}
    if not parts:
        return None
    rounds = [record["round"] for record in trained]

    def paint(axes: Axes) -> None:
        figures.stacked(axes, rounds, parts)
        figures.seconds(axes.yaxis, figures.cut_off(axes, rounds, whole, text.duration))
        figures.rounds_axis(axes, rounds)
        figures.legend(axes)

    told = ", ".join(
        f"{name} {text.duration(math.fsum(values) / len(rounds))}" for name, values in parts.items()
    )
    alt = f"Time of each stage on the server, its waiting for clients included; on average {told}."
    return figures.draw("stage-time", "Server time of the stages", alt, paint)


def _courses(run: Run) -> dict[tuple[str, str], _Series]:
    courses: dict[tuple[str, str], _Series] = {}
    for record in run.metrics:
        measured = {"update": {"norm": record.get("update_norm")}}
        if record.get("capped"):
            measured["weights"] = {"claims capped": record["capped"]}
        found = record.get("stages")
        if isinstance(found, dict):
            measured |= {stage: m for stage, m in found.items() if isinstance(m, dict)}
        for stage, measurements in measured.items():
            for name, raw in measurements.items():
                value = None if name.startswith(MEMBER) else number(raw)
                if value is not None and math.isfinite(value):
                    courses.setdefault((stage, name), []).append((record["round"], value))
    return courses


def _spark(course: _Series) -> Html | str:
    """A line without axes: the shape of the course, not its size."""
    values = [value for _, value in course]
    low, high = min(values), max(values)
    if len(course) < 2:
        return ""
    if low == high:
        return "constant"
    points = _thinned(course)
    first, last = points[0][0], points[-1][0]
    path = " ".join(
        f"{1 + (_WIDTH - 2) * (at - first) / (last - first):.1f},"
        f"{_HEIGHT - 2 - (_HEIGHT - 4) * ((value / 2 - low / 2) / (high / 2 - low / 2)):.1f}"
        for at, value in points
    )
    line = element("polyline", points=path, fill="none", stroke="currentColor", stroke_width="1.5")
    return element(
        "svg", line, class_="spark", viewBox=f"0 0 {_WIDTH} {_HEIGHT}", aria_hidden="true"
    )


def _thinned(course: _Series) -> Sequence[tuple[int, float]]:
    step = math.ceil(len(course) / _POINTS)
    return course if step == 1 else [*course[::step], course[-1]]
