"""A holder for secret bytes that does not print, pickle or copy them."""

from __future__ import annotations

import hmac
from typing import NoReturn

from qsfl_flower.errors import CryptoError


class Secret:
    """Secret bytes: redacted wherever Python prints, compared in constant time.

    Python cannot wipe memory reliably (the interpreter and the libraries make copies), so this
    protects against disclosure by printing, logging and pickling, not against whoever reads the
    memory of the process.

    Parameters
    ----------
    value : bytes
        The secret; a copy is held.

    Examples
    --------
    >>> Secret(b"key material")
    Secret(12 bytes)
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes, to hand them to a primitive and to nothing else."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a hash of a secret is a leak

    def __repr__(self) -> str:
        return f"Secret({len(self._value)} bytes)"

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError(
            "a Secret cannot be pickled or copied; write it with qsfl_flower.crypto.keyfile"
        )
