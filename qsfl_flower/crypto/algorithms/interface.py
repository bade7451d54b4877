"""The two interfaces everything else is written against: a KEM and a signature scheme.

An algorithm is a frozen description of sizes plus the provider's functions. The methods check types
and lengths once, here, so that providers stay thin and behave alike:

- a *wrong length or type* of a key or ciphertext raises `InvalidKey`;
- a *bad signature* makes `verify` return False, whatever is bad about it;
- a *broken provider* raises `CryptoError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from qsfl_flower.crypto.codec import check_identifier
from qsfl_flower.crypto.errors import InvalidKey
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import CryptoError

# FIPS 204 allows 255 bytes; pqcrypto 1.0 refuses 254 and 255 when it signs and answers "invalid"
# when it verifies, so the shared limit is what every provider handles alike.
MAX_CONTEXT = 253


class KeyPair(NamedTuple):
    """A public key and the secret key that belongs to it."""

    public: bytes
    secret: Secret


class Encapsulation(NamedTuple):
    """A KEM ciphertext and the shared secret inside it."""

    ciphertext: bytes
    shared: Secret


class KemFunctions(NamedTuple):
    """What a provider supplies for a KEM, on plain bytes.

    ``keygen() -> (public, secret)``, ``encapsulate(public) -> (ciphertext, shared)``,
    ``decapsulate(secret, ciphertext) -> shared``. ValueError means an unusable key.
    """

    keygen: Callable[[], tuple[bytes, bytes]]
    encapsulate: Callable[[bytes], tuple[bytes, bytes]]
    decapsulate: Callable[[bytes, bytes], bytes]


class SignatureFunctions(NamedTuple):
    """What a provider supplies for a signature scheme, on plain bytes.

    ``keygen() -> (public, secret)``, ``sign(secret, message, context) -> signature``,
    ``verify(public, message, signature, context) -> bool``. ValueError means an unusable key.
    """

    keygen: Callable[[], tuple[bytes, bytes]]
    sign: Callable[[bytes, bytes, bytes], bytes]
    verify: Callable[[bytes, bytes, bytes, bytes], bool]


@dataclass(frozen=True)
class Kem:
    """A key-encapsulation mechanism of one provider.

    Parameters
    ----------
    name : str
        Standard name in lower case, such as ``"ml-kem-768"``.
    provider : str
        Whose implementation it is, such as ``"cryptography"``.
    public_key_size, ciphertext_size, shared_secret_size : int
        Bytes; the same for every provider of `name`.
    secret_key_size : int
        Bytes; depends on whether the provider stores the seed or the expanded key, so a secret
        key can be used only with a provider of the same size.
    functions : KemFunctions
        The implementation.

    References
    ----------
    National Institute of Standards and Technology, "Module-lattice-based key-encapsulation
    mechanism standard", 2024. doi:10.6028/NIST.FIPS.203.
    """

    name: str
    provider: str
    public_key_size: int
    secret_key_size: int
    ciphertext_size: int
    shared_secret_size: int
    functions: KemFunctions = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        check_identifier(self.name, "KEM name")
        check_identifier(self.provider, "provider name")

    def keygen(self) -> KeyPair:
        """Return a fresh key pair."""
        try:
            public, secret = self.functions.keygen()
        except Exception as error:
            _broken(self, "key generation", error)
        _produced(self, "public key", public, self.public_key_size)
        _produced(self, "secret key", secret, self.secret_key_size)
        return KeyPair(public, Secret(secret))

    def encapsulate(self, public: bytes) -> Encapsulation:
        """Return a fresh shared secret and the ciphertext that carries it to `public`."""
        public = _checked(self, "public key", public, self.public_key_size)
        try:
            ciphertext, shared = self.functions.encapsulate(public)
        except Exception as error:
            _broken(self, "encapsulation", error)
        _produced(self, "ciphertext", ciphertext, self.ciphertext_size)
        _produced(self, "shared secret", shared, self.shared_secret_size)
        return Encapsulation(ciphertext, Secret(shared))

    def decapsulate(self, secret: Secret, ciphertext: bytes) -> Secret:
        """Return the shared secret inside `ciphertext`.

        An altered ciphertext, or a secret key of another key pair, gives a different secret and no
        error (implicit rejection), so the caller must confirm the key before relying on it.
        """
        key = _checked(self, "secret key", secret, self.secret_key_size)
        ciphertext = _checked(self, "ciphertext", ciphertext, self.ciphertext_size)
        try:
            shared = self.functions.decapsulate(key, ciphertext)
        except Exception as error:
            _broken(self, "decapsulation", error)
        _produced(self, "shared secret", shared, self.shared_secret_size)
        return Secret(shared)


@dataclass(frozen=True)
class Signature:
    """A signature scheme of one provider.

    Signing is over the message itself with a context string (the "pure" variant of FIPS 204 and
    205), so that every provider of one `name` verifies what any other has signed.

    Parameters
    ----------
    name, provider : str
        As for `Kem`; ``"ml-dsa-65"`` for example.
    public_key_size, signature_size : int
        Bytes; the same for every provider of `name`.
    secret_key_size : int
        Bytes; the provider's own form (seed or expanded).
    functions : SignatureFunctions
        The implementation.

    References
    ----------
    National Institute of Standards and Technology, "Module-lattice-based digital signature
    standard", 2024. doi:10.6028/NIST.FIPS.204.
    """

    name: str
    provider: str
    public_key_size: int
    secret_key_size: int
    signature_size: int
    functions: SignatureFunctions = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        check_identifier(self.name, "signature name")
        check_identifier(self.provider, "provider name")

    def keygen(self) -> KeyPair:
        """Return a fresh key pair."""
        try:
            public, secret = self.functions.keygen()
        except Exception as error:
            _broken(self, "key generation", error)
        _produced(self, "public key", public, self.public_key_size)
        _produced(self, "secret key", secret, self.secret_key_size)
        return KeyPair(public, Secret(secret))

    def sign(self, secret: Secret, message: bytes, context: bytes = b"") -> bytes:
        """Return the signature of `message` under a context of at most 253 bytes."""
        key = _checked(self, "secret key", secret, self.secret_key_size)
        message, context = _message(self, message, context)
        try:
            signature = self.functions.sign(key, message, context)
        except Exception as error:
            _broken(self, "signing", error)
        _produced(self, "signature", signature, self.signature_size)
        return signature

    def verify(self, public: bytes, message: bytes, signature: bytes, context: bytes = b"") -> bool:
        """Return whether `signature` is one of `message` under `context` by the owner of `public`.

        Raises
        ------
        InvalidKey
            If `public` cannot be a key of this scheme.
        CryptoError
            If an argument has the wrong type or the provider fails.
        """
        public = _checked(self, "public key", public, self.public_key_size)
        message, context = _message(self, message, context)
        signature = _as_bytes(self, "signature", signature)
        if len(signature) != self.signature_size:
            return False
        try:
            valid = self.functions.verify(public, message, signature, context)
        except Exception as error:
            _broken(self, "verification", error)
        if not isinstance(valid, bool):
            # None, which some libraries return for success, must not read as "invalid" or "valid".
            raise CryptoError(f"provider {self.provider} did not answer True or False to verify")
        return valid


def _as_bytes(algorithm: Kem | Signature, what: str, value: object) -> bytes:
    if isinstance(value, Secret):
        return value.reveal()
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise InvalidKey(f"{algorithm.name}: the {what} must be bytes, got {type(value).__name__}")
    return bytes(value)


def _checked(algorithm: Kem | Signature, what: str, value: object, size: int) -> bytes:
    if (what == "secret key") != isinstance(value, Secret):
        expected = "a Secret" if what == "secret key" else "bytes"
        raise InvalidKey(
            f"{algorithm.name}: the {what} must be {expected}, got {type(value).__name__}"
        )
    data = _as_bytes(algorithm, what, value)
    if len(data) != size:
        raise InvalidKey(
            f"{algorithm.name} ({algorithm.provider}): the {what} has {len(data)} bytes, "
            f"must have {size}"
        )
    return data


def _message(algorithm: Signature, message: object, context: object) -> tuple[bytes, bytes]:
    data = _as_bytes(algorithm, "message", message)
    label = _as_bytes(algorithm, "context", context)
    if len(label) > MAX_CONTEXT:
        raise CryptoError(
            f"{algorithm.name}: the context has {len(label)} bytes, at most {MAX_CONTEXT} allowed"
        )
    return data, label


def _produced(algorithm: Kem | Signature, what: str, value: object, size: int) -> None:
    if not isinstance(value, bytes) or len(value) != size:
        raise CryptoError(
            f"provider {algorithm.provider} returned a {what} of {algorithm.name} that is not "
            f"{size} bytes"
        )


def _broken(algorithm: Kem | Signature, operation: str, error: Exception) -> NoReturn:
    # The provider's own text and traceback are dropped: they may show the arguments.
    kind = InvalidKey if isinstance(error, ValueError) else CryptoError
    raise kind(
        f"{operation} with {algorithm.name} failed in provider {algorithm.provider} "
        f"({type(error).__name__}): the key or ciphertext is not usable"
    ) from None
