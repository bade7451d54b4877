"""The client's halves of the mechanisms: steps on its own update, and tasks beside training.

A strategy's plan names steps in order; `qsfl_mod` carries them out on what the app returned. An
instruction that names a task is answered without the app; a receiver changes the instruction before
anything else sees it. All are plain functions, registered in `STEPS`, `TASKS` and `RECEIVERS` under
names that are the same on both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.identity import KeySet
from qsfl_flower.errors import ConfigError, QSFLError, Refusal
from qsfl_flower.node.memory import Facts, facts_of
from qsfl_flower.node.policy import NodePolicy, policy_of
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.plugins import Mechanism, allowed, fits
from qsfl_flower.wire import DETAIL_KEY, QSFL_RECORD, REFUSED_KEY, ROLES_KEY, refusal
from qsfl_flower.wire.content import instruction_digest
from qsfl_flower.wire.kinds import Purpose, purpose_of


@dataclass(frozen=True, eq=False, repr=False)
class ClientUpdate:
    """What a client is about to send, between two steps.

    Parameters
    ----------
    vector : numpy.ndarray
        The difference to the model that was sent, shape (d,), float64; shape (k,) after a step has
        restricted it to k public coordinates. A step may change it in place.
    layout : Layout
        The model's layout, of d floating-point coordinates.
    metrics : Mapping[str, float]
        What the app reports, the number of examples included.
    carried : Mapping[str, numpy.ndarray]
        Integer and boolean arrays, which are not part of the vector.
    payload : ArrayRecord or Callable[[], ArrayRecord] or None
        Set by an encoding step: sent instead of the vector. A function is called when all steps are
        done, so that nothing is encoded that a secure sum then replaces.
    encoding : str
        Beside it: the name of the mechanism that can read it.
    note : object
        What a step leaves for a later one of its own mechanism.
    hidden : bool
        True if nothing of this client's own may be sent in the clear: no metrics, no counters.
    numbers : Mapping[str, object]
        Where something else than training is asked: all that the app reports, lists included.
    """

    vector: NDArray[np.float64]
    layout: Layout
    metrics: Mapping[str, float] = field(default_factory=dict)
    carried: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    payload: ArrayRecord | Callable[[], ArrayRecord] | None = None
    encoding: str = ""
    note: object = None
    hidden: bool = False
    numbers: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Party:
    """Who this client is: its credentials, and the keys that are valid now (Unix seconds)."""

    credentials: Credentials
    keys: KeySet
    now: int


_PARTY: ContextVar[Party | None] = ContextVar("qsfl_party", default=None)


@contextmanager
def acting_as(party: Party) -> Iterator[None]:
    """Let steps and tasks know who this client is, while a verified message is handled."""
    before = _PARTY.set(party)
    try:
        yield
    finally:
        _PARTY.reset(before)


@dataclass(frozen=True, repr=False)
class StepContext:
    """What a step or a task may know.

    Parameters
    ----------
    context : Context
        Flower's context; its ``state`` is the client's memory between messages.
    content : RecordDict
        The whole instruction.
    message_type : str
        Flower's type of its message, which says what the app was asked to do.
    model : Vector
        The model that was sent, shape (d,); empty in a task without a model.
    carried : Mapping[str, numpy.ndarray]
        Its integer and boolean arrays.
    """

    context: Context
    content: RecordDict
    message_type: str
    model: Vector
    carried: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @cached_property
    def instruction(self) -> bytes:
        """Return the digest of what this client was asked: action, model, configuration, plan."""
        return instruction_digest(self.content, self.message_type)

    @property
    def purpose(self) -> Purpose:
        """Return what the message is for; nothing that is kept for one purpose serves another."""
        return purpose_of(self.message_type)

    @property
    def policy(self) -> NodePolicy:
        """Return what this node insists on for this purpose."""
        return policy_of(self.context).of(self.purpose)

    @property
    def way(self) -> str:
        """Return the name of the fact that tells who opens exact sums of this run and purpose."""
        return owned(f"exact/{self.context.run_id}/way", self.purpose)

    def facts(self) -> AbstractContextManager[Facts]:
        """Read and change what this node must not forget; see `facts_of`."""
        return facts_of(self.context)

    @property
    def party(self) -> Party:
        """Return who this client is.

        Raises
        ------
        QSFLError
            Without `auth_mod`: then nobody vouches for keys.
        """
        party = _PARTY.get()
        if party is None:
            raise QSFLError(
                "this step needs the client's keys and roster: put auth_mod(credentials) before "
                "qsfl_mod in the mods of the ClientApp"
            )
        return party


Step = Callable[[ClientUpdate, Mapping[str, Any], StepContext], ClientUpdate]
"""Works on the update with the plan's parameters."""

Task = Callable[[StepContext], RecordDict]
"""Answers an instruction; returns the content of the reply."""

Receiver = Callable[[RecordDict, RecordDict], RecordDict]
"""From an instruction and the client state to the instruction that all others see."""


def layout_told(arrays: Mapping[str, NDArray[Any]], told: ConfigRecord) -> Layout:
    """Return the layout of a model with the roles that the instruction tells about.

    Raises
    ------
    Refusal
        ``policy-roles``: they do not lead to the layout of the strategy.
    """
    if ROLES_KEY not in told:
        return Layout.of(arrays)
    try:
        return Layout.read(arrays, told[ROLES_KEY])
    except ConfigError as error:
        raise Refusal("policy-roles", str(error)) from None


def client_name(context: Context) -> str:
    """Return what the client calls itself: its partition in simulations, else its node id."""
    return str(context.node_config.get("partition-id", context.node_id))


def refuse(refused: Refusal, message: Message) -> Message:
    """Return the reply that tells the server why a device does not do what it was asked."""
    told = {REFUSED_KEY: refused.reason, DETAIL_KEY: refused.detail}
    return Message(RecordDict({QSFL_RECORD: refusal(told)}), reply_to=message)


STEPS: dict[str, Step] = {}
"""Steps by name of the mechanism."""

TASKS: dict[str, Task] = {}
"""Tasks by name."""

SOURCES: dict[str, bool] = {}
"""Steps that begin a plan of another purpose than training: they make the vector that the other
steps work on, of shape (size,) by their parameter ``size``. True: the app is asked first, and the
step reads what it reports (`ClientUpdate.numbers`); False: the step answers without the app."""


def owned(name: str, purpose: Purpose) -> str:
    """Return the name of what is kept for a purpose; training has the names of old."""
    return name if purpose is Purpose.TRAIN else f"{name}/{purpose}"


RECEIVERS: dict[str, Receiver] = {}
"""What is done to instructions, by the key of the suite's record that asks for it."""


PARAMETERS: dict[str, type | None] = {}
"""A dataclass by the name of a step: the parameters that it takes. None: it takes none."""


def check_parameters(name: str, values: Mapping[str, Any]) -> None:
    """Refuse parameters of a step that are missing, unknown, or of another type than its own.

    Raises
    ------
    Refusal
        ``policy-plan``; the app must not be called.
    """
    if name not in PARAMETERS:
        return  # unknown, or of a third party
    kind = PARAMETERS[name]
    if not (fits(values, kind) if kind else not values):
        told = allowed(kind, {}) if kind else "no parameters"
        raise Refusal("policy-plan", f"{name}: found {dict(values)!r:.200}; it must have {told}")


def add_steps(mechanism: Mechanism) -> None:
    """Let this process carry out the client's half of a mechanism: steps, tasks and receivers.

    A ClientApp calls this for one of a third party when it is defined; nothing that a server sends
    does.

    Raises
    ------
    ConfigError
        If one of them has the name of another.
    """
    known: dict[str, Any]
    for kind, known, own in (
        ("step", STEPS, mechanism.steps()),
        ("task", TASKS, mechanism.answers()),
        ("receiver", RECEIVERS, mechanism.receivers()),
    ):
        for name, answer in own.items():
            if known.setdefault(name, answer) is not answer:
                raise ConfigError(
                    f"mechanism {mechanism.name!r}: there is a {kind} {name!r} already; give it "
                    "another name"
                )
