"""Whether somebody has learned a vector: judged on the numbers that were seen.

Two questions. Is what was seen *correlated* with a secret vector? And do the linear statistics that
were seen *solve* for it: which combinations of the secret vectors are they, and is one secret alone
among what they span?
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]

_CODES = {"<f4": 4, "<f8": 8, "<i8": 8, "<f2": 1, "<i4": 1, "<i2": 1, "<i1": 1}
"""How numbers may stand in bytes, and at how many offsets they are looked for."""
_FIELD = (1 << 61) - 1
_BLOCK = 4096


def correlations(secrets: Vectors, seen: Iterable[bytes]) -> tuple[Vectors, int]:
    """Read bytes in every way, and return how closely each secret vector is matched.

    Parameters
    ----------
    secrets : ndarray, shape (n, d)
        What nobody should learn, d >= 64.
    seen : iterable of bytes
        What was seen: read as floats and integers of every width.

    Returns
    -------
    ndarray, shape (n,)
        The largest absolute correlation of each.
    int
        In how many ways the bytes could be read.

    Examples
    --------
    >>> secrets = np.random.default_rng(0).normal(size=(2, 100))
    >>> found, count = correlations(secrets, [secrets[1].tobytes()])
    """
    size = secrets.shape[1]
    centred = secrets - secrets.mean(axis=1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    best, count = np.zeros(len(secrets)), 0
    for data in seen:
        for values in _readings(data):
            if len(values) < size:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(values, size)
            for low in range(0, len(windows), _BLOCK):
                block = np.ascontiguousarray(windows[low : low + _BLOCK])
                total = np.einsum("ij,ij->i", block, block) - size * block.mean(axis=1) ** 2
                good = total > 1e-9 * np.abs(block).max(axis=1) ** 2
                found = np.abs(block[good] @ centred.T) / np.sqrt(total[good])[:, None]
                count += len(found)
                best = np.maximum(best, found.max(axis=0, initial=0.0))
    return best, count


def _readings(data: bytes) -> Iterator[Vectors]:
    """Yield the bytes as numbers, cut where there are none."""
    for code, offsets in _CODES.items():
        width = np.dtype(code).itemsize
        for offset in range(min(offsets, len(data))):
            values = np.frombuffer(data[offset : len(data) - (len(data) - offset) % width], code)
            if code == "<i8":  # elements of the prime field stand for negative numbers too
                values = np.where(values > _FIELD // 2, values - _FIELD, values)
            with np.errstate(all="ignore"):
                floats = values.astype(np.float64)
                usable = np.isfinite(floats) & (np.abs(floats) < 1e25)
            yield np.where(usable, floats, 0.0)


def learned(secrets: Vectors, seen: Iterable[bytes]) -> list[int]:
    """Return the secrets that are closer to something seen than chance allows.

    A reading of d independent numbers has a correlation of 1 / sqrt(d) with a secret; of N readings
    one is beyond (5 + sqrt(2 ln N)) times that with a probability below 1e-6.

    Examples
    --------
    >>> secrets = np.random.default_rng(0).normal(size=(3, 100))
    >>> learned(secrets, [b"header" + secrets[2].astype(np.float32).tobytes()])
    [2]
    """
    best, count = correlations(secrets, seen)
    limit = (5 + np.sqrt(2 * np.log(max(count, 2)))) / np.sqrt(secrets.shape[1])
    return [n for n, value in enumerate(best) if value > min(limit, 0.99)]


def coefficients(secrets: Vectors, seen: Vectors, tolerance: float = 1e-3) -> Vectors:
    """Return how the seen vectors are made of the secret ones.

    Parameters
    ----------
    secrets : ndarray, shape (n, d)
        Independent vectors, d >= n.
    seen : ndarray, shape (k, d)
        Vectors that may be combinations of them; others are left out.
    tolerance : float
        Largest relative residual of a combination.

    Returns
    -------
    ndarray, shape (at most k, n)
        One row for each combination.

    Examples
    --------
    >>> secrets = np.random.default_rng(0).normal(size=(3, 20))
    >>> coefficients(secrets, secrets[:2].sum(axis=0, keepdims=True)).round(6).tolist()
    [[1.0, 1.0, 0.0]]
    """
    if not len(seen):
        return np.empty((0, len(secrets)))
    found, *_ = np.linalg.lstsq(secrets.T, seen.T, rcond=None)
    residual = np.linalg.norm(seen - found.T @ secrets, axis=1)
    size = np.linalg.norm(seen, axis=1)
    rows: Vectors = found.T[(size > 0) & (residual <= tolerance * size)]
    return rows


def rank(rows: Vectors, tolerance: float = 1e-3) -> int:
    """Return how many independent statistics the rows of coefficients are.

    Examples
    --------
    >>> rank(np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]))
    2
    """
    return int(np.linalg.matrix_rank(rows, tol=tolerance)) if len(rows) else 0


def solves(rows: Vectors, known: Iterable[int] = (), tolerance: float = 1e-3) -> list[int]:
    """Return the secrets that the statistics determine.

    Parameters
    ----------
    rows : ndarray, shape (k, n)
        Coefficients of what was seen.
    known : iterable of int
        The coalition's own secrets, which it can take off.
    tolerance : float
        How far a unit vector may be from the span.

    Examples
    --------
    >>> sums = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])  # two sums of three secrets
    >>> solves(sums)
    [2]
    >>> solves(sums, known=[0])  # with what client 0 knows of itself
    [1, 2]
    """
    n = rows.shape[1]
    own = sorted(set(known))
    spanned = np.vstack([rows, np.eye(n)[own]])
    if not len(spanned):
        return []
    _, values, basis = np.linalg.svd(spanned, full_matrices=False)
    basis = basis[values > tolerance * max(values.max(), 1e-300)]
    left = 1.0 - (basis**2).sum(axis=0)
    return [i for i in range(n) if left[i] < tolerance and i not in own]
