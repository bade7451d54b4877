"""Clients that misbehave on purpose, for tests and demonstrations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from qsfl_flower.errors import QSFLError
from qsfl_flower.simulations.config import Experiment
from qsfl_flower.simulations.dishonest import LIES
from qsfl_flower.wire import QSFL_RECORD, TASK_KEY, Kind, from_record, kind_of, to_record

_ROUND = "qsfl-fault-round"


def fault_mod(experiment: Experiment) -> Mod:
    """Make the mod that lets the clients of ``faults:`` misbehave in their rounds.

    It is the outermost mod, so that it changes what really leaves the client.
    """
    after = {
        "garbage": _garbage,
        "nan": _nan,
        "huge-claim": _huge_claim,
        "tamper": _tamper,
    }

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = _fault_now(experiment, message, context)
        if kind == "raise" or (kind == "vanish" and _is_task(message)):
            raise QSFLError(f"this client fails on purpose (faults: {kind})")
        if kind == "die":
            os._exit(1)
        with LIES.get(kind or "", nullcontext)():
            reply = call_next(message, context)
        if kind == "slow":
            time.sleep(experiment.simulation.round_timeout + 1.0)
        if kind in after and not reply.has_error():
            after[kind](reply.content)
        if kind == "replay" and not reply.has_error():
            reply.content = _first(reply.content, context)
        return reply

    return mod


def _fault_now(experiment: Experiment, message: Message, context: Context) -> str | None:
    if kind_of(message.metadata.message_type) is not Kind.TRAIN:
        return None
    client = context.node_config.get("partition-id")
    now = _round_of(message, context)
    for fault in experiment.faults:
        if fault.client == client and (fault.rounds == "all" or now in fault.rounds):
            return fault.kind
    return None


def _is_task(message: Message) -> bool:
    return TASK_KEY in (message.content.config_records.get(QSFL_RECORD) or ConfigRecord())


def _round_of(message: Message, context: Context) -> object:
    """Return the round of a message; further questions are of the round that was trained in."""
    if not _is_task(message):
        config = next(iter(message.content.config_records.values()), ConfigRecord())
        context.state[_ROUND] = ConfigRecord({"round": config.get("server-round", 0)})
    return (context.state.config_records.get(_ROUND) or ConfigRecord()).get("round")


def _each(content: RecordDict, change: Callable[[ArrayRecord], ArrayRecord]) -> None:
    for key, record in list(content.array_records.items()):
        content[key] = change(record)


def _garbage(content: RecordDict) -> None:
    _each(content, lambda _: to_record({"nonsense": np.arange(7)}))


def _nan(content: RecordDict) -> None:
    _each(
        content,
        lambda record: to_record(
            {
                name: np.full_like(a, np.nan) if a.dtype.kind == "f" else a
                for name, a in from_record(record).items()
            }
        ),
    )


def _tamper(content: RecordDict) -> None:
    _each(
        content,
        lambda record: ArrayRecord(
            {
                name: Array(a.dtype, a.shape, a.stype, a.data[:-1] + bytes([a.data[-1] ^ 1]))
                for name, a in record.items()
            }
        ),
    )


def _first(content: RecordDict, context: Context) -> RecordDict:
    """Return the client's first reply, kept in its state."""
    prefix = "qsfl-fault/"
    kept = {k: v for k, v in context.state.items() if k.startswith(prefix)}
    if not kept:
        for name, record in content.items():
            context.state[prefix + name] = record
        return content
    return RecordDict({name.removeprefix(prefix): record for name, record in kept.items()})


def _huge_claim(content: RecordDict) -> None:
    for record in content.metric_records.values():
        record["num-examples"] = 10**15
