"""The `strategy` section: how the server combines the replies, and the stages before that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import Field, model_validator

from qsfl_flower.mechanisms import BUILT_IN
from qsfl_flower.simulations.config.asynchronous import AsynchronousKeys, MonitorSpec
from qsfl_flower.simulations.config.base import (
    Contradiction,
    OptionValues,
    Section,
    options_of,
    refuse,
)
from qsfl_flower.simulations.config.described import section_of
from qsfl_flower.simulations.config.privacy import (
    AdaptiveClipSpec,
    CentralDPSpec,
    DistributedDPSpec,
    LocalDPSpec,
    RecordDPSpec,
)

if TYPE_CHECKING:
    from qsfl_flower.mechanisms.robust.core import Preparation, Rule


class RobustSpec(Section):
    """Combines updates by a rule that some of them cannot mislead, in place of the mean."""

    stage: Literal["robust"] = Field(description="Name of the stage.")
    rule: Literal[
        "krum",
        "fast_krum",
        "multi_krum",
        "median",
        "trimmed_mean",
        "meamed",
        "bulyan",
        "geometric_median",
        "centered_clipping",
        "mda",
        "cge",
        "norm_bounded",
        "fltrust",
        "mean",
    ] = Field(default="multi_krum", description="Name of the rule; docs/robustness.md compares.")
    options: OptionValues = options_of("rule", "the rule, its own besides the keys below")
    num_byzantine: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="How many updates of a round may be malicious; null: a third, or as many as "
        "the rule withstands.",
    )
    num_selected: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="For multi_krum: how many updates are averaged; null: all but num_byzantine.",
    )
    root_examples: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="For fltrust, which needs it: how many training examples, drawn at random, "
        "belong to the server and to no client (examples).",
    )
    before: Literal["nnm", "bucketing"] | None = Field(
        default=None,
        description="How updates are mixed before the rule sees them: nnm, nearest-neighbour "
        "mixing; bucketing, means of random buckets.",
    )
    bucket_size: int = Field(
        default=2, ge=1, le=1000, description="For bucketing: updates per bucket."
    )

    def parts(self) -> tuple[Rule, Preparation | None]:
        """Return the rule and what comes before it; reading a file must not load NumPy."""
        from qsfl_flower.mechanisms.robust.core import PREPARATIONS, RULES, Bucketing, MultiKrum

        if self.rule == "multi_krum":
            rule: Rule = MultiKrum(self.num_byzantine, self.num_selected)
        else:
            rule = RULES[self.rule](num_byzantine=self.num_byzantine, **self.options)
        if self.before == "bucketing":
            return rule, Bucketing(self.bucket_size)
        return rule, None if self.before is None else PREPARATIONS[self.before]()


class DetectSpec(Section):
    """Flags unusual updates with reasons, keeps reputations, and may keep suspects out."""

    stage: Literal["detect"] = Field(description="Name of the stage.")
    detector: Literal["isolation-forest", "robust-z"] = Field(
        default="isolation-forest", description="Name of the detector; plugins bring others."
    )
    options: OptionValues = options_of("detector", "a detector that a plugin brings")
    threshold: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Anomaly scores above it are flagged; at 0.5 about one honest update in a "
        "hundred is.",
    )
    quarantine: bool = Field(
        default=True, description="Keep flagged updates and clients in quarantine out of the model."
    )
    decay: float = Field(
        default=0.95, ge=0, lt=1, description="What remains of suspicion after a round."
    )
    quarantine_threshold: float = Field(
        default=0.8, gt=0, le=1, description="Suspicion at which a client goes into quarantine."
    )
    quarantine_rounds: int = Field(
        default=5,
        ge=1,
        le=100_000,
        description="Length of the first quarantine; it doubles with a relapse, up to four times.",
    )
    probation_rounds: int = Field(
        default=3,
        ge=0,
        le=100_000,
        description="Rounds after a quarantine in which one flag leads back into it.",
    )


SECTIONS: dict[str, Any] = {
    one.name: section_of(one, "stage", Section) for one in BUILT_IN.values()
}
"""The sections of stages that are described by their options."""

_STAGES = (
    SECTIONS["authenticate"],
    SECTIONS["validate"],
    SECTIONS["clip"],
    DetectSpec,
    SECTIONS["masked_sum"],
    SECTIONS["secure_krum"],
    SECTIONS["secure_sum"],
    SECTIONS["compress"],
    SECTIONS["shared_mask"],
    SECTIONS["broadcast"],
    RobustSpec,
    CentralDPSpec,
    AdaptiveClipSpec,
    RecordDPSpec,
    DistributedDPSpec,
    LocalDPSpec,
)
if TYPE_CHECKING:
    StageSpec = Any
else:
    StageSpec = Annotated[Union[_STAGES], Field(discriminator="stage")]  # noqa: UP007


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
