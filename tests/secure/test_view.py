"""What t - 1 colluding members and the server see depends on the output only: a statistical test.

Two inputs with the same output (sum, and where opened distances) must give the same law of
everything that the adversary sees or can compute from it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from qsfl_flower.secure import committee, dealing, shamir
from qsfl_flower.secure.committee import check_value
from qsfl_flower.secure.desk import Desk
from qsfl_flower.secure.field import P, expand
from qsfl_flower.secure.shamir import lagrange
from qsfl_flower.secure.zero_sharing import ZeroSharing

from .conftest import Room

pytestmark = pytest.mark.slow

TRIALS, BUCKETS = 400, 8
"""Two-sample chi-square over 8 buckets, once of the highest bits and once of a hash; false alarm
1e-12 per statistic, below 1e-9 in all. Where the buckets' laws differ by a total variation of 0.5,
the non-centrality is at least TRIALS / 2 * (2 * 0.5)^2 = 200: missed with probability < 1e-8."""

COLLUDERS, HONEST = (4, 5), (1, 2, 3)
INPUTS = [np.array([v]) for v in (3.0, -2.5, 0.25)]
CENTRE = sum(INPUTS) / 3
REFLECTED = [2 * CENTRE - v for v in INPUTS]
"""The same sum and the same distances."""
SAME_SUM = [-INPUTS[0], -INPUTS[1], CENTRE * 3 + INPUTS[0] + INPUTS[1]]


@pytest.fixture
def bare(room, monkeypatch) -> Room:
    """Replace encryption and signatures, which the statistics are not about, by nothing."""

    def seal_into(out, key, payload, binding):
        memoryview(out)[:] = memoryview(payload).cast("B")

    def open_into(out, keys, sealed, binding):
        memoryview(out).cast("B")[:] = sealed

    def header(self, dealt):
        body = dealt.header
        parts = tuple(body[i : i + 32] for i in range(86, len(body), 32))
        asked = bytes(32)
        return dealing.Header("c0", body[6:38], self.terms.round, asked, 1, parts[:5], parts[5:])

    for module in (dealing, committee):
        monkeypatch.setattr(module, "sealing_overhead", lambda kem: 0)
    monkeypatch.setattr(dealing, "seal_into", seal_into)
    monkeypatch.setattr(committee, "open_into", open_into)
    monkeypatch.setattr(dealing, "sign_statement", lambda kind, name, key, body: body)
    monkeypatch.setattr(Room, "header", header)
    return room.under(quorum=4)


def view(room, inputs) -> dict[str, int]:
    """One round, as single numbers: what is seen, and what a clever adversary makes of it."""
    dealt = [room.deal(x, 0) for x in inputs]
    held = {
        j: [replace(room.receive(d, j), client=f"c{i}") for i, d in enumerate(dealt)]
        for j in (*HONEST, *COLLUDERS)
    }
    seen: dict[str, int] = {}
    shares = {j: [int(h.vector(1)[0]) for h in held[j]] for j in COLLUDERS}
    factors = np.empty(1, np.uint64)
    for i in range(3):
        for j in COLLUDERS:
            seen[f"share {i} of {j}"] = shares[j][i]
        values = {j: check_value(held[j][i], 1) for j in held}
        seen |= {f"check {i} of {j}": values[j] for j in HONEST}
        factors_at_0 = zip(lagrange(HONEST), HONEST, strict=True)
        opened = sum(f * values[j] for f, j in factors_at_0) % P
        expand(
            committee.hashlib.sha256(b"qsfl-flower/1/check" + held[1][i].digest).digest(), factors
        )
        seen[f"check {i} opened, without its factor"] = opened * pow(int(factors[0]), -1, P) % P
    for j in HONEST:
        desk = Desk(seat=room.terms.seats[j - 1]).take(room.terms, 1, held[j], j)
        released, _ = desk.release(3, [f"c{i}" for i in range(3)], j)
        seen[f"release of {j}"] = int(released[0])
    if room.terms.distances:
        for pair, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)]):
            told = {j: int(committee.products(held[j], 1, room.terms, j)[0][pair]) for j in HONEST}
            seen |= {f"distance {pair} of {j}": told[j] for j in HONEST}
            seen[f"difference {pair} by roots"] = by_root(told[1], shares, a, b)
    return seen


def by_root(distance, shares, a, b) -> int:
    """If the answer of member 1 were not masked, its root would open the difference itself."""
    root = pow(distance, (P + 1) // 4, P)
    candidates = []
    for one in (root, P - root):
        values = {1: one} | {j: (shares[j][a] - shares[j][b]) % P for j in COLLUDERS}
        at_0 = sum(f * values[j] for f, j in zip(lagrange(list(values)), values, strict=True)) % P
        candidates.append(min(at_0, at_0 - P, key=abs))
    return min(candidates, key=abs) % P


def differ(first, second) -> bool:
    for shift, factor in ((58, 1), (61, 0x9E3779B97F4A7C15)):
        counts = [
            np.bincount([(v * factor % 2**64) >> shift for v in side], minlength=BUCKETS)
            for side in (first, second)
        ]
        gap, both = counts[0].astype(float) - counts[1], np.maximum(counts[0] + counts[1], 1)
        if (gap**2 / both).sum() > chi2.isf(1e-12, BUCKETS - 1):
            return True
    return False


def suspicious(room, first, second) -> set[str]:
    """Return the statistics whose laws differ."""
    one, two = ([view(room, inputs) for _ in range(TRIALS)] for inputs in (first, second))
    return {name for name in one[0] if differ([v[name] for v in one], [v[name] for v in two])}


def test_sums(bare):
    assert suspicious(bare, INPUTS, SAME_SUM) == set()


def test_distances(bare):
    assert suspicious(bare.under(distances=True), INPUTS, REFLECTED) == set()


def test_mutant_without_a_blind(bare, monkeypatch):
    monkeypatch.setattr(dealing, "random_below", lambda bound, use: 0)
    assert suspicious(bare, INPUTS, SAME_SUM) >= {"check 0 opened, without its factor"}


def test_mutant_with_unmasked_distances(bare, monkeypatch):
    nothing = lambda self, member, seeds, labels: np.zeros(len(labels), np.uint64)  # noqa: E731
    monkeypatch.setattr(ZeroSharing, "labelled", nothing)
    found = suspicious(bare.under(distances=True), INPUTS, REFLECTED)
    assert found >= {f"difference {pair} by roots" for pair in range(3)}


def test_mutant_with_constant_seeds(bare, monkeypatch):
    monkeypatch.setattr(shamir, "random_bytes", lambda size, use: b"k" * size)
    found = suspicious(bare, INPUTS, SAME_SUM)
    assert sum(name.startswith("share") for name in found) >= 2
