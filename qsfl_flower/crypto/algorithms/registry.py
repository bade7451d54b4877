"""Finding an algorithm by name and provider, and adding one from outside.

A third party adds an algorithm in one of two ways, without touching this package: it calls
`register_kem` or `register_signature` at run time, or its distribution declares an entry point in
the group ``qsfl_flower.algorithms`` naming a function without arguments that makes those calls.
Entry points are loaded when a name or provider is asked for that is not built in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from qsfl_flower.crypto.algorithms import providers
from qsfl_flower.crypto.algorithms.interface import Kem, Signature
from qsfl_flower.crypto.errors import AlgorithmUnavailable
from qsfl_flower.errors import CryptoError

ENTRY_POINT_GROUP = "qsfl_flower.algorithms"

# `auto` tries the built-in providers in this order. cryptography signs ML-DSA about eight times as
# fast (1.1 against 9.2 ms for ML-DSA-65) and encapsulates twice as fast; everything else is within
# a factor of two (benchmarks/bench_crypto.py prints it). pqcrypto has the algorithms it lacks.
PREFERENCE = ("cryptography", "pqcrypto")


Algorithm = TypeVar("Algorithm", bound=Kem | Signature)


class _Registry(Generic[Algorithm]):
    """Algorithms of one kind, by name and provider; the built-in ones are loaded when asked for."""

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, tuple[str, ...]],
        load: Callable[[str, str], Algorithm],
    ) -> None:
        self._kind = kind
        self._builtin = builtin
        self._load: Callable[[str, str], Algorithm] = cache(load)
        self._added: dict[tuple[str, str], Algorithm] = {}

    def add(self, algorithm: Algorithm) -> None:
        key = (algorithm.name, algorithm.provider)
        if algorithm.provider in self._builtin or algorithm.provider == "auto":
            raise CryptoError(
                f"provider name {algorithm.provider!r} is reserved; register {algorithm.name!r} "
                "under a provider name of your own"
            )
        if key in self._added:
            raise CryptoError(
                f"{self._kind} {key[0]!r} of provider {key[1]!r} is already registered"
            )
        self._added[key] = algorithm

    def names(self) -> dict[str, tuple[str, ...]]:
        _load_entry_points()
        found: dict[str, tuple[str, ...]] = {}
        for provider in PREFERENCE:
            for name in self._builtin[provider]:
                found[name] = (*found.get(name, ()), provider)
        for name, provider in self._added:
            found[name] = (*found.get(name, ()), provider)
        return found

    def find(self, name: str, provider: str, secret_key_size: int | None) -> Algorithm:
        failure: AlgorithmUnavailable | None = None
        for candidate in PREFERENCE if provider == "auto" else (provider,):
            if name not in self._builtin.get(candidate, ()):
                continue
            try:
                algorithm = self._load(name, candidate)
            except AlgorithmUnavailable as error:
                failure = error
            else:
                if secret_key_size in (None, algorithm.secret_key_size):
                    return algorithm
        _load_entry_points()
        for (known, owner), algorithm in self._added.items():
            if (
                known == name
                and provider in ("auto", owner)
                and secret_key_size in (None, algorithm.secret_key_size)
            ):
                return algorithm
        raise failure or AlgorithmUnavailable(self._missing(name, provider, secret_key_size))

    def _missing(self, name: str, provider: str, secret_key_size: int | None) -> str:
        known = self.names()
        if name not in known:
            return f"unknown {self._kind} {name!r}: known are {', '.join(sorted(known))}"
        size = "" if secret_key_size is None else f" with secret keys of {secret_key_size} bytes"
        return (
            f"{self._kind} {name!r} is not available from provider {provider!r}{size}: "
            f"use 'auto' or one of {', '.join(known[name])}"
        )


_KEMS: _Registry[Kem] = _Registry("KEM", providers.KEM_NAMES, providers.load_kem)
_SIGNATURES: _Registry[Signature] = _Registry(
    "signature", providers.SIGNATURE_NAMES, providers.load_signature
)


def find_kem(name: str, provider: str = "auto", *, secret_key_size: int | None = None) -> Kem:
    """Return a KEM by name.

    Parameters
    ----------
    name : str
        For example ``"ml-kem-768"``; `kem_names` lists them.
    provider : str
        ``"auto"`` (the fastest that is installed) or a provider's name.
    secret_key_size : int, optional
        Take only a provider whose secret keys have this many bytes: the way to find the provider
        for a stored key.

    Raises
    ------
    AlgorithmUnavailable
        If the name is unknown or no provider of it is installed; the message says what to install.
    """
    return _KEMS.find(name, provider, secret_key_size)


def find_signature(
    name: str, provider: str = "auto", *, secret_key_size: int | None = None
) -> Signature:
    """Return a signature scheme by name; the parameters are those of `find_kem`."""
    return _SIGNATURES.find(name, provider, secret_key_size)


def kem_names() -> dict[str, tuple[str, ...]]:
    """Return every known KEM with its providers, preferred first."""
    return _KEMS.names()


def signature_names() -> dict[str, tuple[str, ...]]:
    """Return every known signature scheme with its providers, preferred first."""
    return _SIGNATURES.names()


def register_kem(kem: Kem) -> None:
    """Make `kem` available to `find_kem` under its name and provider.

    Examples
    --------
    >>> import secrets
    >>> from qsfl_flower.crypto.algorithms import Kem, KemFunctions, find_kem, register_kem
    >>> def keygen():
    ...     key = secrets.token_bytes(32)
    ...     return key, key
    >>> toy = KemFunctions(keygen, lambda public: (public, public), lambda secret, _: secret)
    >>> register_kem(Kem("toy-kem", "example", 32, 32, 32, 32, toy))  # no security at all
    >>> find_kem("toy-kem").provider
    'example'
    """
    _KEMS.add(kem)


def register_signature(signature: Signature) -> None:
    """Make `signature` available to `find_signature` under its name and provider."""
    _SIGNATURES.add(signature)


_loaded_entry_points: set[EntryPoint] = set()


def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry in _loaded_entry_points:
            continue
        try:
            entry.load()()
        except Exception as error:
            raise CryptoError(
                f"entry point {entry.name!r} ({entry.value}) of group {ENTRY_POINT_GROUP!r} "
                f"failed: {error}"
            ) from error
        _loaded_entry_points.add(entry)
