"""What happened besides training: rejections, skipped rounds, alarms, interruptions."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from qsfl_flower.simulations.report import text
from qsfl_flower.simulations.report.html import Html, details, element, folded_table, join
from qsfl_flower.simulations.report.section import Section
from qsfl_flower.simulations.runs import Record, Run

_FREQUENT = 10
_HEAD = ("Time (UTC)", "Kind", "Message")


def events(run: Run) -> Section | None:
    """List the events; a kind that occurs often is folded, so that it does not bury the others."""
    if not run.events:
        return None
    kinds = Counter(_kind(event) for event in run.events)
    rare = [event for event in run.events if kinds[_kind(event)] <= _FREQUENT]
    parts = [_table(rare, "Events")] if rare else []
    for kind, amount in kinds.most_common():
        if amount > _FREQUENT:
            chosen = [event for event in run.events if _kind(event) == kind]
            parts.append(details(f"{kind} ({amount:,})", _table(chosen, f"Events: {kind}")))
    return Section("events", "Events", tuple(parts))


def _kind(event: Record) -> str:
    return str(event.get("kind", "event"))


def _table(chosen: list[Record], caption: str) -> Html:
    rows = [(_time(event.get("time")), _kind(event), _message(event)) for event in chosen]
    return folded_table(_HEAD, rows, caption, (0, 1, 2))


def _time(value: object) -> str:
    """Write an ISO time so that it stays on one line; anything else as it stands."""
    try:
        time = datetime.fromisoformat(str(value)).astimezone(UTC)
    except (ValueError, OverflowError):
        return text.shorten(str(value), 40)
    return f"{time:%d\u00a0%b\u00a0%H:%M:%S}"


def _message(event: Record) -> Html:
    told = text.shorten(str(event.get("message", "")), 1000)
    further = [
        f"{key}: {value}"
        for key, value in event.items()
        if key not in {"time", "kind", "message"} and str(value) not in told
    ]
    if not further:
        return join([told])
    return join([told, " ", element("span", text.shorten("; ".join(further), 500), class_="soft")])
