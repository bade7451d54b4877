"""The client's halves of committee sums: deal shares of an update, and serve on the committee.

A member's shares wait in Flower's client state between the two tasks of a round, encrypted under
its own storage key, and are erased when the sum is released. That a client has dealt, and what a
member has taken and released, are facts of the node, written before the reply leaves; see
`qsfl_flower.node.memory`. The strategy's halves are `qsfl_flower.stages.SecureSum` and
`SecureKrum`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from qsfl_flower.crypto.hybrid import derive
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import CryptoError, Refusal, RejectedUpdate
from qsfl_flower.node.memory import Facts
from qsfl_flower.node.steps import PARAMETERS, ClientUpdate, Party, StepContext, owned
from qsfl_flower.secure.committee import check_value, products, receive
from qsfl_flower.secure.dealing import deal, read_header
from qsfl_flower.secure.desk import Desk, Held, check_way
from qsfl_flower.secure.statistics import Statistics
from qsfl_flower.secure.tally import Tally
from qsfl_flower.secure.terms import Terms
from qsfl_flower.wire import config_of, to_record
from qsfl_flower.wire.keys import (
    HELLO_TASK,
    RELEASE_TASK,
    SEALED_TYPE,
    SECURE_RECORD,
    SECURE_SHARES,
    SHARES,
    TAKE_TASK,
)

_DESK, _SHARES = "qsfl-committee", "qsfl-committee-shares"
_DEALT, _MEMORY = "committee/{}/dealt", "committee/{}/memory"
_SALT = _SEAT = 16


def shares_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Share update, weight, metrics and statistics among the committee; nothing else is sent.

    Raises
    ------
    Refusal
        If shares were dealt in this round already (two deals would allow two sums), the terms
        protect less than this node's policy asks for, or they are not those of this layout.
    """
    terms, party = Terms.decode(parameters["terms"]), context.party
    tally = Tally(parameters["max_examples"], parameters["metrics"], parameters["weighted_by"])
    _check_purpose(terms, context)
    context.policy.check_terms(terms)
    weight, integers = tally.take(update.metrics)
    integers += Statistics(update.layout).take(update.carried, context.carried).tolist()
    if terms.extras != len(integers):
        raise Refusal(
            "policy-terms",
            f"the terms count {terms.extras} integers behind the update, the plan makes "
            f"{len(integers)}: norms and distances would be those of other coordinates",
        )
    values = update.vector * weight if parameters["weighted"] else update.vector
    credentials = party.credentials
    keys = [credentials.roster.encryption_key(name, party.now) for name in terms.members]
    name, asked = credentials.identity.name, context.instruction
    made = deal(values, integers, terms, name, party.keys.signing, keys, asked)
    _note_deal(terms, context)
    payload = ArrayRecord({"header": _array(made.header)})
    for member, sealed in enumerate(made.sealed):
        payload[str(member + 1)] = _array(bytes(sealed))
    return replace(update, vector=update.vector[:0], payload=payload, encoding=SHARES, hidden=True)


def take_task(context: StepContext) -> RecordDict:
    """Take one share per client, check them, and help to open what the terms allow."""
    told, party = _told(context), context.party
    terms = _terms(told["terms"])
    _check_purpose(terms, context)
    context.policy.check_terms(terms)
    member, size = _place(terms, context), _integer(told["size"])
    headers, payloads = told["headers"], context.content.array_records[SECURE_SHARES]
    keys, roster = party.credentials.identity.decryption_keys, party.credentials.roster
    if not isinstance(headers, list):
        raise RejectedUpdate("malformed", "the headers are not a list")
    if not terms.min_clients <= len(headers) <= terms.max_clients:
        raise Refusal(
            "policy-cohort",
            f"round {terms.round}: shares of {len(headers)} clients; the terms are for "
            f"{terms.min_clients} to {terms.max_clients}",
        )
    with context.facts() as facts:
        desk = _recall(facts, context)
    held: list[Held] = []
    complaints: list[str] = []
    values: list[int] = []
    for index, statement in enumerate(headers):
        try:
            if not isinstance(statement, bytes):
                raise RejectedUpdate("malformed", "a header is not bytes")
            header = read_header(statement, terms, roster, party.now)
            desk.check_new(header, terms)
            if header.size != size:
                raise RejectedUpdate("malformed", f"{header.client} has dealt another length")
            share = receive(header, payloads[str(index)].data, terms, member, keys)
        except (RejectedUpdate, CryptoError) as error:
            complaints.append(getattr(error, "reason", "undecryptable"))
            values.append(0)
            continue
        held.append(share)
        complaints.append("")
        values.append(check_value(share, size))
    with context.facts() as facts:
        desk = _recall(facts, context).take(terms, size, held, member)
        facts[_name(_MEMORY, context)] = desk.memory()
    _hold(context, desk, member)
    answer: dict[str, Any] = {
        "complaints": complaints,
        "values": np.array(values, np.uint64).tobytes(),
    }
    if terms.opens_products:
        distances, norms = products(held, size, terms, member)
        opened = {"distances": distances.tobytes(), "norms": norms.tobytes()}
        # An empty value is left out: Flower's message_size_mod cannot count its bytes.
        answer |= {name: values for name, values in opened.items() if values}
    return RecordDict({SECURE_RECORD: ConfigRecord({**answer})})


def release_task(context: StepContext) -> RecordDict:
    """Release this member's share of one sum, and erase all shares."""
    told = _told(context)
    names, server_round = told["clients"], _integer(told["round"])
    if not isinstance(names, list):
        raise RejectedUpdate("malformed", "the clients to be added up are not a list of names")
    with context.facts() as facts:
        desk = _with_shares(_recall(facts, context), context)
        if desk.terms is None:
            raise Refusal(
                "policy-second-answer",
                f"no shares are held; a sum of round {desk.closed} was released",
            )
        member = _place(desk.terms, context)
        total, desk = desk.release(
            server_round, [str(name) for name in names], member, context.policy.least_cohort
        )
        facts[_name(_MEMORY, context)] = desk.memory()
    _hold(context, desk, member)
    return RecordDict({SECURE_RECORD: to_record({"sum": total})})


def hello_task(context: StepContext) -> RecordDict:
    """Take a seat: the signature around the answer says who is at this node."""
    with context.facts() as facts:
        desk = _recall(facts, context)
        if not desk.seat:
            desk = replace(desk, seat=random_bytes(_SEAT, "seat").hex())
            facts[_name(_MEMORY, context)] = desk.memory()
    return RecordDict({SECURE_RECORD: ConfigRecord({"seat": desk.seat})})


@dataclass(frozen=True)
class _ToShare:
    terms: object  # read by `Terms.decode`
    max_examples: int
    metrics: tuple[str, ...]
    weighted_by: str
    weighted: bool


PARAMETERS[SHARES] = _ToShare

COMMITTEE_STEPS = {SHARES: shares_step}
COMMITTEE_TASKS = {TAKE_TASK: take_task, RELEASE_TASK: release_task, HELLO_TASK: hello_task}
"""The client's half, under the names that instructions use."""


def _told(context: StepContext) -> ConfigRecord:
    told = context.content.config_records.get(SECURE_RECORD)
    if told is None:
        raise RejectedUpdate("malformed", f"the task has no record {SECURE_RECORD!r}")
    return told


def _terms(text: object) -> Terms:
    if not isinstance(text, str):
        raise RejectedUpdate("malformed", "the terms are not a text")
    return Terms.decode(json.loads(text))


def _name(fact: str, context: StepContext) -> str:
    """Return the name of a fact of this run and purpose."""
    return owned(fact.format(context.context.run_id), context.purpose)


def _check_purpose(terms: Terms, context: StepContext) -> None:
    """Refuse terms of another purpose than that of the message."""
    if terms.purpose != context.purpose:
        raise Refusal(
            "policy-terms",
            f"the terms are for {terms.purpose!r}, the message asks to {context.purpose}",
        )


def _note_deal(terms: Terms, context: StepContext) -> None:
    """Remember the round of a deal: a client deals once for it, whatever it is asked.

    Where cohorts have to stay the same, so does the committee, whose members remember them.
    """
    run = context.context.run_id
    with context.facts() as facts:
        if terms.fixed:
            seats = "\n".join((*terms.members, *terms.seats)).encode()
            check_way(facts, context.way, seats, f"round {terms.round}")
        dealt = int.from_bytes(facts.get(_name(_DEALT, context), b""), "big")
        if terms.run != run or terms.round <= dealt:
            raise Refusal(
                "policy-second-answer",
                f"shares for round {terms.round} of run {terms.run}: this is run {run}, and round "
                f"{dealt} has been dealt",
            )
        facts[_name(_DEALT, context)] = terms.round.to_bytes(8, "big")


def _place(terms: Terms, context: StepContext) -> int:
    """Return which member of the committee this client is."""
    name = context.party.credentials.identity.name
    if terms.run != context.context.run_id or name not in terms.members:
        raise Refusal(
            "policy-terms",
            f"round {terms.round} of run {terms.run}: {name} is not asked as a member of its "
            f"committee in run {context.context.run_id}",
        )
    return terms.members.index(name) + 1


def _integer(value: object) -> int:
    if type(value) is not int:
        raise RejectedUpdate("malformed", f"{value!r:.40} is not an integer")
    return value


def _array(data: bytes) -> Array:
    return Array("uint8", (len(data),), SEALED_TYPE, data)


def _recall(facts: Facts, context: StepContext) -> Desk:
    """Return the desk of a run and purpose without the shares on it."""
    memory = facts.get(_name(_MEMORY, context))
    return Desk() if memory is None else Desk.recall(memory)


def _hold(context: StepContext, desk: Desk, member: int) -> None:
    """Put the shares of a desk into Flower's client state, encrypted."""
    state = context.context.state
    record: dict[str, Any] = {}
    arrays = {}
    if desk.terms is not None:
        zero = desk.terms.zero_sets
        known = zero.known_to(member) if zero else ()
        record = {
            "terms": desk.terms.encode(),
            "size": desk.size,
            "question": desk.question,
            "clients": [h.client for h in desk.held],
            "dealt": [h.dealt for h in desk.held],
            "digests": [h.digest for h in desk.held],
            "instructions": [h.instruction for h in desk.held],
        }
        record["salt"] = random_bytes(_SALT, "kept shares")
        cipher = _cipher(context.party, record["salt"])
        for index, h in enumerate(desk.held):
            secret = b"".join([*(h.seeds[i] for i in known), h.share.tobytes()])
            arrays[str(index)] = _array(cipher.encrypt(_nonce(index), secret, None))
    state[owned(_DESK, context.purpose)] = ConfigRecord(record)
    state[owned(_SHARES, context.purpose)] = ArrayRecord(arrays)


def _with_shares(desk: Desk, context: StepContext) -> Desk:
    """Return the desk with the shares that it remembers to have taken last."""
    state = context.context.state
    record: Any = config_of(state, owned(_DESK, context.purpose))
    if "salt" not in record or record["question"] != desk.question:
        return desk
    terms = _terms(record["terms"])
    zero, member = terms.zero_sets, _place(terms, context)
    known = zero.known_to(member) if zero else ()
    held, cipher = [], _cipher(context.party, record["salt"])
    shares = state.array_records[owned(_SHARES, context.purpose)]
    columns = (record[key] for key in ("clients", "dealt", "digests", "instructions"))
    for index, (client, dealt, digest, asked) in enumerate(zip(*columns, strict=True)):
        try:
            secret = cipher.decrypt(_nonce(index), shares[str(index)].data, None)
        except InvalidTag:
            raise CryptoError("the shares in the client state were altered") from None
        seeds = {i: secret[32 * k : 32 * k + 32] for k, i in enumerate(known)}
        share = np.frombuffer(secret, np.uint64, offset=32 * len(known))
        expands = member < terms.threshold
        held.append(Held(client, dealt, digest, asked, share, seeds, expands))
    return replace(desk, terms=terms, size=record["size"], held=tuple(held))


def _cipher(party: Party, salt: bytes) -> AESGCM:
    """Return the cipher for the shares of one round; the salt makes its key fresh."""
    return AESGCM(derive(party.keys.storage, b"committee", salt).reveal())


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")
