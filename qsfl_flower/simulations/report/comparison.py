"""Several runs side by side: what was different, and what came of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.document import document, publish
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, clean, element, join, table
from qsfl_flower.simulations.report.outcome import evaluated_by, last, outcome, total
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.runs import Record, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", "-.", ":")
_MISSING = "(not set)"


def compare(folders: Sequence[Path]) -> tuple[str, list[dict[str, Any]]]:
    """Compare runs by their settings and results.

    Parameters
    ----------
    folders : sequence of Path
        Run folders, at least one.

    Returns
    -------
    table : str
        Lines of text: one column a run, first the settings that differ, then the results.
    rows : list of dict
        One mapping a run: ``run``, ``status``, ``rounds``, ``accuracy``, ``loss``, ``bytes_up``,
        ``bytes_down``, ``seconds``, ``epsilon``, ``unused`` (updates in all), ``target`` (the
        highest accuracy that every run reached), ``rounds_to_target``, ``bytes_up_to_target``,
        ``seconds_to_target``, and ``config``, the settings that differ.

    Raises
    ------
    RunError
        If there are no folders, or one of them is no readable run folder.
    """
    rows = _rows(_opened(folders))
    lines = list(_lines(rows))
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    written = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join(written), rows


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a self-contained page that compares runs, and its pictures beside it.

    Parameters
    ----------
    folders : sequence of Path
        Run folders, at least one.
    out : Path
        The page; the pictures go into the folder of that name with ``-plots`` behind it.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    RunError
        If a folder is no readable run folder, or a file cannot be written.
    """
    runs = _opened(folders)
    (_, *names), *lines = _lines(_rows(runs))
    head = ("", *(_breakable(name) for name in names))
    everything = Section(
        "comparison", "Comparison", (table(head, lines, "Settings that differ, and results", ()),)
    )
    sections = [everything, Section("courses", "Courses", (Row(_plots(runs)),))]
    introduction = element("p", f"{text.count(len(runs), 'run')} side by side.", class_="soft")
    content = document("Comparison of runs", introduction, sections)
    out.parent.mkdir(parents=True, exist_ok=True)
    return publish(content, out, sections, out.with_name(f"{out.stem}-plots"))


def _opened(folders: Sequence[Path]) -> list[Run]:
    if not folders:
        raise RunError("no run to compare; name at least one run folder")
    return [Run.open(folder) for folder in folders]


def _rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    settings = [dict(_flat(run.config)) for run in runs]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    differing = [
        key
        for key in keys
        if any(s.get(key, _MISSING) != settings[0].get(key, _MISSING) for s in settings)
    ]
    target = _target(runs)
    return [
        _results(run, target) | {"config": {key: setting.get(key, _MISSING) for key in differing}}
        for run, setting in zip(runs, settings, strict=True)
    ]


def _flat(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _accuracies(run: Run) -> list[tuple[Record, float]]:
    key = f"{evaluated_by(run.metrics)}_accuracy"
    measured = ((record, number(record.get(key))) for record in run.metrics)
    return [(r, value) for r, value in measured if value is not None and math.isfinite(value)]


def _target(runs: Sequence[Run]) -> float | None:
    best = [max((value for _, value in _accuracies(run)), default=None) for run in runs]
    reached = [value for value in best if value is not None]
    return min(reached) if len(reached) == len(best) else None


def _results(run: Run, target: float | None) -> dict[str, Any]:
    result = outcome(run)
    reached = next(
        (
            record["round"]
            for record, value in _accuracies(run)
            if target is not None and value >= target
        ),
        None,
    )
    until = [record for record in run.metrics if reached is not None and record["round"] <= reached]
    return {
        "run": run.name,
        "status": result.status,
        "rounds": result.rounds,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "seconds": result.seconds,
        "epsilon": result.epsilon,
        "unused": sum(result.unused.values()),
        "target": target,
        "rounds_to_target": reached,
        "bytes_up_to_target": total(until, "bytes_up"),
        "seconds_to_target": last(until, "elapsed_s"),
    }


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Yield heading, settings that differ, and results, each with a cell for every run."""
    target = text.percent(rows[0]["target"])
    yield ["", *(_cell(row["run"]) for row in rows)]
    for key in rows[0]["config"]:
        yield [_cell(key), *(_cell(row["config"][key]) for row in rows)]
    results: dict[str, tuple[str, Callable[[Any], str]]] = {
        "status": ("status", _cell),
        "rounds": ("rounds completed", text.decimal),
        "accuracy": ("accuracy", text.percent),
        "loss": ("loss", text.decimal),
        "bytes_down": ("sent to clients", text.size),
        "bytes_up": ("sent by clients", text.size),
        "seconds": ("wall time", text.duration),
        "epsilon": ("epsilon", text.decimal),
        "unused": ("updates not used", text.decimal),
        "rounds_to_target": (f"rounds to {target}", text.decimal),
        "bytes_up_to_target": (f"sent by clients to {target}", text.size),
        "seconds_to_target": (f"time to {target}", text.duration),
    }
    for key, (name, write) in results.items():
        if any(row[key] is not None for row in rows):
            yield [name, *(write(row[key]) for row in rows)]


def _cell(value: object) -> str:
    return text.shorten(" ".join(clean(value).split()), 40)


def _breakable(name: str) -> Html:
    """Let a long run name break after its hyphens."""
    first, *rest = name.split("-")
    return join([first, *(part for piece in rest for part in ("-", element("wbr"), piece))])


def _plots(runs: Sequence[Run]) -> tuple[Plot, ...]:
    courses = (
        ("accuracy", "Accuracy by round", "round", "accuracy", _round),
        ("accuracy-bytes", "Accuracy by bytes sent by clients", "bytes", "accuracy", _uploaded),
        ("accuracy-time", "Accuracy by wall time", "time", "accuracy", _elapsed),
        ("loss", "Loss by round", "round", "loss", _round),
    )
    drawn = (_overlay(runs, *course) for course in courses)
    return tuple(plot for plot in drawn if plot is not None)


def _round(metrics: Sequence[Record]) -> list[float]:
    return [float(record["round"]) for record in metrics]


def _uploaded(metrics: Sequence[Record]) -> list[float]:
    return list(itertools.accumulate(number(record.get("bytes_up")) or 0.0 for record in metrics))


def _elapsed(metrics: Sequence[Record]) -> list[float]:
    return figures.series(metrics, "elapsed_s")


def _overlay(
    runs: Sequence[Run],
    name: str,
    title: str,
    unit: str,
    what: str,
    position: Callable[[Sequence[Record]], list[float]],
) -> Plot | None:
    lines = []
    for run in runs:
        values = figures.series(run.metrics, f"{evaluated_by(run.metrics)}_{what}")
        points = zip(position(run.metrics), values, strict=True)
        lines.append([point for point in points if not any(map(math.isnan, point))])
    if not any(lines):
        return None

    def paint(axes: Axes) -> None:
        for index, (run, points) in enumerate(zip(runs, lines, strict=True)):
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                _DASHES[index % len(_DASHES)],
                color=figures.CYCLE[index % len(figures.CYCLE)],
                linewidth=2,
                label=figures.label(run.name),
            )
        if unit == "round":
            figures.rounds_axis(axes, [x for points in lines for x, _ in points])
        else:
            axes.xaxis.set_major_locator(figures.few_ticks())
            if unit == "time":
                figures.seconds(axes.xaxis, max(x for points in lines for x, _ in points))
            else:
                figures.sizes(axes.xaxis, axes.get_xlim()[1])
        if what == "loss":
            figures.log_if_wide(axes, [y for points in lines for _, y in points])
        else:
            figures.percents(axes.yaxis)
        figures.legend(axes, columns=1)

    ends = (f"{r.name} ends at {p[-1][1]:.4g}" for r, p in zip(runs, lines, strict=True) if p)
    return figures.draw(name, title, f"{title}: {'; '.join(ends)}.", paint, height=3.0)
