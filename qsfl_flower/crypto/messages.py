"""What a round's signed messages say: the server's instruction and a client's reply to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.digest import DIGEST_SIZE
from qsfl_flower.crypto.replay import NONCE_SIZE
from qsfl_flower.crypto.sources import random_bytes

MAX_HANDSHAKE = 1 << 15
_INSTRUCTION = b"QINST\x01"
_REPLY = b"QREPL\x01"


def fresh_nonce() -> bytes:
    """Return 16 random bytes that no other message will have."""
    return random_bytes(NONCE_SIZE, "message nonce")


@dataclass(frozen=True)
class Instruction:
    """What the server asks of all clients in one step of a round.

    Parameters
    ----------
    run, round, model_version : int
        Where it belongs; 0 to 2^64 - 1.
    purpose : str
        What is asked for: ``"train"``, ``"evaluate"``, ``"handshake"`` ...; an identifier.
    content : bytes
        `content_digest` of what goes to every client alike.
    issued_at, expires_at : int
        Unix times, seconds, between which a client may start on it.
    offer : bytes
        The server's half of a handshake, or nothing.
    nonce : bytes
        The server's challenge; fresh by default.
    """

    run: int
    round: int
    model_version: int
    purpose: str
    content: bytes
    issued_at: int
    expires_at: int
    offer: bytes = b""
    nonce: bytes = field(default_factory=fresh_nonce)

    def encode(self) -> bytes:
        """Return the canonical encoding."""
        out = Writer(_INSTRUCTION)
        for number in (self.run, self.round, self.model_version, self.issued_at, self.expires_at):
            out.uint(number, 8)
        out.text(self.purpose).fixed(self.content, DIGEST_SIZE).fixed(self.nonce, NONCE_SIZE)
        return out.blob(self.offer).done()

    @classmethod
    def decode(cls, data: bytes) -> Instruction:
        """Return the instruction in `data`; anything but its canonical encoding is `Malformed`."""
        reader = Reader(data, "instruction")
        reader.expect(_INSTRUCTION)
        run, round_, version, issued_at, expires_at = (reader.uint(8) for _ in range(5))
        instruction = cls(
            run=run,
            round=round_,
            model_version=version,
            issued_at=issued_at,
            expires_at=expires_at,
            purpose=reader.identifier("purpose"),
            content=reader.fixed(DIGEST_SIZE),
            nonce=reader.fixed(NONCE_SIZE),
            offer=reader.blob(MAX_HANDSHAKE),
        )
        reader.finish()
        return instruction


@dataclass(frozen=True)
class Reply:
    """What a client answers to one instruction.

    Parameters
    ----------
    run, round, model_version : int
        Those of the instruction.
    node : int
        Flower node that answers.
    instruction : bytes
        SHA-256 digest of the signed instruction.
    content : bytes
        `content_digest` of the reply's content.
    acceptance : bytes
        The client's half of a handshake, or nothing.
    nonce : bytes
        Fresh by default.
    """

    run: int
    round: int
    model_version: int
    node: int
    instruction: bytes
    content: bytes
    acceptance: bytes = b""
    nonce: bytes = field(default_factory=fresh_nonce)

    def encode(self) -> bytes:
        """Return the canonical encoding."""
        out = Writer(_REPLY)
        for number in (self.run, self.round, self.model_version, self.node):
            out.uint(number, 8)
        out.fixed(self.instruction, DIGEST_SIZE).fixed(self.content, DIGEST_SIZE)
        return out.fixed(self.nonce, NONCE_SIZE).blob(self.acceptance).done()

    @classmethod
    def decode(cls, data: bytes) -> Reply:
        """Return the reply in `data`; anything but its canonical encoding is `Malformed`."""
        reader = Reader(data, "reply")
        reader.expect(_REPLY)
        run, round_, version, node = (reader.uint(8) for _ in range(4))
        reply = cls(
            run=run,
            round=round_,
            model_version=version,
            node=node,
            instruction=reader.fixed(DIGEST_SIZE),
            content=reader.fixed(DIGEST_SIZE),
            nonce=reader.fixed(NONCE_SIZE),
            acceptance=reader.blob(MAX_HANDSHAKE),
        )
        reader.finish()
        return reply
