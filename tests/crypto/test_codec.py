from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.crypto.codec import Reader, Writer, byte_view, check_identifier, check_text
from qsfl_flower.crypto.errors import Malformed
from qsfl_flower.errors import CryptoError


@given(st.integers(0, 2**64 - 1), st.binary(max_size=64), st.binary(min_size=3, max_size=3))
@settings(deadline=None)
def test_round_trip(number: int, data: bytes, fixed: bytes) -> None:
    encoded = Writer(b"MAGIC").uint(number, 8).blob(data).fixed(fixed, 3).text("é-1").done()
    reader = Reader(encoded, "test")
    reader.expect(b"MAGIC")
    assert (reader.uint(8), reader.blob(64), reader.fixed(3)) == (number, data, fixed)
    assert reader.text() == "é-1"
    reader.finish()


def test_every_truncation_and_extension_is_malformed() -> None:
    encoded = Writer(b"M").uint(7, 2).blob(b"data").text("id").done()

    def decode(data: bytes) -> None:
        reader = Reader(data, "test")
        reader.expect(b"M")
        reader.uint(2), reader.blob(8), reader.identifier("id")
        reader.finish()

    decode(encoded)
    for size in range(len(encoded)):
        with pytest.raises(Malformed):
            decode(encoded[:size])
    with pytest.raises(Malformed, match="1 trailing bytes"):
        decode(encoded + b"\0")


def test_length_is_checked_before_the_bytes_are_taken() -> None:
    with pytest.raises(Malformed, match="4294967295 bytes, at most 10"):
        Reader(b"\xff\xff\xff\xff", "test").blob(10)
    with pytest.raises(Malformed, match="9 bytes expected, 1 left"):
        Reader(b"\0\0\0\x09x", "test").blob(10)


@pytest.mark.parametrize(
    "data", [b"\x01\xff", b"\x01\n", b"\x03e\xcc\x81", b"\x02\xe2\x80", b"\x04a\xe2\x80\xae"]
)
def test_text_that_is_not_printable_normalized_utf8_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        Reader(data, "test").text()


@pytest.mark.parametrize("text", ["", "-a", "a b", "a/b", "a" * 65, "ü", "a\n", 3])
def test_identifiers_are_plain(text: object) -> None:
    with pytest.raises(CryptoError, match="not allowed"):
        check_identifier(text, "name")  # type: ignore[arg-type]
    if isinstance(text, str) and len(text) < 65:
        with pytest.raises(Malformed):
            Reader(Writer().text(text).done(), "test").identifier("name")


def test_names_that_are_fine() -> None:
    assert check_identifier("site-7.ward_b@clinic+1", "name") == "site-7.ward_b@clinic+1"
    assert check_text("Universitätsklinik Zürich", "organization") == "Universitätsklinik Zürich"
    with pytest.raises(CryptoError, match="organization must be printable"):
        check_text("a" * 256, "organization")


def test_writer_refuses_what_does_not_fit() -> None:
    for bad in (-1, 256, 1.0):
        with pytest.raises(CryptoError, match="unsigned integer of 8 bits"):
            Writer().uint(bad, 1)  # type: ignore[arg-type]
    with pytest.raises(CryptoError, match="expected 3 bytes, got 2"):
        Writer().fixed(b"ab", 3)


def test_reader_takes_only_bytes() -> None:
    with pytest.raises(Malformed, match="expected bytes, got str"):
        Reader("text", "test")  # type: ignore[arg-type]


def test_byte_view_of_arrays() -> None:
    array = np.arange(6, dtype=np.float32)
    assert bytes(byte_view(array, "array")) == array.tobytes()
    assert len(byte_view(np.zeros((0, 3)), "array")) == 0
    with pytest.raises(CryptoError, match="contiguous"):
        byte_view(array[::2], "array")
    with pytest.raises(CryptoError, match="the payload must be"):
        byte_view("text", "payload")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"QTES", b"QTEST\x02", b"other!"])
def test_another_format_or_version_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match="not with b'QTEST"):
        Reader(data, "test").expect(b"QTEST\x01")
