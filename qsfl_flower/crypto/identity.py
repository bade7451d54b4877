"""Who the parties are: an authority, and clients and servers with keys of separate purposes.

A party makes its own keys and hands the public half to the authority in a signed request, so nobody
else ever holds a secret key, and nobody can enrol a key that they do not own. A party has one key
for signing, one for receiving encrypted payloads, and one for encrypting its own stored state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

from qsfl_flower.crypto.codec import Reader, Writer, check_identifier, check_text
from qsfl_flower.crypto.hybrid import HybridKey, HybridPublicKey
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.crypto.statement import SigningKey, VerifyKey
from qsfl_flower.crypto.suite import DEFAULT_SUITE, Suite
from qsfl_flower.errors import CryptoError

PartyRole = Literal["client", "server"]
ROLES: tuple[PartyRole, ...] = ("client", "server")


@dataclass(frozen=True)
class PublicIdentity:
    """What everybody may know of a party.

    Parameters
    ----------
    name : str
        Identifier, unique in the federation.
    role : {"client", "server"}
        What its signatures may be used for.
    organization : str
        Free printable text.
    signing : VerifyKey
        Key that verifies its signatures.
    encryption : HybridPublicKey
        Key to encrypt to.
    """

    name: str
    role: PartyRole
    organization: str
    signing: VerifyKey
    encryption: HybridPublicKey

    def __post_init__(self) -> None:
        check_identifier(self.name, "name")
        check_text(self.organization, "organization")
        if self.role not in ROLES:
            raise CryptoError(
                f"role {self.role!r} of {self.name} must be one of {', '.join(ROLES)}"
            )

    @property
    def suite(self) -> Suite:
        """The algorithms of its keys."""
        return Suite(self.encryption.kem, self.signing.algorithm)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits over name, role and keys, to compare over the telephone."""
        out = Writer()
        self.write(out)
        return _grouped(hashlib.sha256(out.done()).hexdigest())

    def write(self, out: Writer) -> None:
        """Append the canonical encoding."""
        out.text(self.name).uint(ROLES.index(self.role), 1).text(self.organization)
        self.signing.write(out)
        self.encryption.write(out)

    @classmethod
    def read(cls, data: Reader) -> PublicIdentity:
        """Read the canonical encoding."""
        name = data.identifier("name")
        role = data.uint(1)
        if role >= len(ROLES):
            raise data.fail(f"role {role}, at most {len(ROLES) - 1} allowed")
        organization = data.text()
        return cls(
            name, ROLES[role], organization, VerifyKey.read(data), HybridPublicKey.read(data)
        )


@dataclass(frozen=True)
class KeySet:
    """The secret keys of one generation of a party."""

    signing: SigningKey
    encryption: HybridKey
    storage: Secret
    created_at: int

    @classmethod
    def generate(cls, suite: Suite, now: int) -> KeySet:
        """Return fresh keys for the algorithms of `suite`."""
        return cls(
            signing=SigningKey.generate(suite.signature),
            encryption=HybridKey.generate(suite.kem),
            storage=Secret(random_bytes(32, "storage key")),
            created_at=now,
        )


@dataclass(frozen=True)
class Identity:
    """A party with its secret keys, newest first; older ones serve during a rotation.

    Parameters
    ----------
    name, role, organization
        As in `PublicIdentity`.
    keys : tuple of KeySet
        At least one.
    """

    name: str
    role: PartyRole
    organization: str
    keys: tuple[KeySet, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise CryptoError(f"identity {self.name} has no keys")
        self.public()  # checks name, role and organization

    def public(self, keys: KeySet | None = None) -> PublicIdentity:
        """Return the public half with the keys of one generation (the newest by default)."""
        keys = keys or self.keys[0]
        return PublicIdentity(
            self.name, self.role, self.organization, keys.signing.public, keys.encryption.public
        )

    @property
    def decryption_keys(self) -> tuple[HybridKey, ...]:
        """The keys under which others may have encrypted to this party, newest first."""
        return tuple(keys.encryption for keys in self.keys)

    def rotated(self, now: int, suite: Suite = DEFAULT_SUITE) -> Identity:
        """Return the identity with a new generation of keys in front of the current one.

        Only the current and the new generation are kept: the overlap of a rotation ends at the
        latest when the next one begins.
        """
        return replace(self, keys=(KeySet.generate(suite, now), self.keys[0]))


def create_identity(
    name: str,
    *,
    now: int,
    role: PartyRole = "client",
    organization: str = "",
    suite: Suite = DEFAULT_SUITE,
) -> Identity:
    """Return a new party with fresh keys; `now` is Unix time in seconds."""
    check_identifier(name, "name")
    return Identity(name, role, organization, (KeySet.generate(suite, now),))


@dataclass(frozen=True)
class AuthorityKey:
    """The public half of an authority: what every party must have got over a trusted path."""

    name: str
    key: VerifyKey

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits over name and key, to compare over the telephone."""
        out = Writer().text(self.name)
        self.key.write(out)
        return _grouped(hashlib.sha256(out.done()).hexdigest())


@dataclass(frozen=True)
class Authority:
    """Whoever decides who belongs to the federation; its key signs rosters and nothing else."""

    name: str
    signing: SigningKey

    def __post_init__(self) -> None:
        check_identifier(self.name, "name of the authority")

    @property
    def public(self) -> AuthorityKey:
        """What to hand to every party."""
        return AuthorityKey(self.name, self.signing.public)


def create_authority(name: str, algorithm: str = DEFAULT_SUITE.signature) -> Authority:
    """Return a new authority with a fresh key of the named signature scheme."""
    return Authority(name, SigningKey.generate(algorithm))


def _grouped(digits: str) -> str:
    return " ".join(digits[at : at + 8] for at in range(0, len(digits), 8))
