"""Who holds what: the partition of the data over the clients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, element
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.runs import Record, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 30
_NAMED_CLASSES = 12
_MOST_COLUMNS, _PIXELS = 2000, 500


@dataclass(frozen=True)
class _Holding:
    client: str
    examples: float
    labels: tuple[float, ...]


def partition(run: Run) -> Section:
    """Draw the label counts of every client and say how uneven they are."""
    holdings = _holdings(run.partition)
    if not holdings:
        return Section("data", "Data", (element("p", "No client holds data."),))
    names = _class_names(run.partition, max(len(holding.labels) for holding in holdings))
    return Section(
        "data",
        "Data",
        (Row((_facts(run.partition, holdings), _picture(holdings, names))),),
    )


def _holdings(record: Record) -> list[_Holding]:
    clients = record.get("clients")
    found = []
    for client in clients if isinstance(clients, list) else []:
        if not isinstance(client, dict):
            continue
        counts = client.get("label_counts")
        labels = tuple(map(_amount, counts)) if isinstance(counts, list) else ()
        examples = _amount(client.get("num_train")) or sum(labels)
        found.append(_Holding(str(client.get("client")), examples, labels))
    return sorted(found, key=lambda holding: text.natural(holding.client))


def _amount(value: object) -> float:
    amount = number(value)
    return amount if amount is not None and 0 < amount < math.inf else 0.0


def _class_names(record: Record, classes: int) -> list[str]:
    names = record.get("class_names")
    named = [str(name) for name in names] if isinstance(names, list) else []
    return named[:classes] + [f"class {index}" for index in range(len(named), classes)]


def _facts(record: Record, holdings: Sequence[_Holding]) -> Html:
    sizes = [holding.examples for holding in holdings]
    source = record.get("source")
    facts = [f"Source: {source}."] if isinstance(source, str) else []
    facts += [
        f"{text.count(len(holdings), 'client')} share {text.count(sum(sizes), 'training example')} "
        f"({record.get('scheme', 'unknown')} partition).",
        f"A client has {text.decimal(min(sizes))} to {text.decimal(max(sizes))} of them, "
        f"the median is {text.decimal(statistics.median(sizes))}.",
    ]
    labelled = [holding for holding in holdings if sum(holding.labels) > 0]
    if labelled:
        largest = [max(holding.labels) / sum(holding.labels) for holding in labelled]
        present = [sum(n > 0 for n in holding.labels) for holding in labelled]
        classes = max(len(holding.labels) for holding in labelled)
        facts.append(
            f"The median client has examples of {statistics.median_low(present)} out of "
            f"{text.count(classes, 'class', 'classes')}; the most frequent one "
            f"makes up {text.percent(statistics.median(largest))} of its examples."
        )
    return element("ul", *(element("li", fact) for fact in facts), class_="facts")


def _picture(holdings: Sequence[_Holding], names: Sequence[str]) -> Plot:
    if not names:
        holdings = [replace(holding, labels=(holding.examples,)) for holding in holdings]
        names = ["examples"]
    colors = figures.palette(len(names))
    few = len(holdings) <= _MOST_ROWS
    if not few:
        holdings = sorted(holdings, key=_by_main_class)

    def paint(axes: Axes) -> None:
        if few:
            _rows(axes, holdings, colors)
        else:
            _columns(axes, holdings, colors)
        if len(names) > 1:
            shown = figures.spread(len(names), _NAMED_CLASSES)
            figures.legend_of(axes, [(names[i], colors[i]) for i in shown], columns=4)

    sizes = [holding.examples for holding in holdings]
    alt = (
        f"Training examples of {text.count(len(holdings), 'client')} by class: "
        f"{text.decimal(min(sizes))} to {text.decimal(max(sizes))} examples a client, "
        f"{text.count(len(names), 'class', 'classes')}."
    )
    height = 1.4 + 0.19 * len(holdings) if few else 3.2
    return figures.draw("partition", "Training examples by class", alt, paint, height)


def _by_main_class(holding: _Holding) -> tuple[int, float]:
    most = max(holding.labels, default=0.0)
    return (holding.labels.index(most) if holding.labels else 0, -holding.examples)


def _rows(axes: Axes, holdings: Sequence[_Holding], colors: Sequence[str]) -> None:
    """One named bar a client, from top to bottom."""
    for row, holding in enumerate(holdings):
        start, pieces, shades = 0.0, [], []
        for color, amount in zip(colors, holding.labels, strict=False):
            if amount > 0:
                pieces.append((start, amount))
                shades.append(color)
                start += amount
        axes.broken_barh(
            pieces, (row - 0.4, 0.8), facecolors=shades, edgecolor=figures.PAPER, linewidth=0.6
        )
    names = [figures.label(holding.client, 14) for holding in holdings]
    axes.set_yticks(range(len(holdings)), names)
    axes.set_ylim(len(holdings) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("examples")
    axes.set_ylabel("client")
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=figures.GRID, linewidth=0.8)


def _columns(axes: Axes, holdings: Sequence[_Holding], colors: Sequence[str]) -> None:
    """A skyline of nameless clients, grouped by their most frequent class.

    It is drawn pixel by pixel, since thousands of clients with a hundred classes would be too many
    rectangles.
    """
    columns = [holdings[index] for index in figures.spread(len(holdings), _MOST_COLUMNS)]
    top = max(1.0, *(sum(holding.labels) for holding in columns)) * 1.02
    levels = (np.arange(_PIXELS) + 0.5) * top / _PIXELS
    shades = np.array([figures.rgb(color) for color in (*colors, figures.PAPER)])
    pixels = np.empty((_PIXELS, len(columns), 3))
    for index, holding in enumerate(columns):
        labels = [*holding.labels, *[0.0] * (len(colors) - len(holding.labels))]
        pixels[:, index] = shades[np.searchsorted(np.cumsum(labels), levels, side="right")]
    extent = (0, len(holdings), 0, top)
    axes.imshow(pixels, extent=extent, origin="lower", aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xlabel("clients, by their most frequent class")
    axes.set_ylabel("examples")
