"""The stages of differential privacy, and what clients demand."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from qsfl_flower.simulations.config.base import IMPORT_PATH, Section

Placement = Literal["record", "distributed-record", "local", "distributed", "central"]


class PrivacyKeys(Section):
    """Keys that every kind of differential privacy has."""

    epsilon: float = Field(
        gt=0,
        le=1000,
        description="Largest loss of privacy of the whole run (epsilon); 1 is strong, 8 weak. "
        "Training ends before the round that would go beyond.",
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="Probability with which epsilon may be exceeded (delta); far below one over "
        "the number of protected people.",
    )
    noise_multiplier: float | None = Field(
        default=None,
        gt=0,
        description="Standard deviation of the noise over the sensitivity; null: the least for "
        "which all rounds cost at most epsilon.",
    )
    ledger: str | None = Field(
        default=None,
        description="File of budgets, asked before every round and charged after it; null: none.",
    )
    account: str = Field(
        default="federation",
        description="The ledger's account that holds the clients' accounts.",
    )
    exhausted: Literal["stop", "exclude"] = Field(
        default="stop",
        description="What becomes of a client whose account has no budget for the next round: the "
        "run stops; or, for central_dp with authenticate, goes on without asking the client.",
    )


class CentralDPSpec(PrivacyKeys):
    """Protects every client against everybody but the server, which adds the noise."""

    stage: Literal["central_dp"] = Field(description="Name of the stage.")
    poisson: bool = Field(
        default=True,
        description="Draw each client independently with probability clients.fraction_train, which "
        "lowers the noise; otherwise every round counts in full for every client.",
    )
    last_over_first: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Noise multiplier of the last round over that of the first, changing "
        "geometrically; 1: constant.",
    )
    accept_worst_case: bool = Field(
        default=False,
        description="Allow rules and filters that look at several clients, with noise for a "
        "sensitivity of twice the clip norm.",
    )


class AdaptiveClipSpec(Section):
    """Clips to a norm that follows a quantile of the clients' norms, learnt under central_dp."""

    stage: Literal["adaptive_clip"] = Field(description="Name of the stage.")
    initial: float = Field(gt=0, description="Clip norm of the first round.")
    quantile: float = Field(
        default=0.5, gt=0, lt=1, description="Share of the clients that should not be clipped."
    )
    learning_rate: float = Field(
        default=0.2, gt=0, le=10, description="How fast the clip norm follows."
    )
    bit_noise: float | None = Field(
        default=None,
        gt=0,
        description="Standard deviation of the noise on the number of clients within the norm "
        "(clients); null: the noise multiplier.",
    )


class RecordTrainingKeys(Section):
    """How gradients of single records are computed; none of it costs privacy."""

    loss: Annotated[str, StringConstraints(max_length=256, pattern=rf"^{IMPORT_PATH}$")] | None = (
        Field(
            default=None,
            description="Import path of the loss, a function of the model's outputs and a batch's "
            "labels that returns one number; null: cross entropy.",
            json_schema_extra={"x-allowed": "package.module:function or null"},
        )
    )
    at_once: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Records whose gradients are in memory at a time, at most (records); null: "
        "all of a batch. The sum is the same.",
    )


class RecordDPSpec(PrivacyKeys, RecordTrainingKeys):
    """Protects every record against everybody but its own client, which trains by DP-SGD."""

    stage: Literal["record_dp"] = Field(description="Name of the stage.")
    clip_norm: float = Field(gt=0, description="Largest L2 norm of one record's gradient.")
    sampling_rate: float = Field(
        gt=0, le=1, description="Probability with which a record is in a batch."
    )
    steps: int = Field(
        default=10, ge=1, le=100_000, description="Noisy steps of a client in a round."
    )
    copies: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Augmented copies of a record in a batch, whose mean gradient is clipped; more "
        "than 1 needs clients.augment.",
    )


class RecordBatchSpec(RecordTrainingKeys):
    """Has one round be one step of DP-SGD over the records of all clients together."""

    clip_norm: float = Field(gt=0, description="Largest L2 norm of one record's gradient.")
    sampling_rate: float = Field(
        gt=0, le=1, description="Probability with which a record is in a client's batch."
    )
    count: int = Field(
        ge=1,
        le=10**12,
        description="Records of all clients together, which is public: the sum is divided by "
        "count times sampling_rate.",
    )


class DistributedDPSpec(PrivacyKeys):
    """Protects clients, or records, against the server too: clients add shares of the noise."""

    stage: Literal["distributed_dp"] = Field(description="Name of the stage.")
    non_contributors: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Clients of a sum that may omit their noise or show it to the server; the "
        "others add more for them.",
    )
    records: RecordBatchSpec | None = Field(
        default=None,
        description="Protect single records, by sums of clipped gradients; null: whole clients.",
    )


class LocalDPSpec(PrivacyKeys):
    """Protects every client against everybody: it adds all of the noise to its own update."""

    stage: Literal["local_dp"] = Field(description="Name of the stage.")
    clip_norm: float = Field(gt=0, description="Largest L2 norm of an update before noise.")


class MinimumSpec(Section):
    """The least protection under which clients train."""

    epsilon: float = Field(gt=0, description="Largest epsilon that is accepted for a run.")
    delta: float = Field(
        default=1e-5, gt=0, lt=1, description="Largest delta that is accepted (delta)."
    )
    placements: tuple[Placement, ...] = Field(
        default=("record", "distributed-record", "local", "distributed", "central"),
        min_length=1,
        strict=False,
        description="Who may add the noise; without central the server need not be trusted.",
    )
