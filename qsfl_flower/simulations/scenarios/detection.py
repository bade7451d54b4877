"""How many attackers detection keeps out, and how many honest clients: the counts and their table.

An update counts as kept out if it is flagged or its client is in quarantine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLAIN = (
    "sign-flip",
    "sign-flip x3",
    "scaling x10",
    "scaling x1000",
    "gaussian",
    "label-flip",
    "backdoor",
)
"""Attacks that do not try to hide."""


def counts(
    flagged: NDArray[np.bool_], away: NDArray[np.bool_], attackers: Sequence[int]
) -> dict[str, Any]:
    """Count what was kept out.

    Parameters
    ----------
    flagged, away : ndarray of bool, shape (rounds, clients)
        Which updates were flagged, and which clients were in quarantine.
    attackers : sequence of int
        Who attacks; from the first round on.
    """
    bad = np.isin(np.arange(flagged.shape[1]), attackers)
    out = flagged | away
    together = away[:, bad].all(axis=1) if bad.any() else np.zeros(len(away), dtype=np.bool_)
    return {
        "attacks": out[:, bad].size,
        "caught": int(out[:, bad].sum()),
        "caught_by_flag": int(flagged[:, bad].sum()),
        "honest": out[:, ~bad].size,
        "false_alarms": int(out[:, ~bad].sum()),
        "all_away_from": int(together.argmax()) + 1 if together.any() else None,
        "honest_ever_away": int(away[:, ~bad].any(axis=0).sum()),
    }


def kinds(
    flagged: NDArray[np.bool_], named: Sequence[Sequence[str]], attackers: Sequence[int]
) -> dict[str, int]:
    """Count what the attackers' flagged updates were said to look like, most often first."""
    told = Counter(
        named[at][client] for at, row in enumerate(flagged) for client in attackers if row[client]
    )
    return dict(told.most_common())


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the shares of attacking and of honest updates that were kept out."""
    total = {
        key: sum(row[key] for row in rows)
        for key in ("attacks", "caught", "honest", "false_alarms")
    }
    return {
        "true_positives": total["caught"] / total["attacks"] if total["attacks"] else None,
        "false_positives": total["false_alarms"] / total["honest"] if total["honest"] else None,
    }


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a table with a line per attack, and one for those of `PLAIN` together.

    Parameters
    ----------
    title : str
        Heading.
    rows : sequence of mapping
        ``attack``, ``accuracy``, ``looks_like`` (from `kinds`) and what `counts` returned.
    """
    head = "attack | kept out | by a flag | looks like | false alarms | all away from round"
    lines = [f"### {title}", "", f"| {head} | honest ever away | accuracy |", "|---" * 8 + "|"]
    for row in rows:
        honest = row["attack"] == "none"
        found = rates([row])
        cells = (
            row["attack"],
            "" if honest else _percent(found["true_positives"]),
            "" if honest else _percent(row["caught_by_flag"] / row["attacks"]),
            _named(row["looks_like"]),
            _percent(found["false_positives"]),
            "" if honest else str(row["all_away_from"] or "-"),
            str(row["honest_ever_away"]),
            _percent(row["accuracy"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    plain = rates([row for row in rows if row["attack"] in PLAIN])
    if plain["true_positives"] is not None:
        told = f"{_percent(plain['true_positives'])} | | | {_percent(plain['false_positives'])}"
        lines.append(f"| **not hiding, together** | {told} | | | |")
    return "\n".join(lines) + "\n"


def _named(told: Mapping[str, int]) -> str:
    """Write the most frequent name with its share."""
    if not told:
        return ""
    name, times = next(iter(told.items()))
    return f"{name or 'none of them'} ({_percent(times / sum(told.values()))})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
