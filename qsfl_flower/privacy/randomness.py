"""Random numbers for noise: an AES-CTR keystream from the operating system's entropy.

Whoever could predict the noise could subtract it, so noise is as secret as a key. NumPy's
generators are fast, but their state can be recovered from their output.
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import ConfigError

_PIECE = 1 << 20


class Keystream:
    """A stream of independent uniform words: AES-256 in counter mode.

    Use `secure` for noise that protects anybody. `seeded` repeats itself and is for tests and for
    simulations that say so: its output protects nobody.
    """

    def __init__(self, key: bytes) -> None:
        self._encryptor: CipherContext = Cipher(
            algorithms.AES(key), modes.CTR(bytes(16))
        ).encryptor()

    @classmethod
    def secure(cls) -> Keystream:
        """Return a stream keyed with 32 fresh bytes of the operating system's generator."""
        return cls(random_bytes(32, "noise"))

    @classmethod
    def seeded(cls, *seed: int | str) -> Keystream:
        """Return the stream of a public seed, the same on every machine."""
        return cls(hashlib.sha256(b"qsfl noise, not private" + repr(seed).encode()).digest())

    @classmethod
    def of(cls, seed: int | None, *where: int | str) -> Keystream:
        """Return the stream of a public seed at a place, or a secure one without a seed."""
        return cls.secure() if seed is None else cls.seeded(seed, *where)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return independent uniform 64-bit words, shape (count,)."""
        raw = bytearray(8 * count)
        view = memoryview(raw)
        zeros = bytes(min(len(raw), _PIECE))
        for start in range(0, len(raw), _PIECE):
            size = min(_PIECE, len(raw) - start)
            # update_into wants room for one more block than it writes.
            view[start : start + size] = self._encryptor.update(zeros[:size])
        return np.frombuffer(raw, dtype="<u8")

    def below(self, bound: int, count: int) -> NDArray[np.int64]:
        """Return independent integers, exactly uniform over 0..bound-1, shape (count,).

        Parameters
        ----------
        bound : int
            1 <= bound <= 2^62.
        count : int
            How many, >= 0.
        """
        if not 1 <= bound <= 1 << 62:
            raise ConfigError(f"a bound of {bound} is not within 1..2^62")
        bits = (bound - 1).bit_length()
        if bits == 0:
            return np.zeros(count, dtype=np.int64)
        shift = np.uint64(64 - bits)
        values = (self.words(count) >> shift).view(np.int64)
        if bound == 1 << bits:
            return values
        bad = np.flatnonzero(values >= bound)
        while bad.size:
            fresh = (self.words(bad.size) >> shift).view(np.int64)
            values[bad] = fresh
            bad = bad[fresh >= bound]
        return values

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Return multiples of 2^-53 plus 2^-54, uniform in the open interval (0, 1)."""
        return ((self.words(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def __repr__(self) -> str:
        """Tell nothing about the key."""
        return "Keystream(...)"
