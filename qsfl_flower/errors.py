"""The exceptions of the suite: one base class, one class per kind of trouble.

Every message says what was wrong, where, and what is allowed. Text that comes from outside goes
through `plain` where it enters.
"""

from __future__ import annotations

_LONGEST_DETAIL = 600

INTERNAL = "internal"
"""Reason of a rejection that a fault of ours caused, and not the reply."""


def plain(text: object, most: int = 300) -> str:
    """Return text from outside as it may stand in a log, a report or a terminal: one short line.

    Control characters, escape sequences, line breaks and what changes the direction of writing
    become ``?`` or a space; nothing else in the text changes.

    Parameters
    ----------
    text : object
        Anything; what is no text is shown as its ``str``.
    most : int
        Longest result in characters, >= 0.
    """
    try:
        shown = str(text)[:most]
    except Exception:  # an object that cannot even be shown, such as an integer of 5,000 digits
        shown = f"<{type(text).__name__}>"[:most]
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in shown)


class QSFLError(Exception):
    """Base class of every error that the suite raises on purpose."""


class ConfigError(QSFLError):
    """A configuration (YAML, constructor argument, command line) is not usable."""


class DataError(QSFLError):
    """A data set or a partition is missing, damaged or does not fit the request."""


class MissingData(DataError):
    """A data set that can be downloaded is not on this machine."""


class RejectedUpdate(QSFLError):
    """One client's message is not acceptable; the round goes on without it.

    Parameters
    ----------
    reason : str
        Short machine-readable name, counted in the metrics (``"not-finite"``).
    detail : str
        One sentence for a person: what was found, where, what is allowed. It goes through `plain`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        detail = plain(detail, _LONGEST_DETAIL)
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RejectedUpdate], tuple[str, str]]:
        """Let the error travel between processes."""
        return type(self), (self.reason, self.detail)


def other_instruction(client: str, server_round: int) -> RejectedUpdate:
    """Return why a client's part of a hidden sum does not count: it was made for another one."""
    return RejectedUpdate(
        "other-instruction",
        f"{client} vouches for another model, configuration or plan than it was sent in round "
        f"{server_round}; give its node the server's release of qsfl-flower, and put no mod that "
        "changes instructions between auth_mod and qsfl_mod; if it goes on, look who holds its key",
    )


REFUSALS = frozenset(
    {
        "device-battery-low",
        "device-busy",
        "device-in-use",
        "device-metered",
        "device-offline",
        "device-too-small",
        "device-unknown",
        "lora-adapters",
        "lora-base",
        "lora-method",
        "lora-tokenizer",
        "lora-tokens",
        "privacy-delta-too-large",
        "privacy-epsilon-too-large",
        "privacy-no-protection",
        "privacy-not-carried-out",
        "privacy-placement-not-accepted",
        "privacy-too-many-releases",
        "policy-bits",
        "policy-cohort",
        "policy-committee",
        "policy-in-the-clear",
        "policy-kept-state",
        "policy-message-type",
        "policy-openings",
        "policy-other-cohort",
        "policy-other-instruction",
        "policy-plan",
        "policy-questions",
        "policy-query",
        "policy-releases",
        "policy-roles",
        "policy-seat",
        "policy-second-answer",
        "policy-server",
        "policy-terms",
        "policy-threshold",
        "policy-unknown-step",
        "policy-weights",
        "policy-window",
    }
)
"""The reasons that a device may give for refusing what it was asked; any other is malformed."""

COMPLAINTS = REFUSALS | {"bad-packet", "refused"}
"""Those that a device may give inside a masked sum."""


class Refusal(QSFLError):
    """A device refuses what it was asked; the server counts the reason and goes on without it.

    Parameters
    ----------
    reason : str
        One of `REFUSALS`.
    detail : str
        One sentence for a person: what was asked, what is allowed here. It must not depend on the
        device's data.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REFUSALS:
            raise ValueError(f"{reason!r} is not one of REFUSALS")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, str]]:
        """Let the error travel between processes."""
        return type(self), (self.reason, self.detail)


class CompositionError(ConfigError):
    """Two stages cannot be combined with their guarantees intact."""


class TooFewReplies(QSFLError):
    """So few usable replies came back that the run cannot go on."""


class CheckpointError(QSFLError):
    """A checkpoint is damaged, foreign, or cannot be written."""


class RunError(QSFLError):
    """A run ended without a usable result."""


class RunInterrupted(QSFLError):
    """The run was asked to stop (Ctrl-C, SIGTERM); its last checkpoint is complete."""


class CryptoError(QSFLError):
    """A cryptographic operation failed or a key, message or roster is not acceptable."""


class BudgetExceeded(QSFLError):
    """A release would overspend an account.

    Parameters
    ----------
    path : str
        The account.
    requested : float
        Epsilon that the account would have after the release.
    available : float
        Epsilon that it may have.
    period : bool
        Whether the limit is that of the current period.
    """

    def __init__(self, path: str, requested: float, available: float, period: bool) -> None:
        limit = "its limit for this period" if period else "its budget"
        super().__init__(
            f"account {path!r} would reach epsilon = {requested:.4g}; {limit} is {available:g}"
        )
        self.path, self.requested, self.available = path, requested, available
        self.period = period

    def __reduce__(self) -> tuple[type[BudgetExceeded], tuple[str, float, float, bool]]:
        """Let the error travel between processes."""
        return type(self), (self.path, self.requested, self.available, self.period)
