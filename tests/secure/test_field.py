from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from qsfl_flower.errors import ConfigError
from qsfl_flower.secure import field
from qsfl_flower.secure.field import BLOCK, P

EDGES = [0, 1, 2, 7, 8, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, P // 2, P // 2 + 1, P - 2, P - 1]
ELEMENT = st.one_of(st.sampled_from(EDGES), st.integers(0, P - 1))
VECTOR = st.lists(ELEMENT, min_size=1, max_size=40)


def of(values) -> field.Elements:
    return np.array(values, dtype=np.uint64)


def ints(elements) -> list[int]:
    assert field.is_canonical(elements)
    return [int(e) for e in elements.reshape(-1)]


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=40))
def test_fold_is_the_remainder(values):
    x = of(values)
    field.fold(x)
    assert ints(x) == [v % P for v in values]


@given(VECTOR, st.data())
def test_products_are_those_of_the_integers(a, data):
    b = data.draw(st.lists(ELEMENT, min_size=len(a), max_size=len(a)))
    assert ints(field.multiply(of(a), of(b))) == [x * y % P for x, y in zip(a, b, strict=True)]


@given(VECTOR, st.one_of(st.integers(-20, 20), st.integers(-(1 << 70), 1 << 70)))
def test_multiples_and_combinations(a, factor):
    assert ints(field.multiply(of(a), factor)) == [x * factor % P for x in a]
    total = of(a)
    field.accumulate(total, of(a[::-1]), factor)
    expected = [(x + factor * y) % P for x, y in zip(a, a[::-1], strict=True)]
    assert ints(total) == expected
    assert ints(field.combine([1, factor], [of(a), of(a[::-1])])) == expected


@pytest.mark.parametrize("size", [1, 2047, 2048, 2049, BLOCK + 1])
def test_products_are_exact_at_the_largest_values(size):
    # All limbs at their maximum: the partial sums are as close to 2^53 as they ever get.
    rows = [np.full(size, P - 1 - i, np.uint64) for i in range(3)]
    expected = [[size * (1 + i) * (1 + j) % P for j in range(3)] for i in range(3)]
    assert field.gram(rows).tolist() == expected
    assert [field.dot(rows[0], row) for row in rows] == expected[0]


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4500))
def test_gram_and_dot_against_python_integers(seed, n, size):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, P, size, dtype=np.uint64) for _ in range(n)]
    exact = [
        [sum(int(x) * int(y) for x, y in zip(a, b, strict=True)) % P for b in rows] for a in rows
    ]
    assert field.gram(rows).tolist() == exact
    assert [field.dot(rows[0], row) for row in rows] == exact[0]


def test_expand_is_the_counter_mode_of_its_key():
    seed = bytes(range(32))
    out = np.empty(BLOCK + 5, np.uint64)
    field.expand(seed, out, stream=3)
    nonce = (3).to_bytes(4, "big") + bytes(12)
    words = Cipher(algorithms.AES(seed), modes.CTR(nonce)).encryptor().update(bytes(8 * out.size))
    assert out.tolist() == [
        int.from_bytes(words[8 * i : 8 * i + 8], "little") & P for i in range(out.size)
    ]
    other = np.empty_like(out)
    field.expand(seed, other, stream=4)
    assert np.count_nonzero(out == other) == 0
    with pytest.raises(ConfigError, match="32 bytes"):
        field.expand(b"short", out)


def test_words_that_are_not_elements_are_drawn_again():
    seed = bytes(32)
    part = np.full(5, P, np.uint64)
    part[2] = 7
    field._redraw(part, seed, 0, 0)
    assert part[2] == 7
    assert field.is_canonical(part)
    assert len(set(part.tolist())) == 5


def test_expanded_elements_are_uniform():
    """Chi-square over 256 buckets; a fixed seed, chosen before the result was known."""
    out = np.empty(1 << 18, np.uint64)
    field.expand(b"u" * 32, out)
    counts = np.bincount((out >> np.uint64(53)).astype(int), minlength=256)
    statistic = float(((counts - out.size / 256) ** 2 / (out.size / 256)).sum())
    assert statistic < chi2.isf(1e-9, 255)


def test_canonical():
    assert field.is_canonical(of([0, P - 1]))
    assert not field.is_canonical(of([P]))
    assert not field.is_canonical(np.zeros(3, np.int64))
