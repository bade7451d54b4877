"""A server with a valid key that asks single devices for what their policy forbids.

Hypothesis begins with instructions that a policy accepts and departs from them: steps, terms,
numbers, message types, orders, repetitions. The device is judged by the bytes of what it sends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from hypothesis import strategies as st

from qsfl_flower import testing
from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.mechanisms.compression.core import Mask, Scheme
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.policy import PLACEMENTS, Protection
from qsfl_flower.secure.terms import Terms
from qsfl_flower.testing import LocalFederation
from qsfl_flower.wire import (
    CHOOSE_STEP,
    COMPRESS_STEP,
    MASK_ENCODE_STEP,
    MASK_STEP,
    PLAN_KEY,
    QSFL_RECORD,
    REFUSED_KEY,
    Kind,
    Plan,
    PlanItem,
    from_record,
    kind_of,
    to_record,
)
from qsfl_flower.wire.keys import (
    CLIP_STEP,
    DISTRIBUTED_DP,
    LOCAL_DP,
    MASKED_SUM,
    PROTECTION,
    RECORD_DP,
    SHARES,
)

EXAMPLES = int(os.environ.get("QSFL_SEARCH", "0"))
"""How many examples a search tries; 0: the few of the default tests."""

EPSILON, DELTA = 2.0, 1e-5
NOISE = 1.98
"""Multiplier at which one release comes to `EPSILON`, a little less than needed."""
RELEASES = 2
COUNT, LOSS = 7919, 7.919
"""Examples and loss of every device."""
POLICIES = {
    "hidden": "hidden_only = true\nleast_cohort = 4\n",
    "sums alone": 'hidden_only = true\nopenings = ["sum"]\nleast_bits = 20\n',
    "private": f'[privacy]\nepsilon = {EPSILON}\nplacements = ["record", "local"]\n',
    "counted": f"hidden_only = true\nreleases = {RELEASES}\ndays = 30.0\n",
}
TYPES = [
    "train.default", "train.lora", "evaluate", "evaluate.x", "query", "query.x", "get_parameters",
    "get_properties", "reconnect",
]  # fmt: skip
"""Those that Flower lets through, besides ``train``."""
MEMBERS = ("client-1", "client-2", "client-3")
_NUMBERS = [
    0, 1, 2, 3, 4, 5, 8, 16, 60, 64, 1e-9, 1e-3, 0.1, 0.5, 1.0, 2.0, 20.0, 100.0, 1e6, 1e9, -1,
    1 << 50, -1.0, None, True, "1", "train-loss", ["train-loss"], [], [1], [64, 1], [1, 1],
]  # fmt: skip


def valid_steps(server_round: int, noise: float, releases: int) -> dict[str, dict]:
    """Return every step as a strategy of the suite writes it."""
    offer = Protection(
        placement="local", clip_norm=1.0, noise_multiplier=noise, sampling_rate=1.0,
        releases=releases, delta=DELTA,
    )  # fmt: skip
    terms = Terms(
        run=1, round=server_round, members=MEMBERS, seats=("s", "t", "u"), threshold=2, quorum=3,
        min_clients=4, max_clients=8, bits=24, bound=4.0, clip_norm=4.0, extras=1,
    )  # fmt: skip
    share = NoiseShare(clip_norm=1.0, noise_multiplier=noise, fewest=4, size=256)
    return {
        PROTECTION: offer.to_dict(),
        RECORD_DP: {"clip_norm": 1.0, "noise_multiplier": noise, "sampling_rate": 0.1,
                      "steps": 1, "public_metrics": []},
        CHOOSE_STEP: {"scheme": Scheme(ratio=0.5).to_dict(), "round": server_round, "seed": 1},
        MASK_STEP: {"mask": Mask(ratio=0.5, feedback=False).to_dict(), "seed": 1,
                    "rounding": server_round},
        CLIP_STEP: {"clip_norm": 1.0},
        LOCAL_DP: {"clip_norm": 1.0, "noise_multiplier": noise},
        DISTRIBUTED_DP: {"share": asdict(share), "bound": 1.0, "batch": None},
        COMPRESS_STEP: {},
        MASK_ENCODE_STEP: {},
        MASKED_SUM: {"round": server_round, "clients": 6, "bound": 4.0, "min_clients": 4,
                     "terms": "", "max_examples": 1000, "metrics": [],
                     "weighted_by": "num-examples"},
        SHARES: {"terms": asdict(terms), "max_examples": 1000, "metrics": [],
                 "weighted_by": "num-examples", "weighted": False},
        "identity": {},
    }  # fmt: skip


_SUMS = ((CLIP_STEP, SHARES), (CLIP_STEP, MASKED_SUM), (MASK_STEP, CLIP_STEP, SHARES))
ACCEPTED = {
    "hidden": _SUMS,
    "sums alone": _SUMS,
    "private": (
        (PROTECTION, CLIP_STEP, LOCAL_DP),
        (PROTECTION, LOCAL_DP),
        (PROTECTION, MASK_STEP, LOCAL_DP, MASK_ENCODE_STEP),
    ),
    "counted": _SUMS,
}
"""Steps that each policy accepts."""


@dataclass(frozen=True)
class Demand:
    """One thing that the server asks of a device."""

    kind: str
    plan: Plan | None
    server_round: int


@st.composite
def demands(draw: st.DrawFn, policy: str) -> list[Demand]:
    """Return instructions of some rounds, with departures from what the policy accepts."""
    rounds = draw(st.integers(1, 4))
    noise = NOISE * 1.03 * rounds**0.5
    names = draw(st.sampled_from(ACCEPTED[policy]))
    asked = []
    for r in range(1, rounds + 1):
        known = valid_steps(r, noise, rounds)
        asked.append(Demand("train", Plan(tuple(PlanItem(n, known[n]) for n in names)), r))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 2, 3, 4]))):
        at = draw(st.integers(0, len(asked) - 1))
        other = _another(draw, asked[at])
        what = draw(st.sampled_from(["stay", "stay", "beside", "repeat", "move"]))
        if what == "beside":
            asked.insert(draw(st.integers(0, len(asked))), other)
            continue
        asked[at] = other
        if what == "repeat":
            asked.insert(draw(st.integers(0, len(asked))), asked[at])
        elif what == "move":
            asked.insert(draw(st.integers(0, len(asked) - 1)), asked.pop(at))
    return asked


def _another(draw: st.DrawFn, demand: Demand) -> Demand:
    """Return a demand that differs in one point."""
    what = draw(st.sampled_from(["steps", "steps", "number", "number", "number", "kind", "round",
                                 "nothing", "promise"]))  # fmt: skip
    items = list(demand.plan.items) if demand.plan else []
    if what == "kind":
        return replace(demand, kind=draw(st.sampled_from(TYPES)))
    if what == "round":
        return replace(demand, server_round=draw(st.integers(0, 4)))
    if what == "steps":
        _other_steps(draw, items, demand.server_round)
    elif what == "promise":
        noise = draw(st.sampled_from([20.0, 3.0, NOISE * 1.03, NOISE * 1.02, 0.5]))
        releases = draw(st.sampled_from([1, 1, 2, 50]))
        known = valid_steps(max(demand.server_round, 1), noise, releases)
        placement = {"placement": draw(st.sampled_from(PLACEMENTS))}
        other = draw(st.sampled_from([{}, placement, {"sampling_rate": 0.01}]))
        items = [
            PlanItem(PROTECTION, known[PROTECTION] | other) if item.name == PROTECTION
            else PlanItem(item.name, known[item.name]) if draw(st.booleans())
            else item
            for item in items
        ]  # fmt: skip
    elif what == "number" and items:
        at = draw(st.integers(0, len(items) - 1))
        items[at] = PlanItem(items[at].name, _other_number(draw, items[at].parameters))
    elif what == "nothing":
        return replace(demand, plan=None)
    return replace(demand, plan=Plan(tuple(items)))


def _other_steps(draw: st.DrawFn, items: list[PlanItem], server_round: int) -> None:
    known = valid_steps(max(server_round, 1), NOISE * 1.03, 1)
    name = draw(st.sampled_from(sorted(known)))
    place, what = draw(st.integers(0, len(items))), draw(st.integers(0, 3))
    if what == 0:
        items.insert(place, PlanItem(name, known[name]))
    elif what == 1 and items:
        items.pop(place % len(items))
    elif what == 2 and items:
        items.append(items.pop(place % len(items)))
    elif items:
        items[place % len(items)] = PlanItem(name, known[name])


def _other_number(draw: st.DrawFn, parameters: Mapping) -> dict:
    values = dict(parameters)
    if isinstance(values.get("terms"), dict) and draw(st.booleans()):
        return values | {"terms": _other_number(draw, values["terms"])}
    if values:
        key = draw(st.sampled_from(sorted(values)))
        if draw(st.sampled_from([False, False, False, True])):
            del values[key]
        else:
            values[key] = draw(st.sampled_from(_NUMBERS))
    return values


def tell(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let the app report metrics that are recognized wherever they turn up."""
    reply = call_next(message, context)
    if reply.has_content() and "metrics" in reply.content:
        reply.content["metrics"] = MetricRecord({"num-examples": COUNT, "train-loss": LOSS})
    return reply


def ask(federation: LocalFederation, client: int, demand: Demand) -> RecordDict | str:
    """Return what comes back, or what an error or a refusal says."""
    content = RecordDict(
        {
            "arrays": to_record({"w": np.zeros(federation.size)}),
            "config": ConfigRecord({"server-round": demand.server_round}),
        }
    )
    if demand.plan is not None:
        content[QSFL_RECORD] = ConfigRecord({PLAN_KEY: demand.plan.encode()})
    reply = federation.ask(client, content, demand.kind, max(demand.server_round, 1))
    if reply is None:
        return ""
    if reply.has_error():
        return reply.error.reason or ""
    told = reply.content.config_records.get(QSFL_RECORD) or {}
    return str(dict(told)) if REFUSED_KEY in told else reply.content


def leaks(federation: LocalFederation, client: int, content: RecordDict | str) -> str | None:
    """Say what of a client's update or metrics the reply tells, if anything."""
    if isinstance(content, str):
        numbers = {float(n) for n in re.findall(r"\d+\.?\d*(?:e[-+]?\d+)?", content)}
        return "what an error says" if numbers & {COUNT, LOSS} else None
    data = [a.data for record in content.array_records.values() for a in record.values()]
    if testing.learned(federation.updates[client : client + 1], data):
        return "the update"
    told = [v for record in content.metric_records.values() for v in record.values()]
    return "the loss" if LOSS in told else None


def noise_of(
    federation: LocalFederation, client: int, demand: Demand, content: RecordDict
) -> float:
    """Return the multiplier of the noise in a reply to an instruction with local noise.

    It is measured against the clipped update. Infinite if what is sent is no model with noise.
    """
    steps = [item for item in (demand.plan.items if demand.plan else ()) if item.name == LOCAL_DP]
    try:
        sent = [from_record(record) for record in content.array_records.values()]
    except RejectedUpdate:  # compressed
        return np.inf
    arrays = [a for record in sent for a in record.values() if a.size == federation.size]
    if len(steps) != 1 or len(arrays) != 1:
        return np.inf
    clip = float(steps[0].parameters["clip_norm"])
    update = federation.update_of(client)
    norms = [item.parameters["clip_norm"] for item in demand.plan.items if item.name == CLIP_STEP]
    for norm in (*norms, clip):
        update = update * min(1.0, norm / np.linalg.norm(update))
    return float(np.sqrt(np.mean((arrays[0] - update) ** 2)) / (2 * clip))


def is_training(demand: Demand) -> bool:
    return kind_of(demand.kind) is Kind.TRAIN
