"""Who worked when, and how old the model was that they worked on."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import BLUE, GREY, ORANGE, Plot
from qsfl_flower.simulations.report.html import element
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.report.tally import ACCEPTED
from qsfl_flower.simulations.runs import Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLIENTS = 24
_MOST_TASKS = 12  # of the fastest client: more bars than that cannot be told apart


_UNITS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


@dataclass(frozen=True)
class _Task:
    start: float
    end: float
    accepted: bool


def timing(run: Run) -> Section | None:
    """Draw the staleness of the updates and the first tasks of the clients."""
    ages, tasks = _collect(run)
    if not tasks or not (run.config.get("timing") or any(ages)):
        return None
    total = sum(ages.values())
    mean = sum(age * amount for age, amount in ages.items()) / total if total else 0.0
    sentence = element("p", _sentence(tasks, mean, max(ages, default=0)))
    plots = [plot for plot in (_histogram(ages), _timeline(tasks)) if plot]
    return Section("timing", "Time", (sentence, Row(tuple(plots))))


def _collect(run: Run) -> tuple[Counter[int], dict[str, list[_Task]]]:
    ages: Counter[int] = Counter()
    tasks: dict[str, list[_Task]] = {}
    for row in run.clients():
        start, end = number(row.get("sent_s")), number(row.get("arrived_s"))
        accepted = row.get("status") == ACCEPTED
        age = number(row.get("staleness"))
        if accepted and age is not None:
            ages[int(age)] += 1
        if start is not None and end is not None and end >= start:
            tasks.setdefault(str(row.get("client")), []).append(_Task(start, end, accepted))
    return ages, tasks


def _sentence(tasks: Mapping[str, Sequence[_Task]], mean: float, most: int) -> str:
    typical = sorted(_typical(done) for done in tasks.values())
    end = max(task.end for done in tasks.values() for task in done)
    return (
        f"A task took {text.duration(typical[0])} with the fastest client and "
        f"{text.duration(typical[-1])} with the slowest; the last answer arrived after "
        f"{text.duration(end)}. Updates were {mean:.1f} versions old on average, at most {most}."
    )


def _typical(done: Sequence[_Task]) -> float:
    return statistics.median(task.end - task.start for task in done)


def _histogram(ages: Mapping[int, int]) -> Plot | None:
    if not any(ages):
        return None
    values = sorted(ages)

    def paint(axes: Axes) -> None:
        axes.bar(values, [ages[age] for age in values], 0.8, color=BLUE, linewidth=0)
        axes.set_xlabel("versions between asking and arrival")
        axes.set_ylabel("updates used")
        figures.whole_numbers(axes.xaxis)
        figures.whole_numbers(axes.yaxis)

    told = ", ".join(f"{ages[age]:,} of age {age}" for age in values[:12])
    alt = f"How stale the used updates were: {told}{' ...' if len(values) > 12 else ''}."
    return figures.draw("staleness", "Staleness of the updates", alt, paint)


def _timeline(tasks: Mapping[str, Sequence[_Task]]) -> Plot:
    """Draw a bar from asking to answer for every task, the fastest clients on top."""
    order = sorted(tasks, key=lambda name: (_typical(tasks[name]), text.natural(name)))
    shown = [order[i] for i in figures.spread(len(order), _MOST_CLIENTS)]
    fastest = sorted(tasks[shown[0]], key=lambda task: task.end)
    horizon = max(fastest[min(len(fastest), _MOST_TASKS) - 1].end, 1.5 * _typical(tasks[shown[-1]]))

    unit, seconds = next(one for one in _UNITS if horizon >= 3 * one[1] or one[1] == 1)

    def paint(axes: Axes) -> None:
        for accepted, color, name in ((True, BLUE, "used"), (False, ORANGE, "not used")):
            spans = [
                (row, task)
                for row, client in enumerate(shown)
                for task in tasks[client]
                if task.accepted is accepted and task.start < horizon
            ]
            if not spans:
                continue
            axes.barh(
                [row for row, _ in spans],
                [(task.end - task.start) / seconds for _, task in spans],
                0.7,
                [task.start / seconds for _, task in spans],
                color=color,
                edgecolor=figures.PAPER,
                linewidth=0.8,
                label=name,
            )
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks(range(len(shown)), [figures.label(name, 12) for name in shown])
        axes.tick_params(axis="y", labelsize=7 if len(shown) > 12 else 9, colors=GREY)
        axes.set_xlim(0, horizon / seconds)
        axes.set_xlabel(f"{unit} since the start")
        axes.set_ylabel("client")
        axes.grid(visible=False)
        figures.legend(axes)

    alt = (
        f"When each of {len(shown)} clients was at work in the first {text.duration(horizon)}, the "
        f"fastest on top: {sum(len(tasks[name]) for name in shown):,} tasks in the whole run."
    )
    return figures.draw("timeline", "Clients at work", alt, paint, height=3.4)
