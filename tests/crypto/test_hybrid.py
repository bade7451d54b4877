from __future__ import annotations

import dataclasses

import pytest

from qsfl_flower.crypto import hybrid
from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.errors import InvalidKey
from qsfl_flower.crypto.hybrid import (
    HybridKey,
    HybridPublicKey,
    ciphertext_size,
    combine,
    decapsulate,
    derive,
    encapsulate,
    key_id,
)
from qsfl_flower.crypto.secret import Secret

KEY = HybridKey.generate("ml-kem-768")


@pytest.mark.parametrize("kem", ["ml-kem-512", "ml-kem-768", "ml-kem-1024", "hqc-128"])
def test_both_sides_get_the_same_root(kem: str) -> None:
    key = HybridKey.generate(kem)
    ciphertext, root = encapsulate(key.public, b"context")
    assert len(ciphertext) == ciphertext_size(kem)
    assert decapsulate(key, ciphertext, b"context") == root
    assert decapsulate(key, ciphertext, b"other") != root
    assert encapsulate(key.public, b"context")[1] != root


def test_a_key_of_either_provider_opens_what_was_sent_to_it() -> None:
    from qsfl_flower.crypto.algorithms import find_kem

    pair = find_kem("ml-kem-768", "pqcrypto").keygen()
    public = dataclasses.replace(KEY.public, kem_key=pair.public)
    key = HybridKey(public, KEY.x25519, pair.secret)
    ciphertext, root = encapsulate(public, b"")
    assert decapsulate(key, ciphertext, b"") == root


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_an_altered_ciphertext_gives_another_root(at: int) -> None:
    ciphertext, root = encapsulate(KEY.public, b"")
    altered = bytearray(ciphertext)
    altered[at] ^= 1
    assert decapsulate(KEY, bytes(altered), b"") != root


def test_knowing_one_of_the_two_secrets_does_not_give_the_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A broken component is one whose secret the attacker knows: here it is all zeros. Everything
    # that was sent is known too. The root must still change with the other, unknown secret.
    known, unknown, guess = Secret(bytes(32)), Secret(b"u" * 32), Secret(b"g" * 32)
    ciphertext = encapsulate(KEY.public, b"")[0]
    for pair in (lambda s: (known, s), lambda s: (s, known)):
        root = combine(*pair(unknown), KEY.public, ciphertext, b"")
        assert combine(*pair(guess), KEY.public, ciphertext, b"") != root
        assert combine(*pair(known), KEY.public, ciphertext, b"") != root
    # The two secrets are not interchangeable either.
    assert combine(known, unknown, KEY.public, ciphertext, b"") != combine(
        unknown, known, KEY.public, ciphertext, b""
    )


@pytest.mark.parametrize("broken", ["x25519", "kem"])
def test_an_attacker_who_holds_one_private_key_cannot_open_the_exchange(broken: str) -> None:
    ciphertext, root = encapsulate(KEY.public, b"")
    wrong = HybridKey.generate("ml-kem-768")
    if broken == "x25519":  # a quantum computer: knows the X25519 key, guesses the ML-KEM key
        attacker = HybridKey(KEY.public, KEY.x25519, wrong.kem_key)
    else:  # a broken lattice scheme: knows the ML-KEM key, guesses the X25519 key
        attacker = HybridKey(KEY.public, wrong.x25519, KEY.kem_key)
    assert decapsulate(attacker, ciphertext, b"") != root
    assert decapsulate(KEY, ciphertext, b"") == root


def test_the_session_survives_a_constant_x25519(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrid, "_exchange", lambda private, public: Secret(bytes(32)))
    ciphertext, root = encapsulate(KEY.public, b"")
    assert decapsulate(KEY, ciphertext, b"") == root
    assert combine(Secret(bytes(32)), Secret(bytes(32)), KEY.public, ciphertext, b"") != root


def test_derived_keys_differ_by_every_label() -> None:
    root = Secret(b"r" * 32)
    labels = [(b"a",), (b"b",), (b"a", b"b"), (b"ab",), (b"", b"ab"), ()]
    assert len({derive(root, *label).reveal() for label in labels}) == len(labels)
    assert derive(root, b"a") != derive(Secret(b"s" * 32), b"a")


def test_public_key_round_trip_and_names() -> None:
    out = Writer()
    KEY.public.write(out)
    reader = Reader(out.done(), "key")
    assert HybridPublicKey.read(reader) == KEY.public
    reader.finish()
    same = KEY.public.x25519 + KEY.public.kem_key
    assert KEY.public.key_id == key_id("encryption", "ml-kem-768", same)
    assert KEY.public.key_id != key_id("signing", "ml-kem-768", same)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_small_order_points_are_refused(point: bytes) -> None:
    with pytest.raises(InvalidKey, match="small order"):
        encapsulate(dataclasses.replace(KEY.public, x25519=point), b"")
    ciphertext = encapsulate(KEY.public, b"")[0]
    if len(point) == 32:
        with pytest.raises(InvalidKey, match="small order"):
            decapsulate(KEY, point + ciphertext[32:], b"")


def test_a_short_ciphertext_is_refused() -> None:
    with pytest.raises(InvalidKey, match="ciphertext has"):
        decapsulate(KEY, b"", b"")
