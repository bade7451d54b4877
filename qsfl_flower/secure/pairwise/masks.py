"""Masks: pseudorandom vectors modulo 2^32 that only who knows a 32-byte seed can subtract again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from qsfl_flower.crypto.secret import Secret

Ring = NDArray[np.uint32]

BLOCK = 1 << 15
"""Coordinates masked at a time: 128 KiB, measured to be the fastest."""

_WORD = np.dtype("<u4")
_ZEROS = memoryview(bytes(BLOCK * _WORD.itemsize))


def apply_masks(vector: Ring, add: Sequence[Secret] = (), subtract: Sequence[Secret] = ()) -> None:
    """Add and subtract the masks of seeds, in place, modulo 2^32.

    A mask is the key stream of AES-256 in counter mode under the seed, read as little-endian
    words. All masks go over one block after the other, so that the vector is read from memory once.

    Parameters
    ----------
    vector : ndarray of uint32, shape (d,)
        Contiguous.
    add, subtract : sequence of Secret
        Seeds of 32 bytes; each masks one vector only, since its stream always starts anew.
    """
    streams = [
        (operation, Cipher(algorithms.AES(seed.reveal()), modes.CTR(bytes(16))).encryptor())
        for operation, seeds in ((np.add, add), (np.subtract, subtract))
        for seed in seeds
    ]
    stream = np.empty(min(BLOCK, vector.size), _WORD)
    for lo in range(0, vector.size, BLOCK):
        part = vector[lo : lo + BLOCK]
        mask = stream[: part.size]
        octets = mask.view(np.uint8).data
        for operation, cipher in streams:
            cipher.update_into(_ZEROS[: octets.nbytes], octets)
            operation(part, mask, out=part)
