"""From Flower replies to a cohort of well-formed updates; every other reply gets a reason.

A reply is bytes from somebody we do not trust. It is matched to the node that was asked (by the
id of our own message, never by what the reply says), read without copying, and checked against
the model's layout. What does not fit is rejected with a name and a sentence, and the round goes on.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import REFUSALS, RejectedUpdate, plain
from qsfl_flower.numerics import Layout, Vector, example_count
from qsfl_flower.rounds.update import ABSURD_NORM, Cohort, Rejection, Sender, Update, catch
from qsfl_flower.wire import (
    CLIENT_KEY,
    DETAIL_KEY,
    ENCODING_KEY,
    FORM_KEY,
    PAYLOAD_RECORD,
    REFUSED_KEY,
    Form,
    config_of,
    content_bytes,
    from_record,
    records_of,
)

T = TypeVar("T")

log = logging.getLogger("qsfl_flower")

_MAX_NAME = 64
MOST_NUMBERS = 1 << 16
"""Numbers among the metrics of one reply that are read; an honest app has far fewer."""
_ERROR_REASONS = {
    0: "client-crashed",
    1: "client-not-loaded",
    2: "client-error",
    3: "no-reply",
    4: "late-reply",
    5: "node-offline",
    7: "client-not-loaded",
    8: "client-crashed",
}


@dataclass(frozen=True)
class Asked:
    """The nodes that were asked in an exchange.

    Parameters
    ----------
    nodes : Mapping[str, int]
        Node by the id of the message that it was sent.
    ranks : Mapping[int, int]
        The canonical order.
    spans : Mapping[int, tuple[float, float]]
        When a rank was asked and when it answered, in seconds of the strategy's clock.
    cut : bool
        Whether the exchange ended because enough had answered.
    """

    nodes: Mapping[str, int]
    ranks: Mapping[int, int]
    spans: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    cut: bool = False

    def in_order(self) -> list[int]:
        """Return the asked nodes in canonical order."""
        return sorted(self.nodes.values(), key=self.ranks.__getitem__)

    def sender(self, node_id: int, name: str | None = None) -> Sender:
        """Describe a node that was asked."""
        rank = self.ranks[node_id]
        sent_at, arrived_at = self.spans.get(rank, (None, None))
        return Sender(node_id, rank, name or str(node_id), sent_at, arrived_at)


@dataclass(frozen=True)
class ReplyReader:
    """What is needed to read a training reply.

    Parameters
    ----------
    layout : Layout
        Names, shapes and dtypes that an update must have.
    arrayrecord_key, weighted_by_key : str
        Flower's keys: preferred record of arrays, and the metric that counts the examples.
    encoding : str
        Name of the encoding that replies must have, or empty for plain arrays.
    decode : Callable[[ArrayRecord], Vector], optional
        Reads the payload of such a reply.
    own : Mapping[str, numpy.ndarray]
        The buffers of the model that was sent.
    """

    layout: Layout
    arrayrecord_key: str
    weighted_by_key: str
    encoding: str = ""
    decode: Callable[[ArrayRecord], Vector] | None = None
    own: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def read(self, sender: Sender, content: RecordDict) -> Update:
        """Read one reply.

        Raises
        ------
        RejectedUpdate
            With the reason why the reply is not usable.
        """
        form = _form(content, self.encoding)
        if self.decode is not None:
            vector, carried = self._encoded(content)
        else:
            found = from_record(
                single(records_of(content, ArrayRecord), "ArrayRecord", self.arrayrecord_key)
            )
            arrays = self.layout.renamed(found)
            self.layout.check(arrays)
            vector = Vector.of(arrays, self.layout)
            carried = {name: arrays[name] for name in self.layout.carried}
        for name, array in carried.items():
            check_buffer(name, array, self.own[name])
        metrics = single(records_of(content, MetricRecord), "MetricRecord", "metrics")
        if self.weighted_by_key not in metrics:
            raise RejectedUpdate(
                "bad-num-examples", f"the metrics have no {self.weighted_by_key!r}"
            )
        return Update(
            sender=sender,
            num_examples=example_count(metrics[self.weighted_by_key]),
            vector=vector,
            form=form,
            carried=carried,
            metrics=(numbers := finite_metrics(metrics, self.weighted_by_key)).single,
            listed=numbers.listed,
            bytes_up=content_bytes(content),
        )

    def _encoded(self, content: RecordDict) -> tuple[Vector, dict[str, NDArray[Any]]]:
        records = records_of(content, ArrayRecord)
        if self.decode is None or PAYLOAD_RECORD not in records:
            raise RejectedUpdate("malformed", f"the reply has no {PAYLOAD_RECORD!r}")
        carried = {}
        if self.layout.carried:
            rest = {k: v for k, v in records.items() if k != PAYLOAD_RECORD}
            carried = from_record(single(rest, "ArrayRecord", self.arrayrecord_key))
            self.layout.check_carried(carried)
        return self.decode(records[PAYLOAD_RECORD]), carried


def match(replies: Iterable[Message], asked: Asked) -> list[tuple[Sender, RecordDict | Rejection]]:
    """Find the first reply of every node that was asked, in canonical order.

    Replies come in any order, errors included. A node without a reply gets a rejection; a reply
    to nothing that was asked is dropped.
    """
    answers: dict[int, Message] = {}
    for reply in replies:
        node = asked.nodes.get(reply.metadata.reply_to_message_id)
        if node is not None:
            answers.setdefault(node, reply)
    outcomes = []
    for node in asked.in_order():
        found = catch(asked.sender(node), partial(outcome_of, asked, node, answers.get(node)))
        outcomes.append((found.sender, found) if isinstance(found, Rejection) else found)
    return outcomes


def admit(
    matched: Sequence[tuple[Sender, RecordDict | Rejection]],
    read: Callable[[Sender, RecordDict], Update],
) -> Cohort:
    """Read the replies of a round into a cohort, in canonical order.

    Parameters
    ----------
    matched : Sequence[tuple[Sender, RecordDict or Rejection]]
        See `match`.
    read : Callable[[Sender, RecordDict], Update]
        Reads one reply or raises `RejectedUpdate`, see `ReplyReader.read`; called through `catch`.
    """
    outcomes = [
        content
        if isinstance(content, Rejection)
        else catch(sender, partial(read, sender, content), content)
        for sender, content in matched
    ]
    return Cohort(
        tuple(o for o in outcomes if isinstance(o, Update)),
        tuple(o for o in outcomes if isinstance(o, Rejection)),
    )


@dataclass(frozen=True)
class Numbers:
    """What can be averaged of the metrics of a reply.

    Parameters
    ----------
    single : Mapping[str, float]
        Finite numbers by name.
    listed : Mapping[str, tuple of float]
        Lists of finite numbers by name.
    """

    single: dict[str, float]
    listed: dict[str, tuple[float, ...]]

    @property
    def all(self) -> dict[str, float | tuple[float, ...]]:
        """Both, by name."""
        return {**self.single, **self.listed}


_told: set[str] = set()
"""Why a metric was left out, as far as the log of this process says so."""


def finite_metrics(metrics: Mapping[str, object], leave_out: str) -> Numbers:
    """Return what can be averaged of a reply's metrics; log once for each reason what cannot.

    Parameters
    ----------
    metrics : Mapping[str, object]
        Numbers, or lists of numbers, by name.
    leave_out : str
        The metric that counts the examples.
    """
    kept, left = Numbers({}, {}), MOST_NUMBERS
    for name, value in metrics.items():
        if name == leave_out:
            continue
        values: list[Any] = value if isinstance(value, list) else [value]
        if not (name.isprintable() and len(name) <= _MAX_NAME):
            _leave_out(name, f"names are printable and have at most {_MAX_NAME} characters")
        elif len(values) > left:
            _leave_out(name, f"at most {MOST_NUMBERS:,} numbers are read of one reply")
        # An integer of any size can be compared with a float, but not turned into one.
        elif not all(
            isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= sys.float_info.max
            for v in values
        ):
            _leave_out(name, "NaN, infinity and what is no number has no mean")
        else:
            left -= len(values)
            if isinstance(value, list):
                kept.listed[name] = tuple(map(float, values))
            else:
                (kept.single[name],) = map(float, values)
    return kept


def _leave_out(name: str, why: str) -> None:
    if why not in _told:
        _told.add(why)
        log.warning("metric %r of a reply is left out: %s; said once", plain(name, 80), why)


def single(records: Mapping[str, T], kind: str, preferred: str) -> T:
    """Return the record under the usual key, or the only one there is, as Flower accepts it."""
    if preferred in records:
        return records[preferred]
    if len(records) == 1:
        return next(iter(records.values()))
    raise RejectedUpdate(
        "malformed", f"the reply has {len(records)} {kind}s and none is named {preferred!r}"
    )


def check_buffer(name: str, array: NDArray[Any], own: NDArray[Any]) -> None:
    """Check the floats of a buffer, except where the model's own are no numbers (masks).

    Raises
    ------
    RejectedUpdate
        ``not-finite`` or ``too-large``.
    """
    if array.dtype.kind != "f":
        return
    known = np.isfinite(own)
    if not np.isfinite(array[known]).all():
        raise RejectedUpdate("not-finite", f"array {name!r} holds NaN or infinity")
    with np.errstate(over="ignore"):
        moved = np.abs(np.subtract(array[known], own[known], dtype=np.float64))
    if moved.size and moved.max() > ABSURD_NORM:
        raise RejectedUpdate("too-large", f"array {name!r} moved by {moved.max():.6g}")


def check_encoding(content: RecordDict, encoding: str) -> None:
    """Check that a reply says it is encoded as asked.

    Raises
    ------
    RejectedUpdate
        ``not-encoded``, or ``malformed``.
    """
    _form(content, encoding)


def check_willing(content: RecordDict) -> None:
    """Turn a client's refusal to train into the rejection of that name.

    Raises
    ------
    RejectedUpdate
        With the client's reason, or ``malformed`` if that is no reason a device may give.
    """
    record = config_of(content)
    if REFUSED_KEY not in record:
        return
    raise declined(record[REFUSED_KEY], record.get(DETAIL_KEY, ""), REFUSALS)


def declined(reason: object, detail: object, known: frozenset[str]) -> RejectedUpdate:
    """Return the rejection with which a client declines to do something.

    Parameters
    ----------
    reason, detail : object
        What the client says.
    known : frozenset of str
        The reasons that it may give; any other becomes ``malformed``, so that nobody can invent a
        reason, or claim one that the server finds by itself.
    """
    if not isinstance(reason, str) or reason not in known:
        return RejectedUpdate("malformed", f"the client refuses with {plain(reason, 40)!r}")
    return RejectedUpdate(reason, plain(detail))


def _form(content: RecordDict, encoding: str) -> Form:
    record = config_of(content)
    text = record.get(FORM_KEY, Form.PARAMETERS.value)
    try:
        form = Form(str(text))
    except ValueError:
        raise RejectedUpdate(
            "malformed", f"form is {text!r:.40}; allowed: {', '.join(Form)}"
        ) from None
    found = record.get(ENCODING_KEY) if form is Form.ENCODED else ""
    if encoding and found != encoding:
        raise RejectedUpdate(
            "not-encoded",
            f"the reply is not encoded by {encoding!r} as the plan asks; the client needs qsfl_mod",
        )
    if not encoding and form is Form.ENCODED:
        raise RejectedUpdate(
            "malformed", f"the reply is encoded by {found!r:.40}; the plan did not ask for it"
        )
    return Form.DELTA if encoding else form


def outcome_of(
    asked: Asked, node: int, reply: Message | None
) -> tuple[Sender, RecordDict | Rejection]:
    """Return who answered, and the content of the answer or why there is none."""
    sender = asked.sender(node)
    if reply is None and asked.cut:
        return sender, Rejection(sender, "cut-off", "enough others had answered")
    if reply is None:
        return sender, Rejection(sender, "no-reply", "no reply before the time-out")
    if reply.has_error():
        reason = _ERROR_REASONS.get(reply.error.code, "client-error")
        detail = _cause(reply.error.reason or f"error code {reply.error.code}")
        return sender, Rejection(sender, reason, detail)
    return asked.sender(node, _name(reply.content)), reply.content


def _name(content: RecordDict) -> str | None:
    name = config_of(content).get(CLIENT_KEY)
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        return None
    return None if name.startswith("node ") else name  # what nodes without a name are called


def _cause(text: str) -> str:
    """Return the exception's own kind and words out of the layers that Flower wraps around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = re.sub(r"^<class '[^']*'>:<'", "", (lines or [text])[-1]).removesuffix("'>")
    kind = re.search(r"Exception (?!ClientAppException)(\w+) occurred\. Message: ", last)
    words = last.rpartition("Message: ")[2]
    return plain(f"{kind[1]}: {words}" if kind else words)
