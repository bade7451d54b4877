"""Sealing a payload to somebody's public key: one hybrid encapsulation, one AES-256-GCM pass.

For payloads that the server only relays, such as secret shares for a committee member. The format
is ``version | recipient key id | KEM name | hybrid ciphertext | AES-GCM ciphertext and tag``: the
base mode of HPKE in spirit, with our hybrid KEM, so that any provider of the KEM will do.

Who sees what: the relay sees sizes and who the recipient is. Nothing proves who sealed it: anyone
can seal to a public key, so the sealed bytes must also be covered by a signature of the sender.

References
----------
R. Barnes, K. Bhargavan, B. Lipp, C. Wood, "Hybrid public key encryption", 2022.
doi:10.17487/RFC9180.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qsfl_flower.crypto.binding import Binding
from qsfl_flower.crypto.codec import Reader, Writer, byte_view
from qsfl_flower.crypto.errors import DecryptionFailed, InvalidKey, Reason, Rejected
from qsfl_flower.crypto.hybrid import (
    KEY_ID_SIZE,
    HybridKey,
    HybridPublicKey,
    ciphertext_size,
    decapsulate,
    derive,
    encapsulate,
)
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import CryptoError

if TYPE_CHECKING:
    from typing_extensions import Buffer

TAG_SIZE = 16
MAX_PAYLOAD = 2**31 - 1 - TAG_SIZE  # what one call of the AES-GCM implementation takes
_MAGIC = b"QSEAL\x01"
# The key is derived for this one message, so a constant nonce is never used twice.
_NONCE = bytes(12)
_MAX_HEADER = 1 << 15


def sealing_overhead(kem: str) -> int:
    """Return how many bytes `seal` adds to a payload with the KEM of this name."""
    return len(_MAGIC) + KEY_ID_SIZE + 1 + len(kem) + ciphertext_size(kem) + TAG_SIZE


def seal(recipient: HybridPublicKey, payload: Buffer, binding: Binding) -> bytes:
    """Encrypt `payload` so that only the owner of `recipient` can read it, and only here.

    For many megabytes, `seal_into` with a buffer that is used again is several times faster: the
    time goes into fresh memory, not into the cipher.

    Parameters
    ----------
    recipient : HybridPublicKey
        The receiver's encryption key, taken from the signed roster.
    payload : bytes-like
        Up to 2^31 - 17 bytes.
    binding : Binding
        Run, round, sender, receiver and purpose.

    Returns
    -------
    bytes
        The payload plus `sealing_overhead` bytes.
    """
    payload = byte_view(payload, "payload")
    out = bytearray(len(payload) + sealing_overhead(recipient.kem))
    seal_into(out, recipient, payload, binding)
    return bytes(out)


def seal_into(
    out: Buffer,
    recipient: HybridPublicKey,
    payload: Buffer,
    binding: Binding,
) -> None:
    """Do what `seal` does, writing to `out` of exactly the right size, without another buffer.

    `payload` may be the part of `out` that its ciphertext will replace, which is
    ``out[overhead - 16 : -16]`` for ``overhead = sealing_overhead(recipient.kem)``.
    """
    view = byte_view(out, "output buffer")
    payload = byte_view(payload, "payload")
    size = len(payload) + sealing_overhead(recipient.kem)
    if len(view) != size:
        raise CryptoError(f"the output buffer has {len(view)} bytes, must have {size}")
    header, cipher, data = _sender(recipient, payload, binding)
    cipher.encrypt_into(_NONCE, payload, data, view[len(header) :])
    view[: len(header)] = header


def open_sealed(keys: Iterable[HybridKey], sealed: Buffer, binding: Binding) -> bytes:
    """Return the payload of `seal`.

    Parameters
    ----------
    keys : iterable of HybridKey
        The receiver's keys: the current one, and older ones that are still in their overlap.
    sealed : bytes-like
        What `seal` returned.
    binding : Binding
        What it must be bound to.

    Raises
    ------
    Rejected
        ``malformed``, or ``wrong-key`` if it was sealed to none of `keys`, or
        ``downgraded-algorithm`` if it names another KEM than that key's.
    DecryptionFailed
        If it was altered or bound to something else.
    """
    cipher, data, body = _receiver(keys, sealed, binding)
    try:
        return cipher.decrypt(_NONCE, body, data)
    except InvalidTag:
        raise _failed(binding) from None


def open_into(
    out: Buffer,
    keys: Iterable[HybridKey],
    sealed: Buffer,
    binding: Binding,
) -> None:
    """Do what `open_sealed` does, writing to `out` of exactly the payload's size.

    If it raises, the content of `out` is undefined and must not be used.
    """
    cipher, data, body = _receiver(keys, sealed, binding)
    view = byte_view(out, "output buffer")
    if len(view) != len(body) - TAG_SIZE:
        raise CryptoError(
            f"the output buffer has {len(view)} bytes, must have {len(body) - TAG_SIZE}"
        )
    try:
        cipher.decrypt_into(_NONCE, body, data, view)
    except InvalidTag:
        raise _failed(binding) from None


def _sender(
    recipient: HybridPublicKey, payload: memoryview, binding: Binding
) -> tuple[bytes, AESGCM, bytes]:
    if len(payload) > MAX_PAYLOAD:
        raise CryptoError(f"a payload of {len(payload)} bytes: at most {MAX_PAYLOAD} can be sealed")
    ciphertext, root = encapsulate(recipient, binding.encode())
    opening = Writer(_MAGIC).fixed(recipient.key_id, KEY_ID_SIZE).text(recipient.kem)
    header = opening.done() + ciphertext
    return header, _cipher(root), binding.encode() + header


def _receiver(
    keys: Iterable[HybridKey], sealed: Buffer, binding: Binding
) -> tuple[AESGCM, bytes, memoryview]:
    view = byte_view(sealed, "sealed payload")
    reader = Reader(view[:_MAX_HEADER], "sealed payload")
    reader.expect(_MAGIC)
    wanted = reader.fixed(KEY_ID_SIZE)
    kem = reader.identifier("KEM name")
    key = next((key for key in keys if key.public.key_id == wanted), None)
    if key is None:
        raise Rejected(
            Reason.WRONG_KEY,
            f"sealed payload from {binding.sender} is for key {wanted.hex()}, which "
            f"{binding.receiver} does not hold",
        )
    if kem != key.public.kem:
        raise Rejected(
            Reason.DOWNGRADED, f"sealed payload names {kem!r}, the key is for {key.public.kem!r}"
        )
    ciphertext = reader.fixed(ciphertext_size(kem))
    header = bytes(view[: reader.position])
    body = view[reader.position :]
    if len(body) < TAG_SIZE:
        raise reader.fail(f"{len(body)} bytes left, the tag alone has {TAG_SIZE}")
    try:
        root = decapsulate(key, ciphertext, binding.encode())
    except InvalidKey as error:
        raise reader.fail(str(error)) from None
    return _cipher(root), binding.encode() + header, body


def _cipher(root: Secret) -> AESGCM:
    return AESGCM(derive(root, b"seal").reveal())


def _failed(binding: Binding) -> DecryptionFailed:
    return DecryptionFailed(
        f"the payload from {binding.sender} to {binding.receiver} ({binding.purpose}, run "
        f"{binding.run}, round {binding.round}) was altered or is bound to something else"
    )
