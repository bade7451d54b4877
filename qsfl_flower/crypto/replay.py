"""What has been accepted already, as a value of bounded size."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.errors import Reason, Rejected
from qsfl_flower.errors import CryptoError

NONCE_SIZE = 16
_MAGIC = b"QRPLY\x01"

_Senders = MappingProxyType[str, tuple[int, frozenset[bytes]]]  # signer -> (node, nonces)
_NOBODY: _Senders = MappingProxyType({})


@dataclass(frozen=True)
class _Round:
    """The messages of one round; split by signer, so that adding one copies little."""

    count: int = 0
    parts: MappingProxyType[int, _Senders] = field(default_factory=lambda: MappingProxyType({}))

    def part(self, signer: str) -> tuple[int, _Senders]:
        index = zlib.crc32(signer.encode()) % 256
        return index, self.parts.get(index, _NOBODY)

    def add(self, signer: str, node: int, nonces: frozenset[bytes], new: int = 1) -> _Round:
        index, senders = self.part(signer)
        part, parts = senders.copy(), self.parts.copy()  # unpacking a proxy takes far longer
        part[signer] = node, nonces
        parts[index] = MappingProxyType(part)
        return _Round(self.count + new, MappingProxyType(parts))

    def senders(self) -> dict[str, tuple[int, frozenset[bytes]]]:
        return {signer: held for part in self.parts.values() for signer, held in part.items()}


@dataclass(frozen=True)
class ReplayCache:
    """The messages accepted in the last rounds, to refuse them the second time.

    Parameters
    ----------
    window : int
        How many rounds are remembered, at least 1; messages of older rounds are refused as stale.
        A server that accepts updates s rounds late needs s + 1.
    capacity : int
        How many messages are remembered at most. When it is full, further ones are refused: a
        message that might be a replay counts as one.
    rounds : mapping
        What was accepted; start with none.
    """

    window: int = 1
    capacity: int = 1 << 16
    rounds: Mapping[int, _Round] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.window < 1 or self.capacity < 1:
            raise CryptoError("the window and the capacity of a replay cache must be at least 1")

    @property
    def count(self) -> int:
        """Number of messages remembered."""
        return sum(held.count for held in self.rounds.values())

    def admit(self, round: int, signer: str, node: int, nonce: bytes) -> ReplayCache:
        """Return the cache with one more message in it.

        Parameters
        ----------
        round : int
            The message's round.
        signer : str
            Who signed it.
        node : int
            Node that it came from.
        nonce : bytes
            Its nonce, unique among the messages of `signer`.

        Raises
        ------
        Rejected
            ``stale-round``, ``wrong-node`` if another node has used this identity in the same
            round, or ``replay``.
        """
        newest = max(self.rounds, default=round)
        if round <= newest - self.window:
            raise Rejected(
                Reason.STALE_ROUND,
                f"message of {signer} is from round {round}, the newest seen is {newest} and "
                f"{self.window} round(s) are accepted",
            )
        held = self.rounds.get(round, _Round())
        owner, nonces = held.part(signer)[1].get(signer, (node, frozenset()))
        if owner != node:
            raise Rejected(
                Reason.WRONG_NODE,
                f"{signer} answers from node {node}, but from node {owner} in the same round",
            )
        if nonce in nonces:
            raise Rejected(
                Reason.REPLAY, f"message of {signer} in round {round} was accepted already"
            )
        first = max(newest, round) - self.window
        kept = {number: other for number, other in self.rounds.items() if number > first}
        kept[round] = held.add(signer, node, nonces | {nonce})
        cache = replace(self, rounds=MappingProxyType(kept))
        if cache.count > self.capacity:
            raise Rejected(
                Reason.REPLAY, f"{self.capacity} messages are remembered, no more can be checked"
            )
        return cache

    def encode(self) -> bytes:
        """Return the canonical encoding, to save the cache."""
        out = Writer(_MAGIC).uint(self.window, 4).uint(self.capacity, 8).uint(len(self.rounds), 4)
        for number in sorted(self.rounds):
            senders = self.rounds[number].senders()
            out.uint(number, 8).uint(len(senders), 4)
            for signer in sorted(senders):
                node, nonces = senders[signer]
                out.text(signer).uint(node, 8).uint(len(nonces), 4)
                for nonce in sorted(nonces):
                    out.fixed(nonce, NONCE_SIZE)
        return out.done()

    @classmethod
    def decode(cls, data: bytes) -> ReplayCache:
        """Return the cache that `encode` wrote; anything else is `Malformed`."""
        reader = Reader(data, "replay cache")
        reader.expect(_MAGIC)
        window, capacity = reader.uint(4), reader.uint(8)
        rounds: dict[int, _Round] = {}
        for _ in range(reader.uint(4)):
            number = reader.uint(8)
            held = _Round()
            for _ in range(reader.uint(4)):
                signer, node = reader.identifier("signer"), reader.uint(8)
                nonces = [reader.fixed(NONCE_SIZE) for _ in range(reader.uint(4))]
                held = held.add(signer, node, frozenset(nonces), len(nonces))
            rounds[number] = held
        reader.finish()
        if window < 1 or capacity < 1:
            raise reader.fail("window or capacity is 0")
        cache = cls(window, capacity, MappingProxyType(rounds))
        if cache.encode() != data:
            raise reader.fail("not the canonical encoding")
        return cache
