"""Drawing: one style for every picture, and the pictures as values.

Pictures are drawn small (a phone's width) with large type, at twice the resolution of a screen, so
that one file is legible at 360 pixels, in two columns on a desk, and in print. They are drawn on
white; the page's style turns them for a dark screen. matplotlib is imported on first use, since
commands that draw nothing should not wait for it.
"""

from __future__ import annotations

import io
import math
import warnings
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsfl_flower.simulations.report.html import Html, clean, element
from qsfl_flower.simulations.report.text import shorten
from qsfl_flower.simulations.runs import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Okabe and Ito's colours, distinguishable with every common colour blindness.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
AMBER, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#222222", "#767676"
CYCLE = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK)

WIDTH = 4.4
_DPI = 180
GRID, PAPER = "#e3e3e3", "#ffffff"
_INK = "#333333"
_MOST_BARS = 60
_LARGEST = 1e100  # matplotlib's tick arithmetic overflows long before float64 does


@dataclass(frozen=True)
class Plot:
    """A finished picture.

    Parameters
    ----------
    name : str
        File name without extension.
    alt : str
        What the picture shows, with its main numbers, for readers who cannot see it.
    png : bytes
        The picture.
    size : tuple of int
        Width and height in pixels of the layout (half the picture's).
    """

    name: str
    alt: str
    png: bytes
    size: tuple[int, int]

    def html(self) -> Html:
        """The picture inside a page."""
        source = "data:image/png;base64," + b64encode(self.png).decode("ascii")
        width, height = (str(pixels) for pixels in self.size)
        return element(
            "figure", element("img", src=source, alt=self.alt, width=width, height=height)
        )


def draw(
    name: str, title: str, alt: str, paint: Callable[[Axes], None], height: float = 2.7
) -> Plot:
    """Draw one picture.

    Parameters
    ----------
    name : str
        File name without extension.
    title : str
        Heading inside the picture.
    alt : str
        Text for readers who cannot see it.
    paint : callable
        Draws the data into the axes it is given.
    height : float
        Height in inches; every picture is `WIDTH` inches wide.

    Returns
    -------
    Plot
        The picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9.5)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(label(title), loc="left", fontsize=11.5, fontweight="bold", color=_INK)
    with warnings.catch_warnings():
        # A class name may use letters that the bundled font lacks; a box is drawn instead.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        paint(axes)
        axes.xaxis.label.set(color=_INK, fontsize=10)
        axes.yaxis.label.set(color=_INK, fontsize=10)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    pixels = (round(WIDTH * _DPI / 2), round(height * _DPI / 2))
    return Plot(name=name, alt=alt, png=buffer.getvalue(), size=pixels)


def label(text: object, most: int = 40) -> str:
    """Prepare text for a picture: cut, cleaned, and never read as a formula or as 'no legend'."""
    return shorten(clean(text).replace("\n", " "), most).replace("$", r"\$").lstrip("_") or " "


def legend(axes: Axes, columns: int = 2) -> None:
    """Put the legend under the picture, where it hides no data."""
    _legend(axes, *axes.get_legend_handles_labels(), columns)


def legend_of(axes: Axes, entries: Sequence[tuple[str, str]], columns: int) -> None:
    """Put a legend of names and colours under the picture."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, linewidth=0) for _, color in entries]
    _legend(axes, handles, [label(name, 14) for name, _ in entries], columns)


def _legend(axes: Axes, handles: Sequence[Any], names: Sequence[str], columns: int) -> None:
    figure = axes.get_figure()
    if not handles or figure is None:
        return
    figure.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=min(columns, len(handles)),
        frameon=False,
        fontsize=9.5,
        labelcolor=_INK,
        handlelength=1.5,
        columnspacing=1.2,
        labelspacing=0.25,
        borderaxespad=0,
    )


def palette(amount: int) -> list[str]:
    """Give so many colours that survive colour blindness: distinct ones, or an ordered scale."""
    from matplotlib import color_sequences, colormaps
    from matplotlib.colors import to_hex

    distinct = color_sequences["petroff10"]
    if amount <= len(distinct):
        return [to_hex(color) for color in distinct[:amount]]
    return [to_hex(colormaps["viridis"](i / max(1, amount - 1))) for i in range(amount)]


def rgb(color: str) -> tuple[float, float, float]:
    """Split a colour into red, green and blue in [0, 1]."""
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def spread(amount: int, most: int) -> list[int]:
    """Pick at most so many indices out of ``0 .. amount - 1``, evenly, both ends included."""
    if amount <= most:
        return list(range(amount))
    return [round(i * (amount - 1) / (most - 1)) for i in range(most)]


def rounds_axis(axes: Axes, rounds: Sequence[float]) -> None:
    """Make the horizontal axis count rounds: whole numbers, no empty margins."""
    axes.set_xlabel("round")
    whole_numbers(axes.xaxis)
    if rounds:
        axes.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)


def few_ticks() -> Any:
    """A locator for axes whose tick labels are long."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4)


def whole_numbers(axis: Axis) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def percents(axis: Axis) -> None:
    """Label an axis of shares of one."""
    axis.set_major_formatter(lambda value, _: f"{value * 100:g} %")


def seconds(axis: Axis, most: float) -> None:
    """Label an axis of durations in one unit."""
    unit, factor = ("ms", 1e3) if most < 1 else ("s", 1.0) if most < 300 else ("min", 1 / 60)
    axis.set_major_formatter(lambda value, _: f"{value * factor:g} {unit}")


def sizes(axis: Axis, most: float) -> None:
    """Label an axis of bytes in one unit."""
    power = min(4, max(0, math.ceil(math.log10(max(most, 1) / 2) / 3) - 1))
    unit, factor = ("B", "kB", "MB", "GB", "TB")[power], 1000.0**-power
    axis.set_major_formatter(lambda value, _: f"{value * factor:g} {unit}" if value else "0")


def log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """Use a logarithmic axis for positive values that span more than a factor of thirty."""
    if values and min(values) > 1 / _LARGEST and max(values) / min(values) > 30:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_yscale("log")
        if max(values) / min(values) < 2000:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def series(records: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Read one column for drawing: NaN where there is no drawable number."""
    values = (number(record.get(key)) for record in records)
    return [math.nan if value is None or not abs(value) < _LARGEST else value for value in values]


def cut_off(
    axes: Axes, rounds: Sequence[float], heights: Sequence[float], write: Callable[[float], str]
) -> float:
    """Cut a bar that dwarfs all others, tell its height, and return the greatest height shown.

    The first round of a simulation also starts the workers; without the cut nothing else is seen.
    """
    ordered = sorted(
        (
            (height, at)
            for at, height in zip(rounds, heights, strict=True)
            if not math.isnan(height)
        ),
        reverse=True,
    )
    greatest, at = ordered[0]
    if len(ordered) < 3 or greatest < 5 * ordered[1][0] or ordered[1][0] <= 0:
        return greatest
    top = 1.35 * ordered[1][0]
    axes.set_ylim(0, top)
    left = at < sum(rounds) / len(rounds)
    axes.annotate(
        f"round {at:g}: {write(greatest)} ↑",
        (at + 0.4 if left else at - 0.4, top),  # beside the bar, not on it
        xytext=(5 if left else -5, -4),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top",
        fontsize=9.5,
        color=_INK,
    )
    return top


def has_data(values: Sequence[float]) -> bool:
    """Tell whether there is anything to draw."""
    return any(not math.isnan(value) for value in values)


def stacked(axes: Axes, rounds: Sequence[float], parts: Mapping[str, Sequence[float]]) -> None:
    """Draw named parts on top of each other, a bar a round, or an area if there are many."""
    bottom = [0.0] * len(rounds)
    for color, (name, values) in zip(CYCLE, parts.items(), strict=False):
        top = [
            low + (0.0 if math.isnan(value) else value)
            for low, value in zip(bottom, values, strict=True)
        ]
        if len(rounds) <= _MOST_BARS:
            heights = [high - low for high, low in zip(top, bottom, strict=True)]
            axes.bar(rounds, heights, 0.8, bottom, color=color, label=label(name), linewidth=0)
        else:
            axes.fill_between(
                rounds, bottom, top, step="mid", color=color, label=label(name), linewidth=0
            )
        bottom = top
