"""The server's half of authentication: signed instructions out, only signed replies in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.envelope import (
    Authentic,
    message_digest,
    sign_instruction,
    verify_reply,
)
from qsfl_flower.crypto.errors import DecryptionFailed, Reason, Rejected
from qsfl_flower.crypto.handshake import Offer, complete, make_offer, make_ticket
from qsfl_flower.crypto.messages import Instruction, Reply
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.session import Session
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.mechanisms.authentication import AUTHENTICATE
from qsfl_flower.mechanisms.authentication.options import AuthenticateOptions
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.context import Exchange, Measurements, Phase, State
from qsfl_flower.rounds.facts import Facts, Sentences, Topic
from qsfl_flower.rounds.stages import MessageStage
from qsfl_flower.rounds.update import Sender
from qsfl_flower.wire import QSFL_RECORD, config_of, records_of
from qsfl_flower.wire.content import AUTH_RECORD, digest_of, frame_of, unpack_arrays
from qsfl_flower.wire.keys import (
    ENCRYPT_KEY,
    INSTRUCTION_KEY,
    REPLY_KEY,
    TICKET_KEY,
    UPDATE_PURPOSE,
)

SERVER = "server"
"""Name of the server's key folder where all parties' are in one place."""


_Lane = tuple[int, str, bool]

log = logging.getLogger("qsfl_flower")

_explained: set[int] = set()
"""Runs for which it was logged what may change a reply."""


@dataclass(frozen=True, repr=False)
class _Told:
    """What a node was told last, and what its answer has to fit."""

    signed: bytes
    digest: bytes
    instruction: Instruction
    offer: Offer
    encrypted: bool


@dataclass(frozen=True, repr=False)
class _Gate:
    """What the server remembers of the last exchange with each node, and of its clients."""

    told: Mapping[_Lane, _Told] = field(default_factory=dict)
    handshakes: int = 0
    seen: ReplayCache = field(default_factory=ReplayCache)
    sessions: Mapping[int, Session] = field(default_factory=dict)


class Authenticate(MessageStage):
    """Let in only replies that an enrolled client signed, for this run, round, node and request.

    One ML-DSA signature per exchange covers the instruction to all clients, so that they train for
    nobody else; every reply is signed over the digest of its content and of the instruction. A
    hybrid handshake (X25519 and ML-KEM) rides on the first exchange; its session is renewed when it
    expires, or when either side has lost it. Clients need `qsfl_flower.clients.auth_mod`.

    Parameters
    ----------
    credentials : Credentials or Path or str
        The server's keys and roster, or the folder that holds them; see `Credentials.in_folder`.
    encrypt : bool
        Ask the clients to encrypt their arrays under the session, and reject replies that are not.
    clock : Callable[[], float]
        Unix time in seconds.

    Notes
    -----
    Who sees what: the server sees every update in the clear. On the wire, models, updates and
    metrics are visible to whoever can read Flower's transport; with `encrypt`, the arrays of the
    replies are not, even to an adversary who records them today and owns a quantum computer later.

    References
    ----------
    National Institute of Standards and Technology, "Module-lattice-based key-encapsulation
    mechanism standard", 2024. doi:10.6028/NIST.FIPS.203 (ML-KEM).
    National Institute of Standards and Technology, "Module-lattice-based digital signature
    standard", 2024. doi:10.6028/NIST.FIPS.204 (ML-DSA).

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> federation = LocalFederation(clients=3)
    >>> gate = Authenticate(federation.credentials)  # or the path of the server's key folder
    >>> strategy = StableFedAvg(stages=[gate, Clip(1.0)])
    """

    name = AUTHENTICATE.name
    phase = Phase.AUTHENTICATE
    declares = AUTHENTICATE.traits
    volatile = True

    def __init__(
        self,
        credentials: Credentials | Path | str,
        encrypt: bool = AuthenticateOptions.encrypt,
        clock: Callable[[], float] = unix_time,
    ) -> None:
        self.credentials = Credentials.given(credentials, "server", SERVER)
        self.encrypt = encrypt
        self._clock = clock

    @property
    def facts(self) -> Facts:
        """Who is enrolled."""
        return Facts(roster=self.credentials.roster)

    def init(self, layout: Layout) -> State:
        """Start without sessions: they are made anew after a restart."""
        del layout
        return {"gate": _Gate()}

    def instruct(
        self, contents: Mapping[int, RecordDict], state: State, exchange: Exchange
    ) -> tuple[dict[int, RecordDict], State]:
        """Sign each different content once, and add each client's ticket."""
        gate: _Gate = state["gate"]
        now = int(self._clock())
        sessions = _usable(gate.sessions, set(contents), now)
        told = dict(gate.told)
        signed: dict[int, tuple[RecordDict, _Told]] = {}
        sent = {}
        for node, content in contents.items():
            if id(content) not in signed:
                signed[id(content)] = self._sign(content, exchange, now)
            covered, last = signed[id(content)]
            told[_lane(node, exchange)] = last
            auth = ConfigRecord({INSTRUCTION_KEY: last.signed})
            if node in sessions:
                auth[TICKET_KEY] = make_ticket(sessions[node], last.digest)
            sent[node] = RecordDict({**covered, AUTH_RECORD: auth})
        gate = replace(gate, told=told, handshakes=0, sessions=sessions)
        return sent, {"gate": gate}

    def _sign(self, content: RecordDict, exchange: Exchange, now: int) -> tuple[RecordDict, _Told]:
        """Return a content as it is sent, and the signed instruction that covers it."""
        identity = self.credentials.identity
        encrypt = self.encrypt and exchange.kind == "train"
        if encrypt:
            suite = config_of(content)
            content = RecordDict(
                {**content, QSFL_RECORD: ConfigRecord({**suite, ENCRYPT_KEY: True})}
            )
        offer = make_offer(identity.public().suite)
        instruction = Instruction(
            run=exchange.run_id,
            round=exchange.server_round,
            model_version=exchange.server_round,
            purpose=exchange.kind,
            content=digest_of(content),
            issued_at=now,
            expires_at=now + int(exchange.timeout) + 1,
            offer=offer.encode(),
        )
        keys = self.credentials.roster.own_keys(identity, now)
        signed = sign_instruction(instruction, identity.name, keys.signing)
        return content, _Told(signed, message_digest(signed), instruction, offer, encrypt)

    def admit(
        self, sender: Sender, content: RecordDict, state: State, exchange: Exchange
    ) -> tuple[Sender, RecordDict, State]:
        """Verify one reply and, if it is encrypted, open it."""
        gate: _Gate = state["gate"]
        signed = config_of(content, AUTH_RECORD).get(REPLY_KEY)
        if not isinstance(signed, bytes):
            raise RejectedUpdate("unsigned", "the reply is not signed; the client needs auth_mod")
        now = int(self._clock())
        told = gate.told.get(_lane(sender.node_id, exchange))
        try:
            reply, seen = verify_reply(
                signed,
                digest_of(content),
                node=sender.node_id,
                outstanding={} if told is None else {told.digest: told.instruction},
                roster=self.credentials.roster,
                now=now,
                seen=replace(gate.seen, window=exchange.window),
            )
        except Rejected as error:
            if error.reason == Reason.BAD_SIGNATURE and exchange.run_id not in _explained:
                _explained.add(exchange.run_id)
                log.warning(
                    "round %d: the reply of node %d was changed after auth_mod had signed it, by "
                    "an attacker or by a mod: auth_mod must be the first in ClientApp(mods=[...]), "
                    "and mods that change replies come behind qsfl_mod (docs: drop-in)",
                    exchange.server_round,
                    sender.rank,
                )
            raise
        # Whatever follows, this reply has been used up.
        sender = replace(sender, name=reply.signer.name, identity=reply.signer.name)
        gate = self._session(replace(gate, seen=seen), told, reply, sender.node_id, now)
        if told is not None and told.encrypted:
            content = _opened(content, gate.sessions.get(sender.node_id), reply)
        return sender, content, {"gate": gate}

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say who can do what on the wire."""
        hidden = "everything but updates" if self.encrypt else "models, updates and metrics"
        return {
            Topic.NETWORK: [
                f"names, sizes and times; {hidden}, where Flower's TLS is off or opened later"
                + (
                    "; updates only if both X25519 and ML-KEM-768 are broken"
                    if self.encrypt
                    else ""
                )
            ],
            Topic.LIARS: [
                "impostors, altered, repeated and misdirected messages are refused, and so are "
                "instructions that the enrolled server has not signed (ML-DSA, post-quantum)"
            ],
        }

    def measure(self, state: State) -> Measurements:
        """Tell how many sessions there are, and how many the last exchange made."""
        gate: _Gate = state["gate"]
        return {"sessions": len(gate.sessions), "handshakes": gate.handshakes}

    def _session(
        self, gate: _Gate, told: _Told | None, reply: Authentic[Reply], node: int, now: int
    ) -> _Gate:
        if told is None or not reply.content.acceptance:
            return gate
        identity = self.credentials.identity
        keys = self.credentials.roster.own_keys(identity, now)
        session = complete(told.offer, reply, identity.public(keys), now=now)
        sessions = {**gate.sessions, node: session}
        return replace(gate, sessions=sessions, handshakes=gate.handshakes + 1)


def _lane(node: int, exchange: Exchange) -> _Lane:
    """Return what an answer belongs to: one to each may be under way."""
    return node, exchange.kind, exchange.inside


def _usable(sessions: Mapping[int, Session], nodes: set[int], now: int) -> dict[int, Session]:
    """Return the sessions that have not ended, marked as used where a node is about to be asked."""
    usable = {}
    for node, session in sessions.items():
        try:
            used = session.used(now)
            usable[node] = used if node in nodes else session
        except Rejected:
            continue  # its time is over: the client accepts the offer and there is a new one
    return usable


def _opened(content: RecordDict, session: Session | None, reply: Authentic[Reply]) -> RecordDict:
    if session is None or session.client != reply.signer.name:
        raise RejectedUpdate("no-session", f"{reply.signer.name} has no session to encrypt under")
    opened = RecordDict({**content})
    for name, record in records_of(content, ArrayRecord).items():
        frame = frame_of(record)
        if frame is None:
            raise RejectedUpdate(
                "not-encrypted", f"{reply.signer.name} sent its arrays in the clear"
            )
        try:
            arrays: ArrayRecord = unpack_arrays(
                session.open(frame, reply.content.round, UPDATE_PURPOSE)
            )
        except DecryptionFailed as error:
            raise RejectedUpdate("wrong-key", str(error)) from None
        opened[name] = arrays
    return opened
