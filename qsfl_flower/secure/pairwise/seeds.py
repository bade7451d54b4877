"""The keys of a pairwise-mask sum, and the commitments by which shares and seeds are recognized."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qsfl_flower.crypto.hybrid import PROTOCOL, derive
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import RejectedUpdate

COMMITMENT_SIZE = 16
DEALT = (b"self", b"pair", b"edge")
"""What a packet holds and its dealer vouches for, in the order of the commitments."""
TAG_SIZE = 16
_NONCE = bytes(12)  # every key here encrypts one message


def edge_key(pair_key: Secret, neighbour: int) -> Secret:
    """Return the key that a client gives to one neighbour."""
    return derive(pair_key, b"edge", place_bytes(neighbour))


def make_locker(edge: Secret, agreed: bytes, seed: Secret) -> bytes:
    """Encrypt a pair seed for whoever has the edge key of the upper place."""
    return encrypt(derive(edge, b"locker", agreed), seed.reveal())


def pair_seed(edge: Secret, agreed: bytes) -> Secret:
    """Return the seed of the mask between two neighbours, from the edge key of the lower place."""
    return derive(edge, b"pair seed", agreed)


def open_locker(edge: Secret, agreed: bytes, locker: bytes) -> Secret:
    """Return the pair seed that a survivor encrypted under the edge key of a lost neighbour."""
    return Secret(decrypt(derive(edge, b"locker", agreed), locker))


def shared_lock(own: Secret, other: Secret, own_first: bool) -> Secret:
    """Join the two halves of a lock key, the one of the lower place first."""
    first, second = (own, other) if own_first else (other, own)
    return derive(first, b"lock", second.reveal())


def opener(shared: Secret, owner: int, agreed: bytes) -> Secret:
    """Return what opens the share of the owner's release key, given what both were told."""
    return derive(shared, b"opener", place_bytes(owner), agreed)


def commit_seed(seed: Secret) -> bytes:
    """Return 32 bytes by which a seed is recognized, and which say nothing about it."""
    return hashlib.sha256(PROTOCOL + b"seed" + seed.reveal()).digest()


def commit_dealt(
    owner: int, holder: int, self_share: bytes, pair_share: bytes, edge: Secret
) -> bytes:
    """Return the commitments to the two shares and the edge key that a holder gets."""
    values = self_share, pair_share, edge.reveal()
    return b"".join(commit_one(owner, holder, *one) for one in zip(DEALT, values, strict=True))


def commit_one(owner: int, holder: int, kind: bytes, value: bytes) -> bytes:
    """Return 16 bytes by which a share or an edge key is recognized; both have 256 random bits."""
    label = PROTOCOL + kind + place_bytes(owner) + place_bytes(holder)
    return hashlib.sha256(label + value).digest()[:COMMITMENT_SIZE]


def committed(commitments: bytes, kind: bytes) -> bytes:
    """Return the commitment to one of `DEALT`."""
    at = COMMITMENT_SIZE * DEALT.index(kind)
    return commitments[at : at + COMMITMENT_SIZE]


def packet_digest(packet: bytes, commitment: bytes) -> bytes:
    """Return what a dealer signs of one packet."""
    return hashlib.sha256(PROTOCOL + b"packet" + commitment + packet).digest()[:COMMITMENT_SIZE]


def encrypt(key: Secret, plain: bytes) -> bytes:
    """Encrypt the one message under `key`."""
    return AESGCM(key.reveal()).encrypt(_NONCE, plain, None)


def decrypt(key: Secret, ciphertext: bytes) -> bytes:
    """Return the plaintext of the one message under `key`.

    Raises
    ------
    RejectedUpdate
        ``wrong-key`` if it is not.
    """
    try:
        return AESGCM(key.reveal()).decrypt(_NONCE, ciphertext, None)
    except InvalidTag:
        raise RejectedUpdate("wrong-key", "a key does not open what it is for") from None


def place_bytes(place: int) -> bytes:
    """Return the encoding of a place."""
    return place.to_bytes(2, "big")
