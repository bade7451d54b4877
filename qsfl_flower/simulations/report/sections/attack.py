"""The attack of the run: whose it was, how much of it came through, and what a mean would get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import element
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.report.tally import ACCEPTED
from qsfl_flower.simulations.runs import Record, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def attack(run: Run) -> Section | None:
    """Compare the attackers' weight in the model with that in a plain mean, round by round."""
    try:
        listed = run.config.get("attacks")
    except RunError:
        return None
    attacks = [a for a in listed if isinstance(a, dict)] if isinstance(listed, list) else []
    names = {str(c) for a in attacks for c in _clients(a)}
    shares: dict[int, tuple[float, int, int]] = {}
    used = sent = 0
    for record in run.clients() if names else ():
        weight, hostile = number(record.get("weight")) or 0.0, str(record.get("client")) in names
        round_ = record["round"]
        held, liars, asked = shares.get(round_, (0.0, 0, 0))
        shares[round_] = held + hostile * weight, liars + hostile, asked + 1
        sent += hostile
        used += hostile and record.get("status") == ACCEPTED
    if not sent:
        return None
    plain = {r: liars / asked for r, (_, liars, asked) in shares.items()}
    told = [
        f"{text.some_clients(_clients(a)).capitalize()} attack by {a.get('attack')}."
        for a in attacks
        if _clients(a)
    ]
    told.append(
        f"{used:,} of their {text.count(sent, 'update')} got into the model "
        f"({text.percent(used / sent)})."
    )
    words = [element("p", " ".join(told))]
    if len(attacks) == 1 and (effect := _in_a_mean(attacks[0], max(plain.values()))):
        words.append(element("p", effect))
    return Section("attack", "The attack", (Row((element("div", *words), _plot(shares, plain))),))


def _clients(attack: Record) -> list[str]:
    found = attack.get("clients")
    return [str(client) for client in found] if isinstance(found, list) else []


def _in_a_mean(attack: Record, share: float) -> str | None:
    """Say what the attack does to a mean whose honest updates are alike."""
    factors = {
        "sign-flip": -(number(attack.get("scale")) or 1.0),
        "scaling": number(attack.get("factor")) or 10.0,
        "zero": 0.0,
    }
    factor = factors.get(str(attack.get("attack")))
    if factor is None:
        return None
    step = (1 - share) + share * factor
    way = "the other way" if step < 0 else "the same way"
    return (
        f"Without the chain, in a plain mean, {text.percent(share)} of the weight would be theirs. "
        f"Where honest updates are alike, its step would go {way}, {text.decimal(abs(step))} times "
        "as far as an honest one."
    )


def _plot(shares: dict[int, tuple[float, int, int]], plain: dict[int, float]) -> Plot:
    rounds: Sequence[int] = sorted(shares)
    held = [shares[r][0] for r in rounds]
    mean = [plain[r] for r in rounds]

    def paint(axes: Axes) -> None:
        axes.plot(rounds, mean, color=figures.ORANGE, linewidth=2, label="in a plain mean")
        axes.plot(rounds, held, color=figures.BLUE, linewidth=2, marker="o", label="in this run")
        axes.yaxis.set_major_formatter(lambda value, _: text.percent(value))
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of each step")
        figures.rounds_axis(axes, rounds)
        figures.legend(axes)

    alt = (
        f"Share of the model's step that attackers made: {text.percent(sum(held) / len(held))} on "
        f"average, {text.percent(sum(mean) / len(mean))} in a plain mean."
    )
    return figures.draw("attack", "The attackers' share of the model", alt, paint)
