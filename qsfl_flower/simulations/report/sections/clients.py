"""Every client's part in the run, the conspicuous ones first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report import figures, text
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, element, folded_table, join
from qsfl_flower.simulations.report.outcome import reasons
from qsfl_flower.simulations.report.section import Row, Section
from qsfl_flower.simulations.report.tally import ClientTally, ReasonTally, Tally, tally
from qsfl_flower.simulations.runs import Record, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REASONS_SHOWN = 5
_ABOUT_REJECTIONS = ("Not used because", "Accepted", "Rejected")
_HEAD = (
    "Client",
    "Not used because",
    "Asked",
    "Accepted",
    "Rejected",
    "Examples",
    "Mean weight",
    "Mean norm",
    "Mean time",
    "Last loss",
)


def clients(run: Run) -> Section | None:
    """Say who was rejected and why; tabulate the clients, most rejections first, then by name."""
    counted = tally(run.clients())
    tallies = counted.clients
    if not tallies:
        return None
    held = _held(run)
    order = sorted(
        tallies, key=lambda name: (-sum(tallies[name].rejected.values()), text.natural(name))
    )
    rows = [_row(name, tallies[name], held.get(name)) for name in order]
    words = join([element("p", _sentence(tallies)), _why(counted)])
    plot = _unused(run.metrics, {n: r.amount for n, r in _frequent(counted)})
    note = "Examples, losses and times are what the clients say; weight is the share of the mean."
    return Section(
        "clients",
        "Clients",
        (
            Row((words, plot)) if plot else words,
            _table(rows, bool(counted.reasons)),
            element("p", note, class_="soft"),
        ),
    )


def _table(rows: Sequence[Sequence[object]], with_rejections: bool) -> Html:
    if with_rejections:
        return folded_table(_HEAD, rows, "Clients", (0, 1))
    shown = [i for i, name in enumerate(_HEAD) if name not in _ABOUT_REJECTIONS]
    return folded_table([_HEAD[i] for i in shown], [[r[i] for i in shown] for r in rows], "Clients")


def _frequent(counted: Tally) -> list[tuple[str, ReasonTally]]:
    return sorted(counted.reasons.items(), key=lambda pair: (-pair[1].amount, pair[0]))


def _why(counted: Tally) -> Html | None:
    items = [
        element(
            "li",
            f"{found.amount:,} {text.reason(name)} ",
            element("code", text.shorten(name, 60)),
            element("br"),
            f"from {text.some_clients(found.clients)}",
            *(
                [element("br"), element("span", f"for example {found.example}", class_="soft")]
                if found.example
                else []
            ),
        )
        for name, found in _frequent(counted)
    ]
    if not items:
        return None
    return join(
        [element("h3", "Updates that were not used"), element("ul", *items, class_="facts")]
    )


def _unused(metrics: Sequence[Record], counts: Mapping[str, int]) -> Plot | None:
    """Draw the rejections of every round; the accepted ones would only dwarf them."""
    trained = [record for record in metrics if number(record.get("selected"))]
    if not (counts and trained):
        return None
    rounds = [record["round"] for record in trained]
    common = list(counts)[:_REASONS_SHOWN]
    parts = {name: [float(reasons(record).get(name, 0)) for record in trained] for name in common}
    if len(counts) > len(common):
        parts["other reasons"] = [
            float(sum(n for name, n in reasons(record).items() if name not in common))
            for record in trained
        ]
    if not any(any(amounts) for amounts in parts.values()):
        return None  # what a rule left out is drawn with its selection
    asked = max(number(record["selected"]) or 0.0 for record in trained)

    def paint(axes: Axes) -> None:
        figures.stacked(axes, rounds, parts)
        figures.rounds_axis(axes, rounds)
        figures.whole_numbers(axes.yaxis)
        axes.set_ylabel(f"of {asked:,.0f} asked")
        figures.legend(axes)

    told = ", ".join(f"{amount:,} {name}" for name, amount in counts.items())
    alt = f"Updates of each round that were not used. In all: {told}."
    return figures.draw("rejections", "Updates not used per round", alt, paint)


def _held(run: Run) -> dict[str, float | None]:
    """Examples of each client by the partition; nothing if that file is unreadable."""
    try:
        found = run.partition.get("clients")
    except RunError:
        return {}
    return {
        str(client.get("client")): number(client.get("num_train"))
        for client in (found if isinstance(found, list) else [])
        if isinstance(client, dict)
    }


def _sentence(tallies: Mapping[str, ClientTally]) -> str:
    asked = [client.asked for client in tallies.values()]
    low, high = min(asked), max(asked)
    times = f"{high}" if low == high else f"{low} to {high}"
    sentence = f"{text.count(len(tallies), 'client')} took part, each asked in {times} rounds."
    never = [name for name, client in tallies.items() if not client.accepted]
    if never:
        sentence += f" Nothing was ever accepted from {text.some_clients(never)}."
    return sentence


def _row(name: str, client: ClientTally, held: float | None) -> tuple[object, ...]:
    return (
        text.shorten(name, 60),
        _reasons(client),
        client.asked,
        client.accepted,
        sum(client.rejected.values()) or text.NONE,
        _examples(client.claimed, held),
        text.percent(client.weight.value),
        text.decimal(client.norm.value),
        text.duration(client.seconds.value),
        text.decimal(client.loss),
    )


def _reasons(client: ClientTally) -> Html:
    items = [
        join([element("code", text.shorten(name, 60)), f" × {times}" if times > 1 else None])
        for name, times in client.rejected.items()
    ]
    return join(
        part for i, item in enumerate(items) for part in ([element("br"), item] if i else [item])
    )


def _examples(claimed: float | None, held: float | None) -> str:
    if held is None or claimed is None or claimed == held:
        return text.decimal(held if claimed is None else claimed)
    return f"{text.decimal(held)}, says {text.decimal(claimed)}"
