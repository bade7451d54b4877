"""A server with a valid key that asks single devices for what their policy forbids.

Hypothesis writes plans, terms, message types, orders and repetitions around valid ones; the device
is judged by the bytes of what it sends.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from hypothesis import strategies as st

from qsfl_flower import testing
from qsfl_flower.privacy.policy import PLACEMENTS, Protection
from qsfl_flower.secure.terms import Terms
from qsfl_flower.testing import LocalFederation
from qsfl_flower.wire import PLAN_KEY, QSFL_RECORD, REFUSED_KEY, Plan, PlanItem, to_record
from qsfl_flower.wire.keys import SHARES

EXAMPLES = int(os.environ.get("QSFL_SEARCH", "0"))
"""How many examples a search tries; 0: the few of the default tests."""

EPSILON = 2.0
POLICIES = {
    "hidden": "hidden_only = true\nleast_cohort = 4\n",
    "sums alone": 'hidden_only = true\nopenings = ["sum"]\nleast_bits = 20\n',
    "private": f'[privacy]\nepsilon = {EPSILON}\nplacements = ["record", "local"]\n',
}
TYPES = [
    *["train"] * 6, "train.default", "train.lora", "evaluate", "evaluate.x", "query", "query.x",
    "get_parameters", "get_properties", "reconnect",
]  # fmt: skip
"""Those that Flower lets through."""
MEMBERS = ("client-1", "client-2", "client-3")


def terms_values() -> dict:
    return asdict(
        Terms(
            run=1, round=1, members=MEMBERS, seats=("s", "t", "u"), threshold=2, quorum=3,
            min_clients=4, max_clients=8, bits=24, bound=4.0, clip_norm=4.0,
        )
    )  # fmt: skip


def numbers() -> st.SearchStrategy:
    return st.sampled_from(
        [0, 1, 2, 3, 4, 5, 8, 16, 60, 64, 1e-9, 1e-3, 0.1, 0.5, 1.0, 2.0, 20.0, 100.0, 1e6, 1e9,
         -1, -1.0, None, True, "1", [], [1], [64, 1], [1, 1]]
    )  # fmt: skip


def valid_steps(noise: float, placement: str, releases: int) -> dict[str, dict]:
    """Every step as a strategy of the suite writes it."""
    offer = Protection(
        placement=placement, clip_norm=1.0, noise_multiplier=noise, sampling_rate=1.0,
        releases=releases, delta=1e-5,
    )  # fmt: skip
    return {
        "protection": offer.to_dict(),
        "record-dp": {"clip_norm": 1.0, "noise_multiplier": noise, "sampling_rate": 0.1,
                      "steps": 1, "public_metrics": []},
        "compress-choose": {"ratio": 0.5},
        "shared-mask": {"ratio": 0.5, "seed": 1},
        "clip": {"clip_norm": 1.0},
        "local-dp": {"clip_norm": 1.0, "noise_multiplier": noise},
        "distributed-dp": {"clip_norm": 1.0, "noise_multiplier": noise, "fewest": 4, "size": 256},
        "compress": {"ratio": 0.5, "values": "float32"},
        "masked_sum": {"bound": 4.0, "clients": 6},
        SHARES: {"terms": terms_values(), "max_examples": 1000, "metrics": [],
                 "weighted_by": "num-examples", "weighted": False},
        "identity": {},
    }  # fmt: skip


HONEST = {
    "hidden": ("clip", SHARES),
    "sums alone": ("clip", SHARES),
    "private": ("protection", "clip", "local-dp"),
}
"""The steps that each policy accepts."""


@dataclass(frozen=True)
class Demand:
    """One thing that the server asks of a device."""

    kind: str
    plan: Plan | None
    server_round: int


@st.composite
def demands(draw: st.DrawFn, policy: str) -> Demand:
    """An honest instruction with a few departures from it."""
    noise = draw(st.sampled_from([20.0, 20.0, 3.0, 0.5]))
    placement = draw(st.sampled_from(["local", "local", *PLACEMENTS]))
    known = valid_steps(noise, placement, draw(st.integers(1, 3)))
    names = list(HONEST[policy])
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3]))):
        place, what = draw(st.integers(0, len(names))), draw(st.integers(0, 3))
        if what == 0:
            names.insert(place, draw(st.sampled_from(sorted(known))))
        elif what == 1 and names:
            names.pop(place % len(names))
        elif what == 2 and names:
            names.append(names.pop(place % len(names)))
        elif names:
            names[place % len(names)] = draw(st.sampled_from(sorted(known)))
    items = [PlanItem(name, dict(known[name])) for name in names]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        where = draw(st.sampled_from(items)).parameters if items else {}
        if isinstance(where.get("terms"), dict):
            where["terms"] = dict(where["terms"])
            where = where["terms"] if draw(st.booleans()) else where
        if where:
            key = draw(st.sampled_from(sorted(where)))
            if draw(st.sampled_from([False, False, False, True])):
                del where[key]
            else:
                where[key] = draw(numbers())
    plan = draw(st.sampled_from([Plan(tuple(items))] * 9 + [None]))
    return Demand(draw(st.sampled_from(TYPES)), plan, draw(st.integers(0, 2)))


def ask(federation: LocalFederation, client: int, demand: Demand) -> RecordDict | None:
    """Return what comes back, or None for an error or a refusal."""
    content = RecordDict(
        {
            "arrays": to_record({"w": np.zeros(federation.size)}),
            "config": ConfigRecord({"server-round": demand.server_round}),
        }
    )
    if demand.plan is not None:
        content[QSFL_RECORD] = ConfigRecord({PLAN_KEY: demand.plan.encode()})
    reply = federation.ask(client, content, demand.kind, max(demand.server_round, 1))
    if reply is None or reply.has_error():
        return None
    told = reply.content.config_records.get(QSFL_RECORD) or {}
    return None if REFUSED_KEY in told else reply.content


def leaks(federation: LocalFederation, client: int, content: RecordDict) -> str | None:
    """Say what of a client's update or metrics the reply tells, if anything."""
    data = [a.data for record in content.array_records.values() for a in record.values()]
    if testing.learned(federation.updates[client : client + 1], data):
        return "the update"
    told = [v for record in content.metric_records.values() for v in record.values()]
    if any(isinstance(v, float) and abs(v - (1 + 0.01 * client)) < 1e-9 for v in told):
        return "the loss"
    return None
