"""What can go wrong in the crypto layer, by kind and, for a peer's message, by named reason."""

from __future__ import annotations

from enum import StrEnum

from qsfl_flower.errors import CryptoError, RejectedUpdate


class Reason(StrEnum):
    """Why a message, key or roster entry was not accepted.

    The value is what metrics and security logs count. Reasons are ordered as they are checked:
    form, then who, then with which key, then whether it belongs here and now.
    """

    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    WRONG_KEY = "wrong-key"
    DOWNGRADED = "downgraded-algorithm"
    BAD_SIGNATURE = "bad-signature"
    WRONG_RUN = "wrong-run"
    WRONG_NODE = "wrong-node"
    STALE_ROUND = "stale-round"
    REPLAY = "replay"
    ROLLED_BACK = "rolled-back"


class Rejected(RejectedUpdate, CryptoError):
    """A peer's message is not acceptable; whoever sent it has no effect on the round.

    Parameters
    ----------
    reason : Reason
        Machine-readable name, counted in the metrics.
    detail : str
        One sentence for a person: what was found, where, what is allowed.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason.value, detail)

    def __reduce__(self) -> tuple[type[Rejected], tuple[Reason, str]]:
        # Exceptions are rebuilt from `args`, which is the finished text; simulations send them
        # from one process to another.
        return Rejected, (Reason(self.reason), self.detail)


class Malformed(Rejected):
    """Bytes that are not a message of the expected format and version."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.MALFORMED, detail)


class AlgorithmUnavailable(CryptoError):
    """No installed provider has the requested algorithm."""


class InvalidKey(CryptoError):
    """A key, ciphertext or secret has the wrong type, length or content."""


class DecryptionFailed(CryptoError):
    """A ciphertext was altered, or was made for another key or another context."""


class KeyFileError(CryptoError):
    """A key file is missing, damaged, too widely readable, or its passphrase is wrong."""
