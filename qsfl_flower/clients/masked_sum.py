"""The client's half of the pairwise-mask sum: encode after training, then answer three tasks.

The encoded update and the client's secrets wait in Flower's client state between the messages of a
round, encrypted under the client's own storage key; a vector is erased as soon as it is masked.
The strategy's half is `qsfl_flower.strategies.MaskedSum`.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flwr.app import ConfigRecord, RecordDict

from qsfl_flower.clients.steps import STEPS, TASKS, ClientUpdate, Party, StepContext, Task
from qsfl_flower.crypto.hybrid import derive
from qsfl_flower.errors import COMPLAINTS, ConfigError, CryptoError, RejectedUpdate
from qsfl_flower.secure.pairwise.client import BadPacket, Client, deal, mask, release
from qsfl_flower.secure.pairwise.masks import Ring
from qsfl_flower.secure.pairwise.ring import LIMBS, RingCode, encode_scalars
from qsfl_flower.secure.pairwise.terms import Policy, Terms
from qsfl_flower.secure.tally import Tally
from qsfl_flower.wire import to_record
from qsfl_flower.wire.keys import MASKED_SUM

_STATE_RECORD = "qsfl-masked-sum"
_CLIENT, _VECTOR, _LEAST, _ROUND = "client", "vector", "least", "round"
_SALT = 16
_NONCE = bytes(12)


def masked_sum_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Encode and keep the update with weight and metrics; deal shares if the cohort is known.

    Nothing of the update leaves the device in this step.
    """
    tally = Tally(parameters["max_examples"], parameters["metrics"], parameters["weighted_by"])
    code = RingCode(parameters["bound"], parameters["clients"])
    weight, integers = tally.take(update.metrics)
    size = update.vector.size
    vector: Ring = np.empty(size + LIMBS * tally.size, np.uint32)
    code.encode(np.multiply(update.vector, weight, out=update.vector), vector[:size])
    encode_scalars(integers, vector[size:])
    least = int(parameters["min_clients"]).to_bytes(4)
    dealt, kept = b"", {_VECTOR: vector.tobytes(), _LEAST: least}
    if parameters["terms"]:
        terms = Terms.decode(base64.b64decode(parameters["terms"]))
        client, dealt = _deal(terms, parameters["round"], kept, context)
        kept[_CLIENT] = client.encode()
    _keep(context, parameters["round"], kept)
    payload = to_record({"deal": np.frombuffer(dealt, np.uint8)})
    return replace(
        update, vector=update.vector[:0], payload=payload, encoding=MASKED_SUM, hidden=True
    )


def deal_task(context: StepContext) -> RecordDict:
    """Deal shares among the clients that have trained."""
    round_, kept = _kept(context)
    if _VECTOR not in kept:
        raise RejectedUpdate("refused", "there is no update left to take part with")
    client, dealt = _deal(Terms.decode(_field(context, "terms")), round_, kept, context)
    _keep(context, round_, {**kept, _CLIENT: client.encode()})
    return _answer({"deal": dealt})


def mask_task(context: StepContext) -> RecordDict:
    """Mask the update that was kept and send it; it is erased here."""
    round_, kept = _kept(context)
    if _VECTOR not in kept or _CLIENT not in kept:
        raise RejectedUpdate("refused", "there is no update left to mask, or no shares were dealt")
    party = context.party
    vector: Ring = np.frombuffer(bytearray(kept[_VECTOR]), np.uint32)
    client, lockers = mask(
        Client.decode(kept[_CLIENT]),
        _field(context, "relay"),
        vector,
        party.credentials,
        _policy(kept, context),
        party.now,
    )
    _keep(context, round_, {_CLIENT: client.encode(), _LEAST: kept[_LEAST]})
    answer = _answer({"lockers": lockers})
    answer["masked"] = to_record({"masked": vector})
    return answer


def release_task(context: StepContext) -> RecordDict:
    """Hand out the shares that unmask the sum over the survivors."""
    round_, kept = _kept(context)
    if _CLIENT not in kept:
        raise RejectedUpdate("refused", "no shares are held")
    client, released = release(
        Client.decode(kept[_CLIENT]), _field(context, "survivors"), _policy(kept, context)
    )
    _keep(context, round_, {_CLIENT: client.encode(), _LEAST: kept[_LEAST]})
    return _answer({"release": released})


def _named(task: Task) -> Task:
    """Answer with the reason where the task refuses, so that the server can count it."""

    def answer(context: StepContext) -> RecordDict:
        try:
            return task(context)
        except RejectedUpdate as error:
            about = error.dealer if isinstance(error, BadPacket) else ""
            known = error.reason in COMPLAINTS
            reason, detail = (error.reason, error.detail) if known else ("refused", str(error))
            return _answer({"refused": reason, "detail": detail, "about": about})

    return answer


STEPS[MASKED_SUM] = masked_sum_step
for _name, _task in (("deal", deal_task), ("mask", mask_task), ("release", release_task)):
    TASKS[f"{MASKED_SUM}.{_name}"] = _named(_task)


def _deal(
    terms: Terms, round_: int, kept: Mapping[str, bytes], context: StepContext
) -> tuple[Client, bytes]:
    if (terms.run, terms.round) != (context.context.run_id, round_):
        raise RejectedUpdate("refused", f"the sum is of round {terms.round}, this is {round_}")
    party = context.party
    return deal(terms, party.credentials, _policy(kept, context), party.now)


def _policy(kept: Mapping[str, bytes], context: StepContext) -> Policy:
    """Return what this client insists on: the stricter of its own limit and the sum's."""
    config, default = context.context.node_config, Policy()
    colluding = config.get("qsfl-max-colluding", default.colluding)
    least = config.get("qsfl-min-cohort", default.min_clients)
    if not isinstance(colluding, int | float) or not isinstance(least, int):
        raise ConfigError(
            f"node config: qsfl-max-colluding {colluding!r} must be a number and qsfl-min-cohort "
            f"{least!r} an integer"
        )
    return Policy(float(colluding), max(least, int.from_bytes(kept[_LEAST])))


def _answer(values: Mapping[str, str | bytes]) -> RecordDict:
    return RecordDict({MASKED_SUM: ConfigRecord({**values})})


def _field(context: StepContext, name: str) -> bytes:
    value = (context.content.config_records.get(MASKED_SUM) or ConfigRecord()).get(name)
    if not isinstance(value, bytes):
        raise RejectedUpdate("malformed", f"the task comes without {name!r}")
    return value


def _keep(context: StepContext, round_: int, values: Mapping[str, bytes]) -> None:
    """Replace what is kept between messages."""
    sealed = {}
    for name, value in values.items():
        salt = secrets.token_bytes(_SALT)
        cipher = _cipher(context.party, name, round_, salt)
        sealed[name] = salt + cipher.encrypt(_NONCE, value, None)
    context.context.state[_STATE_RECORD] = ConfigRecord({_ROUND: round_, **sealed})


def _kept(context: StepContext) -> tuple[int, dict[str, bytes]]:
    record = context.context.state.config_records.get(_STATE_RECORD) or ConfigRecord()
    round_, values = record.get(_ROUND, 0), {}
    if not isinstance(round_, int):
        raise CryptoError("the state of the masked sum is damaged")
    for name, sealed in record.items():
        if name == _ROUND:
            continue
        if not isinstance(sealed, bytes):
            raise CryptoError("the state of the masked sum is damaged")
        cipher = _cipher(context.party, name, round_, sealed[:_SALT])
        try:
            values[name] = cipher.decrypt(_NONCE, sealed[_SALT:], None)
        except InvalidTag:
            raise CryptoError("the state of the masked sum was altered") from None
    return round_, values


def _cipher(party: Party, name: str, round_: int, salt: bytes) -> AESGCM:
    """Return the cipher for one value; the salt makes its key fresh."""
    label = b"masked sum", name.encode(), round_.to_bytes(8, "big"), salt
    return AESGCM(derive(party.keys.storage, *label).reveal())
