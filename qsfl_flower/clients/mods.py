"""The suite's Flower mods: everything that has to happen on the device.

One line in a ClientApp adds them, whatever kind of app it is::

    app = ClientApp(mods=[qsfl_mod])                              # @app.train() apps
    app = numpy_client_app(client_fn, mods=[qsfl_mod])            # apps around a NumPyClient
    app = ClientApp(client_fn=client_fn, mods=[qsfl_mod, legacy_mod])   # older apps, unmodified

The app goes on returning whole models. The mod turns each into the difference to the model that
was sent, and takes the steps that the strategy's plan asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from qsfl_flower.errors import QSFLError, RejectedUpdate
from qsfl_flower.numerics import Clip, Layout, Vector, measure
from qsfl_flower.wire import (
    CLIENT_KEY,
    FORM_KEY,
    PLAN_KEY,
    QSFL_RECORD,
    Form,
    Plan,
    from_record,
    to_record,
)
from qsfl_flower.wire.legacy import from_legacy_reply, to_legacy_instruction

Step = Callable[[NDArray[np.float64], Layout, Mapping[str, Any]], NDArray[np.float64]]
"""A client's half of a mechanism: difference (d,), its layout and the plan's parameters."""


def qsfl_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Carry out the strategy's plan on what the app returns.

    Messages without a plan pass through unchanged, except that training replies are told which
    partition they come from. A plan that this release cannot carry out is an error before training:
    the client does not send less protection than it was asked for.
    """
    if message.metadata.message_type != "train":
        return call_next(message, context)
    content = message.content
    asked = content.config_records.get(QSFL_RECORD) or ConfigRecord()
    steps = _steps(Plan.decode(asked[PLAN_KEY])) if PLAN_KEY in asked else ()
    model = from_record(_only(content.array_records, "instruction")) if steps else {}
    message.content = RecordDict({k: v for k, v in content.items() if k != QSFL_RECORD})
    try:
        reply = call_next(message, context)
    finally:
        message.content = content
    if reply.has_error():
        return reply
    told: dict[str, str] = {CLIENT_KEY: client_name(context)}
    if steps:
        (key,) = (k for k, v in reply.content.items() if isinstance(v, ArrayRecord))
        reply.content[key] = _transform(from_record(reply.content.array_records[key]), model, steps)
        told[FORM_KEY] = Form.DELTA.value
    reply.content[QSFL_RECORD] = ConfigRecord({**told})
    return reply


def legacy_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let an unmodified ``ClientApp(client_fn=...)`` answer to Message-API strategies.

    Put it last in the list of mods, next to the app.
    """
    kind = message.metadata.message_type
    content = message.content
    if kind not in ("train", "evaluate") or not content.array_records:
        return call_next(message, context)
    ((key, arrays),) = content.array_records.items()
    config = next(iter(content.config_records.values()), ConfigRecord())
    if key.endswith("ins.parameters"):
        return call_next(message, context)
    message.content = to_legacy_instruction(kind, arrays, config)
    try:
        reply = call_next(message, context)
    finally:
        message.content = content
    if not reply.has_error():
        reply.content = from_legacy_reply(kind, reply.content, from_record(arrays), key)
    return reply


def client_name(context: Context) -> str:
    """Return what the client calls itself: its partition in simulations, else its node id."""
    return str(context.node_config.get("partition-id", context.node_id))


def clip_step(
    delta: NDArray[np.float64], layout: Layout, parameters: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Clip the difference; the strategy's half is `qsfl_flower.strategies.Clip`."""
    clip = Clip(**parameters)
    scales = clip.scales(measure(Vector.dense(delta), None, layout))
    if np.ndim(scales) == 0:
        return delta * scales
    for view, scale in zip(layout.views(delta).values(), np.asarray(scales), strict=True):
        view *= scale
    return delta


STEPS: dict[str, Step] = {"clip": clip_step}
"""Client halves by name of the mechanism."""


@dataclass(frozen=True)
class _BoundStep:
    step: Step
    parameters: Mapping[str, Any]


def _steps(plan: Plan) -> tuple[_BoundStep, ...]:
    for item in plan.items:
        if item.name not in STEPS:
            raise QSFLError(
                f"plan: the strategy asks for {item.name!r}, which this client does not know; it "
                f"knows {', '.join(sorted(STEPS))}: install the strategy's release of qsfl-flower"
            )
    return tuple(_BoundStep(STEPS[i.name], i.parameters) for i in plan.items)


def _transform(
    trained: Mapping[str, NDArray[Any]],
    model: Mapping[str, NDArray[Any]],
    steps: tuple[_BoundStep, ...],
) -> ArrayRecord:
    layout = Layout.of(model)
    layout.check(trained)
    delta, base = np.empty(layout.size), np.empty(layout.size)
    Vector.of(trained, layout).read(0, layout.size, delta)
    Vector.of(model, layout).read(0, layout.size, base)
    delta -= base
    for bound in steps:
        delta = bound.step(delta, layout, bound.parameters)
    return to_record(layout.unpack(delta, {name: trained[name] for name in layout.carried}))


def _only(records: Mapping[str, ArrayRecord], where: str) -> ArrayRecord:
    if len(records) != 1:
        raise RejectedUpdate("malformed", f"{where}: expected one ArrayRecord, got {len(records)}")
    return next(iter(records.values()))
