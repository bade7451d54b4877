"""The older record format of ``ClientApp(client_fn=...)``: ``FitIns``, ``FitRes`` and friends.

Such apps answer only to records named ``fitins.*`` / ``evaluateins.*`` and return parameters
without names. These functions translate both directions. A strategy uses them when it talks to
unmodified legacy apps (``client_api="legacy"``); the client uses them in `legacy_mod`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.compat.common.recorddict_compat import EMPTY_TENSOR_KEY
from numpy.typing import NDArray

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.wire.arrays import numbers_only, records_of, refusal
from qsfl_flower.wire.keys import QSFL_RECORD, REFUSED_KEY

_INSTRUCTION = {"train": "fitins", "evaluate": "evaluateins"}
_REPLY = {"train": "fitres", "evaluate": "evaluateres"}
NUM_EXAMPLES = "num-examples"


def to_legacy_instruction(kind: str, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
    """Build the records that a legacy app understands as a fit or evaluate instruction."""
    prefix = _INSTRUCTION[kind]
    parameters = ArrayRecord(
        {
            str(i): Array(dtype="", shape=(), stype=a.stype, data=a.data)
            for i, a in enumerate(arrays.values())
        }
    )
    return RecordDict({f"{prefix}.parameters": parameters, f"{prefix}.config": config})


def from_legacy_reply(
    kind: str, content: RecordDict, model: Mapping[str, NDArray[Any]], arrayrecord_key: str
) -> RecordDict:
    """Translate a legacy app's reply into the records of the Message API.

    Legacy parameters carry neither names nor shapes; they are taken from `model`, and the bytes
    are checked against them when they are read.

    Raises
    ------
    RejectedUpdate
        ``malformed`` for missing records or a wrong number of arrays, ``client-error`` when the
        app itself reports a status other than OK.
    """
    prefix = _REPLY[kind]
    try:
        status = records_of(content, ConfigRecord)[f"{prefix}.status"]
        extra = records_of(content, ConfigRecord)[f"{prefix}.metrics"]
        examples = records_of(content, MetricRecord)[f"{prefix}.num_examples"]["num_examples"]
        loss = records_of(content, MetricRecord)[f"{prefix}.loss"] if kind == "evaluate" else {}
    except KeyError as error:
        raise RejectedUpdate(
            "malformed", f"the reply lacks {error.args[0]!r}, which a legacy {kind} reply has"
        ) from None
    if status.get("code") != 0:
        raise RejectedUpdate("client-error", f"the app reports: {status.get('message', '')!s:.200}")
    if REFUSED_KEY in extra:
        return RecordDict({QSFL_RECORD: refusal(extra)})
    metrics = numbers_only(extra)
    metrics[NUM_EXAMPLES] = examples
    if kind == "evaluate":
        metrics |= numbers_only({"loss": loss.get("loss")})
        return RecordDict({"metrics": MetricRecord(metrics)})
    record = records_of(content, ArrayRecord).get(f"{prefix}.parameters")
    if record is None:
        raise RejectedUpdate("malformed", f"the reply has no '{prefix}.parameters'")
    sent = [a for k, a in record.items() if k != EMPTY_TENSOR_KEY]
    return RecordDict(
        {arrayrecord_key: _named(sent, model), "metrics": MetricRecord(metrics)},
    )


def _named(sent: Sequence[Array], model: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    if len(sent) != len(model):
        raise RejectedUpdate(
            "missing-array" if len(sent) < len(model) else "unknown-array",
            f"the reply has {len(sent)} arrays, the model has {len(model)}",
        )
    return ArrayRecord(
        {
            name: Array(dtype=str(like.dtype), shape=like.shape, stype=a.stype, data=a.data)
            for (name, like), a in zip(model.items(), sent, strict=True)
        }
    )
