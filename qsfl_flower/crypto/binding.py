"""The associated data of every encrypted payload: where and when it may be opened, and what for."""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.crypto.codec import Writer, check_identifier
from qsfl_flower.crypto.hybrid import PROTOCOL


@dataclass(frozen=True)
class Binding:
    """What a ciphertext is bound to; opening it under any other binding fails.

    Parameters
    ----------
    run : int
        Flower run id, 0 to 2^64 - 1.
    round : int
        Server round, 0 to 2^64 - 1.
    sender, receiver : str
        Identifiers of the two parties.
    purpose : str
        What the payload is, such as ``"shares"``; an identifier.
    """

    run: int
    round: int
    sender: str
    receiver: str
    purpose: str

    def __post_init__(self) -> None:
        check_identifier(self.sender, "sender")
        check_identifier(self.receiver, "receiver")
        check_identifier(self.purpose, "purpose")

    def encode(self) -> bytes:
        """Return the canonical encoding."""
        out = Writer(PROTOCOL).text("binding").uint(self.run, 8).uint(self.round, 8)
        return out.text(self.sender).text(self.receiver).text(self.purpose).done()
