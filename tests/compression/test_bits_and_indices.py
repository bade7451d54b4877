from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.mechanisms.compression.core.bits import pack, packed_size, padding_is_zero, unpack
from qsfl_flower.mechanisms.compression.core.indices import (
    PLAIN,
    decode_indices,
    encode_indices,
    most_bytes,
)


@given(st.integers(0, 32), st.data())
def test_bits_round_trip_and_match_a_string_of_digits(width, data):
    values = data.draw(st.lists(st.integers(0, (1 << width) - 1), max_size=40))
    packed = pack(np.array(values, np.uint64), width)
    digits = "".join(f"{v:0{width}b}" for v in values) if width else ""
    digits += "0" * (-len(digits) % 8)
    assert packed.tobytes() == bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    assert packed.size == packed_size(len(values), width)
    assert unpack(packed, len(values), width).tolist() == values
    assert padding_is_zero(packed, len(values), width)


@pytest.mark.parametrize("width", [1, 3, 7, 11])
def test_blocks_of_packed_bits_join(width):
    values = np.random.default_rng(0).integers(0, 1 << width, 150_001)
    np.testing.assert_array_equal(unpack(pack(values, width), values.size, width), values)


sets = st.integers(1, 5000).flatmap(
    lambda size: st.tuples(
        st.just(size), st.sets(st.integers(0, size - 1), max_size=200).map(sorted)
    )
)


@given(sets)
def test_indices_round_trip(case):
    size, chosen = case
    indices = np.array(chosen, np.int64)
    rice, data = encode_indices(indices, size)
    assert data.size <= most_bytes(indices.size, size, rice)
    np.testing.assert_array_equal(decode_indices(data, indices.size, size, rice), indices)


def test_each_form_is_used_where_it_is_shorter():
    apart = np.array([0, 1, 60_000])  # two gaps of 0 and one of 60,000
    assert encode_indices(apart, 1 << 16)[0] == PLAIN
    every = np.arange(1000)
    rice, data = encode_indices(every, 1000)
    assert (rice, data.size) == (0, 125)  # a bitmap
    chosen = np.sort(np.random.default_rng(0).choice(1_000_000, 10_000, replace=False))
    rice, data = encode_indices(chosen, 1_000_000)
    assert rice == 6
    assert 8.0 < 8 * data.size / 10_000 < 8.2  # entropy: 8.08 bits
    late = np.array([999_999])
    assert encode_indices(late, 1_000_000)[1].size <= 3


def hostile(data, count, size, rice):
    with pytest.raises(RejectedUpdate) as caught:
        decode_indices(np.frombuffer(data, np.uint8), count, size, rice)
    assert caught.value.reason == "bad-indices"


def test_hostile_indices_are_refused():
    twice = pack(np.array([5, 5]), 10)
    back = pack(np.array([6, 5]), 10)
    beyond = pack(np.array([5, 1000]), 10)
    for plain in (twice, back, beyond):
        hostile(plain.tobytes(), 2, 1000, PLAIN)
    hostile(bytes(100), 2, 1000, 0)  # no ones
    hostile(b"\xff", 2, 1000, 0)  # too many ones
    hostile(b"\xc0\x00", 2, 1000, 0)  # zeros behind the last
    hostile(b"\xc0", 2, 1, 0)  # more indices than coordinates
    hostile(b"", 0, 10, 31)  # no such parameter
    hostile(b"\x00", 0, 10, 0)  # bytes without indices
    hostile(b"\xff\xff\xff\xff\xff", 1, 1 << 20, 30)  # a gap beyond the size
    hostile(pack(np.array([5, 6]), 10).tobytes()[:-1] + b"\xff", 2, 1000, PLAIN)  # padding
    hostile(bytes(10_000_000), 1, 1000, 3)  # far too long: refused before it is unpacked


@given(st.binary(max_size=40), st.integers(0, 30), st.integers(1, 200), st.integers(0, 255))
def test_any_bytes_give_increasing_indices_or_a_named_refusal(data, count, size, rice):
    try:
        outcome = decode_indices(np.frombuffer(data, np.uint8), count, size, rice)
    except RejectedUpdate as error:
        outcome = error
    if isinstance(outcome, RejectedUpdate):
        assert outcome.reason == "bad-indices"
    else:
        assert outcome.size == count
        assert np.all(np.diff(outcome, prepend=-1) > 0)
        assert count == 0 or outcome[-1] < size
