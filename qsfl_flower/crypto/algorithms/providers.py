"""The two built-in providers: ``cryptography`` (OpenSSL) and ``pqcrypto`` (Rust).

Both sign and verify pure ML-DSA with the FIPS 204 context, so signatures, public keys and
ciphertexts are interchangeable. Secret keys are not: ``cryptography`` keeps the seed (32 bytes for
ML-DSA, 64 for ML-KEM), ``pqcrypto`` the expanded key, and neither converts.
"""

from __future__ import annotations

import importlib
from typing import Any

from qsfl_flower.crypto.algorithms.composite import with_ed25519
from qsfl_flower.crypto.algorithms.interface import (
    Kem,
    KemFunctions,
    Signature,
    SignatureFunctions,
)
from qsfl_flower.crypto.errors import AlgorithmUnavailable

# name -> (class prefix in cryptography, public key, ciphertext) and (prefix, public key, signature)
_CRYPTOGRAPHY_KEMS = {
    "ml-kem-768": ("MLKEM768", 1184, 1088),
    "ml-kem-1024": ("MLKEM1024", 1568, 1568),
}
_CRYPTOGRAPHY_SIGNATURES = {
    "ml-dsa-44": ("MLDSA44", 1312, 2420),
    "ml-dsa-65": ("MLDSA65", 1952, 3309),
    "ml-dsa-87": ("MLDSA87", 2592, 4627),
}
_PQCRYPTO_KEMS = ("ml-kem-512", "ml-kem-768", "ml-kem-1024", "hqc-128", "hqc-192", "hqc-256")
_PQCRYPTO_SIGNATURES = (
    "ml-dsa-44",
    "ml-dsa-65",
    "ml-dsa-87",
    *(
        f"slh-dsa-{digest}-{bits}{variant}"
        for digest in ("sha2", "shake")
        for bits in (128, 192, 256)
        for variant in ("s", "f")
    ),
)

COMPOSITE = "ml-dsa-65+ed25519"

KEM_NAMES = {"cryptography": tuple(_CRYPTOGRAPHY_KEMS), "pqcrypto": _PQCRYPTO_KEMS}
SIGNATURE_NAMES = {
    "cryptography": (*_CRYPTOGRAPHY_SIGNATURES, COMPOSITE),
    "pqcrypto": _PQCRYPTO_SIGNATURES,
}


def load_kem(name: str, provider: str) -> Kem:
    """Return a built-in KEM; `AlgorithmUnavailable` says what to install if it cannot be had."""
    return _cryptography_kem(name) if provider == "cryptography" else _pqcrypto_kem(name)


def load_signature(name: str, provider: str) -> Signature:
    """Return a built-in signature scheme; see `load_kem`."""
    if name == COMPOSITE:
        return with_ed25519(_cryptography_signature("ml-dsa-65"))
    if provider == "cryptography":
        return _cryptography_signature(name)
    return _pqcrypto_signature(name)


def _cryptography_kem(name: str) -> Kem:
    prefix, public_size, ciphertext_size = _CRYPTOGRAPHY_KEMS[name]
    private, public = _cryptography_classes("mlkem", prefix, name)

    def keygen() -> tuple[bytes, bytes]:
        key = private.generate()
        return key.public_key().public_bytes_raw(), key.private_bytes_raw()

    def encapsulate(key: bytes) -> tuple[bytes, bytes]:
        shared, ciphertext = public.from_public_bytes(key).encapsulate()
        return ciphertext, shared

    def decapsulate(key: bytes, ciphertext: bytes) -> bytes:
        shared: bytes = private.from_seed_bytes(key).decapsulate(ciphertext)
        return shared

    return Kem(
        name=name,
        provider="cryptography",
        public_key_size=public_size,
        secret_key_size=64,
        ciphertext_size=ciphertext_size,
        shared_secret_size=32,
        functions=KemFunctions(keygen, encapsulate, decapsulate),
    )


def _cryptography_signature(name: str) -> Signature:
    prefix, public_size, signature_size = _CRYPTOGRAPHY_SIGNATURES[name]
    private, public = _cryptography_classes("mldsa", prefix, name)
    from cryptography.exceptions import InvalidSignature

    def keygen() -> tuple[bytes, bytes]:
        key = private.generate()
        return key.public_key().public_bytes_raw(), key.private_bytes_raw()

    def sign(key: bytes, message: bytes, context: bytes) -> bytes:
        signature: bytes = private.from_seed_bytes(key).sign(message, context)
        return signature

    def verify(key: bytes, message: bytes, signature: bytes, context: bytes) -> bool:
        try:
            public.from_public_bytes(key).verify(signature, message, context)
        except InvalidSignature:
            return False
        return True

    return Signature(
        name=name,
        provider="cryptography",
        public_key_size=public_size,
        secret_key_size=32,
        signature_size=signature_size,
        functions=SignatureFunctions(keygen, sign, verify),
    )


def _cryptography_classes(module: str, prefix: str, name: str) -> tuple[Any, Any]:
    problem = (
        f"{name} is not available from provider 'cryptography': install 'cryptography>=50' built "
        "with an OpenSSL that has it (the wheels do), or install 'pqcrypto>=1.0,<2'"
    )
    try:
        classes = importlib.import_module(f"cryptography.hazmat.primitives.asymmetric.{module}")
        private = getattr(classes, f"{prefix}PrivateKey")
        private.generate()  # the classes exist even where the linked OpenSSL lacks the algorithm
    except Exception as error:
        raise AlgorithmUnavailable(f"{problem} ({type(error).__name__})") from error
    return private, getattr(classes, f"{prefix}PublicKey")


def _pqcrypto_kem(name: str) -> Kem:
    module = _pqcrypto_module("kem", name)
    return Kem(
        name=name,
        provider="pqcrypto",
        public_key_size=module.PUBLIC_KEY_SIZE,
        secret_key_size=module.SECRET_KEY_SIZE,
        ciphertext_size=module.CIPHERTEXT_SIZE,
        shared_secret_size=module.SHARED_SECRET_SIZE,
        functions=KemFunctions(module.keygen, module.encaps, module.decaps),
    )


def _pqcrypto_signature(name: str) -> Signature:
    module = _pqcrypto_module("sign", name)
    from pqcrypto import InvalidSignatureError

    def verify(key: bytes, message: bytes, signature: bytes, context: bytes) -> bool:
        try:
            module.verify(key, message, signature, context)  # None means valid
        except InvalidSignatureError:
            return False
        return True

    return Signature(
        name=name,
        provider="pqcrypto",
        public_key_size=module.PUBLIC_KEY_SIZE,
        secret_key_size=module.SECRET_KEY_SIZE,
        signature_size=module.SIGNATURE_SIZE,
        functions=SignatureFunctions(module.keygen, module.sign, verify),
    )


def _pqcrypto_module(kind: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"pqcrypto.{kind}"), name.replace("-", "_"))
    except (ImportError, AttributeError) as error:
        raise AlgorithmUnavailable(
            f"{name} is not available from provider 'pqcrypto': install 'pqcrypto>=1.0,<2'"
        ) from error
