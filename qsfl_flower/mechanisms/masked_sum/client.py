"""The client's half of the pairwise-mask sum: encode after training, then answer tasks.

The encoded update and the client's secrets wait in Flower's client state between the messages of a
round, encrypted under the client's own storage key and sealed to each other, so that secrets mask
no other vector than the one they were drawn for; a vector is erased as soon as it is masked. How
far a client has come in which round is a fact (`qsfl_flower.node.memory`): rounds only go up,
and every step is taken once. The strategy's half is `qsfl_flower.stages.MaskedSum`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flwr.app import ConfigRecord, RecordDict

from qsfl_flower.crypto.hybrid import derive
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import COMPLAINTS, CryptoError, Refusal, RejectedUpdate
from qsfl_flower.node.instructions import must_stay
from qsfl_flower.node.steps import PARAMETERS, ClientUpdate, Party, StepContext, Task, owned
from qsfl_flower.secure.desk import check_cohort, check_way
from qsfl_flower.secure.pairwise.client import (
    BadPacket,
    Client,
    check,
    deal,
    mask,
    read_survivors,
    release,
)
from qsfl_flower.secure.pairwise.masks import Ring
from qsfl_flower.secure.pairwise.ring import LIMBS, RingCode, encode_scalars
from qsfl_flower.secure.pairwise.terms import Policy, Terms
from qsfl_flower.secure.statistics import Statistics
from qsfl_flower.secure.tally import Tally
from qsfl_flower.wire import config_of, to_record
from qsfl_flower.wire.keys import MASKED_SUM

_STATE_RECORD = "qsfl-masked-sum"
_CLIENT, _VECTOR, _LEAST, _INSTRUCTION = "client", "vector", "least", "instruction"
_FIXED = "fixed"
_ROUND, _SALT = "round", "salt"
_SALT_SIZE = 16
_NONCE = bytes(12)


class Step(IntEnum):
    """How far a client has come in the sum of a round."""

    ENCODED = 1
    DEALT = 2
    MASKED = 3
    RELEASED = 4


def masked_sum_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Encode and keep update, weight, metrics, statistics; deal shares if terms name this client.

    Nothing of the update leaves the device in this step.

    Raises
    ------
    Refusal
        ``policy-second-answer`` if this round, or a later one, was answered before; or as `deal`.
    """
    tally = Tally(parameters["max_examples"], parameters["metrics"], parameters["weighted_by"])
    code = RingCode(parameters["bound"], parameters["clients"])
    weight, integers = tally.take(update.metrics)
    hidden = Statistics(update.layout).take(update.carried, context.carried)
    size = update.vector.size
    vector: Ring = np.empty(size + LIMBS * (tally.size + hidden.size), np.uint32)
    code.encode(np.multiply(update.vector, weight, out=update.vector), vector[:size])
    encode_scalars(np.concatenate([np.array(integers), hidden]), vector[size:])
    least = int(parameters["min_clients"]).to_bytes(4)
    kept = {_VECTOR: vector.tobytes(), _LEAST: least, _INSTRUCTION: context.instruction}
    if must_stay(context.content, context.purpose):
        kept[_FIXED] = b"1"
        with context.facts() as facts:
            check_way(facts, context.way, MASKED_SUM.encode(), f"round {parameters['round']}")
    dealt = b""
    _take(context, parameters["round"], Step.ENCODED)
    if parameters["terms"]:
        terms = Terms.decode(base64.b64decode(parameters["terms"]))
        if context.party.credentials.identity.name in terms.places:
            client, dealt = _deal(terms, parameters["round"], kept, context)
            kept[_CLIENT] = client.encode()
    _keep(context, parameters["round"], kept)
    payload = to_record({"deal": np.frombuffer(dealt, np.uint8)})
    return replace(
        update, vector=update.vector[:0], payload=payload, encoding=MASKED_SUM, hidden=True
    )


def deal_task(context: StepContext) -> RecordDict:
    """Deal shares among the clients that have trained, once in a round."""
    round_, kept = _kept(context)
    _take(context, round_, Step.DEALT)
    if _VECTOR not in kept:
        raise Refusal("policy-terms", "there is no update left to take part with")
    client, dealt = _deal(Terms.decode(_field(context, "terms")), round_, kept, context)
    _keep(context, round_, {**kept, _CLIENT: client.encode()})
    return _answer({"deal": dealt})


def check_task(context: StepContext) -> RecordDict:
    """Say whose packets cannot be used, before anything is masked."""
    _, kept = _kept(context)
    if _CLIENT not in kept:
        raise Refusal("policy-terms", "no shares were dealt")
    party, client = context.party, Client.decode(kept[_CLIENT])
    bad = check(client, _field(context, "relay"), party.credentials, party.now)
    return _answer({"bad": [*bad]})


def mask_task(context: StepContext) -> RecordDict:
    """Mask the update that was kept and send it; it is erased here."""
    round_, kept = _kept(context)
    _take(context, round_, Step.MASKED)
    if _VECTOR not in kept or _CLIENT not in kept:
        raise Refusal("policy-terms", "there is no update left to mask, or no shares were dealt")
    party = context.party
    vector: Ring = np.frombuffer(bytearray(kept[_VECTOR]), np.uint32)
    client, lockers = mask(
        Client.decode(kept[_CLIENT]),
        _field(context, "relay"),
        vector,
        party.credentials,
        _policy(kept, context),
        party.now,
        _field(context, "pairs", b""),
    )
    _keep(context, round_, {**_lasting(kept), _CLIENT: client.encode()})
    answer = _answer({"lockers": lockers})
    answer["masked"] = to_record({"masked": vector})
    return answer


def release_task(context: StepContext) -> RecordDict:
    """Hand out the shares that unmask the sum over the survivors."""
    round_, kept = _kept(context)
    if _CLIENT not in kept:
        raise Refusal("policy-terms", "no shares are held")
    told, before = _field(context, "survivors"), Client.decode(kept[_CLIENT])
    client, released = release(before, told, _policy(kept, context))
    survivors = read_survivors(client.terms, told) if _FIXED in kept else ()
    names = [client.terms.seats[place] for place in survivors]
    _take(context, round_, Step.RELEASED, client.released, names)
    _keep(context, round_, {**_lasting(kept), _CLIENT: client.encode()})
    return _answer({"release": released})


def _named(task: Task) -> Task:
    """Answer with the reason where the task cannot be done, so that the server can count it."""

    def answer(context: StepContext) -> RecordDict:
        try:
            return task(context)
        except (RejectedUpdate, Refusal) as error:
            about = [*error.dealers] if isinstance(error, BadPacket) else []
            known = error.reason in COMPLAINTS
            reason, detail = (error.reason, error.detail) if known else ("refused", str(error))
            return _answer({"refused": reason, "detail": detail, "about": about})

    return answer


MASKED_STEPS = {MASKED_SUM: masked_sum_step}
MASKED_TASKS = {
    f"{MASKED_SUM}.deal": _named(deal_task),
    f"{MASKED_SUM}.check": _named(check_task),
    f"{MASKED_SUM}.mask": _named(mask_task),
    f"{MASKED_SUM}.release": _named(release_task),
}
"""The client's half, under the names that instructions use."""


@dataclass(frozen=True)
class _ToMask:
    round: int
    terms: str
    clients: int
    bound: float
    min_clients: int
    max_examples: int
    metrics: tuple[str, ...]
    weighted_by: str


PARAMETERS[MASKED_SUM] = _ToMask


def _deal(
    terms: Terms, round_: int, kept: Mapping[str, bytes], context: StepContext
) -> tuple[Client, bytes]:
    asked = context.context.run_id, round_, context.purpose
    if (terms.run, terms.round, terms.purpose) != asked:
        raise Refusal(
            "policy-terms",
            f"the sum is of round {terms.round} for {terms.purpose!r}, this is round {round_} for "
            f"{context.purpose!r}",
        )
    party, policy = context.party, _policy(kept, context)
    return deal(terms, kept[_INSTRUCTION], party.credentials, policy, party.now)


def _policy(kept: Mapping[str, bytes], context: StepContext) -> Policy:
    """Return what this client insists on: the stricter of its own limit and the sum's."""
    return context.policy.masks(int.from_bytes(kept[_LEAST]))


def _lasting(kept: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what is kept until the round's end."""
    return {name: kept[name] for name in (_LEAST, _FIXED) if name in kept}


def _take(
    context: StepContext, round_: int, step: Step, about: bytes = b"", fixed: Sequence[str] = ()
) -> None:
    """Write down that this node takes a step of a round's sum, unless it is past that step.

    Only the last step, about the same list of survivors, may come again. The clients of `fixed` are
    those with which this one is added up in all sums of the run for this purpose.
    """
    name = owned(f"masks/{context.context.run_id}", context.purpose)
    now, cohort = struct.pack(">QB", round_, step), f"{name}/cohort"
    with context.facts() as facts:
        last = facts.get(name, b"")
        again = step is Step.RELEASED and last == now + about
        if last[: len(now)] >= now and not again:
            at, before = struct.unpack_from(">QB", last)
            raise Refusal(
                "policy-second-answer",
                f"this node has {Step(before).name.lower()} in round {at} of this run; it is not "
                f"{step.name.lower()} again, or about another question, in round {round_}",
            )
        if fixed:
            own = context.party.credentials.identity.name
            before = {own: facts[cohort].decode()} if cohort in facts else {}
            facts[cohort] = check_cohort(before, fixed, f"round {round_}")[own].encode()
        facts[name] = now + about


def _answer(values: Mapping[str, str | bytes | list[str]]) -> RecordDict:
    return RecordDict({MASKED_SUM: ConfigRecord({**values})})


def _field(context: StepContext, name: str, missing: bytes | None = None) -> bytes:
    value = config_of(context.content, MASKED_SUM).get(name, missing)
    if not isinstance(value, bytes):
        raise RejectedUpdate("malformed", f"the task comes without {name!r}")
    return value


def _keep(context: StepContext, round_: int, values: Mapping[str, bytes]) -> None:
    """Replace what is kept between messages; one salt seals all values to each other."""
    salt = random_bytes(_SALT_SIZE, "kept values")
    sealed = {
        name: _cipher(context.party, name, round_, salt).encrypt(_NONCE, value, None)
        for name, value in values.items()
    }
    state = ConfigRecord({_ROUND: round_, _SALT: salt, **sealed})
    context.context.state[owned(_STATE_RECORD, context.purpose)] = state


def _kept(context: StepContext) -> tuple[int, dict[str, bytes]]:
    record = dict(config_of(context.context.state, owned(_STATE_RECORD, context.purpose)))
    round_, salt, values = record.pop(_ROUND, 0), record.pop(_SALT, b""), {}
    if not isinstance(round_, int) or not isinstance(salt, bytes):
        raise CryptoError("the state of the masked sum is damaged")
    for name, sealed in record.items():
        if not isinstance(sealed, bytes):
            raise CryptoError("the state of the masked sum is damaged")
        try:
            values[name] = _cipher(context.party, name, round_, salt).decrypt(_NONCE, sealed, None)
        except InvalidTag:
            raise CryptoError("the state of the masked sum was altered") from None
    return round_, values


def _cipher(party: Party, name: str, round_: int, salt: bytes) -> AESGCM:
    """Return the cipher for one value; the salt makes its key fresh."""
    label = b"masked sum", name.encode(), round_.to_bytes(8, "big"), salt
    return AESGCM(derive(party.keys.storage, *label).reveal())
