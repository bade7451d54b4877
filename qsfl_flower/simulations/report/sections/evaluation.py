"""What the clients' evaluation came to, of which no single client was seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsfl_flower.simulations.report import text
from qsfl_flower.simulations.report.html import element, folded_table
from qsfl_flower.simulations.report.section import Section
from qsfl_flower.simulations.runs import Run, number

_ENDS = ("-low", "-high")


def evaluation(run: Run) -> Section | None:
    """Show every released number with its interval, and what it cost; None without evaluation."""
    rows, spent = [], None
    for record in run.metrics:
        measured, found = _part(record, "stages").get("evaluation"), _part(record, "client_metrics")
        if not isinstance(measured, Mapping):
            continue
        spent = number(measured.get("epsilon")) or spent
        rows += [
            (
                record["round"],
                name,
                text.decimal(number(value)),
                " to ".join(text.decimal(number(found[name + end])) for end in _ENDS)
                if all(name + end in found for end in _ENDS)
                else "exact"
                if spent is None
                else "",
                text.decimal(number(measured.get("clients"))),
                text.decimal(number(measured.get("epsilon"))),
            )
            for name, value in found.items()
            if not name.endswith(_ENDS)
        ]
    if not rows:
        return None
    asked = run.config.get("evaluation")
    values: Mapping[str, Any] = asked if isinstance(asked, Mapping) else {}
    cost = "Sums are exact, over the same clients each time; a made-up model would show in them."
    if spent is not None:
        cost = (
            f"Spent: epsilon = {text.decimal(spent)} for {values.get('unit', 'client')}s, besides "
            f"what training has spent; an interval holds the number without noise with "
            f"{text.percent(number(values.get('level')))} probability."
        )
    head = ("Round", "Metric", "Value", "Interval", "Clients", "Epsilon")
    said = element(
        "p",
        f"Sums over the clients' held-out examples; nothing of a single client was seen. {cost}",
    )
    table = folded_table(head, rows, "All released numbers", text=(1, 3), shown=100)
    return Section("evaluation", "Clients' evaluation", (said, table))


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}
