"""The client's half of compression: choose, later encode, and remember what was not sent.

Choosing and encoding are two steps, since clipping has its place between them: what is bounded is
what is sent. The memory of error feedback is 8 bytes per parameter (16 with momentum correction) in
Flower's client state. It is written when everything else has succeeded, lasts for the run, and is
lost with the SuperNode's process unless `qsfl_flower.clients.state_mod` keeps it in a file; the
client then starts with an empty one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import QSFLError
from qsfl_flower.mechanisms.compression.core import Mask, Memory, Scheme, derive_seed, encode_record
from qsfl_flower.mechanisms.compression.core.mask import unpack_leading
from qsfl_flower.mechanisms.compression.core.select import Indices
from qsfl_flower.node.steps import PARAMETERS, ClientUpdate, StepContext, client_name
from qsfl_flower.wire import (
    CHOOSE_STEP,
    COMPRESS_STEP,
    LEADING_KEY,
    MASK_ENCODE_STEP,
    MASK_ENCODING,
    MASK_STEP,
    config_of,
    from_record,
    to_blobs,
    to_record,
)

MEMORY_RECORD = "qsfl-compression"
"""ArrayRecord in the client state."""


@dataclass(frozen=True, repr=False)
class _Chosen:
    scheme: Scheme
    seed: int
    indices: Indices
    memory: Memory | None


@dataclass(frozen=True, repr=False)
class _Masked:
    mask: Mask
    seed: int
    memory: Memory | None


def choose_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Add what earlier rounds have left, and set all but the chosen coordinates to zero."""
    scheme, server_round = Scheme.from_dict(parameters["scheme"]), int(parameters["round"])
    seed = derive_seed(int(parameters["seed"]), server_round, client_name(context.context))
    memory = None
    values = update.vector
    if scheme.feedback:
        memory = recall(context.context.state, values.size, scheme.momentum)
        memory = memory.correct(values, scheme.momentum)
        values = memory.residual
    indices = scheme.choose(values, server_round, seed)
    kept = np.zeros(values.size)
    kept[indices] = values[indices]
    return replace(update, vector=kept, note=_Chosen(scheme, seed, indices, memory))


def compress_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Encode the chosen coordinates as they are now, and keep what the encoding leaves."""
    del parameters
    chosen = update.note
    if not isinstance(chosen, _Chosen):
        raise QSFLError(f"compress: the plan has no step {CHOOSE_STEP!r} before {COMPRESS_STEP!r}")
    size, indices = update.vector.size, chosen.indices
    record, taken, sent = chosen.scheme.encode(update.vector[indices], size, indices, chosen.seed)
    if chosen.memory is not None:
        remember(context.context.state, chosen.memory.after(indices, taken, sent))
    return replace(update, payload=to_blobs({"record": record}), encoding=COMPRESS_STEP)


def mask_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Restrict the update to the public coordinates of the round."""
    mask, seed = Mask(**parameters["mask"]), int(parameters["seed"])
    values, memory = update.vector, None
    leading = np.empty(0, np.int64)
    told = config_of(context.content).get(LEADING_KEY)
    if isinstance(told, bytes):
        leading = unpack_leading(told, values.size)
    support = mask.support(leading, values.size, seed)
    if mask.feedback:
        memory = recall(context.context.state, values.size, 0.0).correct(values)
        values = memory.residual
    kept = values[support]
    if memory is not None:
        memory = memory.after(support, kept, kept)
    rounding = derive_seed(int(parameters["rounding"]), client_name(context.context))
    note = _Masked(mask, rounding, memory)
    return replace(update, vector=kept * mask.scale(values.size), note=note)


def mask_encode_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Keep for later rounds what was not asked for; write the values once no step follows."""
    del parameters
    masked = update.note
    if not isinstance(masked, _Masked):
        raise QSFLError(f"shared_mask: the plan has no step {MASK_STEP!r} before")
    if masked.memory is not None:
        remember(context.context.state, masked.memory)
    return replace(update, payload=partial(_written, update.vector, masked), encoding=MASK_ENCODING)


def _written(values: NDArray[np.float64], masked: _Masked) -> ArrayRecord:
    rng = np.random.Generator(np.random.Philox(key=masked.seed))
    record, *_ = encode_record(values, values.size, None, values_format=masked.mask.values, rng=rng)
    return to_blobs({"record": record})


def recall(state: RecordDict, size: int, momentum: float) -> Memory:
    """Return the client's memory, an empty one before its first round."""
    record = state.get(MEMORY_RECORD)
    if not isinstance(record, ArrayRecord):
        return Memory.empty(size, momentum)
    return Memory(**from_record(record))


def remember(state: RecordDict, memory: Memory) -> None:
    """Keep the memory in the client's state."""
    arrays = {"residual": memory.residual}
    if memory.velocity is not None:
        arrays["velocity"] = memory.velocity
    state[MEMORY_RECORD] = to_record(arrays)


COMPRESS_STEPS = {CHOOSE_STEP: choose_step, COMPRESS_STEP: compress_step}
"""The client's half of `qsfl_flower.mechanisms.COMPRESS`."""

MASK_STEPS = {MASK_STEP: mask_step, MASK_ENCODE_STEP: mask_encode_step}
"""The client's half of `qsfl_flower.mechanisms.SHARED_MASK`."""


@dataclass(frozen=True)
class _ToChoose:
    scheme: Scheme
    round: int
    seed: int


@dataclass(frozen=True)
class _ToMask:
    mask: Mask
    seed: int
    rounding: int


PARAMETERS |= {CHOOSE_STEP: _ToChoose, MASK_STEP: _ToMask}
PARAMETERS |= {COMPRESS_STEP: None, MASK_ENCODE_STEP: None}
