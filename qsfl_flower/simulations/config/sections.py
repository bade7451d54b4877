"""The sections of an experiment other than the strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.simulations.config.base import (
    IMPORT_PATH,
    Contradiction,
    OptionValues,
    PlaceText,
    Section,
    options_of,
    refuse,
)
from qsfl_flower.simulations.config.data import Names
from qsfl_flower.simulations.config.described import keys_of

BUILT_IN_MODELS = ("linear", "mlp", "mnist-cnn", "cifar-cnn", "resnet18")


def model_name(names: tuple[str, ...]) -> Any:
    """Return type and field of the name of a model, if there are these."""
    words = StringConstraints(max_length=256, pattern=rf"^({'|'.join(names)}|{IMPORT_PATH})$")
    field = Field(
        default="mlp",
        description="A model of the suite, or the import path of a function that returns a "
        "torch module.",
        examples=list(names),
        json_schema_extra={"x-allowed": f"one of {', '.join(names)}, or package.module:factory"},
    )
    return Annotated[str, words], field


class ModelSpec(Section):
    """What is trained."""

    name: model_name(BUILT_IN_MODELS)[0] = model_name(BUILT_IN_MODELS)[1]  # type: ignore[valid-type]
    options: OptionValues = options_of("name", "the model: keywords of its factory")
    loss: Literal["cross-entropy", "binary-cross-entropy", "mse", "l1", "huber"] | None = Field(
        default=None,
        description="What training minimizes; null: cross-entropy for data.task classes, "
        "binary-cross-entropy for labels, mse for values.",
    )
    frozen: Names = Field(
        default=(),
        description="Layers, by name or class, or single arrays that keep their first values: they "
        "are not trained, sent, noised or masked.",
    )
    local: Names = Field(
        default=(),
        description="Layers, by name or class, or single arrays that stay on each device; FedBN is "
        "[BatchNorm2d]. The server's evaluation sees their first values.",
    )


if TYPE_CHECKING:
    MinimumSpec = Any
else:
    MinimumSpec = keys_of(MinimumPolicy)


class PolicySpec(Section):
    """What every simulated node insists on, as a policy file on a real node does."""

    hidden_only: bool | None = Field(
        default=None,
        description="Send updates under a secure sum only, and evaluate nothing; without a value "
        "true where least_cohort is not 3.",
    )
    kept_state: bool = Field(
        default=False,
        description="With hidden_only: let what earlier training left on a node (local weights, "
        "residuals, control variates, personal layers) take part in later hidden sums.",
    )
    openings: tuple[Literal["sum", "norms", "distances"], ...] = Field(
        default=("sum", "norms", "distances"),
        strict=False,
        description="What a committee may open of hidden updates.",
    )
    least_cohort: int = Field(
        default=3, ge=2, le=100_000, description="Fewest clients in a sum, by weight."
    )
    least_threshold: int = Field(
        default=2, ge=2, le=16, description="Fewest committee members that together open a sum."
    )
    least_bits: int = Field(
        default=16, ge=1, le=61, description="Fewest fractional bits of a hidden sum."
    )
    weights: bool = Field(
        default=False,
        description="Accept hidden sums whose public weights differ, as staleness makes them.",
    )
    window: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Most rounds whose updates may come together in a hidden sum; asynchronous "
        "strategies need max_staleness + 1.",
    )


class ClientsSpec(Section):
    """How many clients there are and how each of them trains."""

    count: int = Field(default=10, ge=1, le=100_000, description="Number of clients.")
    fraction_train: float = Field(
        default=1.0, gt=0, le=1, description="Share of the clients that trains in a round."
    )
    fraction_evaluate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the clients that evaluates in a round, on its held-out examples.",
    )
    epochs: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Passes over the client's examples in a round (epochs).",
    )
    batch_size: int = Field(
        default=32, ge=1, le=1_000_000, description="Examples per training step (examples)."
    )
    learning_rate: float = Field(
        default=0.05, gt=0, description="Learning rate of the first round."
    )
    momentum: float = Field(
        default=0.0, ge=0, lt=1, description="Momentum of optimizer sgd; must be 0 for the others."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of the optimizer.")
    optimizer: Literal["sgd", "adam", "adamw"] = Field(
        default="sgd", description="Optimizer; its state starts anew in every round."
    )
    grad_clip_norm: float | None = Field(
        default=None,
        gt=0,
        description="Largest L2 norm of the gradient in a step; null: no clipping.",
    )
    lr_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="The learning rate is multiplied by this after every round.",
    )
    warmup_rounds: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="First rounds in which the learning rate increases to its value.",
    )
    cosine_rounds: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Rounds over which the learning rate falls to 0 like half a cosine; "
        "null: it does not.",
    )
    minimum_privacy: MinimumSpec | None = Field(
        default=None,
        description="Least protection under which the clients train; null: they demand none.",
    )
    policy: PolicySpec = Field(
        default=PolicySpec(), description="What every node insists on, whatever the server asks."
    )
    mixed_precision: bool = Field(
        default=False, description="Compute in bfloat16 where that is safe."
    )
    selection: Literal["random", "fair", "fast", "diverse", "power-of-choice", "available"] = Field(
        default="random", description="Policy by which the server selects clients."
    )
    selection_options: OptionValues = options_of("selection", "the policy")
    algorithm: Literal["fit"] = Field(
        default="fit",
        description="What a client does with its examples: fit, the steps described here; plugins "
        "bring others.",
    )
    algorithm_options: OptionValues = options_of("algorithm", "the algorithm")
    declare_labels: bool = Field(
        default=False,
        description="Clients report their share of each label, which 'diverse' needs.",
    )
    augment: bool = Field(
        default=False,
        description="Vary the training pictures at random in ways that keep their label.",
    )

    @model_validator(mode="after")
    def _momentum_fits(self) -> Self:
        if self.momentum > 0 and self.optimizer != "sgd":
            refuse(
                [
                    Contradiction(
                        ("clients.momentum", "clients.optimizer"),
                        f"only optimizer 'sgd' takes a momentum, {self.optimizer!r} has its own; "
                        "set clients.momentum to 0 or clients.optimizer to sgd",
                    )
                ]
            )
        return self


class SimulationSpec(Section):
    """How the run uses this machine; only a round_timeout that strikes changes the model."""

    supernodes: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Flower nodes that host the clients, each running its clients one after the "
        "other; null: one node per client. A few dozen host thousands of clients.",
    )

    cpus_per_client: int = Field(
        default=1, ge=1, le=1024, description="Cores reserved for a client while it works (cores)."
    )
    actors: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Client processes at work at the same time; null: as many as cores allow.",
    )
    threads_per_client: int = Field(
        default=1, ge=1, le=1024, description="Threads that torch uses in a client."
    )
    round_timeout: float = Field(
        default=3600.0,
        gt=0,
        description="Time after which a round stops waiting for replies (seconds).",
    )


class OutputSpec(Section):
    """What a run leaves behind and where."""

    folder: PlaceText = Field(
        default="runs",
        description="Folder in which each run makes its own. "
        "A relative path starts at the working folder.",
    )
    keep_checkpoints: int = Field(
        default=2,
        ge=1,
        le=100_000,
        description="Newest server checkpoints that are kept.",
    )
    tensorboard: bool = Field(
        default=False, description="Write TensorBoard logs too; needs the extra 'tensorboard'."
    )
    mlflow: PlaceText | None = Field(
        default=None, description="Tracking URI of MLflow; null: off. Needs the extra 'mlflow'."
    )


Rounds = Annotated[
    Annotated[Literal["all"], Tag("all")]
    | Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000)], ...],
        Field(strict=False, min_length=1),
        Tag("list"),
    ],
    Discriminator(lambda value: "all" if isinstance(value, str) else "list"),
]


class FaultSpec(Section):
    """One client that misbehaves, for tests and demonstrations."""

    client: int = Field(
        ge=0, le=99_999, description="Index of the client, counted from 0 to clients.count - 1."
    )
    kind: Literal[
        "raise",
        "garbage",
        "nan",
        "die",
        "slow",
        "huge-claim",
        "tamper",
        "replay",
        "impostor",
        "vanish",
        "bad-shares",
        "overflow",
        "false-sum",
    ] = Field(
        description="raise: its training raises an exception; garbage: it replies with arrays of "
        "other names and shapes; nan: its model is full of NaN; die: its process ends; slow: it "
        "answers after the round's time-out; huge-claim: it claims far more examples than it has; "
        "tamper: its reply is changed on the way; replay: it sends its first reply again; "
        "impostor: somebody without its keys answers in its name (needs stage authenticate); "
        "vanish: it trains, then answers no further question of the round; bad-shares: it deals "
        "a committee shares that do not fit together; overflow: it shares values so large that a "
        "sum with them would wrap; false-sum: in the committee, it releases a wrong sum."
    )
    rounds: Rounds = Field(default="all", description="Rounds in which it does so, counted from 1.")
