"""What a client sends of its difference: the parameters that both ends of compression share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.compression.core.record import encode_record
from qsfl_flower.mechanisms.compression.core.select import (
    Indices,
    above,
    keep_count,
    random_k,
    top_k,
)
from qsfl_flower.mechanisms.compression.core.values import Floats, Singles
from qsfl_flower.mechanisms.compression.options import CompressOptions


@dataclass(frozen=True)
class Scheme(CompressOptions):
    """Which coordinates are sent, in which format, and what happens to the rest.

    Parameters
    ----------
    select : str
        ``"topk"``: the largest magnitudes; ``"randomk"``: a random set per client and round, whose
        seed is sent instead of indices; ``"threshold"``: magnitudes from `threshold` on;
        ``"all"``.
    ratio : float
        Share of the coordinates that ``topk`` and ``randomk`` keep, 0 < ratio <= 1.
    threshold : float
        Smallest magnitude that ``threshold`` keeps, > 0.
    values : str
        Format of the values, see `qsfl_flower.mechanisms.compression.core.values.FORMATS`.
    zstd : bool
        Try zstandard on the result.
    feedback : bool
        Keep what is not sent on the client and add it to its next difference.
    momentum : float
        Momentum correction of Lin et al. (2018), 0 <= momentum < 1; 0 is off. Needs `feedback`.
        The velocity of a sent coordinate starts anew (their momentum factor masking).
    warmup_rounds : int
        Rounds W over which the ratio falls to `ratio`, as ``ratio ** (r / W)`` in round r: with
        0.001 and W = 5 the 25, 6.25, 1.56, 0.4, 0.1 % of Lin et al. Not for ``threshold``.

    Notes
    -----
    With feedback values are rounded to nearest, without it stochastically and, for ``randomk``,
    multiplied by d / k; so what the server reads is then the difference in expectation (for
    ``topk`` and ``threshold`` of the coordinates sent).

    References
    ----------
    Y. Lin, S. Han, H. Mao, Y. Wang, W. J. Dally, "Deep gradient compression: reducing the
    communication bandwidth for distributed training", 2018. arXiv:1712.01887.
    """

    def count(self, size: int, server_round: int) -> int:
        """Return how many of `size` coordinates are sent in a round, from 1; at most, if fewer."""
        if self.select in ("threshold", "all"):
            return size
        warm = min(1.0, server_round / self.warmup_rounds) if self.warmup_rounds else 1.0
        return keep_count(size, self.ratio**warm)

    def choose(self, values: NDArray[Any], server_round: int, seed: int) -> Indices:
        """Return the increasing indices of what is sent; values that are not finite are refused."""
        if self.select == "threshold":
            return above(values, self.threshold)
        count = self.count(values.size, server_round)
        if self.select == "randomk":
            return random_k(values.size, count, seed)
        return top_k(values, count)

    def encode(
        self, kept: NDArray[Any], size: int, indices: Indices, seed: int
    ) -> tuple[bytes, Floats, Singles]:
        """Write the chosen values; see `encode_record` for what is returned.

        Parameters
        ----------
        kept : ndarray of float32 or float64, shape (k,)
            The values at `indices`, changed since by nothing or by a common factor.
        size : int
            Number of coordinates d.
        indices : ndarray of integer, shape (k,)
            From `choose`.
        seed : int
            The seed given to `choose`; it also rounds.
        """
        if self.select == "randomk" and not self.feedback:
            kept = kept * (size / max(1, indices.size))
        support = {"randomk": seed, "all": None}.get(self.select, indices)
        rng = None
        if not self.feedback:
            rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
        return encode_record(
            kept, size, support, values_format=self.values, zstd=self.zstd, rng=rng
        )


def derive_seed(*parts: str | int) -> int:
    """Return 64 bits that depend on all parts: run, round and client, say."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8])
