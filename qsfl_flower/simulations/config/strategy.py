"""The `strategy` section: how the server combines the replies, and the stages before that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, model_validator

from qsfl_flower.mechanisms import BUILT_IN
from qsfl_flower.mechanisms.server_optimizers.options import (
    AdamOptions,
    MomentumOptions,
    StaleOptions,
    YogiOptions,
)
from qsfl_flower.simulations.config.asynchronous import AsynchronousKeys, MonitorSpec
from qsfl_flower.simulations.config.base import (
    Contradiction,
    Section,
    refuse,
)
from qsfl_flower.simulations.config.described import keys_of, section_of

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


class FedAvgMSpec(keys_of(MomentumOptions), CommonStrategySpec):  # type: ignore[misc]
    """FedAvg with momentum on the server (Hsu et al. 2019)."""

    name: Literal["fedavgm"] = Field(description="Name of the strategy.")


class FedAdamSpec(keys_of(AdamOptions), CommonStrategySpec):  # type: ignore[misc]
    """Adam on the server (Reddi et al. 2021)."""

    name: Literal["fedadam"] = Field(description="Name of the strategy.")


class FedYogiSpec(keys_of(YogiOptions), CommonStrategySpec):  # type: ignore[misc]
    """Yogi on the server: Adam whose second moment grows additively (Reddi et al. 2021)."""

    name: Literal["fedyogi"] = Field(description="Name of the strategy.")


class FedBuffSpec(keys_of(StaleOptions), CommonStrategySpec, AsynchronousKeys):  # type: ignore[misc]
    """A new model after every K arrivals, while others train on (Nguyen et al. 2022)."""

    name: Literal["fedbuff"] = Field(description="Name of the strategy.")
    buffer_size: int = Field(
        default=10, ge=1, le=100_000, description="Updates that make a new model."
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
