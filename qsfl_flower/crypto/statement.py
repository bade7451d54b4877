"""Signed statements: the one frame in which everything that is signed travels.

    "QSIGN" version | kind | signer | key id | algorithm | body | signature

The signature covers every byte before it, under a context string made of the protocol version and
the kind, so a statement of one kind is never one of another, whatever its bytes. The frame says
which key signed, so that an old and a new key can be valid side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from qsfl_flower.crypto.algorithms import find_signature
from qsfl_flower.crypto.codec import Reader, Writer, check_identifier
from qsfl_flower.crypto.errors import InvalidKey, Reason, Rejected
from qsfl_flower.crypto.hybrid import KEY_ID_SIZE, PROTOCOL, key_id
from qsfl_flower.crypto.secret import Secret

MAX_BODY = 1 << 16
MAX_SIGNATURE = 1 << 16
MAX_PUBLIC_KEY = 1 << 14
_MAGIC = b"QSIGN\x01"


@dataclass(frozen=True)
class VerifyKey:
    """The public half of a signing key.

    Parameters
    ----------
    algorithm : str
        Name of the signature scheme.
    public : bytes
        Its public key.
    """

    algorithm: str
    public: bytes

    @cached_property
    def key_id(self) -> bytes:
        """16-byte name of this key."""
        return key_id("signing", self.algorithm, self.public)

    def write(self, out: Writer) -> None:
        """Append the canonical encoding."""
        out.text(self.algorithm).blob(self.public)

    @classmethod
    def read(cls, data: Reader) -> VerifyKey:
        """Read the canonical encoding."""
        return cls(data.identifier("signature name"), data.blob(MAX_PUBLIC_KEY))


@dataclass(frozen=True)
class SigningKey:
    """A signing key with its secret half."""

    public: VerifyKey
    secret: Secret

    @classmethod
    def generate(cls, algorithm: str) -> SigningKey:
        """Return a fresh key of the scheme of this name."""
        pair = find_signature(algorithm).keygen()
        return cls(VerifyKey(algorithm, pair.public), pair.secret)


@dataclass(frozen=True)
class Statement:
    """A decoded frame whose signature has not been checked yet; only `verify` vouches for it.

    Parameters
    ----------
    kind, signer, algorithm : str
        What it is, who claims to have signed it, and with which scheme.
    key_id : bytes
        16-byte name of the key that is claimed to have signed.
    body : bytes
        What is stated.
    signed, signature : bytes
        The bytes under the signature, and the signature.
    """

    kind: str
    signer: str
    key_id: bytes
    algorithm: str
    body: bytes
    signed: bytes
    signature: bytes

    @classmethod
    def read(cls, data: bytes, kind: str, max_body: int = MAX_BODY) -> Statement:
        """Decode a statement of one kind; anything else is `Malformed`."""
        reader = Reader(data, kind)
        reader.expect(_MAGIC)
        found = reader.identifier("kind")
        if found != kind:
            raise reader.fail(f"this is a statement of kind {found!r}")
        signer = reader.identifier("signer")
        key = reader.fixed(KEY_ID_SIZE)
        algorithm = reader.identifier("signature name")
        body = reader.blob(max_body)
        signed = bytes(data[: reader.position])
        signature = reader.blob(MAX_SIGNATURE)
        reader.finish()
        return cls(kind, signer, key, algorithm, body, signed, signature)

    def verify(self, key: VerifyKey) -> None:
        """Raise `Rejected` unless this was signed with `key`.

        Raises
        ------
        Rejected
            ``downgraded-algorithm`` if another scheme is named than the key's, ``wrong-key`` if
            another key, ``bad-signature`` if the signature does not verify.
        """
        if self.algorithm != key.algorithm:
            raise Rejected(
                Reason.DOWNGRADED,
                f"{self.kind} of {self.signer} is signed with {self.algorithm}, the key on record "
                f"is for {key.algorithm}",
            )
        if self.key_id != key.key_id:
            raise Rejected(
                Reason.WRONG_KEY,
                f"{self.kind} of {self.signer} names key {self.key_id.hex()}, expected "
                f"{key.key_id.hex()}",
            )
        scheme = find_signature(key.algorithm)
        try:
            valid = scheme.verify(key.public, self.signed, self.signature, _context(self.kind))
        except InvalidKey as error:
            raise Rejected(Reason.BAD_SIGNATURE, f"{self.kind} of {self.signer}: {error}") from None
        if not valid:
            raise Rejected(
                Reason.BAD_SIGNATURE,
                f"{self.kind} of {self.signer}: the signature does not match the content",
            )


def sign_statement(kind: str, signer: str, key: SigningKey, body: bytes) -> bytes:
    """Return the frame of `body`, signed by `signer` with `key`."""
    check_identifier(kind, "kind")
    check_identifier(signer, "signer")
    out = Writer(_MAGIC).text(kind).text(signer).fixed(key.public.key_id, KEY_ID_SIZE)
    signed = out.text(key.public.algorithm).blob(body).done()
    scheme = find_signature(key.public.algorithm, secret_key_size=len(key.secret))
    return signed + Writer().blob(scheme.sign(key.secret, signed, _context(kind))).done()


def _context(kind: str) -> bytes:
    return PROTOCOL + kind.encode()
