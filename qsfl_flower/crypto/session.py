"""Sessions: what a handshake produces, and the encrypted payloads that travel under it.

A session is a value: a root secret and what it belongs to. Nothing in it counts messages, so saving
and restoring it (any number of times, from any copy) cannot bring a nonce back. The counters live
in `Sealer` objects, which cannot be saved or copied: each draws a fresh 16-byte salt, derives its
own key from the root, the direction, the purpose and the salt, and numbers its messages from 0.
When a key has served its quota, after a fork, and in every new process, a new salt gives a new key.

    key   = HKDF-Expand(root, direction | purpose | salt)        nonce = message number
    frame = version | salt | message number | AES-256-GCM ciphertext and tag

A frame is bound to run, round, sender, receiver and purpose. It carries no replay protection of its
own *within* one round: the signed message around it does that.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qsfl_flower.crypto.binding import Binding
from qsfl_flower.crypto.codec import Reader, Writer, byte_view
from qsfl_flower.crypto.errors import DecryptionFailed, Reason, Rejected
from qsfl_flower.crypto.hybrid import derive
from qsfl_flower.crypto.sealing import MAX_PAYLOAD, TAG_SIZE
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.crypto.suite import Suite
from qsfl_flower.errors import CryptoError

if TYPE_CHECKING:
    from typing_extensions import Buffer

SALT_SIZE = 16
SESSION_ID_SIZE = 16
FRAME_OVERHEAD = 1 + SALT_SIZE + 4 + TAG_SIZE
DEFAULT_LIFETIME = 24 * 3600
DEFAULT_IDLE = 4 * 3600
# Quota of one AES-GCM key. 2^38 bytes are 2^34 blocks: the distinguishing advantage stays below
# 2^-60. The number of messages is far below the 2^32 that the frame can number.
MESSAGES_PER_KEY = 1 << 24
BYTES_PER_KEY = 1 << 38
_FRAME_VERSION = 1
_SAVED = b"QSESS\x01"

Role = Literal["client", "server"]


@dataclass(frozen=True)
class Session:
    """One end of an established session between a client and the server.

    Parameters
    ----------
    role : {"client", "server"}
        Whose end this is.
    run, node : int
        Flower run and node that the session is bound to.
    client, server : str
        Identifiers of the two parties.
    suite : Suite
        Algorithms that it was made with.
    root : Secret
        32 bytes that both ends share and nobody else knows.
    expires_at : int
        Unix time, seconds, after which it is not used.
    idle_limit : int
        Seconds without use after which it is not used.
    last_used : int
        Unix time, seconds, of the last use.
    """

    role: Role
    run: int
    node: int
    client: str
    server: str
    suite: Suite
    root: Secret
    expires_at: int
    idle_limit: int
    last_used: int

    @property
    def session_id(self) -> bytes:
        """16 public bytes by which both ends name the session."""
        return derive(self.root, b"session id").reveal()[:SESSION_ID_SIZE]

    def used(self, now: int) -> Session:
        """Return the session marked as used at `now`; raise ``expired`` if its time is over."""
        if now > self.expires_at or now - self.last_used > self.idle_limit:
            raise Rejected(
                Reason.EXPIRED,
                f"the session of {self.client} with {self.server} expired: a new handshake is due",
            )
        return replace(self, last_used=max(now, self.last_used))

    def sealer(self, purpose: str) -> Sealer:
        """Return an encrypter of this end's payloads of one purpose."""
        return Sealer(self, purpose)

    def open(self, frame: Buffer, round: int, purpose: str) -> bytes:
        """Return the payload of a frame that the other end has sealed for this round and purpose.

        Raises
        ------
        Malformed
            If it is not a frame.
        DecryptionFailed
            If it was altered, or made for another session, direction, round or purpose.
        """
        view = byte_view(frame, "frame")
        reader = Reader(view[: FRAME_OVERHEAD - TAG_SIZE], "session frame")
        if (version := reader.uint(1)) != _FRAME_VERSION:
            raise reader.fail(f"version {version}, only {_FRAME_VERSION} is known")
        salt, number = reader.fixed(SALT_SIZE), reader.uint(4)
        if len(view) < FRAME_OVERHEAD:
            raise reader.fail("the tag is cut off")
        sender = "server" if self.role == "client" else "client"
        key = _message_key(self, sender, purpose, salt)
        data = _associated_data(self, sender, round, purpose)
        try:
            return AESGCM(key.reveal()).decrypt(
                _nonce(number), view[FRAME_OVERHEAD - TAG_SIZE :], data
            )
        except InvalidTag:
            raise DecryptionFailed(
                f"the {purpose!r} payload from the {sender} of round {round} was altered or "
                "belongs to another session, round or purpose"
            ) from None

    def save(self, storage: Secret) -> bytes:
        """Return the session encrypted under a storage key, for Flower's client state or a file."""
        out = Writer().text(self.role).uint(self.run, 8).uint(self.node, 8)
        out.text(self.client).text(self.server)
        self.suite.write(out)
        out.fixed(self.root.reveal(), 32).uint(self.expires_at, 8)
        out.uint(self.idle_limit, 8).uint(self.last_used, 8)
        salt = random_bytes(SALT_SIZE, "saved session")
        key = derive(storage, b"saved session", salt)
        return _SAVED + salt + AESGCM(key.reveal()).encrypt(bytes(12), out.done(), _SAVED)

    @classmethod
    def restore(cls, saved: bytes, storage: Secret) -> Session:
        """Return the session that `save` wrote under the same storage key."""
        header = Reader(saved, "saved session")
        header.expect(_SAVED)
        key = derive(storage, b"saved session", header.fixed(SALT_SIZE))
        try:
            plain = AESGCM(key.reveal()).decrypt(bytes(12), header.fixed(header.remaining), _SAVED)
        except InvalidTag:
            raise DecryptionFailed("the saved session was altered or has another key") from None
        data = Reader(plain, "saved session")
        role = data.text()
        if role not in ("client", "server"):
            raise data.fail(f"role {role!r}")
        session = cls(
            role=role,  # type: ignore[arg-type]  # checked above
            run=data.uint(8),
            node=data.uint(8),
            client=data.identifier("client"),
            server=data.identifier("server"),
            suite=Suite.read(data),
            root=Secret(data.fixed(32)),
            expires_at=data.uint(8),
            idle_limit=data.uint(8),
            last_used=data.uint(8),
        )
        data.finish()
        return session


class Sealer:
    """Encrypts the payloads of one end and purpose of a session; made by `Session.sealer`.

    Safe to use from several threads and across a fork; it cannot be copied or pickled, because two
    copies would number their messages alike.
    """

    def __init__(self, session: Session, purpose: str) -> None:
        self._session = session
        self._purpose = purpose
        self._lock = threading.Lock()
        self._rekey()

    def seal(self, payload: Buffer, round: int) -> bytes:
        """Return the frame of `payload` for one round: `FRAME_OVERHEAD` bytes longer."""
        view = byte_view(payload, "payload")
        if len(view) > MAX_PAYLOAD:
            raise CryptoError(f"a payload of {len(view)} bytes: at most {MAX_PAYLOAD} per frame")
        data = _associated_data(self._session, self._session.role, round, self._purpose)
        with self._lock:
            if (
                self._number >= MESSAGES_PER_KEY
                or self._bytes + len(view) > BYTES_PER_KEY
                or os.getpid() != self._process
            ):
                self._rekey()
            cipher, salt, number = self._cipher, self._salt, self._number
            self._number += 1
            self._bytes += len(view)
        opening = Writer().uint(_FRAME_VERSION, 1).fixed(salt, SALT_SIZE).uint(number, 4).done()
        frame = bytearray(len(view) + FRAME_OVERHEAD)
        frame[: len(opening)] = opening
        cipher.encrypt_into(_nonce(number), view, data, memoryview(frame)[len(opening) :])
        return bytes(frame)

    def _rekey(self) -> None:
        self._process = os.getpid()
        self._number = 0
        self._bytes = 0
        self._salt = random_bytes(SALT_SIZE, "session salt")
        key = _message_key(self._session, self._session.role, self._purpose, self._salt)
        self._cipher = AESGCM(key.reveal())

    def __repr__(self) -> str:
        return f"Sealer({self._purpose!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError("a Sealer cannot be pickled or copied: its nonces would repeat")


def _message_key(session: Session, sender: str, purpose: str, salt: bytes) -> Secret:
    return derive(session.root, b"frame", sender.encode(), purpose.encode(), salt)


def _associated_data(session: Session, sender: str, round: int, purpose: str) -> bytes:
    names = (session.client, session.server)
    source, target = names if sender == "client" else names[::-1]
    return Binding(session.run, round, source, target, purpose).encode()


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
