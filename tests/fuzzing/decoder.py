"""What a reader of outside bytes is, for tests and fuzzers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qsfl_flower.errors import QSFLError


@dataclass(frozen=True)
class Decoder:
    """A reader of outside bytes.

    Parameters
    ----------
    name : str
        What is read.
    examples : tuple of bytes
        Valid inputs, at least one; reading them raises nothing.
    read : Callable[[bytes], object]
        Reads one input. It may raise `QSFLError` and nothing else.
    """

    name: str
    examples: tuple[bytes, ...]
    read: Callable[[bytes], object]

    def accepts(self, data: bytes) -> bool:
        """Read; return whether it was accepted. Any error but a `QSFLError` comes through."""
        try:
            self.read(data)
        except QSFLError:
            return False
        return True


def text_of(data: bytes) -> str:
    """Return any bytes as a text."""
    return data.decode("utf-8", "surrogateescape")


def of_json(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    """Feed a reader of JSON values: what JSON itself refuses never reaches it."""

    def from_bytes(data: bytes) -> object:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return read(values) if isinstance(values, dict) else None

    return from_bytes
