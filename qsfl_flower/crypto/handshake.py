"""The handshake: how client and server come to a session, riding on the signed messages of a round.

    server -> all     instruction, signed:  challenge nonce, offer (fresh hybrid public key)
    client -> server  reply, signed:        its digest of that instruction, own nonce, acceptance
                                            (hybrid ciphertext, proof that it has the secret)
    server -> client  ticket:               proof that the server has the secret, for this message

Each side answers the other's challenge: the client by signing the digest of the instruction with
its nonce in it, the server by a ticket that only the holder of the offered secret key can compute
from the client's nonce and ciphertext. All of run, node, both names, both signing keys, the
algorithms and the whole signed instruction enter the key derivation, so two ends that differ in
any of these have no session. Nothing is negotiated.

It costs no extra exchange: offer and acceptance travel with the first train message and its reply,
and the client can encrypt in that very reply. Only a server that must encrypt what it sends in the
first round needs one exchange before it, with an instruction whose purpose is the handshake.
Whoever has lost its state simply starts again: a client that gets no fitting ticket accepts the
next offer, and a server that knows no session sends none.

Who sees what: names and public keys are visible on the wire, payloads under the session are not.
The secret keys of an offer live as long as its replies count; once forgotten, recorded traffic
cannot be opened, even with every long-term key.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.envelope import Authentic
from qsfl_flower.crypto.errors import InvalidKey, Malformed, Reason, Rejected
from qsfl_flower.crypto.hybrid import (
    KEY_ID_SIZE,
    PROTOCOL,
    HybridKey,
    HybridPublicKey,
    decapsulate,
    derive,
    encapsulate,
)
from qsfl_flower.crypto.identity import PublicIdentity
from qsfl_flower.crypto.messages import MAX_HANDSHAKE, Instruction, Reply
from qsfl_flower.crypto.replay import NONCE_SIZE
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.session import DEFAULT_IDLE, DEFAULT_LIFETIME, Role, Session
from qsfl_flower.crypto.suite import Suite

_OFFER = b"QOFFR\x01"
_ACCEPT = b"QACPT\x01"
_PROOF_SIZE = 32


@dataclass(frozen=True)
class Offer:
    """The server's half: a fresh key pair for the replies to one instruction.

    Parameters
    ----------
    key : HybridKey
        Forget it as soon as those replies no longer count.
    """

    key: HybridKey

    def encode(self) -> bytes:
        """Return what goes into the instruction: the public half."""
        out = Writer(_OFFER)
        self.key.public.write(out)
        return out.done()


@dataclass(frozen=True)
class Lifetime:
    """For how long a session may be used, in seconds: in all, and without being used."""

    total: int = DEFAULT_LIFETIME
    idle: int = DEFAULT_IDLE


DEFAULT = Lifetime()


def make_offer(suite: Suite) -> Offer:
    """Return a fresh offer with the KEM of the server's own suite."""
    return Offer(HybridKey.generate(suite.kem))


def accept_offer(
    instruction: Authentic[Instruction],
    client: PublicIdentity,
    *,
    node: int,
    nonce: bytes,
    now: int,
    lifetime: Lifetime = DEFAULT,
) -> tuple[bytes, Session]:
    """Return the acceptance to put into the reply, and the client's end of the session.

    Parameters
    ----------
    instruction : Authentic[Instruction]
        The verified instruction; it must hold an offer.
    client : PublicIdentity
        The client itself, with the keys that it signs the reply with.
    node : int
        The node that it runs on.
    nonce : bytes
        The nonce that the reply will have: the client's challenge.
    now : int
        Unix time, seconds.
    lifetime : Lifetime
        For how long the client will use the session.

    Raises
    ------
    Rejected
        ``malformed``, or ``downgraded-algorithm`` if the offer has another KEM than the server's
        own keys in the roster.
    """
    reader = Reader(instruction.content.offer, "offer")
    reader.expect(_OFFER)
    public = HybridPublicKey.read(reader)
    reader.finish()
    server = instruction.signer
    if public.kem != server.encryption.kem:
        raise Rejected(
            Reason.DOWNGRADED,
            f"{server.name} offers {public.kem}, the roster says {server.encryption.kem}",
        )
    run = instruction.content.run
    context = _context(instruction.digest, run, node, client, server, nonce)
    try:
        ciphertext, root = encapsulate(public, context)
    except InvalidKey as error:
        raise Malformed(f"the offer of {server.name}: {error}") from None
    proof = derive(root, b"client proof").reveal()
    acceptance = Writer(_ACCEPT).text(public.kem).blob(ciphertext).fixed(proof, _PROOF_SIZE).done()
    return acceptance, _session("client", root, run, node, client, server, now, lifetime)


def complete(
    offer: Offer,
    reply: Authentic[Reply],
    server: PublicIdentity,
    *,
    now: int,
    lifetime: Lifetime = DEFAULT,
) -> Session:
    """Return the server's end of the session that a verified reply has accepted.

    Parameters
    ----------
    offer : Offer
        The offer of the instruction that the reply answers.
    reply : Authentic[Reply]
        The verified reply; its acceptance must not be empty.
    server : PublicIdentity
        The server itself, with the keys that it signed the instruction with.
    now : int
        Unix time, seconds.
    lifetime : Lifetime
        For how long the server will use the session.

    Raises
    ------
    Rejected
        ``malformed``, ``downgraded-algorithm`` if another KEM was used than offered, or
        ``wrong-key`` if the client does not have the same secret.
    """
    content, client = reply.content, reply.signer
    reader = Reader(content.acceptance, "acceptance")
    reader.expect(_ACCEPT)
    kem = reader.identifier("KEM name")
    if kem != offer.key.public.kem:
        raise Rejected(
            Reason.DOWNGRADED, f"{client.name} used {kem}, offered was {offer.key.public.kem}"
        )
    ciphertext, proof = reader.blob(MAX_HANDSHAKE), reader.fixed(_PROOF_SIZE)
    reader.finish()
    context = _context(
        content.instruction, content.run, content.node, client, server, content.nonce
    )
    try:
        root = decapsulate(offer.key, ciphertext, context)
    except InvalidKey as error:
        raise Malformed(f"the acceptance of {client.name}: {error}") from None
    if not hmac.compare_digest(proof, derive(root, b"client proof").reveal()):
        raise Rejected(
            Reason.WRONG_KEY, f"{client.name} does not have the secret that it should have sent"
        )
    return _session("server", root, content.run, content.node, client, server, now, lifetime)


def make_ticket(session: Session, instruction: bytes) -> bytes:
    """Return the server's proof, for one client and one message, that it has their session.

    Parameters
    ----------
    session : Session
        The server's end.
    instruction : bytes
        `message_digest` of the instruction that the ticket travels with.
    """
    return session.session_id + derive(session.root, b"server ticket", instruction).reveal()


def ticket_fits(session: Session, ticket: bytes, instruction: bytes) -> bool:
    """Return whether `ticket` proves that the server has this session; if not, accept its offer."""
    expected = make_ticket(session, instruction)
    return isinstance(ticket, bytes) and hmac.compare_digest(ticket, expected)


def _context(
    instruction: bytes,
    run: int,
    node: int,
    client: PublicIdentity,
    server: PublicIdentity,
    nonce: bytes,
) -> bytes:
    out = Writer(PROTOCOL).text("handshake").blob(instruction).uint(run, 8).uint(node, 8)
    for party in (client, server):
        out.text(party.name).fixed(party.signing.key_id, KEY_ID_SIZE)
        party.suite.write(out)
    return out.fixed(nonce, NONCE_SIZE).done()


def _session(
    role: Role,
    root: Secret,
    run: int,
    node: int,
    client: PublicIdentity,
    server: PublicIdentity,
    now: int,
    lifetime: Lifetime,
) -> Session:
    return Session(
        role=role,
        run=run,
        node=node,
        client=client.name,
        server=server.name,
        suite=server.suite,
        root=derive(root, b"session"),
        expires_at=now + lifetime.total,
        idle_limit=lifetime.idle,
        last_used=now,
    )
