"""Which algorithms a federation uses; fixed by its authority, never negotiated."""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.crypto.codec import Reader, Writer, check_identifier


@dataclass(frozen=True)
class Suite:
    """The post-quantum algorithms of a party; the classical parts are the same for all.

    X25519, HKDF-SHA-256, AES-256-GCM and SHA-256 belong to the protocol version. There is nothing
    to negotiate: a verifier has a list of suites that it accepts, and whoever shows another one is
    refused as ``downgraded-algorithm``.

    Parameters
    ----------
    kem : str
        KEM beside X25519.
    signature : str
        Signature scheme.
    """

    kem: str = "ml-kem-768"
    signature: str = "ml-dsa-65"

    def __post_init__(self) -> None:
        check_identifier(self.kem, "KEM name")
        check_identifier(self.signature, "signature name")

    def __str__(self) -> str:
        return f"x25519+{self.kem}/{self.signature}"

    def write(self, out: Writer) -> None:
        """Append the canonical encoding."""
        out.text(self.kem).text(self.signature)

    @classmethod
    def read(cls, data: Reader) -> Suite:
        """Read the canonical encoding."""
        return cls(data.identifier("KEM name"), data.identifier("signature name"))


DEFAULT_SUITE = Suite()
