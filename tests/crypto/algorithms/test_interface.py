from __future__ import annotations

import pytest

from qsfl_flower.crypto.algorithms import (
    Kem,
    KemFunctions,
    Signature,
    SignatureFunctions,
    find_kem,
    find_signature,
    kem_names,
    signature_names,
)
from qsfl_flower.crypto.errors import InvalidKey
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import CryptoError

KEMS = [(name, provider) for name, found in kem_names().items() for provider in found]
SIGNATURES = [(name, provider) for name, found in signature_names().items() for provider in found]
# The small ("s") parameter sets of SLH-DSA take seconds to sign; the fast ones share their code.
QUICK_SIGNATURES = [
    (name, provider)
    for name, provider in SIGNATURES
    if not name.startswith("slh") or "128f" in name
]


@pytest.mark.parametrize(("name", "provider"), KEMS)
def test_kem_agrees_on_a_secret_and_has_the_stated_sizes(name: str, provider: str) -> None:
    kem = find_kem(name, provider)
    public, secret = kem.keygen()
    ciphertext, shared = kem.encapsulate(public)
    assert kem.decapsulate(secret, ciphertext) == shared
    assert (len(public), len(secret)) == (kem.public_key_size, kem.secret_key_size)
    assert (len(ciphertext), len(shared)) == (kem.ciphertext_size, kem.shared_secret_size)
    assert kem.keygen().public != public


@pytest.mark.parametrize(("name", "provider"), KEMS)
def test_kem_rejects_an_altered_ciphertext_implicitly(name: str, provider: str) -> None:
    kem = find_kem(name, provider)
    public, secret = kem.keygen()
    ciphertext, shared = kem.encapsulate(public)
    altered = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
    assert kem.decapsulate(secret, altered) != shared
    assert kem.decapsulate(kem.keygen().secret, ciphertext) != shared


@pytest.mark.parametrize(("name", "provider"), KEMS)
def test_kem_names_wrong_lengths_and_types(name: str, provider: str) -> None:
    kem = find_kem(name, provider)
    public, secret = kem.keygen()
    ciphertext, _ = kem.encapsulate(public)
    with pytest.raises(InvalidKey, match=f"public key has {len(public) - 1} bytes, must have"):
        kem.encapsulate(public[1:])
    with pytest.raises(InvalidKey, match="must be bytes, got str"):
        kem.encapsulate("public")  # type: ignore[arg-type]
    with pytest.raises(InvalidKey, match="secret key must be a Secret, got bytes"):
        kem.decapsulate(secret.reveal(), ciphertext)  # type: ignore[arg-type]
    with pytest.raises(InvalidKey, match="secret key has"):
        kem.decapsulate(Secret(b"short"), ciphertext)
    with pytest.raises(InvalidKey, match="ciphertext has"):
        kem.decapsulate(secret, ciphertext + b"\0")


@pytest.mark.parametrize(("name", "provider"), [(n, p) for n, p in KEMS if n.startswith("ml-kem")])
def test_encapsulation_key_outside_the_field_is_refused(name: str, provider: str) -> None:
    # FIPS 203, section 7.2: coefficients of 4095 are not reduced modulo 3329.
    kem = find_kem(name, provider)
    with pytest.raises(InvalidKey, match="encapsulation"):
        kem.encapsulate(b"\xff" * kem.public_key_size)


@pytest.mark.parametrize(("name", "provider"), QUICK_SIGNATURES)
def test_signature_binds_message_context_and_key(name: str, provider: str) -> None:
    scheme = find_signature(name, provider)
    public, secret = scheme.keygen()
    signature = scheme.sign(secret, b"message", b"context")
    assert (len(public), len(secret)) == (scheme.public_key_size, scheme.secret_key_size)
    assert len(signature) == scheme.signature_size
    assert scheme.verify(public, b"message", signature, b"context")
    assert scheme.verify(public, memoryview(b"message"), bytearray(signature), b"context")  # type: ignore[arg-type]
    assert not scheme.verify(public, b"messagE", signature, b"context")
    assert not scheme.verify(public, b"message", signature, b"other")
    assert not scheme.verify(public, b"message", signature)
    assert not scheme.verify(scheme.keygen().public, b"message", signature, b"context")
    for at in (0, len(signature) // 2, len(signature) - 1):
        altered = bytearray(signature)
        altered[at] ^= 1
        assert not scheme.verify(public, b"message", bytes(altered), b"context")


@pytest.mark.parametrize(("name", "provider"), QUICK_SIGNATURES)
def test_bad_signature_is_false_and_bad_input_is_an_error(name: str, provider: str) -> None:
    scheme = find_signature(name, provider)
    public, secret = scheme.keygen()
    for signature in (b"", b"x", bytes(scheme.signature_size), bytes(scheme.signature_size + 1)):
        assert scheme.verify(public, b"message", signature) is False
    with pytest.raises(InvalidKey, match="public key has"):
        scheme.verify(public[:-1], b"message", b"x")
    with pytest.raises(InvalidKey, match="message must be bytes, got str"):
        scheme.sign(secret, "message")  # type: ignore[arg-type]
    with pytest.raises(CryptoError, match="254 bytes, at most 253"):
        scheme.sign(secret, b"message", b"c" * 254)
    with pytest.raises(CryptoError, match="254 bytes, at most 253"):
        scheme.verify(public, b"message", b"x", b"c" * 254)


@pytest.mark.parametrize("name", ["ml-kem-768", "ml-kem-1024"])
def test_kem_providers_interoperate_both_ways(name: str) -> None:
    for here, there in (("cryptography", "pqcrypto"), ("pqcrypto", "cryptography")):
        public, secret = find_kem(name, here).keygen()
        ciphertext, shared = find_kem(name, there).encapsulate(public)
        assert find_kem(name, here).decapsulate(secret, ciphertext) == shared


@pytest.mark.parametrize("name", ["ml-dsa-44", "ml-dsa-65", "ml-dsa-87"])
@pytest.mark.parametrize("context", [b"", b"context", b"c" * 253])
def test_signature_providers_interoperate_both_ways(name: str, context: bytes) -> None:
    for here, there in (("cryptography", "pqcrypto"), ("pqcrypto", "cryptography")):
        public, secret = find_signature(name, here).keygen()
        signature = find_signature(name, here).sign(secret, b"message", context)
        assert find_signature(name, there).verify(public, b"message", signature, context)
        assert not find_signature(name, there).verify(public, b"message", signature, b"other")


def _kem(**changes: object) -> Kem:
    functions = KemFunctions(
        lambda: (b"p" * 4, b"s" * 4), lambda _: (b"c" * 4, b"k" * 4), lambda _, __: b"k" * 4
    )
    return Kem("toy", "test", 4, 4, 4, 4, functions._replace(**changes))  # type: ignore[arg-type]


def _leak(*_: object) -> bytes:
    raise RuntimeError("s" * 4)


@pytest.mark.parametrize("bad", [b"short"[:3], "text", None])
def test_provider_that_returns_rubbish_is_named(bad: object) -> None:
    with pytest.raises(CryptoError, match="provider test returned a secret key of toy"):
        _kem(keygen=lambda: (b"p" * 4, bad)).keygen()
    with pytest.raises(CryptoError, match="returned a ciphertext"):
        _kem(encapsulate=lambda _: (bad, b"k" * 4)).encapsulate(b"p" * 4)
    with pytest.raises(CryptoError, match="returned a shared secret"):
        _kem(decapsulate=lambda _, __: bad).decapsulate(Secret(b"s" * 4), b"c" * 4)


def test_provider_failure_is_an_error_without_the_providers_text() -> None:
    for call in (
        lambda: _kem(keygen=_leak).keygen(),
        lambda: _kem(encapsulate=_leak).encapsulate(b"p" * 4),
        lambda: _kem(decapsulate=_leak).decapsulate(Secret(b"s" * 4), b"c" * 4),
    ):
        with pytest.raises(
            CryptoError, match=r"failed in provider test \(RuntimeError\)"
        ) as caught:
            call()
        assert "ssss" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("answer", [None, 1, "yes"])
def test_verify_that_does_not_answer_true_or_false_is_a_broken_provider(answer: object) -> None:
    functions = SignatureFunctions(
        lambda: (b"p", b"s"),
        lambda *_: b"sig",
        lambda *_: answer,  # type: ignore[arg-type,return-value]
    )
    scheme = Signature("toy", "test", 1, 1, 3, functions)
    with pytest.raises(CryptoError, match="did not answer True or False"):
        scheme.verify(b"p", b"m", b"sig")
