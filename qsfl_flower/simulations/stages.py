"""From the sections of an experiment to the stages of its strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

from qsfl_flower import mechanisms, plugins
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.mechanisms.detection.core import Detection, Reputation
from qsfl_flower.mechanisms.detection.options import DetectOptions
from qsfl_flower.mechanisms.robust.options import RobustOptions
from qsfl_flower.numerics import Layout
from qsfl_flower.privacy.events import Event
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.simulations import privacy
from qsfl_flower.simulations.config import Experiment
from qsfl_flower.simulations.config.described import parameters_of
from qsfl_flower.simulations.federation import server_credentials
from qsfl_flower.simulations.materials import model_of
from qsfl_flower.simulations.root import root_update_of
from qsfl_flower.stages import (
    Detect,
    Robust,
    ServerAdam,
    ServerMomentum,
    ServerYogi,
    Stage,
)


def stages_of(experiment: Experiment) -> list[Stage]:
    """Return the stages of the experiment's strategy, a server optimizer included."""
    strategy = experiment.strategy
    stages = [_stage(spec, experiment) for spec in strategy.stages]
    if (made := OPTIMISERS.get(strategy.name)) is not None:
        stages.append(made(**{one.name: getattr(strategy, one.name) for one in fields(made)}))
    return stages


def _stage(spec: Any, experiment: Experiment) -> Stage:
    options = parameters_of(spec)
    if (build := BUILT.get(spec.stage)) is not None:
        return build(options, experiment)
    mechanism: Any = mechanisms.find(spec.stage)
    needed = {name: NEEDED[name](options, experiment) for name in mechanism.needs or ()}
    return cast(Stage, mechanism.stage(options, experiment.seed, **needed))


def _robust(spec: RobustOptions, experiment: Experiment) -> Stage:
    rule, before = spec.parts()
    root_update = root_update_of(experiment) if spec.rule == "fltrust" else None
    return Robust(rule, before=before, root_update=root_update)


def _detect(spec: DetectOptions, experiment: Experiment) -> Stage:
    reputation = Reputation(
        spec.decay, spec.quarantine_threshold, spec.quarantine_rounds, spec.probation_rounds
    )
    own = plugins.added("detector").get(spec.detector)
    detector = spec.detector
    if isinstance(own, plugins.Extension):
        detector = own.make(**spec.options)
    detection = Detection(detector, spec.threshold, reputation, experiment.seed)
    return Detect(detection, spec.quarantine)


NEEDED: dict[str, Callable[[Any, Experiment], Any]] = {
    "bound": privacy.bound_of,
    "credentials": lambda _, experiment: server_credentials(experiment),
}
"""What the federation of an experiment provides for stages, see `Mechanism`."""

BUILT: dict[str, Callable[[Any, Experiment], Stage]] = {
    "robust": _robust,
    "detect": _detect,
    "central_dp": privacy.central_dp,
    "adaptive_clip": privacy.adaptive_clip,
    "record_dp": privacy.record_dp,
    "distributed_dp": privacy.distributed_dp,
    "local_dp": privacy.local_dp,
}
"""What makes stages that take other values than their options: noise for an epsilon, a rule or a
detector for its name."""

OPTIMISERS: dict[str, Any] = {made.name: made for made in (ServerMomentum, ServerAdam, ServerYogi)}
"""Server optimizers by the name of the strategy whose keys are theirs."""


def planned_events(experiment: Experiment) -> dict[str, list[Event]]:
    """Return for each stage that spends privacy what all rounds of the experiment cost."""
    stages = Chain(stages_of(experiment)).stages
    layout = Layout.of(get_arrays(model_of(experiment)))
    return {s.name: s.planned(layout, experiment.rounds) for s in stages if s.spending}
