"""The detection of a round: features, memory, a detector's judgement, groups and standings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.detection.core.detector import Detector, Floats
from qsfl_flower.mechanisms.detection.core.features import NAMES, Table, describe, extract
from qsfl_flower.mechanisms.detection.core.groups import coordinated
from qsfl_flower.mechanisms.detection.core.kinds import kind_of
from qsfl_flower.mechanisms.detection.core.opposed import opposed
from qsfl_flower.mechanisms.detection.core.registry import DETECTORS
from qsfl_flower.mechanisms.detection.core.reputation import Reputation, Standing
from qsfl_flower.mechanisms.robust.core.updates import Updates
from qsfl_flower.numerics import Layout
from qsfl_flower.plugins import Options, option

KEEP = 0.7
"""Share of a client's earlier deviations that stays in their running mean: noise averages out over
rounds, a habit does not."""

WINDOW = 512
"""Rows of the reference."""

_COHORTS, _CLIENTS, _SIZE = 16, 20, 256
_WIDEST = 20.0
_SIZES = ("norm", "distance", "neighbours", "twin", "layer_high", "layer_low")
_FINEST = np.where([name in _SIZES for name in NAMES], 0.1, 0.02)
_FINEST_MADE_UP = 0.02
"""Deviations count as at least this, so that 10 % in size or 0.02 in a cosine are never unusual.
Made-up cohorts, which only teach how features vary together, are closer still."""


@dataclass(frozen=True)
class Detection(Options):
    """How a round's updates are inspected.

    Parameters
    ----------
    detector : str or Detector
        A key of `qsfl_flower.mechanisms.detection.core.DETECTORS`, or a detector.
    threshold : float
        Scores above it are flagged, in [0, 1]; at 0.5 about one honest row in a hundred is.
    reputation : Reputation
        What follows from flags.
    seed : int
        Of the detector.

    Raises
    ------
    ConfigError
        If there is no such detector, or a value is out of range.
    """

    detector: str | Detector = "isolation-forest"
    threshold: float = option("Scores above it are flagged.", 0.5, ge=0, le=1)
    reputation: Reputation = field(default_factory=Reputation)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.detector, str) and self.detector not in DETECTORS:
            raise ConfigError(
                f"detection: there is no detector {self.detector!r}; "
                f"there are {', '.join(DETECTORS)}"
            )


@dataclass(frozen=True)
class Finding:
    """What a round showed of one client.

    Parameters
    ----------
    score : float
        From 0, as usual as anything seen before, to 1.
    flagged : bool
        Whether the score is above the threshold, or the client belongs to a group or moves against
        the others.
    group : int or None
        Number of the coordinated group it belongs to.
    why : str
        The features that say most, in words; empty if it is not flagged.
    kind : str
        What attack it looks like, see `kind_of`; empty if none, or if it is not flagged.
    before, after : Standing
        What was thought of it, and what is now.
    """

    score: float
    flagged: bool
    group: int | None
    why: str
    kind: str
    before: Standing
    after: Standing


@dataclass(frozen=True, eq=False)
class Memory:
    """What is remembered from round to round; as arrays and JSON values through `state`.

    Parameters
    ----------
    reference : ndarray of float64, shape (m, F + 2)
        Rows that were not suspicious, the newest last.
    standings : mapping of str to Standing
        By client.
    habits : mapping of str to ndarray of float64, shape (F + 1,)
        By client: decaying sums of its deviations and of their number.
    """

    reference: Floats
    standings: Mapping[str, Standing]
    habits: Mapping[str, Floats]

    @classmethod
    def new(cls, seed: int) -> Memory:
        """Return the memory before the first round: what made-up cohorts look like.

        Their clients send a common direction and normal noise, so that the reference knows from
        the start how features vary together and how rough medians over twenty clients are.
        """
        rng = np.random.default_rng(seed)
        layout = Layout(("a", "b"), ((_SIZE // 2,), (_SIZE // 2,)), ("float64", "float64"))
        rows = []
        for _ in range(_COHORTS):
            common, last = rng.standard_normal((2, _SIZE))
            updates = common + rng.standard_normal((_CLIENTS, _SIZE))
            table = extract(Updates.of(updates), layout, common + last)
            rows.append(standardize(table, _FINEST_MADE_UP))
        return cls(_with_sizes(np.vstack(rows)), {}, {})

    def trusted(self, clients: Sequence[str], server_round: int) -> NDArray[np.bool_]:
        """Return which clients are not in quarantine, shape (n,)."""
        standings = (self.standings.get(client, Standing()) for client in clients)
        return np.array([not standing.quarantined(server_round) for standing in standings])

    @property
    def state(self) -> dict[str, Any]:
        """The memory as arrays and JSON values."""
        standings = [self.standings[c] for c in self.standings]
        return {
            "clients": list(self.standings),
            "standings": np.array(
                [(s.suspicion, s.until, s.probation, s.terms) for s in standings]
            ).reshape(-1, 4),
            "habits": np.array([self.habits[c] for c in self.standings]).reshape(
                -1, len(NAMES) + 1
            ),
            "reference": self.reference,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Memory:
        """Read what `state` returned."""
        standings = {
            client: Standing(float(row[0]), *(int(value) for value in row[1:]))
            for client, row in zip(state["clients"], state["standings"], strict=True)
        }
        habits = dict(zip(state["clients"], state["habits"], strict=True))
        return cls(state["reference"], standings, habits)


def inspect(
    table: Table, clients: Sequence[str], memory: Memory, how: Detection, server_round: int
) -> tuple[list[Finding], Memory]:
    """Judge the updates of a round.

    Parameters
    ----------
    table : Table
        The features of n updates.
    clients : sequence of str
        Who sent them, n different names that mean the same client in every round.
    memory : Memory
        What earlier rounds left.
    how : Detection
        Detector, threshold and reputation.
    server_round : int
        The round, counted from 1.

    Returns
    -------
    findings : list of Finding
        One per client, in their order.
    memory : Memory
        For the next round.
    """
    deviations = standardize(table)
    rows, habits = _smooth(deviations, clients, memory.habits)
    seed = (how.seed + server_round) % 2**32
    full = _with_sizes(rows)
    detector = DETECTORS[how.detector] if isinstance(how.detector, str) else how.detector
    judgement = detector.judge(full, memory.reference, seed)
    scores, reasons = judgement.scores, _folded(judgement.reasons, rows)
    groups = {row: n for n, group in enumerate(coordinated(table.likeness)) for row in group}
    against = opposed(table)
    findings = []
    for row, client in enumerate(clients):
        before = memory.standings.get(client, Standing())
        seen = row in groups or row in against
        flagged = seen or bool(scores[row] > how.threshold)
        score = max(float(scores[row]), 0.75 if seen else 0.0)
        after = how.reputation.step(before, score, flagged, server_round)
        why = _why(table.values[row], reasons[row], rows[row]) if flagged else ""
        kind = kind_of(table.values[row], deviations[row]) if flagged else ""
        if kind:
            why = f"looks like {kind}; {why}"
        if row in against:
            why = f"{against[row]}; {why}"
        if row in groups:
            size = sum(number == groups[row] for number in groups.values())
            why = f"moves together with {size - 1} other{'s' if size > 2 else ''}; {why}"
        findings.append(Finding(score, flagged, groups.get(row), why, kind, before, after))
    usual = [row for row, finding in enumerate(findings) if not finding.flagged]
    reference = np.vstack([memory.reference, full[usual]])[-WINDOW:]
    told = dict(zip(clients, (finding.after for finding in findings), strict=True))
    return findings, Memory(reference, {**memory.standings, **told}, {**memory.habits, **habits})


def counted(findings: Sequence[Finding], norms: Floats, server_round: int) -> Floats:
    """Return by how much each update counts when unusual ones are kept out.

    Parameters
    ----------
    findings : sequence of Finding
        Of the round's n updates.
    norms : ndarray of float64, shape (n,)
        Their L2 norms.
    server_round : int
        The round.

    Returns
    -------
    ndarray of float64, shape (n,)
        1 for what is not flagged, 0 for what is or is in quarantine; at a hearing a flagged
        update counts with at most the median norm of those that are not.
    """
    away = np.array([f.before.quarantined(server_round) for f in findings], dtype=np.bool_)
    flagged = np.array([f.flagged for f in findings], dtype=np.bool_)
    heard = np.array([f.before.heard(server_round) for f in findings], dtype=np.bool_)
    usual = norms[~away & ~flagged]
    limit = float(np.median(usual)) if usual.size else 0.0
    bounded = np.minimum(1.0, limit / np.maximum(norms, 1e-300))
    return np.where(away, 0.0, np.where(~flagged, 1.0, np.where(heard, bounded, 0.0)))


def standardize(table: Table, finest: Floats | float = _FINEST) -> Floats:
    """Return how many robust deviations each value is from the trusted median, within 20.

    A deviation counts as `finest` at least.
    """
    away = table.values - np.median(table.values[table.trusted], axis=0)
    spread = 1.4826 * np.median(np.abs(away[table.trusted]), axis=0)
    return np.clip(away / np.maximum(spread, finest), -_WIDEST, _WIDEST)


def _smooth(
    deviations: Floats, clients: Sequence[str], habits: Mapping[str, Floats]
) -> tuple[Floats, dict[str, Floats]]:
    """Return the running means of the clients' deviations, and what they are made of."""
    rows, new = np.empty_like(deviations), {}
    for row, client in enumerate(clients):
        seen = np.append(deviations[row], 1.0)
        habit = habits.get(client)
        total = seen if habit is None else KEEP * habit + seen
        rows[row] = total[:-1] / total[-1]
        new[client] = total
    return rows, new


def _with_sizes(rows: Floats) -> Floats:
    """Append the root mean square and the largest magnitude of each row."""
    sizes = np.sqrt((rows**2).mean(axis=1))
    return np.column_stack([rows, sizes, np.abs(rows).max(axis=1)])


def _folded(reasons: Floats, rows: Floats) -> Floats:
    """Put the reasons of the two sizes down to the features that they are made of."""
    squares = rows**2
    shares = squares / np.maximum(squares.sum(axis=1, keepdims=True), 1e-300)
    folded: Floats = reasons[:, :-2] + reasons[:, -2:-1] * shares
    largest = np.abs(rows).argmax(axis=1)
    folded[np.arange(len(rows)), largest] += reasons[:, -1]
    return folded


def _why(values: Floats, reasons: Floats, deviations: NDArray[np.float64], most: int = 3) -> str:
    """Tell the features with the largest reasons, in words."""
    order = np.lexsort((-np.abs(deviations), -reasons))[:most]
    return "; ".join(describe(NAMES[i], float(values[i])) for i in order)
