"""Shamir shares of 32-byte seeds for any number of holders: what brings a lost mask back.

A seed is five field elements of 52 bits; a share of it is the polynomial's value at the holder's
point, five elements of 61 bits in 40 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import CryptoError, RejectedUpdate
from qsfl_flower.secure.field import SEED_SIZE, expand, is_canonical, multiply, reduce_once
from qsfl_flower.secure.shamir import interpolate

SHARE_SIZE = 40
_CHUNKS = 5
_CHUNK_BITS = 52
_WORD = np.dtype(">u8")


def split_seed(
    seed: Secret, threshold: int, points: Sequence[int], randomness: Secret | None = None
) -> dict[int, bytes]:
    """Return a share of `seed` for each point; any `threshold` of them open it.

    Parameters
    ----------
    seed : Secret
        32 bytes.
    threshold : int
        t >= 1; fewer shares say nothing about the seed.
    points : sequence of int
        Distinct, > 0.
    randomness : Secret, optional
        32 bytes from which the t - 1 free coefficients are expanded; by default fresh ones.
    """
    number = int.from_bytes(seed.reveal(), "big")
    mask = (1 << _CHUNK_BITS) - 1
    secret = [(number >> (_CHUNK_BITS * i)) & mask for i in range(_CHUNKS)]
    coefficients = np.empty((threshold - 1) * _CHUNKS, np.uint64)
    expand(
        randomness.reveal() if randomness else random_bytes(SEED_SIZE, "seed shares"), coefficients
    )
    at = np.asarray(points, np.uint64)[:, np.newaxis]
    values = np.zeros((len(points), _CHUNKS), np.uint64)
    for row in (*coefficients.reshape(threshold - 1, _CHUNKS), np.asarray(secret, np.uint64)):
        values = multiply(values, at)
        values += row
        reduce_once(values)
    return {
        point: value.astype(_WORD).tobytes() for point, value in zip(points, values, strict=True)
    }


def check_share(share: bytes) -> None:
    """Raise ``malformed`` unless `share` can be a share of a seed."""
    if len(share) != SHARE_SIZE or not is_canonical(_elements(share)):
        raise RejectedUpdate("malformed", f"a share is not {_CHUNKS} field elements")


def join_shares(shares: Mapping[int, bytes]) -> Secret:
    """Return the seed that shares at exactly `threshold` points open.

    Raises
    ------
    RejectedUpdate
        ``inconsistent-shares`` if they open something that is no seed.
    """
    values = interpolate({point: _elements(share) for point, share in shares.items()})
    if int(values.max()) >> _CHUNK_BITS:
        raise RejectedUpdate("inconsistent-shares", "the shares do not open a seed")
    number = sum(int(value) << (_CHUNK_BITS * i) for i, value in enumerate(values))
    try:
        return Secret(number.to_bytes(SEED_SIZE, "big"))
    except OverflowError:
        raise RejectedUpdate("inconsistent-shares", "the shares do not open a seed") from None


def _elements(share: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    if len(share) != SHARE_SIZE:
        raise CryptoError(f"a share has {SHARE_SIZE} bytes, not {len(share)}")
    return np.frombuffer(share, _WORD).astype(np.uint64)
