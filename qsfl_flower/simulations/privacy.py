"""From the privacy specs of an experiment to stages, clients and mods; noise is calibrated here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsfl_flower.clients.dpsgd import DPSGD, GradientSums
from qsfl_flower.clients.losses import LOSSES
from qsfl_flower.clients.models import get_arrays, imported
from qsfl_flower.mechanisms.bounds import ClipOptions
from qsfl_flower.mechanisms.evaluation import core
from qsfl_flower.mechanisms.evaluation.server import Evaluation
from qsfl_flower.mechanisms.privacy.options import (
    AdaptiveClipOptions,
    CentralDPOptions,
    DistributedDPOptions,
    GradientOptions,
    LocalDPOptions,
    PrivacyOptions,
    RecordDPOptions,
)
from qsfl_flower.mechanisms.privacy.server import (
    AdaptiveClip,
    CentralDP,
    DistributedDP,
    LocalDP,
    RecordDP,
)
from qsfl_flower.mechanisms.secure_sum.options import SecureSumOptions
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.numerics import Layout
from qsfl_flower.privacy.calibration import smallest_scale
from qsfl_flower.privacy.clipping import AdaptiveClip as AdaptiveParameters
from qsfl_flower.privacy.events import ADD_OR_REMOVE, REPLACE, ZERO, Event
from qsfl_flower.privacy.gaussian import grid_slack
from qsfl_flower.privacy.ledger import Ledger
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from qsfl_flower.privacy.schedule import NoiseSchedule
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.simulations.config import (
    Experiment,
)
from qsfl_flower.simulations.config.described import parameters_of
from qsfl_flower.simulations.materials import loss_of, model_of, roles_of_model


@lru_cache(maxsize=8)
def size_of(experiment: Experiment) -> int:
    """Return how many values a release has at most: parameters of the model, and a clip norm."""
    return Layout.of(get_arrays(model_of(experiment)), roles_of_model(experiment)).moved + 1


def options_of(experiment: Experiment) -> Iterator[Any]:
    """Return the options of each stage of the experiment."""
    return map(parameters_of, experiment.strategy.stages)


def cohort_of(experiment: Experiment) -> float:
    """Return how many clients a round is expected to have."""
    return experiment.clients.count * experiment.clients.fraction_train


def central_dp(spec: CentralDPOptions, experiment: Experiment) -> CentralDP:
    """Build the stage of central noise."""
    rate = experiment.clients.fraction_train if spec.poisson else 1.0
    return CentralDP(
        central_schedule(spec, rate, experiment.rounds, size_of(experiment)),
        cohort_of(experiment),
        rate,
        _budget(spec, experiment),
        rounds=experiment.rounds,
        accept_worst_case=spec.accept_worst_case,
    )


@lru_cache(maxsize=8)
def central_schedule(spec: CentralDPOptions, rate: float, rounds: int, size: int) -> NoiseSchedule:
    """Return the noise of every round: as given, or the least that stays within epsilon."""
    if spec.noise_multiplier is not None:
        return NoiseSchedule(spec.noise_multiplier, spec.last_over_first, rounds)
    return NoiseSchedule.within(
        spec.epsilon,
        spec.delta,
        rounds,
        sampling_rate=rate,
        last_over_first=spec.last_over_first,
        slack=grid_slack(size),
    )


def adaptive_clip(spec: AdaptiveClipOptions, experiment: Experiment) -> AdaptiveClip:
    """Build the stage whose clip norm follows a quantile."""
    bit_noise = spec.bit_noise
    if bit_noise is None:
        central = next(s for s in options_of(experiment) if isinstance(s, CentralDPOptions))
        rate = experiment.clients.fraction_train if central.poisson else 1.0
        schedule = central_schedule(central, rate, experiment.rounds, size_of(experiment))
        bit_noise = max(schedule.at(1), schedule.at(experiment.rounds))
    parameters = AdaptiveParameters(**spec.to_dict() | {"bit_noise": bit_noise})
    return AdaptiveClip(parameters, cohort_of(experiment))


def record_dp(spec: RecordDPOptions, experiment: Experiment) -> RecordDP:
    """Build the stage that requires DP-SGD."""
    privacy = record_privacy(spec, experiment.rounds, size_of(experiment))
    return RecordDP(privacy, _budget(spec, experiment), rounds=experiment.rounds)


@lru_cache(maxsize=8)
def record_privacy(spec: RecordDPOptions, rounds: int, size: int) -> RecordPrivacy:
    """Return what every client does for its records."""
    per_step: Any = {key: getattr(spec, key) for key in ("clip_norm", "sampling_rate", "steps")}
    if spec.noise_multiplier is not None:
        return RecordPrivacy(noise_multiplier=spec.noise_multiplier, **per_step)
    return RecordPrivacy.within(spec.epsilon, spec.delta, rounds, size=size, **per_step)


def record_training(experiment: Experiment) -> DPSGD | GradientSums | None:
    """Return how clients bound what each of their records does, if the experiment asks for it."""
    shares, batch = distributed_of(experiment), record_batch_of(experiment)
    if shares and shares.records and batch:
        return GradientSums(batch, **_computed(shares.records, experiment))
    for spec in options_of(experiment):
        if isinstance(spec, RecordDPOptions):
            privacy = record_privacy(spec, experiment.rounds, size_of(experiment))
            return DPSGD(privacy, copies=spec.copies, **_computed(spec, experiment))
    return None


def _computed(spec: GradientOptions, experiment: Experiment) -> dict[str, Any]:
    """Return how gradients of single records are computed."""
    named = LOSSES[loss_of(experiment)].function
    loss = named if spec.loss is None else imported("loss", spec.loss)
    return {"loss": loss, "at_once": spec.at_once}


def distributed_dp(spec: DistributedDPOptions, experiment: Experiment) -> DistributedDP:
    """Build the stage of noise in shares."""
    batch = record_batch_of(experiment)
    expected = cohort_of(experiment)
    if spec.records is not None:
        share = expected / experiment.clients.count
        expected = share * spec.records.count * spec.records.sampling_rate
    return DistributedDP(
        distributed_noise(spec, experiment.rounds, size_of(experiment)),
        expected,
        _budget(spec, experiment),
        batch=batch,
        non_contributors=spec.non_contributors,
        rounds=experiment.rounds,
    )


@lru_cache(maxsize=8)
def distributed_noise(spec: DistributedDPOptions, rounds: int, size: int) -> float:
    """Return the noise multiplier of every sum."""
    rate = 1.0 if spec.records is None else spec.records.sampling_rate
    slack = grid_slack(size)
    return spec.noise_multiplier or smallest_scale(
        lambda z: [Event(z, rate, rounds, slack)], spec.epsilon, spec.delta
    )


def distributed_of(experiment: Experiment) -> DistributedDPOptions | None:
    """Return the spec of noise in shares, if there is one."""
    found = (s for s in options_of(experiment) if isinstance(s, DistributedDPOptions))
    return next(found, None)


def record_batch_of(experiment: Experiment) -> RecordBatch | None:
    """Return what the experiment's clients compute where single records get noise in shares."""
    spec = distributed_of(experiment)
    if spec is None or spec.records is None:
        return None
    bounds = (s for s in options_of(experiment) if isinstance(s, ClipOptions | SecureSumOptions))
    norms = [s.clip_norm for s in bounds]
    clip_norm = spec.records.clip_norm
    return RecordBatch(
        clip_norm=clip_norm,
        sampling_rate=spec.records.sampling_rate,
        sum_norm=min(norms, default=clip_norm),
    )


def bound_of(spec: SecureSumOptions, experiment: Experiment) -> float | None:
    """Return the largest coordinate of an update in a secure sum, its share of the noise included.

    A twentieth is left for the rounding; the stage checks with the model's size if it is enough.
    """
    shares = distributed_of(experiment)
    if spec.bound is not None or shares is None:
        return spec.bound
    moved = spec.clip_norm if shares.records is None else shares.records.clip_norm
    honest = max(1, spec.committee.min_clients - shares.non_contributors)
    noise = (
        distributed_noise(shares, experiment.rounds, size_of(experiment))
        * moved
        / math.sqrt(honest)
    )
    return 1.05 * (spec.clip_norm + 40 * noise)


def local_dp(spec: LocalDPOptions, experiment: Experiment) -> LocalDP:
    """Build the stage of local noise."""
    noise = spec.noise_multiplier or smallest_scale(
        lambda z: [Event(z, 1.0, experiment.rounds, grid_slack(size_of(experiment)), REPLACE)],
        spec.epsilon,
        spec.delta,
    )
    budget = _budget(spec, experiment)
    return LocalDP(spec.clip_norm, noise, budget, rounds=experiment.rounds)


def policy_of(experiment: Experiment) -> NodePolicy:
    """Return what the experiment's nodes insist on."""
    clients, least = experiment.clients, None
    if (spec := clients.minimum_privacy) is not None:
        least = MinimumPolicy(**spec.model_dump())
    return NodePolicy(privacy=least, **clients.policy.model_dump())


def evaluation_of(experiment: Experiment) -> Evaluation | None:
    """Return what is summed of the clients' evaluation, if anything is."""
    spec: Any = experiment.evaluation
    if spec is None:
        return None
    values = spec.model_dump()
    epsilon, delta, unit = values.pop("epsilon"), values.pop("delta"), values["unit"]
    ledger, account = values.pop("ledger"), values.pop("account")
    metrics = tuple(core.Metric(**one) for one in values.pop("metrics"))
    rounds, noise, budget = max(1, experiment.rounds // values["every"]), None, None
    if epsilon is not None:
        relation, slack = (
            ZERO if unit == "client" else ADD_OR_REMOVE,
            grid_slack(core.size_of(metrics)),
        )
        noise = smallest_scale(lambda z: [Event(z, 1.0, rounds, slack, relation)], epsilon, delta)
        budget = _accounts(experiment, delta, epsilon, ledger, account)
    return Evaluation(
        metrics=metrics, noise_multiplier=noise, budget=budget, rounds=rounds, **values
    )


def _budget(spec: PrivacyOptions, experiment: Experiment) -> PrivacyBudget:
    budget = _accounts(experiment, spec.delta, spec.epsilon, spec.ledger, spec.account)
    return replace(budget, exhausted=spec.exhausted)


def _accounts(
    experiment: Experiment, delta: float, epsilon: float, ledger: str | None, account: str
) -> PrivacyBudget:
    clients = map(str, range(experiment.clients.count))  # the names that they prove
    return PrivacyBudget(
        delta=delta,
        epsilon=epsilon,
        ledger=None if ledger is None else Ledger(Path(ledger).expanduser()),
        accounts={client: f"{account}/{client}" for client in clients},
    )
