"""The page of an inquiry: every answer with its interval, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsfl_flower.simulations.report import figures
from qsfl_flower.simulations.report.document import document, publish
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, element, folded_table
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.report.text import decimal, duration, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]
Line = tuple[str, Record]

_DRAWN = 40


def write_page(folder: Path, answers: Record) -> Path:
    """Write ``report.html`` and the pictures of a folder's answers."""
    sections = [_privacy(answers), *(_answer(i, one) for i, one in enumerate(answers["answers"]))]
    introduction = element(
        "p",
        f"{answers['clients']} clients, {len(answers['answers']) - 1} questions, "
        f"{duration(answers['seconds'])}; {size(answers['bytes_up'])} sent by all clients, "
        f"{size(answers['bytes_down'])} received.",
        class_="soft",
    )
    content = document(f"Answers: {answers['name']}", introduction, sections)
    return publish(content, folder / "report.html", sections, folder / "plots")


def _privacy(answers: Record) -> Section:
    whom = "one row" if answers["unit"] == "record" else "a client with all its rows"
    text = (
        f"epsilon = {answers['epsilon']:.4g} at delta = {answers['delta']:g} was spent for {whom}, "
        "all answers together, against everybody but its own client. Sums were of "
        f"{', '.join(map(str, answers['cohorts']))} clients; the noise is sized for "
        f"{answers['fewest_in_a_sum']}. Each interval holds the number without noise with "
        f"probability {answers['level']:.0%}."
    )
    return Section("privacy", "Privacy", (element("p", text),))


def _answer(index: int, answer: Record) -> Section:
    lines = list(lines_of(answer))
    rows = [(name, *(decimal(one[k]) for k in ("value", "low", "high"))) for name, one in lines]
    table = folded_table(("", "estimate", "from", "to"), rows, f"Answer: {answer['name']}")
    parts: list[Html | Row] = [table]
    if len(lines) > 1 and answer["kind"] != "variance":
        parts = [Row((_plot(f"answer-{index}", answer["name"], lines), table))]
    return Section(f"answer-{index}", answer["name"], tuple(parts))


def lines_of(answer: Record) -> Iterator[Line]:
    """Yield what every estimate of an answer is called, and the estimate."""
    for key in ("rows", "mean", "variance", "std"):
        if key in answer:
            yield key, answer[key]
    for one in answer.get("bins", ()):
        yield f"{one['from']:g} to {one['to']:g}", one
    for one in answer.get("values", ()):
        yield "others" if one["text"] is None else one["text"], one
    for one in answer.get("quantiles", ()):
        yield f"{one['quantile']:.4g}", one
    for one in answer.get("words", ()):
        yield one["text"] + "…" * (not one["whole"]), one
    for one in answer.get("pairs", ()):
        yield " and ".join(one["columns"]), one


def _plot(name: str, title: str, lines: Sequence[Line]) -> Plot:
    shown = [(label, one) for label, one in lines if one["value"] is not None][:_DRAWN]
    values = [one["value"] for _, one in shown]
    below = [max(one["value"] - one["low"], 0.0) for _, one in shown]
    above = [max(one["high"] - one["value"], 0.0) for _, one in shown]

    def paint(axes: Axes) -> None:
        places = range(len(shown))
        axes.barh(places, values, color=figures.BLUE, linewidth=0)
        axes.errorbar(
            values, places, xerr=[below, above], fmt="none", ecolor=figures.BLACK, capsize=2
        )
        axes.set_yticks(list(places), [figures.label(label, 18) for label, _ in shown])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)

    told = "; ".join(f"{label}: {decimal(one['value'])}" for label, one in shown[:5])
    height = min(max(2.0, 0.5 + 0.24 * len(shown)), 9.0)
    return figures.draw(name, title, f"{title}, with intervals. {told}", paint, height)
