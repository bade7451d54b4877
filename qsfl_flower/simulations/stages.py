"""From the specs of an experiment to the stages of its strategy: one function per spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qsfl_flower.simulations.config import (
    AuthenticateSpec,
    ClipSpec,
    Experiment,
    FedAdamSpec,
    FedAvgMSpec,
    FedYogiSpec,
    MaskedSumSpec,
    ValidateSpec,
)
from qsfl_flower.simulations.federation import server_credentials
from qsfl_flower.strategies import (
    Authenticate,
    Clip,
    FedAdam,
    FedAvgM,
    FedYogi,
    MaskedSum,
    Stage,
    Validate,
)


def stages_of(experiment: Experiment) -> list[Stage]:
    """Return the stages of the experiment's strategy, a server optimiser included."""
    strategy = experiment.strategy
    stages = [STAGES[type(spec)](spec, experiment) for spec in strategy.stages]
    if type(strategy) in OPTIMISERS:
        stages.append(OPTIMISERS[type(strategy)](strategy))
    return stages


def _authenticate(spec: AuthenticateSpec, experiment: Experiment) -> Stage:
    return Authenticate(server_credentials(experiment), spec.encrypt)


def _masked_sum(spec: MaskedSumSpec, experiment: Experiment) -> Stage:
    settings = spec.model_dump(exclude={"stage"})
    return MaskedSum(server_credentials(experiment), **settings)


STAGES: dict[type, Callable[[Any, Experiment], Stage]] = {
    AuthenticateSpec: _authenticate,
    MaskedSumSpec: _masked_sum,
    ValidateSpec: lambda spec, _: Validate(spec.max_norm),
    ClipSpec: lambda spec, _: Clip(spec.clip_norm, spec.per_layer),
}
"""What makes the stage of each spec in ``strategy.stages``."""

OPTIMISERS: dict[type, Callable[[Any], Stage]] = {
    FedAvgMSpec: lambda spec: FedAvgM(spec.server_learning_rate, spec.server_momentum),
    FedAdamSpec: lambda spec: FedAdam(spec.eta, spec.beta_1, spec.beta_2, spec.tau),
    FedYogiSpec: lambda spec: FedYogi(spec.eta, spec.beta_1, spec.beta_2, spec.tau),
}
"""What makes the server optimiser of each spec of ``strategy`` that has one."""
