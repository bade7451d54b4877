from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.mechanisms.compression.core import (
    FORMATS,
    decode_record,
    encode_record,
    random_k,
    top_k,
)
from qsfl_flower.mechanisms.compression.core.values import encode_values
from qsfl_flower.numerics.sparse import SparseVector


def dense(vector):
    out = np.empty(vector.size)
    vector.read(0, vector.size, out)
    return out


cases = st.tuples(
    st.integers(1, 500),
    st.integers(0, 2**32),
    st.sampled_from(list(FORMATS)),
    st.sampled_from(["all", "indices", "seed"]),
    st.booleans(),
)


def record_of(size, seed, name, support, zstd):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size)
    count = int(rng.integers(0, size + 1))
    indices = {
        "all": np.arange(size),
        "indices": top_k(values, count),
        "seed": random_k(size, count, seed),
    }[support]
    where = {"all": None, "indices": indices, "seed": seed}[support]
    record, _, sent = encode_record(
        values[indices], size, where, values_format=name, zstd=zstd, rng=rng
    )
    expected = np.zeros(size)
    expected[indices] = sent
    return record, expected


@given(cases)
def test_round_trip(case):
    record, expected = record_of(*case)
    np.testing.assert_array_equal(dense(decode_record(record, case[0])), expected)


@given(cases, st.data())
def test_every_cut_is_refused(case, data):
    record, _ = record_of(*case)
    cut = record[: data.draw(st.integers(0, len(record) - 1))]
    for damaged in (cut, record + b"\x00"):
        with pytest.raises(RejectedUpdate) as caught:
            decode_record(damaged, case[0])
        assert caught.value.reason in ("bad-record", "bad-indices", "bad-values")


@given(cases, st.data())
def test_a_changed_byte_gives_a_finite_vector_or_a_named_refusal(case, data):
    record, _ = record_of(*case)
    place = data.draw(st.integers(0, len(record) - 1))
    other = record[:place] + bytes([data.draw(st.integers(0, 255))]) + record[place + 1 :]
    check_fuzzed(other, case[0])


@given(st.binary(max_size=80), st.integers(1, 64))
@example(b"", 1)
def test_any_body_behind_a_plausible_head(body, size):
    rng = np.random.default_rng(len(body) + size)
    for _ in range(4):
        kind, code, packed = rng.integers(0, 3), rng.integers(0, 10), rng.integers(0, 2)
        rice = rng.choice([0, 1, 5, 255]) if kind == 1 else 0
        count = size if kind == 0 else rng.integers(0, size + 1)
        head = struct.pack(
            ">4sBBBBIII", b"QSC\x01", kind, code, rice, packed, size, count, len(body)
        )
        check_fuzzed(head + body, size)


def check_fuzzed(record, size):
    try:
        outcome = decode_record(record, size)
    except RejectedUpdate as error:
        outcome = error
    if isinstance(outcome, RejectedUpdate):
        assert outcome.reason in ("bad-record", "bad-indices", "bad-values")
        assert len(outcome.detail) < 300
    else:
        assert outcome.size == size
        assert np.isfinite(dense(outcome)).all()


def a_record(size=1000, count=10, **options):
    values = np.linspace(1, 2, count)
    return encode_record(values, size, np.arange(count) * 7, values_format="int8", **options)[0]


def refused(record, size=1000, **limits):
    with pytest.raises(RejectedUpdate) as caught:
        decode_record(record, size, **limits)
    return str(caught.value)


def test_the_receiver_decides_on_size_and_number():
    record = a_record()
    assert "1000 coordinates; expected are 999" in refused(record, 999)
    assert "10 values; at most 9 of 1000" in refused(record, most=9)
    assert "value format" in refused(record, values_format="float32")
    decode_record(record, 1000, most=10, values_format="int8")


@pytest.mark.parametrize(
    ("place", "byte", "words"),
    [
        (3, 2, "this release reads"),
        (4, 3, "support 3"),
        (5, 99, "value format 99"),
        (6, 31, "Rice parameter of 31"),
        (7, 2, "stage 2"),
        (19, 255, "a body of"),
    ],
)
def test_every_field_of_the_head_is_checked(place, byte, words):
    record = bytearray(a_record())
    record[place] = byte
    assert words in refused(bytes(record))


def test_a_bomb_is_refused_before_memory_is_taken():
    """100 MB of zeros shrink to 10 kB; neither the announced nor a lying size is believed."""
    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000_000))
    length = len(a_record()) - 20
    heads = [
        struct.pack(">4sBBBBIII", b"QSC\x01", 1, 3, 6, 1, 1000, 10, length),
        struct.pack(">4sBBBBIII", b"QSC\x01", 0, 0, 0, 1, 2**32 - 1, 2**32 - 1, 2**32 - 4),
        struct.pack(">4sBBBBIII", b"QSC\x01", 2, 0, 0, 1, 1000, 1000, 4000) + bytes(8),
    ]
    forged = bytearray(bomb)
    forged[5:9] = struct.pack("<I", length)  # the frame's content size
    tracemalloc.start()
    for head in heads:
        for body in (bomb, streamed, bytes(forged)):
            refused(head + body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_zstandard_is_used_only_where_it_is_shorter():
    plain = a_record(count=2)
    assert a_record(count=2, zstd=True) == plain
    values = np.ones(4096)
    long, _, sent = encode_record(values, 4096, None, values_format="int8", zstd=True)
    assert len(long) < 60
    np.testing.assert_array_equal(dense(decode_record(long, 4096)), sent)


def test_the_form_is_pinned():
    """A record of this release must be readable for ever."""
    record = a_record(size=100, count=3)
    assert record.hex() == "515343010103020000000064000000030000000728a8823cbedefd"


def test_one_percent_of_the_coordinates_in_half_a_percent_of_the_bytes():
    values = np.random.default_rng(0).standard_normal(1_000_000)
    chosen = top_k(values, 10_000)
    record, *_ = encode_record(values[chosen], values.size, chosen, values_format="int8")
    assert len(record) <= 0.0051 * 4 * values.size
    record, *_ = encode_record(values[chosen], values.size, chosen, values_format="float16")
    assert len(record) <= 0.0076 * 4 * values.size


def test_more_coordinates_than_a_record_holds_are_refused():
    with pytest.raises(ConfigError, match="at most 4294967295"):
        encode_record(np.empty(0), 1 << 32, np.empty(0, int), values_format="int8")


def test_sparse_records_stay_sparse():
    vector = decode_record(a_record(), 1000)
    assert isinstance(vector, SparseVector)
    assert vector.values.dtype == np.float32
    assert encode_values(np.ones(3), "int8", None)[2].dtype == np.float32
