"""Sums through a committee: the one description of their parameters."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from qsfl_flower.errors import ConfigError
from qsfl_flower.plugins import Options, option
from qsfl_flower.secure.sizes import least_quorum


@dataclass(frozen=True)
class Committee(Options):
    """How many members there are, and when they answer.

    Parameters
    ----------
    members : int
        m, in [2, 16]: how many clients serve.
    threshold : int
        t: that many members open a sum; t - 1 and the server learn nothing of one client.
    quorum : int, optional
        q, in [t, m]: how many members must answer alike before a sum opens; ``m - q`` may vanish.
        By default, and at least, so many that a server which asks members for different sums gets
        one, also with t - 1 members on its side: ``2 q > m + t - 1``.
    min_clients : int
        Least number of clients in a sum, >= 2; each of them knows its own update.

    Raises
    ------
    ConfigError
        If a number is out of range.

    Examples
    --------
    >>> committee = Committee(members=7, threshold=3, quorum=5)
    >>> committee.quorum
    5
    """

    members: int = option("Committee members, taken from the round's clients.", 5, ge=2, le=16)
    threshold: int = option(
        "So many members open a sum; one fewer, with the server, learn nothing.", 3, ge=2, le=16
    )
    quorum: int | None = option(
        "So many members must answer alike before a sum opens: more than (members + threshold - 1) "
        "/ 2, so that a server with threshold - 1 of them on its side opens one sum only; null: "
        "the least such number.",
        None,
        ge=2,
        le=16,
    )
    min_clients: int = option("The members release no sum of fewer clients.", 3, ge=2, le=1 << 18)

    def __post_init__(self) -> None:
        super().__post_init__()
        least, why = least_quorum(self.members, self.threshold), "could open two different sums"
        for name, value, low, of_fewer in (
            ("threshold", self.threshold, 2, ""),
            ("quorum", self.least, least, f"; of fewer, a server with threshold - 1 of them {why}"),
        ):
            if not low <= value <= self.members:
                raise ConfigError(
                    f"committee: {name} is {value}; allowed are {low} to {self.members} in a "
                    f"committee of {self.members} with threshold {self.threshold}{of_fewer}"
                )

    @property
    def least(self) -> int:
        """The quorum, chosen or by default."""
        if self.quorum is not None:
            return self.quorum
        return least_quorum(self.members, self.threshold)


@dataclass(frozen=True)
class SharingOptions(Options):
    """What all sums through a committee have in common."""

    clip_norm: float = option(
        "Largest L2 norm of an update; the clients clip to it before sharing.", gt=0
    )
    _: KW_ONLY
    bits: int = option("Fractional bits of the fixed point: 2^-bits.", 24, ge=1, le=52)
    max_examples: int = option(
        "No client counts for more examples than this.", 1000, ge=1, le=10**12
    )
    metrics: tuple[str, ...] = option(
        "Metrics that are summed with the updates; others stay on the clients.",
        ("train-loss", "train-accuracy"),
    )
    enforce_norm: bool = option(
        "Open every client's norm and drop who is beyond clip_norm; the server then learns all "
        "norms. Needs members >= 2 threshold - 1.",
        False,
    )


@dataclass(frozen=True)
class SecureSumOptions(SharingOptions):
    """Hides every update; a committee of clients opens their sum (needs stage authenticate)."""

    committee: Committee = option("Who opens the sum.", Committee())
    _: KW_ONLY
    bound: float | None = option(
        "Largest magnitude of a coordinate with its noise; null: clip_norm, and under "
        "distributed_dp what its noise needs.",
        None,
        gt=0,
    )
    weighted: bool = option("Weigh by examples, which are hidden; false: all count alike.", True)


@dataclass(frozen=True)
class SecureKrumOptions(SharingOptions):
    """Multi-Krum on hidden updates: a committee opens their distances and the selected sum."""

    num_byzantine: int = option(
        "Clients that may send anything, f; a round needs 2 f + 3 clients.", ge=0, le=100_000
    )
    committee: Committee = option("Who opens the distances and the sum.", Committee())
    _: KW_ONLY
    num_selected: int | None = option(
        "Updates to average; null: n - f - 2.", None, ge=1, le=100_000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        selected, least = self.num_selected, self.committee.min_clients
        if selected is not None and selected < least:
            raise ConfigError(
                f"secure_krum: num_selected {selected} updates are never added up, since the "
                f"committee releases no sum of fewer than {least} (min_clients); raise the first "
                "or lower the second"
            )
