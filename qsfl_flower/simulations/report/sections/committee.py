"""Who opened the sums of hidden updates, and who was lost on the way."""

from __future__ import annotations

from qsfl_flower.simulations.report import text
from qsfl_flower.simulations.report.html import element, folded_table
from qsfl_flower.simulations.report.section import Section
from qsfl_flower.simulations.runs import Record, Run, number

MEMBER = "member "
_STAGES = ("secure_sum", "secure_krum")
_FATE = {0.0: " (vanished)", -1.0: " (lied)"}
_HEAD = ("Round", "In the sum", "Left out", "Dropped", "Committee", "Sent and received")


def committee(run: Run) -> Section | None:
    """Tabulate clients, committee and bytes of every round with a committee."""
    rounds = [(record, found) for record in run.metrics if (found := _measured(record))]
    if not rounds:
        return None
    rows = [
        (
            record["round"],
            _whole(found.get("summed")),
            _whole((number(found.get("clients")) or 0.0) - (number(found.get("summed")) or 0.0)),
            _whole(found.get("dropped")),
            _members(found),
            text.size(number(found.get("committee bytes"))),
        )
        for record, found in rounds
    ]
    lost = sum(value in _FATE for _, found in rounds for _, value in _fates(found))
    told = (
        "The server saw no update of a single client. Each was shared among the members of a "
        "committee, who released the sum of those in the second column. Left out are clients that "
        "a selection rule did not choose; dropped are those whose shares did not fit. "
        + (
            f"Members vanished or lied {text.count(lost, 'time')}."
            if lost
            else "Every member answered in every round."
        )
    )
    table = folded_table(_HEAD, rows, "Sums opened by the committee", (4,))
    return Section("committee", "Secure aggregation", (element("p", told), table))


def _measured(record: Record) -> Record:
    stages = record.get("stages")
    found = [stages.get(name) for name in _STAGES] if isinstance(stages, dict) else []
    return next((one for one in found if isinstance(one, dict)), {})


def _fates(found: Record) -> list[tuple[str, float | None]]:
    members = [key for key in found if key.startswith(MEMBER)]
    return [(key.removeprefix(MEMBER), number(found[key])) for key in members]


def _members(found: Record) -> str:
    names = [
        text.shorten(name, 40) + ("" if fate is None else _FATE.get(fate, ""))
        for name, fate in _fates(found)
    ]
    return ", ".join(names)


def _whole(value: object) -> str:
    amount = number(value)
    return "" if amount is None else f"{amount:.0f}"
