from __future__ import annotations

import math
import subprocess
import sys
from io import BytesIO

import pytest
from matplotlib import colors
from matplotlib.axes import Axes
from PIL import Image

from qsfl_flower.simulations.report import figures


def test_a_picture_is_a_sharp_png_with_its_text() -> None:
    plot = figures.draw("name", "Title", "what it shows", lambda axes: axes.plot([1, 2]) and None)
    image = Image.open(BytesIO(plot.png))
    assert image.format == "PNG"
    assert image.size == (792, 486)
    assert plot.size == (396, 243)
    assert 'alt="what it shows" width="396" height="243"' in plot.html()
    assert 'src="data:image/png;base64,iVBOR' in plot.html()


@pytest.mark.parametrize(
    "text", ["$", "$\\frac{", "_hidden", "\x00\ud800", "<b>", "漢字", "", "a\nb"]
)
def test_any_text_can_be_drawn(text: str) -> None:
    def paint(axes: Axes) -> None:
        axes.plot([1, 2], label=figures.label(text))
        axes.set_yticks([1, 2], [figures.label(text)] * 2)
        figures.legend(axes)
        shown = axes.get_figure().legends[0].get_texts()  # type: ignore[union-attr]
        assert len(shown) == 1

    figures.draw("name", text, text, paint)


def test_labels_are_cut() -> None:
    assert figures.label("x" * 100, 10) == "x" * 9 + "…"


def test_series_leaves_gaps_where_nothing_can_be_drawn() -> None:
    values = (1, None, math.nan, math.inf, "x", 1e300, True, -2.5)
    found = figures.series([{"k": value} for value in values] + [{}], "k")
    assert [found[0], found[7]] == [1.0, -2.5]
    assert all(math.isnan(found[index]) for index in (1, 2, 3, 4, 5, 6, 8))
    assert not figures.has_data(found[1:7])


@pytest.mark.parametrize("rounds", [1, 60, 61, 500])
def test_stacks_reach_the_sum(rounds: int) -> None:
    tops = []

    def paint(axes: Axes) -> None:
        parts = {"a": [1.0] * rounds, "b": [math.nan] + [2.0] * (rounds - 1)}
        figures.stacked(axes, list(range(rounds)), parts)
        tops.append(axes.dataLim.ymax)

    figures.draw("name", "Title", "alt", paint)
    assert tops == [1.0 if rounds == 1 else 3.0]


def test_palettes() -> None:
    assert figures.palette(0) == []
    for amount in (1, 2, 10, 11, 100):
        assert len(set(figures.palette(amount))) == amount
    for color in figures.CYCLE:
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in colors.to_rgb(color)
        )
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        # Amber and sky are areas only; lines use the first four, 3:1 against white (WCAG 1.4.11).
        if color in figures.CYCLE[:3]:
            assert 1.05 / (luminance + 0.05) >= 3


def test_spread() -> None:
    assert figures.spread(3, 12) == [0, 1, 2]
    assert figures.spread(100, 3) == [0, 50, 99]


def test_no_global_state_and_no_matplotlib_before_a_picture_is_drawn() -> None:
    code = (
        "import sys; import qsfl_flower.simulations.report; from qsfl_flower.simulations.report"
        " import figures; early = 'matplotlib' in sys.modules;"
        "figures.draw('n', 't', 'a', lambda axes: None);"
        "print(early, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]


def test_one_bar_that_dwarfs_the_others_is_cut() -> None:
    shown = []

    def paint(axes: Axes) -> None:
        rounds = [1.0, 2.0, 3.0, 4.0]
        shown.append(figures.cut_off(axes, rounds, [20.0, 2.0, 1.0, math.nan], str))
        shown.append(len(axes.texts))
        shown.append(figures.cut_off(axes, rounds, [9.0, 2.0, 1.0, 1.0], str))
        shown.append(figures.cut_off(axes, rounds, [9.0, 0.0, 0.0, 0.0], str))
        shown.append(len(axes.texts))

    figures.draw("name", "Title", "alt", paint)
    assert shown == [pytest.approx(2.7), 1, 9.0, 9.0, 1]


def test_what_a_cut_bar_measures_stands_beside_it() -> None:
    def paint(axes: Axes) -> None:
        axes.bar([1.0, 2.0, 3.0], [40.0, 1.0, 1.0], 0.8)
        figures.cut_off(axes, [1.0, 2.0, 3.0], [40.0, 1.0, 1.0], str)
        assert axes.texts[0].xy[0] >= 1.4

    figures.draw("name", "Title", "alt", paint)


@pytest.mark.parametrize(
    ("most", "unit"), [(0, "B"), (900, "B"), (1_900, "B"), (2_100, "kB"), (3e9, "GB"), (1e30, "TB")]
)
def test_an_axis_of_bytes_has_one_unit(most: float, unit: str) -> None:
    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, most])
        figures.sizes(axes.yaxis, most)
        told = [axes.yaxis.get_major_formatter()(value, 0) for value in (0, most / 3, most)]
        assert {word.split()[-1] for word in told if word != "0"} <= {unit}

    figures.draw("name", "Title", "alt", paint)
