from __future__ import annotations

import io
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.numerics.npy import MAX_HEADER, dump_npy, view_npy

DTYPES = ["f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


def saved(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def payload(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def refused(data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> str:
    with pytest.raises(RejectedUpdate) as caught:
        view_npy(data, dtype, shape)
    assert caught.value.reason == "malformed"
    return caught.value.detail


arrays = hnp.arrays(
    dtype=st.sampled_from(DTYPES).flatmap(
        lambda code: st.sampled_from([np.dtype(code), np.dtype(code).newbyteorder(">")])
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@given(arrays, st.sampled_from([(1, 0), (2, 0), (3, 0)]), st.booleans())
def test_reads_back_what_numpy_wrote(array, version, fortran):
    if fortran:
        array = np.asfortranarray(array)
    view = view_npy(saved(array, version), str(array.dtype), array.shape)
    np.testing.assert_array_equal(view, array)
    assert view.shape == array.shape
    assert view.dtype == array.dtype.newbyteorder("=")
    assert view.dtype.isnative
    assert view.flags.c_contiguous
    assert not view.flags.writeable


@given(arrays, st.booleans())
def test_dumps_what_numpy_saves(array, fortran):
    if fortran:
        array = np.asfortranarray(array)
    data = dump_npy(array)
    assert data == saved(np.require(array, requirements="C"))
    np.testing.assert_array_equal(view_npy(data, str(array.dtype), array.shape), array)


def test_a_dump_copies_once():
    array = np.zeros(1_000_000, np.float32)
    tracemalloc.start()
    dump_npy(array)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes + 20_000


def test_a_view_copies_nothing():
    array = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)
    data = saved(array)
    tracemalloc.start()
    view = view_npy(data, "float32", (1000, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000
    assert np.shares_memory(view, np.frombuffer(data, np.uint8))


def test_the_order_of_the_header_fields_and_the_padding_do_not_matter():
    header = "{'shape': (2,), 'descr': '<f4', 'fortran_order': False}   \n"
    data = payload(header, np.array([1, 2], "<f4").tobytes())
    np.testing.assert_array_equal(view_npy(data, "float32", (2,)), [1, 2])


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("float64", (2,), "claims float64"),
        ("int32", (2,), "claims int32"),
        ("float32", (3,), "claims (3,)"),
        ("float32", (2, 1), "claims (2, 1)"),
        ("float32", (), "claims ()"),
        ("object", (2,), "not a boolean"),
        ("float32,float32", (2,), "not a boolean"),
        ("complex64", (2,), "not a boolean"),
        ("float128", (2,), "not a boolean"),
        ("<U1", (2,), "not a boolean"),
        ("", (2,), "not a boolean"),
        (None, (2,), "not a boolean"),
        (["float32"], (2,), "not a boolean"),
    ],
)
def test_a_claim_that_does_not_fit_is_refused(dtype, shape, words):
    data = saved(np.array([1, 2], np.float32))
    assert words in refused(data, dtype, shape)


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "not a dictionary"),
        ("{", "not a dictionary"),
        ("{}", "lacks"),
        ("[1, 2]", "not a dictionary"),
        ("{'descr': '<f4', 'fortran_order': False, }", "lacks"),
        ("{'fortran_order': False, 'shape': (2,), }", "lacks"),
        ("{'descr': '<f4', 'shape': (2,), }", "lacks"),
        (GOOD.replace("'<f4'", "'|O'"), "not a boolean"),
        (GOOD.replace("'<f4'", "'|V4'"), "not a boolean"),
        (GOOD.replace("'<f4'", "'<c8'"), "not a boolean"),
        (GOOD.replace("'<f4'", "'<f16'"), "not a boolean"),
        (GOOD.replace("'<f4'", "[('a', '<f4')]"), "one plain array"),
        (GOOD.replace("'<f4'", "False"), "lacks"),
        (GOOD.replace("False", "'<f4'"), "lacks"),
        (GOOD.replace("False", "0"), "one plain array"),
        (GOOD.replace("(2,)", "2"), "one plain array"),
        (GOOD.replace("(2,)", "(-2,)"), "one plain array"),
        (GOOD.replace("(2,)", "(2.0,)"), "one plain array"),
        (GOOD.replace("(2,)", "(2,,)"), "one plain array"),
        (GOOD.replace("(2,)", "(__import__('os'),)"), "one plain array"),
        (GOOD.replace("'shape'", "'descr'"), "one plain array"),
        (GOOD.replace("'shape'", "'extra'"), "one plain array"),
        (GOOD.replace("}", "'extra': 1}"), "one plain array"),
        (GOOD.replace("(2,)", f"({'9' * 30},)"), "one plain array"),
        (GOOD.replace("(2,)", "(" + "((" * 2000 + ",)"), "one plain array"),
    ],
)
def test_a_header_that_is_not_one_plain_array_is_refused(header, words):
    assert words in refused(payload(header, bytes(8)))


def test_impossible_shapes_are_refused_even_if_they_hold_nothing():
    big = (0, 10**19)
    header = GOOD.replace("(2,)", str(big))
    assert "not possible" in refused(payload(header), "float32", big)
    many = (1,) * 80
    assert "not possible" in refused(
        payload(GOOD.replace("(2,)", str(many)), bytes(4)), "float32", many
    )


def test_a_huge_claim_allocates_nothing():
    shape = (10**12,)
    data = payload(GOOD.replace("(2,)", str(shape)), bytes(8))
    tracemalloc.start()
    words = refused(data, "float32", shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "require 4000000000" in words
    assert peak < 50_000


def test_a_long_header_is_refused_before_it_is_read():
    data = b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b"{" * 100
    assert "cut off or beyond" in refused(data)
    text = GOOD + " " * MAX_HEADER
    assert "cut off or beyond" in refused(payload(text, bytes(8)))


def test_an_unknown_format_version_is_refused():
    data = bytearray(saved(np.zeros(2, np.float32)))
    data[6] = 9
    assert "9.0" in refused(bytes(data))


def test_a_boolean_that_is_neither_true_nor_false_is_refused():
    data = saved(np.array([True, False]))
    assert "other than 0 and 1" in refused(data[:-1] + b"\x02", "bool", (2,))


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.float32), np.zeros(()), np.zeros((0, 3))])
def test_missing_or_trailing_bytes_are_refused(array):
    data, dtype = saved(array), str(array.dtype)
    assert "require" in refused(data + b"\x00", dtype, array.shape)
    for length in range(len(data)):
        refused(data[:length], dtype, array.shape)


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_payload_is_refused_or_read_as_claimed(data):
    """Byte flips end in a rejection or, where only values changed, in an array of the claim."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    blob = bytearray(saved(array))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(blob) - 1))
        blob[position] = data.draw(st.integers(0, 255))
    try:
        view = view_npy(bytes(blob), "float32", (2, 3))
    except RejectedUpdate:
        return
    assert view.shape == (2, 3)
    assert view.dtype == np.float32


@given(st.binary(max_size=300), st.text(max_size=12), st.lists(st.integers(-5, 2**70), max_size=4))
def test_arbitrary_bytes_are_refused(blob, dtype, shape):
    refused(blob, dtype, tuple(shape))
    refused(b"\x93NUMPY\x01\x00" + blob, "float32", tuple(shape))


@pytest.mark.skipif(sys.byteorder != "little", reason="names are those of a little-endian machine")
def test_both_byte_orders_are_the_same_dtype():
    array = np.array([1.5, -2.0], ">f8")
    np.testing.assert_array_equal(view_npy(saved(array), ">f8", (2,)), [1.5, -2.0])
    np.testing.assert_array_equal(view_npy(saved(array), "float64", (2,)), [1.5, -2.0])
