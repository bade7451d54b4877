from __future__ import annotations

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import chi2

from qsfl_flower.errors import ConfigError
from qsfl_flower.secure.field import P, accumulate, expand
from qsfl_flower.secure.shamir import Sharing, interpolate
from qsfl_flower.secure.zero_sharing import ZeroSharing

SCHEMES = [(3, 2, 2), (5, 3, 3), (5, 3, 4), (6, 2, 4), (7, 3, 4), (7, 4, 6)]


def seeds_of(zero):
    return {i: bytes([i]) * 32 for i in range(len(zero.sets))}


def labels(n):
    return np.arange(n * 15, dtype=np.uint8).reshape(n, 15)


@pytest.mark.parametrize(("m", "t", "degree"), SCHEMES)
def test_shares_lie_on_a_polynomial_of_the_degree_and_open_to_zero(m, t, degree):
    zero = ZeroSharing(Sharing(m, t), degree)
    seeds = seeds_of(zero)
    shares, named = {}, {}
    for member in range(1, m + 1):
        known = {i: seeds[i] for i in zero.known_to(member)}
        shares[member] = np.zeros(9, np.uint64)
        zero.add_to(shares[member], member, known)
        named[member] = zero.labelled(member, known, labels(9))
    for table in (shares, named):
        for subset in itertools.combinations(table, degree + 1):
            assert not interpolate({j: table[j] for j in subset}).any()
        short = interpolate({j: table[j] for j in list(table)[:degree]})
        assert np.count_nonzero(short) == 9


@pytest.mark.parametrize(("m", "t", "degree"), SCHEMES)
def test_colluders_of_any_set_lack_exactly_one_seed(m, t, degree):
    zero = ZeroSharing(Sharing(m, t), degree)
    for colluders in itertools.combinations(range(1, m + 1), t - 1):
        known = set().union(*(zero.known_to(j) for j in colluders))
        missing = set(range(len(zero.sets))) - known
        assert {zero.sets[i] for i in missing} == {colluders}
        # What this seed adds vanishes at the colluders and at 0, and spans all else: the values at
        # degree - t + 1 other members determine it.
        (index,) = missing
        others = [j for j in range(1, m + 1) if j not in colluders][: degree - t + 1]
        matrix = [zero.factors(j, index) for j in others]
        assert _rank(matrix) == degree - t + 1


def _rank(rows):
    rows, rank = [list(map(int, row)) for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((r for r in rows[rank:] if r[column] % P), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows.insert(rank, pivot)
        inverse = pow(pivot[column], -1, P)
        for r in rows[rank + 1 :]:
            factor = r[column] * inverse % P
            r[:] = [(a - factor * b) % P for a, b in zip(r, pivot, strict=True)]
        rank += 1
    return rank


def test_to_colluders_the_share_of_an_honest_member_is_uniform():
    """Chi-square over 64 buckets, false alarm with probability 1e-6; the seeds are fixed."""
    zero = ZeroSharing(Sharing(5, 3), 4)
    share = np.zeros(50_000, np.uint64)
    zero.add_to(share, 5, seeds_of(zero))
    # The colluders 1 and 2 know all seeds but one, and subtract what these contribute.
    known = {i: seed for i, seed in seeds_of(zero).items() if zero.sets[i] != (1, 2)}
    for index in known.keys() & set(zero.known_to(5)):
        for k, factor in enumerate(zero.factors(5, index)):
            stream = np.empty_like(share)
            expand(known[index], stream, k)
            accumulate(share, stream, -factor)
    counts = np.bincount((share >> np.uint64(55)).astype(int), minlength=64)
    expected = share.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 63)


def test_limits():
    with pytest.raises(ConfigError, match="allowed are 3 to 4"):
        ZeroSharing(Sharing(5, 3), 2)
    with pytest.raises(ConfigError, match="allowed are 3 to 4"):
        ZeroSharing(Sharing(5, 3), 5)
    with pytest.raises(ConfigError, match="at most 256"):
        ZeroSharing(Sharing(16, 8), 14)
    assert len(ZeroSharing(Sharing(10, 6), 9).sets) == 252


@pytest.mark.parametrize(("m", "t", "degree"), SCHEMES)
def test_a_named_share_is_what_every_release_computes(m, t, degree):
    """Members of different releases sit on one committee: AES of label and order, times factor."""
    zero, names = ZeroSharing(Sharing(m, t), degree), labels(3)
    for member in (1, m):
        expected = [0] * len(names)
        for index in zero.known_to(member):
            cipher = Cipher(algorithms.AES(seeds_of(zero)[index]), modes.ECB())
            for order, factor in enumerate(zero.factors(member, index)):
                for i, name in enumerate(names):
                    block = cipher.encryptor().update(name.tobytes() + bytes([order]))
                    expected[i] += factor * (int.from_bytes(block[:8], "little") & P)
        assert zero.labelled(member, seeds_of(zero), names).tolist() == [e % P for e in expected]
