"""Every client's part in the run, the conspicuous ones first."""

from __future__ import annotations

from collections.abc import Mapping

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report import text
from qsfl_flower.simulations.report.html import Html, element, folded_table, join
from qsfl_flower.simulations.report.section import Section
from qsfl_flower.simulations.report.tally import ClientTally, tally
from qsfl_flower.simulations.runs import Run, number

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
    """Tabulate the clients: those with the most rejections first, then by name."""
    tallies = tally(run.clients())
    if not tallies:
        return None
    held = _held(run)
    order = sorted(
        tallies, key=lambda name: (-sum(tallies[name].rejected.values()), text.natural(name))
    )
    rows = [_row(name, tallies[name], held.get(name)) for name in order]
    note = element(
        "p",
        "Examples, losses and times are what the clients say; weight is the share of the mean.",
        class_="soft",
    )
    return Section(
        "clients",
        "Clients",
        (element("p", _sentence(tallies)), folded_table(_HEAD, rows, "Clients", (0, 1)), note),
    )


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
        sentence += f" Never accepted: {text.names(never)}."
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
