from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.mechanisms.compression.core import FORMATS, decode_values, encode_values
from qsfl_flower.mechanisms.compression.core.values import BUCKET, values_size

LEVELS = [name for name, kind in FORMATS.items() if kind.steps]
some_values = arrays(np.float64, st.integers(0, 40), elements=st.floats(-1e4, 1e4))


def generator(stochastic):
    return np.random.default_rng(3) if stochastic else None


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", FORMATS)
@given(values=some_values)
def test_the_receiver_reads_what_the_sender_believes(name, stochastic, values):
    data, taken, sent = encode_values(values, name, generator(stochastic))
    assert data.size == values_size(values.size, FORMATS[name])
    np.testing.assert_array_equal(decode_values(data, values.size, name), sent)
    left = taken - sent
    for t, s, r in zip(taken.tolist(), sent.tolist(), left.tolist(), strict=True):
        assert Fraction(s) + Fraction(r) == Fraction(t)


@pytest.mark.parametrize("name", FORMATS)
@given(values=some_values)
def test_taking_changes_less_than_double_precision_needs(name, values):
    _, taken, _ = encode_values(values, name, None)
    largest = np.abs(values).max(initial=0.0)
    assert np.abs(taken - values).max(initial=0.0) <= largest * 2.0**-50
    if not FORMATS[name].steps:
        np.testing.assert_array_equal(taken, values)


@pytest.mark.parametrize("name", FORMATS)
def test_differences_of_float32_models_are_taken_as_they_are(name):
    rng = np.random.default_rng(5)
    before = rng.standard_normal(5000).astype(np.float32)
    after = (before + 1e-3 * rng.standard_normal(5000)).astype(np.float32)
    delta = after.astype(np.float64) - before
    np.testing.assert_array_equal(encode_values(delta, name, None)[1], delta)


@pytest.mark.parametrize("name", FORMATS)
@given(values=some_values)
def test_nearest_never_makes_the_error_larger_than_the_values(name, values):
    if FORMATS[name].l2:
        return  # refused together with error feedback
    _, taken, sent = encode_values(values, name, None)
    assert math.hypot(*(taken - sent)) <= math.hypot(*taken) * (1 + 2.0**-7)


@pytest.mark.parametrize("name", LEVELS)
def test_stochastic_levels_are_unbiased(name):
    """Each mean of n draws stays within 6 standard errors.

    30 values and 8 formats: a sound quantizer fails with probability 240 * 2e-9 < 1e-6. The
    standard error is bounded by half a step over sqrt(n), as each draw has two outcomes.
    """
    values = np.random.default_rng(0).standard_normal(30)
    kind, draws, rng = FORMATS[name], 4000, np.random.default_rng(1)
    tiled = np.zeros((draws, BUCKET))
    tiled[:, :30] = values
    tiled[:, 30:] = 0 if kind.bits > 1 else values[0]
    _, _, sent = encode_values(tiled.reshape(-1), name, rng)
    rows = sent.reshape(draws, BUCKET)[:, :30].astype(np.float64)
    scale = np.linalg.norm(tiled[0]) if kind.l2 else np.abs(values).max()
    step = scale / kind.levels * (1 + 2.0**-7) * (2 if kind.bits == 1 else 1)
    deviation = np.abs(rows.mean(axis=0) - values)
    assert np.all(deviation < 6 * 0.5 * step / math.sqrt(draws))
    truncated = np.trunc(values / step) * step  # a biased rounding would be found
    if kind.bits in (2, 4):
        assert np.any(np.abs(truncated - values) > 6 * 0.5 * step / math.sqrt(draws))


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_nearest_is_within_half_a_step(name):
    values = np.random.default_rng(2).standard_normal(3 * BUCKET + 17)
    _, _, sent = encode_values(values, name, None)
    for lo in range(0, values.size, BUCKET):
        part, read = values[lo : lo + BUCKET], sent[lo : lo + BUCKET]
        step = np.abs(part).max() / FORMATS[name].levels * (1 + 2.0**-7)
        assert np.abs(part - read).max() <= step / 2


def test_one_bit_to_nearest_is_the_sign_times_the_mean_magnitude():
    values = np.array([1.0, -3.0, 0.5, -0.5])
    assert encode_values(values, "int1", None)[2].tolist() == [1.25, -1.25, 1.25, -1.25]


def test_bfloat16_rounds_to_nearest_even():
    values = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, -1.5])
    read = encode_values(values, "bfloat16", None)[2]
    assert read.tolist() == [1.0, 1 + 2.0**-6, 1 + 2.0**-7, -1.5]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e39])
def test_what_a_format_cannot_hold_is_refused_by_the_sender(name, bad):
    with pytest.raises(ConfigError, match="not finite or beyond"):
        encode_values(np.array([0.0, bad]), name, None)


def test_float16_has_its_own_limit():
    with pytest.raises(ConfigError, match="65504, the largest for float16"):
        encode_values(np.array([70_000.0]), "float16", None)


@pytest.mark.parametrize(
    ("name", "data", "count"),
    [
        ("float32", np.array([math.nan], "<f4").tobytes(), 1),
        ("float16", np.array([math.inf], "<f2").tobytes(), 1),
        ("bfloat16", b"\x80\x7f", 1),
        ("int8", b"\x80\x7f" + b"\x00", 1),  # infinite step
        ("int8", b"\x80\xbf" + b"\x00", 1),  # negative step
        ("int8", b"\x7f\x7f" + b"\xfe", 1),  # step times level leaves float32
        ("int8", b"\x80\x3f" + b"\xff", 1),  # a code beyond the levels
        ("int4", b"\x80\x3f" + b"\xf0", 1),
        ("int2", b"\x80\x3f" + b"\xc0", 1),
        ("int4", b"\x80\x3f" + b"\x71", 1),  # bits behind the last value
    ],
)
def test_hostile_values_are_refused(name, data, count):
    with pytest.raises(RejectedUpdate) as caught:
        decode_values(np.frombuffer(data, np.uint8), count, name)
    assert caught.value.reason == "bad-values"
