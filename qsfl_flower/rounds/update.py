"""One client's contribution to a round, and the set of them that a chain works on."""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import (
    INTERNAL,
    BudgetExceeded,
    QSFLError,
    RejectedUpdate,
    RunInterrupted,
    plain,
)
from qsfl_flower.numerics import Measure, Vector
from qsfl_flower.wire import Form, content_bytes

T = TypeVar("T")

ABSURD_NORM = 1e15
"""No honest update has a larger norm: a million coordinates of 1e12 each."""

internal_log = logging.getLogger("qsfl_flower.internal")
"""Faults of ours that a reply brought to light; a test fails if one is logged here."""

ACCEPTED = "accepted"
"""The status of an update that the model is made of."""


@dataclass(frozen=True)
class Sender:
    """Who sent a reply.

    Parameters
    ----------
    node_id : int
        Flower's node id, from the message the reply answers (not from the reply).
    rank : int
        Position of the node in the order of registration: the canonical order of the round. It is
        the same from run to run, while Flower's node ids are random.
    name : str
        What to show to people. Given by the client, so a claim.
    identity : str or None
        The enrolled client that signed the reply; None where nothing proves it.
    sent_at, arrived_at : float or None
        When the node was asked and when its answer arrived, in seconds of the strategy's clock.

    Examples
    --------
    >>> Sender(node_id=7, rank=0, name="client-0", identity="clinic-3").key
    'clinic-3'
    >>> Sender(node_id=7, rank=0, name="client-0").key
    '0'
    """

    node_id: int
    rank: int
    name: str
    sent_at: float | None = None
    arrived_at: float | None = None
    identity: str | None = None

    @property
    def key(self) -> str:
        """By what to remember the sender: who it is if that is proven, else the node's rank."""
        return str(self.rank) if self.identity is None else self.identity

    @property
    def label(self) -> str:
        """What to call the sender in a sentence."""
        return self.name if self.name.startswith("node ") else f"client {self.name}"


@dataclass(frozen=True)
class Opinion:
    """What detection thinks of an update and of its client.

    Parameters
    ----------
    anomaly : float
        From 0, as usual as anything seen before, to 1.
    reputation : float
        1 for a client that was never flagged, down to 0.
    flag : str
        Why the update is flagged, in words; empty if it is not.
    """

    anomaly: float
    reputation: float
    flag: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Update:
    """A well-formed training reply.

    Parameters
    ----------
    sender : Sender
        Who sent it.
    num_examples : float
        The claimed number of training examples, finite and not negative.
    vector : Vector
        The floating-point parameters as one flat vector, without a copy.
    form : Form
        Whether `vector` is a whole model or a difference to the round's model.
    measure : Measure or None
        Norm of the difference to the round's model (float64); set if a stage needs it.
    carried : Mapping[str, numpy.ndarray]
        Integer and boolean arrays (counters), which are not part of the vector.
    metrics : Mapping[str, float]
        Finite numbers that the client reports.
    listed : Mapping[str, tuple of float]
        Lists of finite numbers that it reports.
    bytes_up : int
        Payload size of the reply in bytes.
    scale : float or numpy.ndarray
        Factor on the difference, for all of it or for each floating-point array; set by clipping.
    weight : float
        Share of this update in the mean, in [0, 1]; set when the round is combined.
    staleness : int
        How many versions the global model had moved on when the update arrived.
    damping : float
        Factor in (0, 1] on the weight, for its staleness.
    status : str
        `ACCEPTED`, or why a stage lets the update count for nothing without rejecting it.
    score : float or None
        How far a robust rule finds the update from what it trusts; lower is better.
    opinion : Opinion or None
        What detection thinks of it.
    sealed : object or None
        What a hidden update is to the server; `vector` is empty then.
    """

    sender: Sender
    num_examples: float
    vector: Vector
    form: Form
    measure: Measure | None = None
    carried: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    listed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    bytes_up: int = 0
    scale: float | NDArray[np.float64] = 1.0
    weight: float = 0.0
    staleness: int = 0
    damping: float = 1.0
    status: str = ACCEPTED
    score: float | None = None
    opinion: Opinion | None = None
    sealed: object | None = None

    def base(self, model: Vector) -> Vector | None:
        """Return what to subtract from `vector` to get the difference to the round's model."""
        return model if self.form is Form.PARAMETERS else None

    def measured(self) -> Measure:
        """Return the measure, which an update has wherever a stage needs norms."""
        if self.measure is None:
            raise QSFLError("this update has not been measured")
        return self.measure

    def __repr__(self) -> str:
        """Name the sender only: an update is private to its client."""
        return f"Update(sender={self.sender.name!r}, size={self.vector.size}, form={self.form!s})"


@dataclass(frozen=True)
class Weighting:
    """How claimed sample counts become weights, see `qsfl_flower.numerics.bounded_weights`.

    Parameters
    ----------
    max_num_examples, max_weight_ratio : float or None, float
        Bounds on the claims.
    buffer_size : int or None
        The fixed number K of updates that a step is made of. With fewer usable ones the step is
        shorter in proportion: the influence of one update does not grow when others fail.
    denominator : float or None
        If given, every update has the weight 1 / denominator, whatever clients claim and however
        many there are.
    by_staleness : tuple of int
        Where updates are hidden: the public weight of an update by its staleness, in units of one
        over the first, see `qsfl_flower.asynchrony.integer_weights`.

    Examples
    --------
    >>> Weighting(max_num_examples=1000, max_weight_ratio=2.0).max_weight_ratio
    2.0
    """

    max_num_examples: float | None = None
    max_weight_ratio: float = 10.0
    buffer_size: int | None = None
    denominator: float | None = None
    by_staleness: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Rejection:
    """A node whose reply does not count in this round, and why.

    Examples
    --------
    >>> cohort = Cohort(rejections=(Rejection(Sender(7, 0, "client-0"), "not-finite", "NaN in w"),))
    >>> dict(cohort.reasons())
    {'not-finite': 1}
    """

    sender: Sender
    reason: str
    detail: str
    bytes_up: int = 0
    opinion: Opinion | None = None


def told_with_frames(error: Exception) -> str:
    """Return an exception and its traceback for the log; what it says may come from a client."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}: {plain(error)}\n{frames}"


def catch(
    sender: Sender, read: Callable[[], T], content: RecordDict | None = None
) -> T | Rejection:
    """Read something that a client sent; whatever goes wrong rejects it, and nothing else.

    The one barrier between the replies and the run: everything that looks into a reply is called
    through it. An error of the suite is the client's fault. Any other exception is ours: it is
    logged with its traceback and counted under the reason ``internal``, and the round goes on.

    Parameters
    ----------
    sender : Sender
        Who sent it.
    read : Callable
        Reads it.
    content : RecordDict, optional
        The reply, for its size.

    Returns
    -------
    T or Rejection
        What `read` returns, or the rejection with its reason.
    """
    try:
        return read()
    except (RunInterrupted, BudgetExceeded):
        raise  # the run itself is over, whatever was being read
    except RejectedUpdate as error:
        reason, detail = error.reason, error.detail
    except QSFLError as error:
        reason, detail = "malformed", plain(error)
    except Exception as error:
        reason, detail = INTERNAL, plain(f"{type(error).__name__}: {plain(error)}")
        internal_log.error(
            "%s: reading its reply failed by a fault of the suite, please report it: %s",
            sender.label,
            told_with_frames(error),
        )
    return Rejection(sender, reason, detail, 0 if content is None else content_bytes(content))


@dataclass(frozen=True)
class Cohort:
    """The updates of a round in canonical order, and the rejections so far.

    Examples
    --------
    >>> cohort = Cohort(rejections=(Rejection(Sender(7, 0, "client-0"), "not-finite", "NaN in w"),))
    >>> len(cohort.updates), dict(cohort.reasons())
    (0, {'not-finite': 1})
    """

    updates: tuple[Update, ...] = ()
    rejections: tuple[Rejection, ...] = ()

    def each(self, step: Callable[[Update], Update]) -> Cohort:
        """Apply `step` to every update; one for which it fails is moved out, see `catch`."""
        kept: list[Update] = []
        rejections = list(self.rejections)
        for update in self.updates:
            found = catch(update.sender, partial(step, update))
            if isinstance(found, Update):
                kept.append(found)
            else:
                rejections.append(replace(found, bytes_up=update.bytes_up))
        return replace(self, updates=tuple(kept), rejections=tuple(rejections))

    @property
    def accepted(self) -> int:
        """How many updates the model is made of."""
        return self._statuses()[ACCEPTED]

    def unused(self) -> dict[str, int]:
        """Count what is not used by reason, in alphabetical order.

        A reply that was rejected and an update that a rule did not select are both not used.
        Summaries, reports and comparisons count these, and `accepted`.
        """
        return {name: n for name, n in sorted(self._statuses().items()) if name != ACCEPTED}

    def reasons(self) -> dict[str, int]:
        """Count the rejections by reason, in alphabetical order."""
        return dict(sorted(Counter(r.reason for r in self.rejections).items()))

    def _statuses(self) -> Counter[str]:
        return Counter([u.status for u in self.updates] + [r.reason for r in self.rejections])
