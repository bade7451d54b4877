"""The `strategy` section: how the server combines the replies, and the stages before that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, model_validator

from qsfl_flower.mechanisms import BUILT_IN
from qsfl_flower.simulations.config.asynchronous import AsynchronousKeys, MonitorSpec
from qsfl_flower.simulations.config.base import (
    Contradiction,
    Section,
    refuse,
)
from qsfl_flower.simulations.config.described import section_of

SECTIONS: dict[str, Any] = {
    one.name: section_of(one, "stage", Section) for one in BUILT_IN.values()
}
"""The section of each stage, made of its options."""

if TYPE_CHECKING:
    StageSpec = Any
else:
    StageSpec = Annotated[Union[tuple(SECTIONS.values())], Field(discriminator="stage")]  # noqa: UP007


class CommonStrategySpec(Section):
    """Keys that every strategy has."""

    name: str = Field(description="Name of the strategy.")
    stages: tuple[StageSpec, ...] = Field(
        default=(SECTIONS["validate"](stage="validate"),),
        strict=False,
        description="What is done to updates before they are combined, each stage at most once; "
        "validate always takes part.",
    )
    max_num_examples: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="Cap on the number of examples that a client claims, which weights its update "
        "(examples); null: no fixed cap.",
    )
    max_weight_ratio: float = Field(
        default=10.0,
        ge=1,
        description="Largest weight of a client in the mean, as a multiple of the median client's; "
        "among three or more clients none ever holds more than half.",
    )
    min_replies: int = Field(
        default=2,
        ge=1,
        le=100_000,
        description="Usable replies that a round needs; with fewer the model stays unchanged.",
    )
    max_failed_rounds: int = Field(
        default=3,
        ge=1,
        le=100_000,
        description="Consecutive rounds without enough usable replies after which the run stops.",
    )

    over_selection: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="So many more clients are asked, as a share of those needed; the round ends "
        "when the number needed have answered.",
    )
    monitor: MonitorSpec = Field(
        default=MonitorSpec(),
        description="When training counts as diverging, and what is done then.",
    )

    @model_validator(mode="after")
    def _stages_differ(self) -> Self:
        first: dict[str, int] = {}
        refuse(
            Contradiction(
                (f"strategy.stages.{index}", f"strategy.stages.{first[one.stage]}"),
                f"stage {one.stage!r} stands already at strategy.stages.{first[one.stage]}; "
                "list it once",
            )
            for index, one in enumerate(self.stages)
            if first.setdefault(one.stage, index) != index
        )
        return self


class FedAvgSpec(CommonStrategySpec):
    """Weighted mean of the clients' models (McMahan et al. 2017)."""

    name: Literal["fedavg"] = Field(description="Name of the strategy.")


class FedProxSpec(CommonStrategySpec):
    """FedAvg whose clients are pulled towards the global model (Li et al. 2020)."""

    name: Literal["fedprox"] = Field(description="Name of the strategy.")
    proximal_mu: float = Field(
        ge=0,
        description="Weight mu of the proximal term: mu/2 times the squared distance to the "
        "global model; 0 equals FedAvg.",
    )


class ScaffoldSpec(CommonStrategySpec):
    """FedAvg whose clients correct their drift, at twice the traffic (Karimireddy et al. 2020)."""

    name: Literal["scaffold"] = Field(description="Name of the strategy.")


class FedAvgMSpec(CommonStrategySpec):
    """FedAvg with momentum on the server (Hsu et al. 2019)."""

    name: Literal["fedavgm"] = Field(description="Name of the strategy.")
    server_learning_rate: float = Field(
        default=1.0, gt=0, description="Step of the server along the averaged update."
    )
    server_momentum: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the last step that is kept in the next one."
    )


class AdaptiveStrategySpec(CommonStrategySpec):
    """Keys of the adaptive server optimizers (Reddi et al. 2021)."""

    beta_1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta_2: float = Field(default=0.99, ge=0, lt=1, description="Decay of the second moment.")
    tau: float = Field(
        default=1e-3, gt=0, description="Adaptivity: added to the root of the second moment."
    )


class FedAdamSpec(AdaptiveStrategySpec):
    """Adam on the server."""

    name: Literal["fedadam"] = Field(description="Name of the strategy.")
    eta: float = Field(default=0.1, gt=0, description="Learning rate of the server.")


class FedYogiSpec(AdaptiveStrategySpec):
    """Yogi on the server: Adam whose second moment grows additively."""

    name: Literal["fedyogi"] = Field(description="Name of the strategy.")
    eta: float = Field(default=0.01, gt=0, description="Learning rate of the server.")


class FedBuffSpec(CommonStrategySpec, AsynchronousKeys):
    """A new model after every K arrivals, while others train on (Nguyen et al. 2022)."""

    name: Literal["fedbuff"] = Field(description="Name of the strategy.")
    buffer_size: int = Field(
        default=10, ge=1, le=100_000, description="Updates that make a new model."
    )
    server_learning_rate: float = Field(
        default=1.0, gt=0, description="Step of the server along the combined update."
    )
    server_momentum: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Momentum of the server; what staleness adds by itself is taken off.",
    )
    scale_by_staleness: bool = Field(
        default=False, description="Divide the step by one plus the mean staleness."
    )


class FedAsyncSpec(CommonStrategySpec, AsynchronousKeys):
    """A new model after every arrival (Xie et al. 2019)."""

    name: Literal["fedasync"] = Field(description="Name of the strategy.")
    mixing: float = Field(default=0.6, gt=0, le=1, description="Step along each update.")


StrategySpec = Annotated[
    FedAvgSpec
    | FedProxSpec
    | ScaffoldSpec
    | FedAvgMSpec
    | FedAdamSpec
    | FedYogiSpec
    | FedBuffSpec
    | FedAsyncSpec,
    Field(discriminator="name"),
]
