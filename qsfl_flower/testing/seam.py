"""Runs that repeat bit for bit: secret random bytes, keys and the time of day from a public seed.

Nothing that is run so protects anybody, so it is refused outside pytest. The package has no other
way in: what comes from outside the program comes through `qsfl_flower.crypto.sources`, which takes
no argument, configuration, environment variable or message that would change its sources.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qsfl_flower.crypto import hybrid, sources
from qsfl_flower.crypto.algorithms import Kem, KemFunctions, Signature, SignatureFunctions, registry
from qsfl_flower.errors import QSFLError
from qsfl_flower.testing.clock import VirtualTime

Draw = Callable[[int, str], bytes]


@contextmanager
def fixed(seed: int = 0) -> Iterator[VirtualTime]:
    """Let this process repeat itself while the block runs.

    Random bytes are the stream of their use and of the seed, so that those of one use do not depend
    on how often others are taken. KEMs and signatures keep their sizes and lose their security:
    the libraries' own cannot be seeded. The time of day is that of the returned clock, and so is
    the time by which strategies wait. Durations that are measured stay real.

    Parameters
    ----------
    seed : int
        Of the random bytes.

    Yields
    ------
    VirtualTime
        The clock; it moves when a strategy sleeps.

    Raises
    ------
    QSFLError
        In a process that does not run pytest.

    Examples
    --------
    >>> import os
    >>> from qsfl_flower.crypto.sources import random_bytes
    >>> with fixed(seed=1) as clock:
    ...     first = random_bytes(16, "nonce")
    >>> with fixed(seed=1) as clock:
    ...     first == random_bytes(16, "nonce")
    True
    """
    if "pytest" not in sys.modules:
        raise QSFLError(
            "fixed() makes keys and noise predictable, so it is refused outside pytest: call it "
            "from a test"
        )
    draw, clock = _streams(seed), VirtualTime()

    class Repeated:
        from_private_bytes = X25519PrivateKey.from_private_bytes

        @staticmethod
        def generate() -> X25519PrivateKey:
            return X25519PrivateKey.from_private_bytes(draw(32, "x25519 key"))

    load_kem, load_signature = registry._KEMS._load, registry._SIGNATURES._load
    with ExitStack() as stack:
        for target, name, value in (
            (sources, "_source", draw),
            (sources, "_clock", clock.time),
            (hybrid, "X25519PrivateKey", Repeated),
            (registry._KEMS, "_load", lambda *of: _kem(load_kem(*of), draw)),
            (registry._SIGNATURES, "_load", lambda *of: _signature(load_signature(*of), draw)),
        ):
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(clock.for_strategies())
        yield clock


def _expand(size: int, *parts: bytes) -> bytes:
    state = hashlib.shake_256(b"qsfl test seam")
    for part in parts:
        state.update(len(part).to_bytes(8, "big") + part)
    return state.digest(size)


def _streams(seed: int) -> Draw:
    taken: dict[str, int] = {}

    def draw(count: int, use: str) -> bytes:
        number = taken[use] = taken.get(use, 0) + 1
        return _expand(count, str(seed).encode(), use.encode(), str(number).encode())

    return draw


def _kem(kem: Kem, draw: Draw) -> Kem:
    """Return a KEM of the same sizes whose public key says everything."""

    def keygen() -> tuple[bytes, bytes]:
        secret = draw(kem.secret_key_size, "kem key")
        return _expand(kem.public_key_size, secret), secret

    def encapsulate(public: bytes) -> tuple[bytes, bytes]:
        ciphertext = draw(kem.ciphertext_size, "kem ciphertext")
        return ciphertext, _expand(kem.shared_secret_size, public, ciphertext)

    def decapsulate(secret: bytes, ciphertext: bytes) -> bytes:
        public = _expand(kem.public_key_size, secret)
        return _expand(kem.shared_secret_size, public, ciphertext)

    return replace(kem, functions=KemFunctions(keygen, encapsulate, decapsulate))


def _signature(scheme: Signature, draw: Draw) -> Signature:
    """Return a scheme of the same sizes whose signatures anybody can make."""

    def keygen() -> tuple[bytes, bytes]:
        secret = draw(scheme.secret_key_size, "signing key")
        return _expand(scheme.public_key_size, secret), secret

    def sign(secret: bytes, message: bytes, context: bytes) -> bytes:
        public = _expand(scheme.public_key_size, secret)
        return _expand(scheme.signature_size, public, message, context)

    def verify(public: bytes, message: bytes, signature: bytes, context: bytes) -> bool:
        return signature == _expand(scheme.signature_size, public, message, context)

    return replace(scheme, functions=SignatureFunctions(keygen, sign, verify))
