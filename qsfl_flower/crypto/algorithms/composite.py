"""A post-quantum and a classical signature side by side, for those who trust neither alone."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qsfl_flower.crypto.algorithms.interface import Signature, SignatureFunctions

_LABEL = b"qsfl-flower/1/composite"
_KEY, _SIGNATURE = 32, 64


def with_ed25519(scheme: Signature) -> Signature:
    """Return the scheme whose signatures are one of `scheme` and one of Ed25519, both required.

    Keys and signatures are the two parts one after the other. Ed25519 has no context, so it signs
    ``label | length of the scheme's name | name | length of the context | context | message``; each
    part alone is a signature of nothing else.
    """
    name = f"{scheme.name}+ed25519"
    raw = scheme.functions

    def keygen() -> tuple[bytes, bytes]:
        public, secret = raw.keygen()
        key = Ed25519PrivateKey.generate()
        return public + key.public_key().public_bytes_raw(), secret + key.private_bytes_raw()

    def sign(secret: bytes, message: bytes, context: bytes) -> bytes:
        classical = Ed25519PrivateKey.from_private_bytes(secret[-_KEY:])
        text = _text(name, message, context)
        return raw.sign(secret[:-_KEY], text, context) + classical.sign(text)

    def verify(public: bytes, message: bytes, signature: bytes, context: bytes) -> bool:
        text = _text(name, message, context)
        try:
            classical = Ed25519PublicKey.from_public_bytes(public[-_KEY:])
            classical.verify(signature[-_SIGNATURE:], text)
        except InvalidSignature:
            return False
        return raw.verify(public[:-_KEY], text, signature[:-_SIGNATURE], context)

    return Signature(
        name=name,
        provider=scheme.provider,
        public_key_size=scheme.public_key_size + _KEY,
        secret_key_size=scheme.secret_key_size + _KEY,
        signature_size=scheme.signature_size + _SIGNATURE,
        functions=SignatureFunctions(keygen, sign, verify),
    )


def _text(name: str, message: bytes, context: bytes) -> bytes:
    head = _LABEL + bytes([len(name)]) + name.encode() + bytes([len(context)]) + context
    return head + message
