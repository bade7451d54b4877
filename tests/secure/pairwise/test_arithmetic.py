"""Masks, the ring, and shares of seeds, each against a slow independent way."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import ConfigError, CryptoError, RejectedUpdate
from qsfl_flower.secure.pairwise.masks import BLOCK, apply_masks
from qsfl_flower.secure.pairwise.recovery import SHARE_SIZE, check_share, join_shares, split_seed
from qsfl_flower.secure.pairwise.ring import LIMBS, RingCode, decode_scalars, encode_scalars
from qsfl_flower.secure.tally import Tally


def seeds(count):
    return [Secret(os.urandom(32)) for _ in range(count)]


@pytest.mark.parametrize("size", [1, 5, BLOCK, BLOCK + 3, 3 * BLOCK])
def test_a_mask_is_the_aes_key_stream(size):
    """Block by block through AES in ECB mode on the counter."""
    seed = Secret(bytes(range(32)))
    ecb = Cipher(algorithms.AES(seed.reveal()), modes.ECB()).encryptor()
    counters = b"".join(i.to_bytes(16, "big") for i in range((size + 3) // 4))
    expected = np.frombuffer(ecb.update(counters), "<u4")[:size]
    vector = np.full(size, 5, np.uint32)
    apply_masks(vector, add=[seed])
    np.testing.assert_array_equal(vector, expected + np.uint32(5))


def test_masks_cancel_and_wrap():
    vector = np.array([0, 1, 2**32 - 1] * 30_000, np.uint32)
    before, some = vector.copy(), seeds(5)
    apply_masks(vector, add=some[:2], subtract=some[2:])
    assert (vector != before).mean() > 0.999
    apply_masks(vector, add=some[2:], subtract=some[:2])
    np.testing.assert_array_equal(vector, before)


@settings(max_examples=50)
@given(
    values=st.lists(st.floats(-8, 8), min_size=1, max_size=20),
    terms=st.integers(1, 65_536),
    bound=st.sampled_from([8.0, 8.3, 1000.0]),
)
def test_sums_of_the_ring_are_exact(values, terms, bound):
    """Every client sends the same; integers in Python are the oracle."""
    code = RingCode(bound, terms)
    vector = np.empty(len(values), np.uint32)
    code.encode(np.asarray(values), vector)
    integers = [round(v * 2**code.bits) for v in values]
    total = vector * np.uint32(terms)
    np.testing.assert_array_equal(
        code.decode(total, terms), [i * terms / 2**code.bits for i in integers]
    )


@pytest.mark.parametrize(("bound", "terms"), [(1.0, 1), (8.0, 10), (8.3, 7), (1e3, 65_536), (3, 2)])
def test_the_ends_of_the_range_do_not_wrap_and_nothing_finer_would_fit(bound, terms):
    code = RingCode(bound, terms)
    assert terms * code.limit < 2**31 <= terms * np.ceil(bound * 2.0 ** (code.bits + 1)) + terms
    for end in (bound, -bound):
        vector = np.empty(1, np.uint32)
        code.encode(np.array([end]), vector)
        total = code.decode(vector * np.uint32(terms), terms)
        assert total[0] == pytest.approx(terms * end, rel=2.0**-7)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "not-finite"), (np.inf, "not-finite"), (-np.inf, "not-finite"), (8.1, "out-of-range"),
     (-1e300, "out-of-range")],
)  # fmt: skip
def test_nothing_is_cut_off(value, reason):
    values = np.zeros(BLOCK + 2)
    values[-1] = value
    with pytest.raises(RejectedUpdate, match=reason):
        RingCode(8.0, 10).encode(values, np.empty(values.size, np.uint32))


def test_a_sum_that_cannot_be_is_refused():
    code = RingCode(1.0, 100)
    total = np.array([3 * code.limit + 1], np.uint32)
    with pytest.raises(RejectedUpdate, match=r"out-of-range: .* beyond 3 x 1"):
        code.decode(total, 3)


@pytest.mark.parametrize(("bound", "terms"), [(0, 1), (np.inf, 1), (1.0, 0), (1.0, 65_537)])
def test_impossible_codes_are_refused(bound, terms):
    with pytest.raises(ConfigError, match="ring: bound"):
        RingCode(bound, terms)


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(-(2**46), 2**46), min_size=3, max_size=3), min_size=1))
def test_scalars_add_up_exactly(rows):
    total = np.zeros(3 * LIMBS, np.uint32)
    for row in rows:
        words = np.empty(3 * LIMBS, np.uint32)
        encode_scalars(np.array(row), words)
        total += words
    assert decode_scalars(total).tolist() == [sum(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("threshold", "points"), [(1, [1]), (2, [1, 2]), (3, [2, 5, 9, 400])])
def test_any_threshold_of_shares_open_a_seed(threshold, points):
    for seed in (Secret(bytes(32)), Secret(b"\xff" * 32), *seeds(3)):
        shares = split_seed(seed, threshold, points)
        assert all(len(share) == SHARE_SIZE for share in shares.values())
        for start in range(len(points) - threshold + 1):
            some = {p: shares[p] for p in points[start : start + threshold]}
            assert join_shares(some) == seed


def test_shares_are_a_polynomial_over_the_field():
    """Evaluate with Python integers what five shares interpolate."""
    p = (1 << 61) - 1
    shares = split_seed(Secret(bytes(31) + b"\x07"), 3, [1, 2, 3, 4])
    for chunk in range(5):
        y = [int.from_bytes(shares[x][8 * chunk : 8 * chunk + 8], "big") for x in (1, 2, 3, 4)]
        assert (y[3] - 3 * y[2] + 3 * y[1] - y[0]) % p == 0, "third difference of degree 2"
        assert (3 * y[0] - 3 * y[1] + y[2]) % p == (7 if chunk == 0 else 0)


def test_fixed_randomness_gives_fixed_shares():
    seed, randomness = seeds(2)
    assert split_seed(seed, 3, [1, 2, 3], randomness) == split_seed(seed, 3, [1, 2, 3], randomness)
    assert split_seed(seed, 3, [1, 2, 3]) != split_seed(seed, 3, [1, 2, 3])


def test_shares_below_the_threshold_are_uniform():
    """Chi-square of two extreme seeds' shares in 61 buckets; false alarm once in 100,000."""
    for seed in (Secret(bytes(32)), Secret(b"\xff" * 32)):
        counts = np.zeros(61)
        for _ in range(1200):
            share = split_seed(seed, 2, [1])[1]
            for chunk in range(5):
                counts[int.from_bytes(share[8 * chunk : 8 * chunk + 8], "big") % 61] += 1
        expected = counts.sum() / 61
        # 60 degrees of freedom: P[X > 123] = 3e-6; a constant would have 4e5.
        assert ((counts - expected) ** 2 / expected).sum() < 123


def test_shares_that_open_nothing_are_named():
    shares = split_seed(seeds(1)[0], 2, [1, 2])
    shares[2] = split_seed(seeds(1)[0], 2, [1, 2])[2]
    with pytest.raises(RejectedUpdate, match="inconsistent-shares"):
        join_shares(shares)


@pytest.mark.parametrize("share", [b"\xff" * SHARE_SIZE, bytes(39), b""])
def test_what_is_no_share_is_refused(share):
    with pytest.raises((RejectedUpdate, CryptoError)):
        check_share(share)


def test_a_tally_gives_exact_weights_and_means():
    tally = Tally(max_examples=100, metrics=("loss", "rare"))
    clients = [
        {"num-examples": 50, "loss": 1.5, "rare": 4.0},
        {"num-examples": 25, "loss": 0.75},
        {"num-examples": 900, "loss": float("nan"), "rare": -2.0},
    ]
    taken = [tally.take(metrics) for metrics in clients]
    assert [weight for weight, _ in taken] == [0.5, 0.25, 1.0]
    assert all(len(integers) == tally.size for _, integers in taken)
    sums = [sum(column) for column in zip(*(i for _, i in taken), strict=True)]
    total, means = tally.read(sums, clients=3)
    assert total == 1.75
    assert means == {"loss": pytest.approx(1.25), "rare": pytest.approx(0.0, abs=1e-6)}


@pytest.mark.parametrize("examples", [None, -1, float("nan"), 0, "12"])
def test_a_tally_without_examples_is_refused(examples):
    with pytest.raises(RejectedUpdate, match="bad-num-examples"):
        Tally().take({"num-examples": examples})


@pytest.mark.parametrize("loss", [-7.919, 7.919e20])
def test_a_refusal_says_nothing_of_the_metric_that_the_server_has_chosen(loss):
    """What a client's error says reaches the server."""
    with pytest.raises(RejectedUpdate, match="bad-num-examples") as refused:
        Tally(metrics=(), weighted_by="train-loss").take({"train-loss": loss})
    assert "7.9" not in str(refused.value)


def test_a_limit_of_the_servers_choice_tells_nothing_of_a_clients_examples():
    """A client below a hidden resolution would be refused, and so tell where it is."""
    weight, integers = Tally(1 << 50, ()).take({"num-examples": 1})
    assert (weight, integers) == (2.0**-20, [1])


@pytest.mark.parametrize("total", [0, -5, (3 << 20) + 1])
def test_an_impossible_tally_is_refused(total):
    with pytest.raises(RejectedUpdate, match="implausible-sum"):
        Tally(metrics=()).read([total], clients=3)
