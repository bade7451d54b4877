"""Sums and Multi-Krum through a committee: steps, memory, rounds, beside Flower's SecAgg+."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench_secagg import Flower
from benchmarks.timing import alternate
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.secure.committee import check_value, products, receive
from qsfl_flower.secure.dealing import Dealt, deal, read_header
from qsfl_flower.secure.decoding import open_vectors
from qsfl_flower.secure.desk import Desk, Held
from qsfl_flower.secure.field import Elements, P, combine, gram
from qsfl_flower.secure.krum import distances_of_gram
from qsfl_flower.secure.shamir import interpolate
from qsfl_flower.secure.terms import Terms

NAME = "secure"
DESCRIPTION = "sums and Multi-Krum through a committee: steps, memory, rounds, beside SecAgg+"

NOW = 1_800_000_000
CLIENTS = 10
TERMS = Terms(
    run=1,
    round=1,
    members=tuple(f"m{j}" for j in range(5)),
    seats=tuple(f"s{j}" for j in range(5)),
    threshold=3,
    quorum=4,
    min_clients=3,
    max_clients=200,
    bits=24,
    bound=8.0,
    clip_norm=8.0,
    extras=5,
)
INTEGERS = [1 << 20, 5, 6, 7, 8]

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per step; CPU times of one process, limits only at full size."""
    size, repetitions = (10_000, 1) if quick else (1_000_000, 7)
    rows = _steps(size, repetitions, quick)
    for n, d, limit in ((20, 100_000, 300.0), (100, 100_000, 3000.0)):
        rows.append(_distances(n, d // 50 if quick else d, None if quick else limit))
    if not quick and "QSFL_DATA_DIR" in os.environ:
        rows += _whole_rounds()
    return rows


class Room:
    """A committee and one client in one process."""

    def __init__(self, size: int, terms: Terms = TERMS) -> None:
        self.terms, self.size = terms, size + terms.extras
        keys = create_federation([*terms.members, "client"], now=NOW)
        self.roster = open_roster(keys.roster, keys.authority)
        self.keys = keys
        self.public = [self.roster.encryption_key(name, NOW) for name in terms.members]
        self.values = np.random.default_rng(0).normal(0, 1e-3, size)
        self.dealt = self.deal()

    def deal(self) -> Dealt:
        """Encode, share, encrypt and sign one client's update."""
        signing = self.keys.clients["client"].keys[0].signing
        return deal(self.values, INTEGERS, self.terms, "client", signing, self.public, bytes(32))

    def take(self, member: int) -> Held:
        """Verify, decrypt and check one client's share."""
        header = read_header(self.dealt.header, self.terms, self.roster, NOW)
        keys = self.keys.clients[self.terms.members[member - 1]].decryption_keys
        held = receive(header, self.dealt.sealed[member - 1], self.terms, member, keys)
        check_value(held, self.size)
        return held

    def desk(self, member: int) -> Desk:
        """Return a desk with the same share under the names of several clients."""
        held = self.take(member)
        names = [f"client-{i}" for i in range(CLIENTS)]
        desk = Desk(seat=self.terms.seats[member - 1])
        return desk.take(self.terms, self.size, [replace(held, client=n) for n in names], member)

    def release(self, member: int) -> Elements:
        """Add up the shares of all clients."""
        names = [h.client for h in self.desks[member].held]
        return self.desks[member].release(1, names, member)[0]

    def fill(self) -> dict[int, Elements]:
        """Let every member take the shares, and return what they release."""
        members = range(1, len(self.terms.members) + 1)
        self.desks = {member: self.desk(member) for member in members}
        return {member: self.release(member) for member in members}

    def open(self, answers: dict[int, Elements]) -> NDArray[np.float64]:
        """Check the answers against each other, open the sum, decode it."""
        total = open_vectors(answers, self.terms.quorum - 1).vector
        return self.terms.fixed_point.decode(total[: self.size - self.terms.extras])


def _steps(size: int, repetitions: int, quick: bool) -> list[Row]:
    room = Room(size)
    answers = room.fill()
    exact = CLIENTS * np.rint(room.values * 2.0**24)
    assert np.array_equal(room.open(answers), exact / 2.0**24)
    values = np.random.default_rng(1).normal(0, 1e-3, (10, size))
    flower = Flower(values)
    two = dict(list(answers.items())[:4])
    timing = alternate(
        {
            "deal": room.deal,
            "Flower": flower.mask,
            "take": lambda: room.take(5),
            "release": lambda: room.release(5),
            "open": lambda: room.open(answers),
            "interpolate": lambda: interpolate(two),
        },
        repetitions,
    )
    ms = {name: t.cpu for name, t in timing.items()}
    rows = [
        _row("client: encode, share (5, 3), encrypt, sign", size, ms["deal"], "ms", 150, quick)
        | {"Flower": round(ms["Flower"], 1)},
        _row(
            "the same over Flower's masking stage, 10 shares",
            size,
            ms["deal"] / ms["Flower"],
            "x",
            1.2,
            quick,
        ),
        _row("member: verify, decrypt, check one share", size, ms["take"], "ms"),
        _row(f"member: add up {CLIENTS} shares", size, ms["release"], "ms"),
        _row("server: check 5 answers, open, decode", size, ms["open"], "ms", 100, quick),
        _row("server: interpolate 3 answers", size, ms["interpolate"], "ms"),
        _row("client: bytes up", size, sum(map(len, room.dealt.sealed)) / 1e6, "MB"),
    ]
    vector = 8 * room.size
    # The three vectors that the client sends, and the one that a member keeps, are the shares.
    work: dict[str, tuple[Callable[[], object], int]] = {
        "client, sharing": (room.deal, 3),
        "member, one share": (lambda: room.take(5), 1),
        "member, sum": (lambda: room.release(5), 0),
        "server, opening": (lambda: room.open(answers), 0),
    }
    for who, (step, shares) in work.items():
        peak = _peak(step) / vector - shares
        rows.append(_row(f"field vectors beside the shares: {who}", size, peak, "", 6, quick))
    return rows


def _distances(n: int, d: int, limit: float | None) -> Row:
    """Time one member's exact distances; what five members answer opens to the plain ones."""
    terms = replace(TERMS, distances=True, extras=0, max_clients=n)
    generator = np.random.default_rng(n)
    values = np.rint(generator.normal(0, 2.0**24 / np.sqrt(d), (n, d)))
    plain = list((values.astype(np.int64) % P).astype(np.uint64))
    zero = terms.zero_sets
    assert zero is not None
    seeds = [[generator.bytes(32) for _ in zero.sets] for _ in range(n)]
    digests = [generator.bytes(32) for _ in range(n)]
    answers, times = {}, []
    for member in range(1, 6):
        held = []
        for i, secret in enumerate(plain):
            # Any polynomial of degree 2 through the secret will do for the clock.
            share = combine([1, member, member**2], [secret, plain[i - 1], plain[i - 2]])
            known = {k: seeds[i][k] for k in zero.known_to(member)}
            held.append(Held(f"c{i}", 1, digests[i], np.append(share, np.uint64(0)), known))
        start = time.process_time()
        answers[member] = products(held, d, terms, member)[0]
        times.append(1e3 * (time.process_time() - start))
    opened = open_vectors(answers, 4).vector
    assert np.array_equal(opened, distances_of_gram(gram(plain)))
    what = f"member: exact distances of {n}, masked"
    return _row(what, d, statistics.median(times), "ms", limit, limit is None)


def _peak(step: Callable[[], object]) -> int:
    """Return the most bytes that are allocated while a step runs, its result included."""
    gc.collect()
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _whole_rounds() -> list[Row]:
    """Compare whole rounds of MNIST, in turn; the first round of each run does not count."""
    gate = "{stage: authenticate}, {stage: validate}"
    chains = {
        "plain": "[{stage: validate}, {stage: clip, clip_norm: 5.0}]",
        "authenticated": f"[{gate}, {{stage: clip, clip_norm: 5.0}}]",
        "pairwise masks": f"[{gate}, {{stage: clip, clip_norm: 5.0}}, "
        "{stage: masked_sum, bound: 5.0}]",
        "secure sum": f"[{gate}, {{stage: secure_sum, clip_norm: 5.0}}]",
        "secure Multi-Krum": f"[{gate}, {{stage: secure_krum, clip_norm: 5.0, num_byzantine: 3}}]",
    }
    limits = {"pairwise masks": 1.5, "secure sum": 1.5, "secure Multi-Krum": 2.0}
    times: dict[str, list[float]] = {name: [] for name in chains}
    bytes_: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            for name, stages in chains.items():
                command = [sys.executable, "-m", "qsfl_flower.simulations.cli", "run", "mnist"]
                for item in ("rounds=4", f"strategy.stages={stages}", f"output.folder={folder}"):
                    command += ["--set", item]
                done = subprocess.run(
                    [*command, "--json"], check=True, capture_output=True, text=True
                )
                path = Path(json.loads(done.stdout.splitlines()[-1])["run"], "metrics.jsonl")
                rounds = [json.loads(line) for line in path.read_text().splitlines()]
                times[name] += [r["time_s"] for r in rounds[2:]]
                bytes_[name] = (rounds[-1]["bytes_up"] + rounds[-1]["bytes_down"]) / 1e6
    median = {name: statistics.median(found) for name, found in times.items()}
    rows = []
    for name, seconds in median.items():
        row = _row(f"a round of MNIST, 10 clients: {name}", 0, seconds, "s")
        rows.append(row | {"megabytes": round(bytes_[name], 1)})
        if name in limits:
            ratio = seconds / median["plain"]
            rows.append(_row(f"{name} over plain", 0, ratio, "x", limits[name]))
    return rows


def _row(
    what: str,
    size: int,
    value: float,
    unit: str,
    limit: float | None = None,
    free: bool = False,
) -> Row:
    row: Row = {"measurement": what, "d": size or "", "value": round(value, 2), "unit": unit}
    if limit is not None and not free:
        row |= {"limit": f"<= {limit:g}", "ok": value <= limit}
    return row
