"""Canonical binary encoding: one byte string per value, and a decoder that accepts nothing else.

Integers are big-endian and of fixed width; every variable-length field carries its length. The
reader checks a length against its bound and against what is left *before* it takes the bytes, and
`Reader.finish` refuses trailing bytes, so two different inputs never decode to equal values.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from qsfl_flower.crypto.errors import Malformed
from qsfl_flower.errors import CryptoError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_TEXT = 255
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


def check_identifier(text: str, what: str) -> str:
    """Return `text` if it is a legal identifier, else raise `CryptoError`.

    Identifiers name parties and algorithms. They are plain ASCII, so that no two of them look the
    same on a screen: 1 to 64 of ``A-Z a-z 0-9 . _ @ + -``, starting with a letter or digit.
    """
    if not isinstance(text, str) or _IDENTIFIER.fullmatch(text) is None:
        raise CryptoError(
            f"{what} {text!r} is not allowed: 1 to 64 characters of A-Z a-z 0-9 . _ @ + - "
            "starting with a letter or digit"
        )
    return text


def check_text(text: str, what: str) -> str:
    """Return `text` if it is printable, normalized (NFC) and short, else raise `CryptoError`."""
    if (
        not isinstance(text, str)
        or not text.isprintable()
        or not unicodedata.is_normalized("NFC", text)
        or len(text.encode(errors="replace")) > MAX_TEXT
    ):
        raise CryptoError(f"{what} must be printable NFC text of at most {MAX_TEXT} bytes")
    return text


def byte_view(data: Buffer, what: str) -> memoryview:
    """Return the bytes of any contiguous buffer (bytes, array) as a flat view, without a copy."""
    try:
        view = memoryview(data)
        return view.cast("B") if view.nbytes else memoryview(b"")
    except TypeError as error:
        raise CryptoError(f"the {what} must be a contiguous buffer of bytes: {error}") from None


class Writer:
    """Builds one canonical encoding, field by field."""

    def __init__(self, magic: bytes = b"") -> None:
        self._out = bytearray(magic)

    def uint(self, value: int, size: int) -> Writer:
        """Append an unsigned integer of `size` bytes."""
        if not isinstance(value, int) or not 0 <= value < 1 << (8 * size):
            raise CryptoError(f"{value!r} is not an unsigned integer of {8 * size} bits")
        self._out += value.to_bytes(size, "big")
        return self

    def fixed(self, data: bytes, size: int) -> Writer:
        """Append exactly `size` bytes, without a length."""
        if len(data) != size:
            raise CryptoError(f"expected {size} bytes, got {len(data)}")
        self._out += data
        return self

    def blob(self, data: bytes | memoryview) -> Writer:
        """Append bytes behind a 4-byte length."""
        self.uint(len(data), 4)
        self._out += data
        return self

    def text(self, text: str) -> Writer:
        """Append UTF-8 text behind a 1-byte length."""
        data = text.encode()
        self.uint(len(data), 1)
        self._out += data
        return self

    def done(self) -> bytes:
        """Return everything written so far."""
        return bytes(self._out)


class Reader:
    """Reads a canonical encoding; every deviation is `Malformed`.

    Parameters
    ----------
    data : bytes-like
        The encoding.
    what : str
        What it is, for messages ("roster", "envelope").
    """

    def __init__(self, data: bytes | bytearray | memoryview, what: str) -> None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise Malformed(f"{what}: expected bytes, got {type(data).__name__}")
        self._data = bytes(data)
        self._at = 0
        self._what = what

    @property
    def position(self) -> int:
        """Number of bytes read so far."""
        return self._at

    @property
    def remaining(self) -> int:
        """Number of bytes not yet read."""
        return len(self._data) - self._at

    def fail(self, detail: str) -> Malformed:
        """Return the error to raise for a fault at the current position."""
        return Malformed(f"{self._what}, byte {self._at}: {detail}")

    def fixed(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        if size > self.remaining:
            raise self.fail(f"{size} bytes expected, {self.remaining} left")
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def uint(self, size: int) -> int:
        """Read an unsigned integer of `size` bytes."""
        return int.from_bytes(self.fixed(size), "big")

    def blob(self, max_size: int) -> bytes:
        """Read bytes behind a 4-byte length of at most `max_size`."""
        size = self.uint(4)
        if size > max_size:
            raise self.fail(f"field of {size} bytes, at most {max_size} allowed")
        return self.fixed(size)

    def text(self) -> str:
        """Read printable, normalized UTF-8 text behind a 1-byte length."""
        try:
            return check_text(self.fixed(self.uint(1)).decode(), "text")
        except UnicodeDecodeError:
            raise self.fail("text is not UTF-8") from None
        except Malformed:
            raise
        except CryptoError as error:
            raise self.fail(str(error)) from None

    def identifier(self, what: str) -> str:
        """Read the name of a party or algorithm."""
        text = self.text()
        if _IDENTIFIER.fullmatch(text) is None:
            raise self.fail(f"{what} {text!r} is not an identifier")
        return text

    def expect(self, magic: bytes) -> None:
        """Read the fixed bytes that open a format."""
        found = self.fixed(min(len(magic), self.remaining))
        if found != magic:
            raise self.fail(f"starts with {found!r}, not with {magic!r}")

    def finish(self) -> None:
        """Raise unless everything was read."""
        if self.remaining:
            raise self.fail(f"{self.remaining} trailing bytes")
