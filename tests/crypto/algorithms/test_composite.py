from __future__ import annotations

import pytest

from qsfl_flower.crypto.algorithms import find_signature
from qsfl_flower.crypto.secret import Secret

COMPOSITE = find_signature("ml-dsa-65+ed25519")
PUBLIC, SECRET = COMPOSITE.keygen()


def test_sizes_are_those_of_both_parts() -> None:
    assert (COMPOSITE.public_key_size, COMPOSITE.signature_size) == (1952 + 32, 3309 + 64)
    assert (len(PUBLIC), len(SECRET)) == (1952 + 32, 32 + 32)


@pytest.mark.parametrize("broken", ["ml-dsa", "ed25519"])
def test_forging_one_part_is_not_enough(broken: str) -> None:
    other = COMPOSITE.keygen().secret.reveal()
    parts = (other[:32], SECRET.reveal()[32:]), (SECRET.reveal()[:32], other[32:])
    first, second = parts[0] if broken == "ed25519" else parts[1]
    # the attacker has one of the two secret keys and makes up the other
    forged = COMPOSITE.sign(Secret(first + second), b"message", b"context")
    assert not COMPOSITE.verify(PUBLIC, b"message", forged, b"context")


def test_a_part_is_no_signature_of_the_plain_scheme() -> None:
    plain = find_signature("ml-dsa-65")
    signature = COMPOSITE.sign(SECRET, b"message", b"context")
    assert COMPOSITE.verify(PUBLIC, b"message", signature, b"context")
    assert not plain.verify(PUBLIC[:-32], b"message", signature[:-64], b"context")


def test_parts_of_two_signatures_do_not_mix_over_different_messages() -> None:
    one = COMPOSITE.sign(SECRET, b"one", b"context")
    two = COMPOSITE.sign(SECRET, b"two", b"context")
    for message in (b"one", b"two"):
        assert not COMPOSITE.verify(PUBLIC, message, one[:-64] + two[-64:], b"context")
    assert not COMPOSITE.verify(PUBLIC, b"one", one, b"contex")
