"""Differential privacy: the one description of the parameters of its stages.

A configuration promises an epsilon; the stages take the noise that keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.options import QuantileOptions, SampledOptions

COHORT = "Clients that a round is expected to have (with records: records): a constant."
ROUNDS = "Rounds that are planned; told to the clients."
_WORD = r"[A-Za-z_][A-Za-z0-9_]*"


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions(Options):
    """Keys that every kind of differential privacy has."""

    epsilon: float = option(
        "Largest loss of privacy of the whole run (epsilon); 1 is strong, 8 weak. Training ends "
        "before the round that would go beyond.",
        gt=0,
        le=1000,
    )
    delta: float = option(
        "Probability with which epsilon may be exceeded (delta); far below one over the number of "
        "protected people.",
        1e-5,
        gt=0,
        lt=1,
    )
    noise_multiplier: float | None = option(
        "Standard deviation of the noise over the sensitivity; null: the least for which all "
        "rounds cost at most epsilon.",
        None,
        gt=0,
    )
    ledger: str | None = option(
        "File of budgets, asked before every round and charged after it; null: none.", None
    )
    account: str = option("The ledger's account that holds the clients' accounts.", "federation")
    exhausted: Literal["stop", "exclude"] = option(
        "What becomes of a client whose account has no budget for the next round: the run stops; "
        "or, for central_dp with authenticate, goes on without asking the client.",
        "stop",
    )


@dataclass(frozen=True, kw_only=True)
class CentralDPOptions(PrivacyOptions):
    """Protects every client against everybody but the server, which adds the noise."""

    poisson: bool = option(
        "Draw each client independently with probability clients.fraction_train, which lowers the "
        "noise; otherwise every round counts in full for every client.",
        True,
    )
    last_over_first: float = option(
        "Noise multiplier of the last round over that of the first, changing geometrically; 1: "
        "constant.",
        1.0,
        gt=0,
        le=100,
    )
    accept_worst_case: bool = option(
        "Allow rules and filters that look at several clients, with noise for a sensitivity of "
        "twice the clip norm.",
        False,
    )


@dataclass(frozen=True, kw_only=True)
class AdaptiveClipOptions(QuantileOptions):
    """Clips to a norm that follows a quantile of the clients' norms, learnt under central_dp."""

    bit_noise: float | None = option(
        "Standard deviation of the noise on the number of clients within the norm (clients); null: "
        "the noise multiplier.",
        None,
        gt=0,
    )


@dataclass(frozen=True, kw_only=True)
class GradientOptions(Options):
    """How gradients of single records are computed; none of it costs privacy."""

    loss: str | None = option(
        "Import path of the loss, a function of the model's outputs and a batch's labels that "
        "returns one number; null: cross entropy.",
        None,
        schema={
            "pattern": rf"^{_WORD}(\.{_WORD})*:{_WORD}$",
            "max_length": 256,
            "x-allowed": "package.module:function or null",
        },
    )
    at_once: int | None = option(
        "Records whose gradients are in memory at a time, at most (records); null: all of a "
        "batch. The sum is the same.",
        None,
        ge=1,
        le=1_000_000,
    )


@dataclass(frozen=True, kw_only=True)
class RecordDPOptions(SampledOptions, GradientOptions, PrivacyOptions):
    """Protects every record against everybody but its own client, which trains by DP-SGD."""

    steps: int = option("Noisy steps of a client in a round.", 10, ge=1, le=100_000)
    copies: int = option(
        "Augmented copies of a record in a batch, whose mean gradient is clipped; more than 1 "
        "needs clients.augment.",
        1,
        ge=1,
        le=1000,
    )


@dataclass(frozen=True, kw_only=True)
class RecordBatchOptions(SampledOptions, GradientOptions):
    """Has one round be one step of DP-SGD over the records of all clients together."""

    count: int = option(
        "Records of all clients together, which is public: the sum is divided by count times "
        "sampling_rate.",
        ge=1,
        le=10**12,
    )


@dataclass(frozen=True, kw_only=True)
class DistributedDPOptions(PrivacyOptions):
    """Protects clients, or records, against the server too: clients add shares of the noise."""

    non_contributors: int = option(
        "Clients of a sum that may omit their noise or show it to the server; the others add more "
        "for them.",
        0,
        ge=0,
        le=100_000,
    )
    records: RecordBatchOptions | None = option(
        "Protect single records, by sums of clipped gradients; null: whole clients.", None
    )


@dataclass(frozen=True)
class ClippedOptions(Options):
    """What local noise is for."""

    clip_norm: float = option("Largest L2 norm of an update before noise.", gt=0)


@dataclass(frozen=True, kw_only=True)
class LocalDPOptions(ClippedOptions, PrivacyOptions):
    """Protects every client against everybody: it adds all of the noise to its own update."""


@dataclass(frozen=True)
class LocalNoise(ClippedOptions):
    """What a client does under local privacy, the same on both ends."""

    noise_multiplier: float = option(
        "Standard deviation of the noise over the sensitivity of twice the clip norm.", gt=0
    )
