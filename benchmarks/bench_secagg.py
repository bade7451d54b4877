"""Pairwise-mask sums beside Flower's SecAgg+, both without a network, on one core."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import flwr.client.mod.secure_aggregation.secaggplus_mod  # noqa: F401  # the package hides it
import numpy as np
from flwr.common import ConfigRecord, bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from numpy.typing import NDArray

from benchmarks.timing import alternate
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.secure.pairwise import client, server
from qsfl_flower.secure.pairwise.graph import Graph, complete_graph, sparse_graph
from qsfl_flower.secure.pairwise.masks import apply_masks
from qsfl_flower.secure.pairwise.ring import RingCode
from qsfl_flower.secure.pairwise.terms import Policy, Terms

NAME = "secagg"
DESCRIPTION = "pairwise-mask sums: steps, recovery, error and bytes beside Flower's SecAgg+"

NOW = 1_800_000_000
MIN_SPEEDUP = 3.0
CLIP, LEVELS, MODULUS, MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0  # Flower's defaults
EXAMPLES = 100
POLICY = Policy(colluding=0.0)
INSTRUCTION = bytes(32)

secaggplus_mod = sys.modules["flwr.client.mod.secure_aggregation.secaggplus_mod"]

Row = dict[str, Any]
Floats = NDArray[np.float64]
Words = NDArray[np.uint32]


def run(quick: bool) -> list[Row]:
    """Return one row per step and number of clients; limits only at full size.

    Times are CPU times of one process. Every client is joined to every other one, as in Flower with
    as many shares as clients.
    """
    size, repetitions = (10_000, 1) if quick else (1_000_000, 7)
    rows: list[Row] = []
    for n in (10, 20):
        values = np.random.default_rng(n).normal(0, 1e-3, (n, size))
        ours, theirs = Ours(values), Flower(values)
        rows += _compare(ours, theirs, repetitions, limited=not quick)
        rows += _errors(values, ours, theirs)
    return rows + _scaling(quick)


class Ours:
    """A sum of n clients; the first one is lost after it has dealt shares."""

    def __init__(self, values: Floats, graph: Graph | None = None) -> None:
        n = len(values)
        keys = create_federation([f"client-{i:03d}" for i in range(n)], now=NOW)
        self.roster = open_roster(keys.roster, keys.authority)
        graph = graph or complete_graph(n, 0.0)
        self.terms = Terms(1, 1, tuple(sorted(keys.clients)), graph.degree, graph.threshold)
        self.parties = [Credentials(keys.clients[name], self.roster) for name in self.terms.seats]
        self.values, self.code = values, RingCode(CLIP, n)
        self.vector = np.empty(values.shape[1], np.uint32)
        self.total = np.zeros_like(self.vector)
        dealt = [self.deal(place) for place in range(n)]
        self.clients = [state for state, _ in dealt]
        self.deals = {
            place: server.read_deal(self.terms, place, data, INSTRUCTION, self.roster, NOW)
            for place, (_, data) in enumerate(dealt)
        }
        self.relayed = [server.relay(self.terms, self.deals, place) for place in range(n)]
        masked = {}
        for place in range(1, n):
            masked[place], lockers = self.mask(place)
            self.total += self.vector
            masked[place] = (
                masked[place],
                server.read_lockers(self.terms, self.deals, place, lockers),
            )
        self.masked = {place: state for place, (state, _) in masked.items()}
        self.lockers = {place: lockers for place, (_, lockers) in masked.items()}
        self.told = server.survivor_list(self.terms, self.lockers)
        self.releases = {
            place: server.read_release(
                self.terms, self.deals, self.lockers, place, self.release(place)[1]
            )
            for place in self.lockers
        }
        self.bytes = len(dealt[-1][1]) + len(self.relayed[-1]) + self.vector.nbytes
        self.bytes += len(self.release(n - 1)[1])

    def deal(self, place: int = -1) -> tuple[client.Client, bytes]:
        """Draw keys and seal shares of them."""
        return client.deal(self.terms, INSTRUCTION, self.parties[place], POLICY, NOW)

    def mask(self, place: int = -1) -> tuple[client.Client, bytes]:
        """Encode the finished update, open the packets, mask."""
        self.code.encode(self.values[place] * (EXAMPLES / MAX_WEIGHT), self.vector)
        return client.mask(
            self.clients[place], self.relayed[place], self.vector, self.parties[place], POLICY, NOW
        )

    def release(self, place: int = 1) -> tuple[client.Client, bytes]:
        """Hand out the shares for the survivors."""
        return client.release(self.masked[place], self.told, POLICY)

    def recover(self) -> Words:
        """Take off the masks that the first client has left behind."""
        shares = {p + 1: held.holdings[0].pair_share for p, held in self.masked.items()}
        shares = dict(list(shares.items())[: self.terms.threshold])
        add, subtract = server.lost_masks(self.terms, self.deals, self.lockers, 0, shares)
        total = self.total.copy()
        apply_masks(total, add, subtract)
        return total

    def unmask(self) -> Words:
        """Take off all masks."""
        total = self.total.copy()
        found = server.Findings()
        server.unmask(self.terms, self.deals, self.lockers, self.releases, total, found)
        return total


class Flower:
    """The same sum with the functions of Flower's ``secaggplus_mod`` and ``SecAggPlusWorkflow``."""

    def __init__(self, values: Floats) -> None:
        self.n = n = len(values)
        self.threshold = complete_graph(n, 0.0).threshold
        self.parameters = [ndarrays_to_parameters([v.astype(np.float32)]) for v in values]
        self.keys: dict[int, list[bytes]] = {}
        self.states = [self._set_up(nid) for nid in range(n)]
        self.ciphertexts = [self._share(state) for state in self.states]
        self.alive = list(range(1, n))
        vectors = [[bytes_to_ndarray(part) for part in self.mask(nid)] for nid in self.alive]
        self.total = parameters_mod(functools.reduce(parameters_addition, vectors), MODULUS)
        self.shares: dict[int, list[bytes]] = {nid: [] for nid in range(n)}
        for nid in self.alive:
            answer = self.release(nid)
            for owner, share in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True):
                self.shares[owner].append(share)
        self.bytes = sum(len(part) for part in self.mask())
        self.bytes += sum(len(c) for c in self.ciphertexts[-1].values()) * 2

    def _set_up(self, nid: int) -> Any:
        state = secaggplus_mod.SecAggPlusState()
        state.nid = nid
        told = {
            Key.SAMPLE_NUMBER: self.n,
            Key.SHARE_NUMBER: self.n,
            Key.THRESHOLD: self.threshold,
            Key.CLIPPING_RANGE: CLIP,
            Key.TARGET_RANGE: LEVELS,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: MAX_WEIGHT,
        }
        answer = secaggplus_mod._setup(state, ConfigRecord(told))
        self.keys[nid] = [answer[Key.PUBLIC_KEY_1], answer[Key.PUBLIC_KEY_2]]
        return state

    def _share(self, state: Any) -> dict[int, bytes]:
        told = ConfigRecord({str(nid): pair for nid, pair in self.keys.items()})
        answer = secaggplus_mod._share_keys(state, told)
        return dict(zip(answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True))

    def deal(self) -> None:
        """Draw keys and encrypt shares of them, as a client does in two stages."""
        keys = dict(self.keys)
        self._share(self._set_up(self.n - 1))
        self.keys = keys

    def mask(self, nid: int = -1) -> list[bytes]:
        """Quantize the finished update, decrypt the shares, mask: the whole masking stage."""
        nid %= self.n
        others = [other for other in range(self.n) if other != nid]
        told = {
            Key.CIPHERTEXT_LIST: [self.ciphertexts[other][nid] for other in others],
            Key.SOURCE_LIST: others,
        }
        answer = secaggplus_mod._collect_masked_vectors(
            self.states[nid], ConfigRecord(told), EXAMPLES, self.parameters[nid]
        )
        masked: list[bytes] = answer[Key.MASKED_PARAMETERS]
        return masked

    def release(self, nid: int = -1) -> Any:
        """Hand out the shares for the survivors."""
        told = {Key.ACTIVE_NODE_ID_LIST: self.alive, Key.DEAD_NODE_ID_LIST: [0]}
        return secaggplus_mod._unmask(self.states[nid], ConfigRecord(told))

    def recover(self) -> Any:
        """Take off the masks that the first client has left behind, as the workflow does."""
        total = self.total
        secret = combine_shares(self.shares[0][: self.threshold])
        for nid in self.alive:
            shared = generate_shared_key(
                bytes_to_private_key(secret), bytes_to_public_key(self.keys[nid][0])
            )
            mask = pseudo_rand_gen(shared, MODULUS, [v.shape for v in total])
            total = parameters_subtraction(total, mask)
        return total

    def unmask(self) -> Floats:
        """Take off all masks and return the weighted mean, as the workflow does."""
        total = self.recover()
        for nid in self.alive:
            secret = combine_shares(self.shares[nid][: self.threshold])
            mask = pseudo_rand_gen(secret, MODULUS, [v.shape for v in total])
            total = parameters_subtraction(total, mask)
        ratio, vectors = factor_extract(parameters_mod(total, MODULUS))
        mean: Floats = dequantize(vectors, CLIP, LEVELS)[0]
        mean += -(len(self.alive) - 1) * CLIP
        mean *= LEVELS / ratio
        return mean


def _compare(ours: Ours, theirs: Flower, repetitions: int, limited: bool) -> list[Row]:
    steps: dict[str, tuple[Callable[[], object], Callable[[], object], bool]] = {
        "client: deal shares": (ours.deal, theirs.deal, False),
        "client: encode and mask": (ours.mask, theirs.mask, True),
        "client: release shares": (ours.release, theirs.release, False),
        "server: recover one lost client": (ours.recover, theirs.recover, True),
        "server: unmask, one lost": (ours.unmask, theirs.unmask, False),
    }
    rows = []
    for what, (mine, flowers, limit) in steps.items():
        timing = alternate({"ours": mine, "Flower": flowers}, repetitions)
        ratio = timing["Flower"].cpu / timing["ours"].cpu
        row = _row(what, theirs.n, round(timing["ours"].cpu, 2), round(timing["Flower"].cpu, 2))
        row |= {"unit": "ms", "ratio": round(ratio, 1)}
        if limit and limited:
            row |= {"limit": f">= {MIN_SPEEDUP:g}", "ok": ratio >= MIN_SPEEDUP}
        rows.append(row)
    mine, flowers = round(ours.bytes / 1e6, 2), round(theirs.bytes / 1e6, 2)
    rows.append(
        _row("client: bytes beside training", theirs.n, mine, flowers)
        | {"unit": "MB", "ratio": round(flowers / mine, 1)}
    )
    return rows


def _errors(values: Floats, ours: Ours, theirs: Flower) -> list[Row]:
    """Compare both results with the exact ones; ours also with the sum of the integers."""
    n, total = len(values), ours.unmask()
    alive = values[1:] * (EXAMPLES / MAX_WEIGHT)
    got = ours.code.decode(total, n - 1)
    integers = np.rint(alive * 2.0**ours.code.bits).astype(np.int64).sum(axis=0)
    same = bool(np.array_equal(total.view(np.int32), integers))
    row = _row(
        "relative L2 error of the sum",
        n,
        _relative(got, alive.sum(axis=0)),
        _relative(theirs.unmask(), values[1:].mean(axis=0)),
    )
    return [row, _row("equals the sum of the integers", n, same) | {"ok": same}]


def _scaling(quick: bool) -> list[Row]:
    """Return what one client of many pays, with both graphs, for 100,000 coordinates."""
    rows = []
    full = {12: "both"} if quick else {100: "both", 200: "sparse"}
    for n, graphs in full.items():
        values = np.zeros((n, 1_000 if quick else 100_000))
        sparse = sparse_graph(n, 0.1, 0.1)
        for graph in (complete_graph(n, 0.1), sparse) if graphs == "both" else (sparse,):
            ours = Ours(values, graph)
            work = {"deal": ours.deal, "mask": ours.mask, "release": ours.release}
            timing = alternate(work, 1)
            spent = sum(timing[step].cpu for step in work)
            what = f"client: all steps, degree {graph.degree}"
            rows.append(_row(what, n, round(spent, 1)) | {"unit": "ms"})
            rows.append(_row(what, n, round(ours.bytes / 1e6, 2)) | {"unit": "MB"})
            start = time.process_time()
            ours.unmask()
            spent = 1e3 * (time.process_time() - start)
            what = f"server: unmask, degree {graph.degree}"
            rows.append(_row(what, n, round(spent, 1)) | {"unit": "ms"})
    return rows


def _relative(got: Floats, exact: Floats) -> float:
    return float(f"{np.linalg.norm(got - exact) / np.linalg.norm(exact):.2g}")


def _row(what: str, n: int, ours: object, theirs: object = None) -> Row:
    return {"measurement": what, "clients": n, "ours": ours, "Flower": theirs}
