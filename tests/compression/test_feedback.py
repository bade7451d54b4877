from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.compression.core import (
    FORMATS,
    Memory,
    Scheme,
    decode_record,
    derive_seed,
)

WITH_FEEDBACK = [name for name, kind in FORMATS.items() if not kind.l2]


def one_round(memory, delta, scheme, server_round=1, seed=1):
    """What the client's steps do: correct, choose, encode, remember."""
    corrected = memory.correct(delta, scheme.momentum)
    chosen = scheme.choose(corrected.residual, server_round, seed)
    record, taken, sent = scheme.encode(corrected.residual[chosen], delta.size, chosen, seed)
    read = np.empty(delta.size)
    decode_record(record, delta.size).read(0, delta.size, read)
    return read, corrected, corrected.after(chosen, taken, sent)


def float32_differences(rng, size):
    before = rng.standard_normal(size).astype(np.float32)
    after = (before + 0.01 * rng.standard_normal(size)).astype(np.float32)
    return after.astype(np.float64) - before


@pytest.mark.parametrize("values", WITH_FEEDBACK)
@pytest.mark.parametrize("select", ["topk", "randomk", "threshold", "all"])
def test_sent_and_residual_are_the_input_in_every_round_bit_by_bit(select, values):
    """In exact arithmetic, over 12 rounds: nothing is lost, not even a rounding."""
    scheme = Scheme(select, 0.05, threshold=0.02 if select == "threshold" else 0.0, values=values)
    rng, size = np.random.default_rng(0), 300
    memory = Memory.empty(size)
    given, arrived = [Fraction(0)] * size, [Fraction(0)] * size
    for server_round in range(1, 13):
        delta = float32_differences(rng, size)
        read, corrected, memory = one_round(memory, delta, scheme, server_round, server_round)
        for i in range(size):
            given[i] += Fraction(delta[i])
            arrived[i] += Fraction(read[i])
            total = Fraction(read[i]) + Fraction(memory.residual[i])
            assert total == Fraction(corrected.residual[i])
            assert arrived[i] + Fraction(memory.residual[i]) == given[i]


@pytest.mark.parametrize("values", WITH_FEEDBACK)
@given(delta=arrays(np.float64, 30, elements=st.floats(-1e3, 1e3)))
def test_any_doubles_are_exact_up_to_what_is_taken(values, delta):
    """Adversarial inputs: level formats take 50 bits below the largest; the rest is exact."""
    scheme = Scheme("topk", 0.3, values=values)
    read, _, memory = one_round(Memory.empty(30), delta, scheme)
    for i in range(30):
        total = Fraction(read[i]) + Fraction(memory.residual[i])
        if FORMATS[values].steps:
            assert abs(total - Fraction(delta[i])) <= Fraction(np.abs(delta).max()) / 2**50
        else:
            assert total == Fraction(delta[i])


def test_a_sloppy_residual_would_be_found():
    delta = np.random.default_rng(0).standard_normal(300)
    read, corrected, memory = one_round(Memory.empty(300), delta, Scheme("topk", 0.05))
    wrong = memory.residual.astype(np.float32)
    assert any(
        Fraction(r) + Fraction(float(w)) != Fraction(c)
        for r, w, c in zip(read, wrong, corrected.residual, strict=True)
    )


def test_momentum_correction_is_the_paper_s():
    """Lin et al. 2018, eq. 4-5 and section 3.2 (factor masking), written out for one coordinate."""
    scheme = Scheme("topk", 0.5, values="float32", momentum=0.9)
    memory = Memory.empty(2, 0.9)
    u, v = np.zeros(2), np.zeros(2)
    for delta in ([3.0, 1.0], [0.25, 1.0], [0.0, 0.5]):
        u = 0.9 * u + delta
        v = v + u
        place = int(np.argmax(np.abs(v)))
        expected = np.zeros(2)
        expected[place] = np.float32(v[place])
        read, _, memory = one_round(memory, np.array(delta), scheme)
        np.testing.assert_array_equal(read, expected)
        v[place] -= expected[place]
        u[place] = 0.0
        np.testing.assert_array_equal(memory.residual, v)
        np.testing.assert_array_equal(memory.velocity, u)


def test_warm_up_is_the_paper_s():
    scheme = Scheme("topk", 0.001, warmup_rounds=5)
    counts = [scheme.count(1_000_000, r) for r in range(1, 8)]
    np.testing.assert_allclose(counts, [251188, 63095, 15848, 3981, 1000, 1000, 1000], atol=1.5)
    assert Scheme(ratio=0.01).count(10_000_000, 1) == 100_000
    assert Scheme("all").count(77, 1) == 77


def test_random_k_without_feedback_is_unbiased():
    """The mean of n draws stays within 6 standard errors in 20 coordinates: fails with 4e-8."""
    values = np.random.default_rng(0).standard_normal(20)
    scheme = Scheme("randomk", 0.25, values="int4", feedback=False)
    draws, total = 1500, np.zeros(20)
    out, squares = np.empty(20), np.zeros(20)
    for draw in range(draws):
        seed = derive_seed("test", draw)
        chosen = scheme.choose(values, 1, seed)
        record, *_ = scheme.encode(values[chosen], 20, chosen, seed)
        decode_record(record, 20).read(0, 20, out)
        total += out
        squares += out**2
    error = np.sqrt((squares / draws - (total / draws) ** 2) / draws)
    assert np.all(np.abs(total / draws - values) < 6 * error)
    assert np.any(np.abs(total / draws / 4 - values) > 6 * error)  # without the factor d / k


def test_a_residual_of_another_model_is_refused():
    with pytest.raises(ConfigError, match="the model has changed"):
        Memory.empty(3).correct(np.zeros(4))


def test_a_memory_does_not_print_its_values():
    assert repr(Memory.empty(3)) == "Memory(3 coordinates)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"select": "top"}, "select is 'top'"),
        ({"ratio": 0.0}, "ratio is 0.0; it must be a number > 0 and <= 1"),
        ({"ratio": float("nan")}, "ratio is nan; it must be a number > 0 and <= 1"),
        ({"threshold": 0.1}, "select: threshold"),
        ({"select": "threshold"}, "select: threshold"),
        ({"values": "int3"}, "values is 'int3'"),
        ({"values": "qsgd4"}, "enlarge the residual"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be a number >= 0 and < 1"),
        ({"momentum": 0.5, "feedback": False}, "0 without feedback"),
        ({"warmup_rounds": -1}, "warmup_rounds is -1"),
        ({"warmup_rounds": 3, "select": "all"}, "topk and randomk only"),
    ],
)
def test_schemes_without_sense_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Scheme(**options)


def test_seeds_depend_on_every_part():
    seeds = {derive_seed(*parts) for parts in [(1, 2), (2, 1), (12,), ("1", 2), ()]}
    assert len(seeds) == 5
    assert derive_seed(7, 1, "a") == derive_seed(7, 1, "a") < 2**64
