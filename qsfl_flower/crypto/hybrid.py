"""Hybrid key encapsulation: X25519 and a post-quantum KEM, joined so that either one suffices.

``root = HKDF-Extract(salt = SHA-256(transcript), key = len | X25519 secret | len | KEM secret)``

The transcript holds the recipient's public keys, both ciphertexts and the caller's context, so a
root belongs to exactly one exchange. As long as one of the two secrets is unknown, the root is.

References
----------
H. Krawczyk, P. Eronen, "HMAC-based extract-and-expand key derivation function (HKDF)", 2010.
doi:10.17487/RFC5869.
D. Stebila, S. Fluhrer, S. Gueron, "Hybrid key exchange in TLS 1.3", 2025. Internet-Draft
draft-ietf-tls-hybrid-design.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from qsfl_flower.crypto.algorithms import find_kem
from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.errors import InvalidKey
from qsfl_flower.crypto.secret import Secret

PROTOCOL = b"qsfl-flower/1/"
X25519_SIZE = 32
KEY_ID_SIZE = 16
MAX_KEM_KEY = 1 << 14


def key_id(kind: str, algorithm: str, public: bytes) -> bytes:
    """Return the 16-byte name of a public key, different for each purpose of the same bytes."""
    text = Writer(PROTOCOL).text(kind).text(algorithm).blob(public).done()
    return hashlib.sha256(text).digest()[:KEY_ID_SIZE]


@dataclass(frozen=True)
class HybridPublicKey:
    """What others encrypt to.

    Parameters
    ----------
    kem : str
        Name of the post-quantum KEM.
    x25519, kem_key : bytes
        The two public keys.
    """

    kem: str
    x25519: bytes
    kem_key: bytes

    @cached_property
    def key_id(self) -> bytes:
        """16-byte name of this key."""
        return key_id("encryption", self.kem, self.x25519 + self.kem_key)

    def write(self, out: Writer) -> None:
        """Append the canonical encoding."""
        out.text(self.kem).fixed(self.x25519, X25519_SIZE).blob(self.kem_key)

    @classmethod
    def read(cls, data: Reader) -> HybridPublicKey:
        """Read the canonical encoding."""
        kem = data.identifier("KEM name")
        return cls(kem, data.fixed(X25519_SIZE), data.blob(MAX_KEM_KEY))


@dataclass(frozen=True)
class HybridKey:
    """A public key with both of its secret halves."""

    public: HybridPublicKey
    x25519: Secret
    kem_key: Secret

    @classmethod
    def generate(cls, kem: str) -> HybridKey:
        """Return a fresh key for the KEM of this name."""
        pair = find_kem(kem).keygen()
        classical = X25519PrivateKey.generate()
        public = HybridPublicKey(kem, classical.public_key().public_bytes_raw(), pair.public)
        return cls(public, Secret(classical.private_bytes_raw()), pair.secret)


def encapsulate(recipient: HybridPublicKey, context: bytes) -> tuple[bytes, Secret]:
    """Return a ciphertext for `recipient` and the 32-byte root secret that it carries.

    Parameters
    ----------
    recipient : HybridPublicKey
        Whose secret key will recover the root.
    context : bytes
        Both sides must give the same bytes, or their roots differ.

    Raises
    ------
    InvalidKey
        If a key of the recipient is not usable.
    """
    ephemeral = X25519PrivateKey.generate()
    classical = _exchange(ephemeral, recipient.x25519)
    sent = find_kem(recipient.kem).encapsulate(recipient.kem_key)
    ciphertext = ephemeral.public_key().public_bytes_raw() + sent.ciphertext
    return ciphertext, combine(classical, sent.shared, recipient, ciphertext, context)


def decapsulate(key: HybridKey, ciphertext: bytes, context: bytes) -> Secret:
    """Return the root secret inside `ciphertext`; a wrong key or context gives another one.

    Raises
    ------
    InvalidKey
        If the ciphertext has the wrong length or holds a point of small order.
    """
    kem = find_kem(key.public.kem, secret_key_size=len(key.kem_key))
    ephemeral, sent = ciphertext[:X25519_SIZE], ciphertext[X25519_SIZE:]
    shared = kem.decapsulate(key.kem_key, sent)
    private = X25519PrivateKey.from_private_bytes(key.x25519.reveal())
    return combine(_exchange(private, ephemeral), shared, key.public, ciphertext, context)


def ciphertext_size(kem: str) -> int:
    """Return the bytes of a hybrid ciphertext with the KEM of this name."""
    return X25519_SIZE + find_kem(kem).ciphertext_size


def combine(
    classical: Secret,
    post_quantum: Secret,
    recipient: HybridPublicKey,
    ciphertext: bytes,
    context: bytes,
) -> Secret:
    """Return the root secret of one exchange from its two shared secrets and its transcript."""
    transcript = Writer(PROTOCOL).text("hybrid")
    recipient.write(transcript)
    salt = hashlib.sha256(transcript.blob(ciphertext).blob(context).done()).digest()
    secrets = Writer().blob(classical.reveal()).blob(post_quantum.reveal()).done()
    return Secret(HKDF.extract(SHA256(), salt, secrets))


def derive(root: Secret, *labels: bytes) -> Secret:
    """Return 32 bytes derived from `root` for one purpose: HKDF-Expand over the labels."""
    info = Writer(PROTOCOL)
    for label in labels:
        info.blob(label)
    return Secret(HKDFExpand(SHA256(), 32, info.done()).derive(root.reveal()))


def _exchange(private: X25519PrivateKey, public: bytes) -> Secret:
    try:
        return Secret(private.exchange(X25519PublicKey.from_public_bytes(public)))
    except ValueError:
        raise InvalidKey(
            f"the X25519 public key ({len(public)} bytes) is not usable: "
            f"it must be {X25519_SIZE} bytes and not a point of small order"
        ) from None
