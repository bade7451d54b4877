"""The suite's Flower mods: everything that has to happen on the device.

One line in a ClientApp adds them, whatever kind of app it is::

    app = ClientApp(mods=[qsfl_mod])                              # @app.train() apps
    app = numpy_client_app(client_fn, mods=[qsfl_mod])            # apps around a NumPyClient
    app = ClientApp(client_fn=client_fn, mods=[qsfl_mod, legacy_mod])   # older apps, unmodified

The app goes on returning whole models. The mod turns each into the difference to the model that
was sent, and takes the steps that the strategy's plan asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from qsfl_flower import mechanisms
from qsfl_flower.clients.kept_state import begin_run, training_alone
from qsfl_flower.clients.local import LOCAL_RECORD, keep_local, put_local
from qsfl_flower.clients.role_check import saying
from qsfl_flower.errors import REFUSALS, DataError, QSFLError, Refusal, RejectedUpdate, plain
from qsfl_flower.mechanisms.evaluation.client import MEASURE_STEPS
from qsfl_flower.node.instructions import PROTECTING, check_instruction
from qsfl_flower.node.policy import CARRIED_OUT, NodePolicy, counted, insisted, policy_of
from qsfl_flower.node.steps import (
    RECEIVERS,
    SOURCES,
    STEPS,
    TASKS,
    ClientUpdate,
    Step,
    StepContext,
    add_steps,
    client_name,
    layout_told,
    refuse,
)
from qsfl_flower.numerics import Layout, Vector, not_finite
from qsfl_flower.numerics.blocks import blocks
from qsfl_flower.wire import (
    CLIENT_KEY,
    DETAIL_KEY,
    ENCODING_KEY,
    FORM_KEY,
    PAYLOAD_RECORD,
    PLAN_KEY,
    QSFL_RECORD,
    REFUSED_KEY,
    ROLES_KEY,
    TASK_KEY,
    Form,
    Kind,
    Plan,
    config_of,
    from_record,
    kind_of,
    to_record,
)
from qsfl_flower.wire.arrays import record_of, staying_here
from qsfl_flower.wire.keys import COUNTED
from qsfl_flower.wire.legacy import from_legacy_reply, to_legacy_instruction

log = logging.getLogger("qsfl_flower")

Known = TypeVar("Known")

STEPS |= MEASURE_STEPS
SOURCES |= dict.fromkeys(MEASURE_STEPS, True)
for _mechanism in mechanisms.BUILT_IN.values():
    add_steps(_mechanism)


def qsfl_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Carry out the strategy's plan on what the app returns, and the strategy's tasks without it.

    Messages without a plan pass through unchanged, except that training replies say which
    partition they come from. What the node's policy does not allow, and a plan or task that this
    release cannot carry out, is refused before training, with the reason in the reply: the client
    does not send less protection than it was asked for. ``train.lora`` counts as ``train``.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> app = ClientApp(mods=[qsfl_mod])
    """
    received = message.content
    try:
        policy = policy_of(context)
        counted().add(CARRIED_OUT)
        if not insisted():
            check_instruction(message, context, policy)
        kind = kind_of(message.metadata.message_type)
        asked = config_of(received)
        if kind is Kind.QUERY and not {PLAN_KEY, TASK_KEY} & asked.keys():
            return call_next(message, context)
        begin_run(context)
        if TASK_KEY in asked:
            return _answer(message, context)
        for key, receive in RECEIVERS.items():
            if key in asked:
                message.content = receive(message.content, context.state)
        if kind is Kind.TRAIN:
            return _train(message, context, call_next, policy)
        if PLAN_KEY in asked:
            return _count(message, context, call_next)
        message.content = _for_the_app(_evaluated(message.content, context))
        return call_next(message, context)
    except Refusal as refused:
        return refuse(refused, message)
    finally:
        message.content = received


def _answer(message: Message, context: Context) -> Message:
    """Answer a task of the suite's, without the app."""
    content = message.content
    task = _known(TASKS, config_of(content)[TASK_KEY], "task")
    about = StepContext(context, content, message.metadata.message_type, Vector(()))
    with _unspoken(True):
        return Message(task(about), reply_to=message)


def _count(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Carry out a plan on numbers that are no update: of evaluation, a query, or analytics."""
    content = message.content
    plan = Plan.decode(config_of(content)[PLAN_KEY])
    steps = _steps(plan)
    if not plan.items or plan.items[0].name not in SOURCES:
        raise Refusal("policy-plan", "a plan of another purpose than training makes no numbers")
    about = StepContext(context, content, message.metadata.message_type, Vector(()))
    told = {CLIENT_KEY: client_name(context)}
    vector = np.zeros(plan.items[0].parameters["size"])
    update = ClientUpdate(vector, Layout.of({COUNTED: vector}))
    with _unspoken(True):
        if SOURCES[plan.items[0].name]:
            message.content = _for_the_app(_evaluated(content, context))
            try:
                reply = call_next(message, context)
            finally:
                message.content = content
            if reply.has_error():
                return Message(Error(reply.error.code, _SILENT), reply_to=message)
            refused = config_of(reply.content)
            if REFUSED_KEY in refused:
                told |= _declined(refused)
                return Message(RecordDict({QSFL_RECORD: ConfigRecord({**told})}), reply_to=message)
            records = reply.content.metric_records.values()
            update = replace(update, numbers={n: v for r in records for n, v in r.items()})
        update, payload = _taken(steps, update, about, secret=True)
    if payload is None:
        numbers = to_record(update.layout.unpack(update.vector, {}))
        made = RecordDict({COUNTED: numbers, "metrics": MetricRecord({**update.metrics})})
        told |= {FORM_KEY: Form.DELTA.value}
    else:
        made = RecordDict({PAYLOAD_RECORD: payload})
        told |= {FORM_KEY: Form.ENCODED.value, ENCODING_KEY: update.encoding}
    made[QSFL_RECORD] = ConfigRecord({**told})
    return Message(made, reply_to=message)


def _train(
    message: Message, context: Context, call_next: ClientAppCallable, policy: NodePolicy
) -> Message:
    content = message.content
    asked = config_of(content)
    plan = Plan.decode(asked[PLAN_KEY]) if PLAN_KEY in asked else Plan()
    steps, secret = _steps(plan), any(item.name in PROTECTING for item in plan.items)
    model, layout = {}, None
    if steps or ROLES_KEY in asked:
        model = from_record(_only(content.array_records, "instruction"))
        layout = layout_told(model, asked)
    try:
        with (
            training_alone(context, policy, plan, layout),
            saying(layout),
            staying_here(bool(steps)),
            _unspoken(secret),
        ):
            message.content = _for_the_app(content)
            if layout is not None:
                message.content = put_local(message.content, layout, context.state, secret=secret)
            reply = call_next(message, context)
    finally:
        message.content = content
    if reply.has_error():
        return Message(Error(reply.error.code, _SILENT), reply_to=message) if secret else reply
    told = {CLIENT_KEY: client_name(context)}
    refused = config_of(reply.content)
    if REFUSED_KEY in refused:
        reply.content = RecordDict()
        told |= _declined(refused) if secret else {k: str(v) for k, v in refused.items()}
    elif layout is not None:
        for key, record in reply.content.array_records.items():
            if (renamed := layout.renamed(record)) is not record:
                reply.content[key] = record_of(renamed)
        keep_local(reply.content, layout, context.state, content, secret=secret)
        if steps:
            with _unspoken(secret):
                told |= _transform(reply.content, model, layout, steps, context, message, secret)
        else:
            _leave_out(reply.content, layout)
    reply.content[QSFL_RECORD] = ConfigRecord({**told})
    return reply


_LOGGED = "stays in the device's log, since the strategy hides single updates or adds noise to them"
_SILENT = f"what the app says {_LOGGED}"


def _declined(refused: ConfigRecord) -> dict[str, str]:
    """Return the reason alone: a sentence of the app may quote records, or count them."""
    reason, said = str(refused[REFUSED_KEY]), refused.get(DETAIL_KEY)
    log.info("this device does not take part: %s: %s", reason, said)
    return {REFUSED_KEY: reason if reason in REFUSALS else "device-unknown", DETAIL_KEY: _SILENT}


def _evaluated(content: RecordDict, context: Context) -> RecordDict:
    """Return what is evaluated: the model with this device's own arrays."""
    asked = config_of(content)
    if ROLES_KEY not in asked or LOCAL_RECORD not in context.state:
        return content
    model = from_record(_only(content.array_records, "instruction"))
    return put_local(content, layout_told(model, asked), context.state)


def _for_the_app(content: RecordDict) -> RecordDict:
    return RecordDict({k: v for k, v in content.items() if k != QSFL_RECORD})


def _leave_out(reply: RecordDict, layout: Layout) -> None:
    """Take out of a whole model what the server does not read."""
    for key, record in reply.array_records.items():
        unread = {*layout.frozen, *layout.tied}
        reply[key] = ArrayRecord({n: a for n, a in record.items() if n not in unread})


def legacy_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let an unmodified ``ClientApp(client_fn=...)`` answer to Message-API strategies.

    Put it last in the list of mods, next to the app.

    Examples
    --------
    >>> from flwr.client import NumPyClient
    >>> from flwr.clientapp import ClientApp
    >>> def client_fn(context):  # the app's own
    ...     return NumPyClient().to_client()
    >>> app = ClientApp(client_fn=client_fn, mods=[qsfl_mod, legacy_mod])
    """
    kind, content = kind_of(message.metadata.message_type), message.content
    if kind is Kind.QUERY or not content.array_records:
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


@contextmanager
def _unspoken(secret: bool) -> Iterator[None]:
    """Keep on the device what errors say, where its update is hidden or noisy.

    Flower sends the text of an exception to the server, and it may quote records or metrics.
    """
    try:
        yield
    except Exception as error:
        if not secret or (isinstance(error, QSFLError) and not isinstance(error, DataError)):
            raise
        raise QSFLError(f"{type(error).__name__} on the device; what it says {_LOGGED}") from error


@dataclass(frozen=True)
class _BoundStep:
    step: Step
    parameters: Mapping[str, Any]


def _steps(plan: Plan) -> tuple[_BoundStep, ...]:
    return tuple(_BoundStep(_known(STEPS, i.name, "step"), i.parameters) for i in plan.items)


def _known(registry: Mapping[str, Known], name: object, kind: str) -> Known:
    if not isinstance(name, str) or name not in registry:
        raise Refusal(
            "policy-unknown-step",
            f"the strategy asks for {kind} {name!r:.40}, which this client does not know; it "
            f"knows {', '.join(sorted(registry)) or 'none'}: install the strategy's release of "
            "qsfl-flower",
        )
    return registry[name]


def _transform(
    reply: RecordDict,
    model: Mapping[str, NDArray[Any]],
    layout: Layout,
    steps: tuple[_BoundStep, ...],
    context: Context,
    instruction: Message,
    secret: bool,
) -> dict[str, str]:
    """Replace a reply's arrays by what the steps make of them; return what to tell about them."""
    key = next(k for k, v in reply.items() if isinstance(v, ArrayRecord))
    trained = from_record(_only(reply.array_records, "the app's reply"))
    layout.check(trained)
    delta, base = np.empty(layout.size), Vector.of(model, layout)
    Vector.of(trained, layout).read(0, layout.size, delta)
    for lo, hi in blocks(0, layout.size):
        delta[lo:hi] -= base.view(lo, hi, np.empty(hi - lo))
    metrics = {
        name: value
        for record in reply.metric_records.values()
        for name, value in record.items()
        if isinstance(value, int | float)
    }
    carried = {name: trained[name] for name in layout.carried}
    update = ClientUpdate(delta, layout, metrics, carried)
    own = {name: model[name] for name in layout.carried}
    about = StepContext(context, instruction.content, instruction.metadata.message_type, base, own)
    try:
        update, payload = _taken(steps, update, about, secret)
    except RejectedUpdate as error:
        if secret or error.reason != "not-finite":
            raise
        raise not_finite(Vector.dense(delta), layout) from error
    if update.hidden or update.metrics is not metrics:  # nothing of the app's beside the mechanism
        name = next(iter(reply.metric_records), "metrics")
        told = {n for record in reply.metric_records.values() for n in record}
        for other in [k for k in reply if k != key]:
            del reply[other]
        _say_kept(told, steps[-1].parameters)
        if not update.hidden:
            reply[name] = MetricRecord({**update.metrics})
    if payload is None:
        reply[key] = to_record(layout.sent.unpack(update.vector, update.carried))
        return {FORM_KEY: Form.DELTA.value}
    del reply[key]
    if update.carried and not update.hidden:
        reply[key] = to_record(update.carried)
    reply[PAYLOAD_RECORD] = payload
    return {FORM_KEY: Form.ENCODED.value, ENCODING_KEY: update.encoding}


def _taken(
    steps: tuple[_BoundStep, ...], update: ClientUpdate, about: StepContext, secret: bool
) -> tuple[ClientUpdate, ArrayRecord | None]:
    """Return what all steps make of an update, and its payload."""
    try:
        for bound in steps:
            update = bound.step(update, bound.parameters, about)
        return update, update.payload() if callable(update.payload) else update.payload
    except RejectedUpdate as error:
        if secret:  # which array it is depends on the records
            raise RejectedUpdate(error.reason, f"which, and how far, {_LOGGED}") from error
        raise


_kept: set[str] = set()
"""Metrics of which this process has said that they stay here."""


def _say_kept(told: Iterable[str], last: Mapping[str, Any]) -> None:
    """Log once for each metric that it stays on the device, and how it would be averaged."""
    opened = {*last.get("metrics", ()), last.get("weighted_by")}
    if new := sorted({*told} - opened - _kept):
        _kept.update(new)
        log.warning(
            "metrics %s stay on this device: a hidden sum averages those alone that the strategy "
            "declares (metrics=[...] of its secure sum)",
            plain(", ".join(new), 200),
        )


def _only(records: Mapping[str, ArrayRecord], where: str) -> ArrayRecord:
    if len(records) != 1:
        raise RejectedUpdate("malformed", f"{where}: expected one ArrayRecord, got {len(records)}")
    return next(iter(records.values()))
