from __future__ import annotations

import pytest

from qsfl_flower.simulations.report import figures
from qsfl_flower.simulations.report.sections.traffic import traffic


def records(up, down, dense=1000):
    return [
        {"round": 0, "bytes_up": 0, "bytes_down": 0},
        *(
            {"round": r, "bytes_up": up, "bytes_down": down, "dense_up": dense, "dense_down": dense}
            for r in (1, 2, 3)
        ),
    ]


class FakeRun:
    def __init__(self, metrics):
        self.metrics = metrics


def test_tells_the_share_of_whole_models_in_both_directions():
    section = traffic(FakeRun(records(10, 60)))
    page = str(section.html())
    assert section.anchor == "traffic"
    for words in ("1.0 %", "6.0 %", "30 B", "180 B", "from clients", "to clients"):
        assert words in page or words.replace(" %", "%") in page, words
    assert len(section.plots) == 1
    assert "from clients" in section.plots[0].alt


def test_says_nothing_where_nothing_is_compressed():
    assert traffic(FakeRun(records(1001, 1002))) is None
    assert traffic(FakeRun([{"round": 1, "bytes_up": 5, "bytes_down": 5}])) is None
    assert traffic(FakeRun([])) is None


@pytest.mark.parametrize("up", [1, 300, 900])
def test_the_axis_of_shares_has_one_unit(up, monkeypatch):
    labels = []

    def draw(name, title, alt, paint, height=2.7):
        def painted(axes):
            paint(axes)
            axes.figure.canvas.draw()
            for which in ("major", "minor"):
                labels.extend(t.get_text() for t in axes.yaxis.get_ticklabels(which=which))

        return drawn(name, title, alt, painted, height)

    drawn = figures.draw
    monkeypatch.setattr(figures, "draw", draw)
    traffic(FakeRun(records(up, 1020)))
    assert any(labels)
    assert all(text.endswith(" %") for text in labels if text)
