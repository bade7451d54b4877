"""Krum among many updates: comparing all pairs against the search by bounds."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from qsfl_flower.mechanisms.robust import core as robust

NAME = "krum"
DESCRIPTION = "Krum's choice among 100 to 5,000 updates: all pairs against pruning by bounds"

SIZE = 10_000
COUNTS = (100, 300, 1000, 2000, 5000)
KINDS = ("uneven", "reversed", "equally noisy")

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per number of updates and kind of cloud; 30 % are liars."""
    return [_row(count, kind) for count in (COUNTS[:2] if quick else COUNTS) for kind in KINDS]


def make_updates(count: int, kind: str) -> robust.Updates:
    """Return updates of a common direction and noise; honest norms differ but in one kind."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, SIZE), dtype=np.float32)
    if kind != "equally noisy":
        rows *= np.exp(0.3 * rng.standard_normal((count, 1))).astype(np.float32)
    rows += rng.standard_normal(SIZE, dtype=np.float32)
    if kind == "reversed":
        rows[: int(0.3 * count)] *= np.float32(-5)
    return robust.Updates.of(rows)


def _row(count: int, kind: str) -> Row:
    updates, f = make_updates(count, kind), int(0.3 * count)
    began = time.process_time()
    scores = robust.krum_scores(robust.squared_distances(updates), f)
    all_pairs = time.process_time() - began
    began = time.process_time()
    found = robust.fast_krum(updates, f, seed=0)
    pruned = time.process_time() - began
    return {
        "n": count,
        "cloud": kind,
        "all pairs cpu s": round(all_pairs, 3),
        "fast_krum cpu s": round(pruned, 3),
        "ratio": round(all_pairs / pruned, 2),
        "scores computed": found.measured,
        "ok": found.rows.tolist() == robust.multi_krum_select(scores, 1).tolist(),
    }
