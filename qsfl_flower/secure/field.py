r"""Integers modulo the Mersenne prime p = 2^61 - 1, whole arrays at a time.

An element is a ``uint64`` in ``[0, p)``, always in this one form, so equal elements have equal
bits. Since :math:`2^{61} \equiv 1`, a reduction adds the high bits to the low ones. Long arrays are
worked on in blocks that stay in the cache; the results do not depend on the cut.

Gram matrices go through the floating-point unit and are exact nevertheless:
elements are cut into three limbs of 21 bits, and so few products of limbs are added at a time that
every partial sum stays below 2^53.

Nothing here takes constant time: NumPy's speed does not depend on the values, Python's does a
little. Whoever can time this process finely sits on the machine of its owner.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError

Elements = NDArray[np.uint64]

P = (1 << 61) - 1
BLOCK = 1 << 13
"""Elements worked on at a time: 64 KiB per buffer."""
SEED_SIZE = 32

_P = np.uint64(P)
_BITS = np.uint64(61)
_LIMB = 21
_LIMBS = 3
_LIMB_MASK = np.uint64((1 << _LIMB) - 1)
# Products of two limbs are below 2^42, so 2^11 of them add up exactly in float64.
_EXACT_TERMS = 1 << 11
_ZEROS = bytes(8 * BLOCK)


def is_canonical(elements: Elements) -> bool:
    """Tell whether every element is in ``[0, p)``, as everything here requires."""
    return elements.dtype == np.uint64 and (elements.size == 0 or int(elements.max()) < P)


def reduce_once(x: Elements) -> None:
    """Bring values below 2p into ``[0, p)``, in place."""
    # Below p the subtraction wraps around to something huge, so the minimum picks the right one.
    np.minimum(x, x - _P, out=x)


def fold(x: Elements) -> None:
    """Bring any 64-bit values into ``[0, p)``, in place."""
    high = x >> _BITS
    x &= _P
    x += high
    reduce_once(x)


def each_block(size: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` for one cache-sized run of coordinates after the other."""
    for start in range(0, size, BLOCK):
        work(start, min(start + BLOCK, size))


def multiply(a: Elements, b: Elements | int) -> Elements:
    """Multiply elementwise; `b` may be one integer, and is broadcast. Shapes are not checked."""
    factor = np.asarray(b % P if isinstance(b, int) else b, dtype=np.uint64)
    a, factor = np.broadcast_arrays(a, factor)
    out = np.empty(a.shape, np.uint64)
    left, right, flat = a.reshape(-1), factor.reshape(-1), out.reshape(-1)

    def work(lo: int, hi: int) -> None:
        flat[lo:hi] = _multiply_block(left[lo:hi], right[lo:hi])

    each_block(flat.size, work)
    return out


def accumulate(total: Elements, vector: Elements, factor: int) -> None:
    """Add ``factor * vector`` to `total`, in place, without a temporary vector."""
    factor %= P
    negative = factor > P // 2
    small = P - factor if negative else factor

    def work(lo: int, hi: int) -> None:
        part = total[lo:hi]
        term = _small_multiple(vector[lo:hi], small)
        if negative:
            part += _P
            part -= term
        else:
            part += term
        reduce_once(part)

    each_block(total.size, work)


def combine(factors: Sequence[int], vectors: Sequence[Elements]) -> Elements:
    """Return ``sum_i factors[i] * vectors[i]`` of at least one vector, as a new array."""
    total = np.zeros_like(vectors[0])
    for factor, vector in zip(factors, vectors, strict=True):
        accumulate(total, vector, factor)
    return total


def add_rows(rows: Elements) -> Elements:
    """Return the sum of fewer than 2^24 rows: from shape (n, d) to (d,)."""
    low: Elements = (rows & np.uint64(0xFFFFFFFF)).sum(axis=0)
    fold(low)
    low += _shifted((rows >> np.uint64(32)).sum(axis=0), 32)
    reduce_once(low)
    return low


def dot(a: Elements, b: Elements) -> int:
    """Return the inner product of two vectors of shape (d,) modulo p."""
    total = 0
    low = np.uint64(0xFFFFFFFF)
    for lo in range(0, a.size, BLOCK):
        terms = _multiply_block(a[lo : lo + BLOCK], b[lo : lo + BLOCK])
        # The halves of so few elements add up far below 2^64.
        total += int((terms & low).sum()) + (int((terms >> np.uint64(32)).sum()) << 32)
    return total % P


def gram(rows: Sequence[Elements]) -> Elements:
    """Return the inner products of n vectors of shape (d,) modulo p: shape (n, n), symmetric."""
    n = len(rows)
    total = np.zeros((n, n), np.uint64)
    for lo in range(0, rows[0].size, _EXACT_TERMS):
        limbs = _limbs(rows, lo, min(lo + _EXACT_TERMS, rows[0].size))
        products = (limbs @ limbs.T).astype(np.uint64)
        for i in range(_LIMBS):
            for j in range(_LIMBS):
                part = products[i * n : (i + 1) * n, j * n : (j + 1) * n]
                total += _shifted(part, _LIMB * (i + j))
                reduce_once(total)
    return total


def expand(seed: bytes, out: Elements, stream: int = 0) -> None:
    """Fill `out` with uniform field elements that only who knows the seed can predict.

    AES-256 in counter mode gives 64-bit words; the lowest 61 bits are taken, and a word that is p
    is rejected and drawn again, so that every element is exactly equally likely.

    Parameters
    ----------
    seed : bytes
        `SEED_SIZE` secret bytes.
    out : ndarray of uint64, shape (d,)
        Contiguous.
    stream : int
        Different streams of one seed are independent; in ``[0, 2^32)``.
    """
    if len(seed) != SEED_SIZE:
        raise ConfigError(f"a seed has {SEED_SIZE} bytes, not {len(seed)}")
    # The counter has the low 64 bits to itself, and the redrawn words another nonce.
    cipher = _cipher(seed, stream, 0)

    def work(lo: int, hi: int) -> None:
        part = out[lo:hi]
        cipher(part)
        part &= _P
        _redraw(part, seed, stream, lo)

    each_block(out.size, work)


def _redraw(part: Elements, seed: bytes, stream: int, start: int) -> None:
    if int(part.max(initial=0)) < P:
        return
    # Once in 2^61 words.
    rejected = np.flatnonzero(part == _P)
    again = np.empty(64, np.uint64)
    _cipher(seed, stream, 1 + start // BLOCK)(again)
    again &= _P
    fresh = again[again != _P]
    part[rejected] = fresh[: rejected.size]


def _cipher(seed: bytes, stream: int, again: int) -> Callable[[Elements], None]:
    nonce = stream.to_bytes(4, "big") + again.to_bytes(4, "big") + bytes(8)
    encryptor = Cipher(algorithms.AES(seed), modes.CTR(nonce)).encryptor()

    def fill(words: Elements) -> None:
        view = memoryview(words.data).cast("B")
        encryptor.update_into(memoryview(_ZEROS)[: len(view)], view)
        if sys.byteorder == "big":
            words.byteswap(inplace=True)

    return fill


def _small_multiple(x: Elements, factor: int) -> Elements:
    """Return ``factor * x`` in ``[0, p)``; Lagrange factors are mostly of a few bits."""
    if factor < 8:  # x * 7 still fits 64 bits
        term: Elements = x * np.uint64(factor)
        fold(term)
        return term
    return _multiply_block(x, np.asarray(factor, np.uint64))


def _multiply_block(a: Elements, b: Elements) -> Elements:
    """Multiply by splitting each factor into a high part of 29 and a low part of 32 bits.

    ``a b = hh 2^64 + mid 2^32 + ll``; ``2^64 = 8`` and ``mid 2^32 = (mid mod 2^29) 2^32 + mid >>
    29`` modulo p. The four reduced terms add up to less than 2^63.
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a_low, a_high = a & low, a >> half
    b_low, b_high = b & low, b >> half
    mid = a_high * b_low
    mid += a_low * b_high
    a_high *= b_high
    a_high <<= np.uint64(3)
    a_low *= b_low
    total = a_low & _P
    a_low >>= _BITS
    total += a_low
    total += a_high
    total += mid >> np.uint64(29)
    mid &= np.uint64((1 << 29) - 1)
    mid <<= half
    total += mid
    fold(total)
    return total


def _limbs(vectors: Sequence[Elements], lo: int, hi: int) -> NDArray[np.float64]:
    """Cut elements into limbs: shape (3 n, hi - lo), the lowest limbs of all vectors first."""
    n = len(vectors)
    out = np.empty((_LIMBS * n, hi - lo))
    for i, vector in enumerate(vectors):
        part = vector[lo:hi]
        out[i] = part & _LIMB_MASK
        out[n + i] = (part >> np.uint64(_LIMB)) & _LIMB_MASK
        out[2 * n + i] = part >> np.uint64(2 * _LIMB)
    return out


def _shifted(x: Elements, bits: int) -> Elements:
    """Return ``x 2^bits`` in ``[0, p)`` for x below 2^53: a rotation of 61 bits."""
    bits %= 61
    if bits == 0:
        return x.copy()
    low = (x & np.uint64((1 << (61 - bits)) - 1)) << np.uint64(bits)
    low += x >> np.uint64(61 - bits)
    reduce_once(low)
    return low
