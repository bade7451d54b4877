"""Whose updates the robust rule and the detectors let count, round by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import element, folded_table
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.report.tally import ACCEPTED
from qsfl_flower.simulations.runs import Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_ASKED, SELECTED, LEFT_OUT, FLAGGED, REJECTED = range(5)

_KINDS = {ACCEPTED: SELECTED, "not-selected": LEFT_OUT, "flagged": FLAGGED, "quarantined": FLAGGED}
"""What each status is drawn as; every other one is a rejection."""

_COLORS = {
    "not asked": figures.PAPER,
    "selected": figures.BLUE,
    "not selected": figures.AMBER,
    "flagged": figures.PINK,
    "rejected": figures.BLACK,
}
_MOST = 50
"""Clients in the picture."""

_Fates = dict[str, dict[int, int]]


def selection(run: Run) -> Section | None:
    """Draw clients by rounds; None if nobody was ever left out or given a score."""
    fates: _Fates = {}
    scores: dict[str, list[float]] = {}
    for record in run.clients():
        name, status = str(record.get("client")), str(record.get("status"))
        at = number(record.get("round"))
        if at is None or not at.is_integer():
            continue
        fates.setdefault(name, {})[int(at)] = _KINDS.get(status, REJECTED)
        if (score := number(record.get("score"))) is not None:
            scores.setdefault(name, []).append(score)
    seen = {kind for rounds in fates.values() for kind in rounds.values()}
    if not scores and not seen & {LEFT_OUT, FLAGGED}:
        return None
    counts = {name: Counter(rounds.values()) for name, rounds in fates.items()}
    order = sorted(counts, key=lambda n: (-_unused(counts[n]), text.natural(n)))
    shown = sorted(order[:_MOST], key=text.natural)
    note = "Lower scores are closer to what the rule trusts; they compare only within a round."
    return Section(
        "selection",
        "Selection",
        (
            Row((element("p", _sentence(counts, order)), _picture(shown, fates))),
            folded_table(
                ("Client", "Selected", "Not selected", "Flagged", "Rejected", "Mean score"),
                [
                    (
                        text.shorten(name, 60),
                        *(counts[name][k] for k in (SELECTED, LEFT_OUT, FLAGGED, REJECTED)),
                        text.decimal(_mean(scores.get(name, []))),
                    )
                    for name in order
                ],
                "Clients",
            ),
            element("p", note, class_="soft"),
        ),
    )


def _unused(counts: Counter[int]) -> float:
    return 1 - counts[SELECTED] / counts.total()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _sentence(counts: Mapping[str, Counter[int]], order: Sequence[str]) -> str:
    never = [name for name in order if not counts[name][SELECTED]]
    always = sum(not _unused(c) for c in counts.values())
    words = f"{text.count(always, 'client')} of {len(counts):,} counted in every round."
    return f"{words} Never selected: {text.some_clients(never)}." if never else words


def _picture(shown: Sequence[str], fates: _Fates) -> Plot:
    rounds = sorted({r for name in shown for r in fates[name]})
    grid = [[fates[name].get(r, NOT_ASKED) for r in rounds] for name in shown]

    def paint(axes: Axes) -> None:
        from matplotlib.colors import ListedColormap

        colors = ListedColormap(list(_COLORS.values()))
        edges = [r - 0.5 for r in rounds] + [rounds[-1] + 0.5]
        rows = [i - 0.5 for i in range(len(shown) + 1)]
        axes.pcolormesh(edges, rows, grid, cmap=colors, vmin=-0.5, vmax=4.5,
                        edgecolors=figures.PAPER, linewidth=0.4)  # fmt: skip
        axes.invert_yaxis()
        axes.grid(visible=False)
        marked = figures.spread(len(shown), 16)
        axes.set_yticks(marked, [figures.label(shown[i], 12) for i in marked])
        axes.set_ylabel("client")
        figures.rounds_axis(axes, rounds)
        present = {kind for row in grid for kind in row}
        named = [(name, c) for i, (name, c) in enumerate(_COLORS.items()) if i in present and i]
        figures.legend_of(axes, named, 4)

    left_out = sum(kind == LEFT_OUT for row in grid for kind in row)
    alt = (
        f"Heat map of {len(shown)} clients by {len(rounds)} rounds: in {left_out} cases an update "
        "was not selected; the table below has the numbers."
    )
    height = min(7.0, 1.9 + 0.11 * len(shown))
    return figures.draw("selection", "Who counted in which round", alt, paint, height)
