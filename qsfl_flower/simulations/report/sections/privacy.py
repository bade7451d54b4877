"""What privacy was promised, to whom, against whom, and what was spent of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qsfl_flower.privacy.events import ADD_OR_REMOVE, REPLACE, ZERO
from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, details, element
from qsfl_flower.simulations.report.outcome import spent
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.runs import Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[int, float, Any]]

_RECORD, _CLIENT = "one record of a client", "one client with all of its data"
_ADVERSARY = {
    "central_dp": "everybody who sees the models: all clients, and whoever gets the final model. "
    "The server adds the noise, so it has to be trusted, and with it the files of this run",
    "distributed_dp": "everybody, the server included: it learns sums over the clients alone, and "
    "the noise is in a sum before anybody can open it, since every client adds a share. Some of "
    "them have to be trusted to do so: all but {f} of those in a sum",
    "local_dp": "everybody, the server included; nobody but the client itself has to be trusted",
    "record_dp": "everybody but the client that holds the record, the server included",
}


def privacy(run: Run) -> Section | None:
    """Explain and draw the privacy that was spent; None without differential privacy."""
    kept = [s for s in _stages(run) if s.get("stage") in _ADVERSARY]
    recorded = [(r["round"], number(r.get("epsilon")), r) for r in run.metrics]
    points = [(at, e, r) for at, e, r in recorded if e is not None]
    if not kept or not points:
        return None
    epsilon = max(points[-1][1], spent(run) or 0.0)
    parts: list[Html | Row] = [_explain(stage, epsilon) for stage in kept]
    parts += [
        element("p", text.shorten(str(event.get("message")), 500))
        for event in run.events
        if event.get("kind") == "budget spent"
    ]
    parts += _excluded(run)
    plots = [plot for plot in (_over_rounds(points, kept), _against(points)) if plot is not None]
    if plots:
        parts.append(Row(tuple(plots)))
    parts.append(details("What epsilon and delta mean", _meaning(epsilon, kept[0])))
    return Section("privacy", "Privacy", tuple(parts))


def _excluded(run: Run) -> list[Html]:
    """Name the clients without a budget, if a budget's end excludes clients."""
    names = {str(row.get("client")) for row in run.clients() if row.get("status") == "no-budget"}
    if not names:
        return []
    return [
        element(
            "p",
            f"Excluded, since their accounts have no budget left: {text.some_clients(names)}. They "
            "are sampled as before, so that what is spent stays right, but nothing of theirs is "
            "used; the table of clients has the rounds.",
        )
    ]


def _stages(run: Run) -> list[Mapping[str, Any]]:
    strategy = run.config.get("strategy")
    stages = strategy.get("stages") if isinstance(strategy, Mapping) else None
    return [s for s in stages or [] if isinstance(s, Mapping)]


def _explain(stage: Mapping[str, Any], epsilon: float) -> Html:
    delta = number(stage.get("delta")) or math.nan
    against = _ADVERSARY[str(stage["stage"])].format(f=stage.get("non_contributors", 0))
    return element(
        "p",
        f"Protected is {_unit(stage)}: whether it was used can hardly be found out. "
        f"Neighbours: {_relation(stage)}. Protected against {against}. "
        f"Spent: epsilon = {text.decimal(epsilon)} of "
        f"{text.decimal(number(stage.get('epsilon')) or math.nan)}, at delta = {delta:g}.",
    )


def _relation(stage: Mapping[str, Any]) -> str:
    if stage["stage"] == "local_dp":
        return REPLACE
    by_client = stage["stage"] == "distributed_dp" and _unit(stage) == _CLIENT
    return ZERO if by_client else ADD_OR_REMOVE


def _unit(stage: Mapping[str, Any]) -> str:
    by_record = stage["stage"] == "record_dp" or stage.get("records") is not None
    return _RECORD if by_record else _CLIENT


def _meaning(epsilon: float, stage: Mapping[str, Any]) -> Html:
    delta = number(stage.get("delta")) or math.nan
    # A test with a false alarm rate of 1 % finds a member with at most this probability.
    power = math.exp(min(epsilon, 50.0)) * 0.01 + delta
    power = min(power, 1 - math.exp(-epsilon) * (0.99 - delta))
    chance = 1 / (1 + math.exp(-epsilon))
    return element(
        "p",
        "Imagine an attacker who knows everything except whether one particular "
        f"{'record' if _unit(stage) == _RECORD else 'client'} took part, and who guesses it "
        f"from all models of this run. Without them the guess is right half of the time; with them "
        f"at most {text.percent(min(1.0, chance + delta))} of the time. Who accepts one false "
        f"accusation in a hundred finds at most {text.percent(power)} of the members. With a "
        f"probability of at most {delta:g} (delta) the protection may be weaker than that.",
    )


def _over_rounds(
    points: list[tuple[int, float, Any]], kept: list[Mapping[str, Any]]
) -> Plot | None:
    finite = [(at, e) for at, e, _ in points if math.isfinite(e)]
    if len(finite) < 2:
        return None
    rounds = [at for at, _ in finite]
    limit = number(kept[0].get("epsilon"))

    def paint(axes: Axes) -> None:
        axes.plot(*zip(*finite, strict=True), color=figures.BLUE, linewidth=2, label="spent")
        if limit is not None:
            axes.axhline(limit, color=figures.ORANGE, linestyle="--", label="budget")
        axes.set_ylim(bottom=0)
        figures.rounds_axis(axes, rounds)
        figures.legend(axes, columns=1)

    alt = f"Epsilon spent over rounds: {text.decimal(finite[-1][1])} after round {rounds[-1]}."
    return figures.draw("privacy-spent", "Epsilon spent", alt, paint)


def _against(points: Points) -> Plot | None:
    pairs = [
        (e, a)
        for _, e, r in points
        if math.isfinite(e) and (a := number(r.get("eval_accuracy"))) is not None
    ]
    if len(pairs) < 2:
        return None

    def paint(axes: Axes) -> None:
        axes.plot(*zip(*pairs, strict=True), color=figures.GREEN, linewidth=2, marker=".")
        axes.set_xlabel("epsilon spent")
        figures.percents(axes.yaxis)

    alt = (
        f"Accuracy against epsilon spent: {text.percent(pairs[-1][1])} at "
        f"{text.decimal(pairs[-1][0])}."
    )
    return figures.draw("privacy-accuracy", "Accuracy for epsilon", alt, paint)
