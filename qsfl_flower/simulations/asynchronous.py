"""From the specs of time, staleness and divergence to the objects that they describe."""

from __future__ import annotations

from typing import Any

from qsfl_flower.asynchrony import (
    Adaptive,
    Availability,
    Clock,
    Constant,
    Device,
    DeviceClass,
    Hinge,
    Polynomial,
    StalenessLimit,
    StalenessWeight,
    VirtualClock,
    WallClock,
    make_fleet,
)
from qsfl_flower.asynchrony.devices import DAY, HOUR
from qsfl_flower.numerics import Monitor, Reaction
from qsfl_flower.simulations.config import (
    Experiment,
    FedAsyncSpec,
    FedBuffSpec,
    MonitorSpec,
    ScaffoldSpec,
)
from qsfl_flower.simulations.config.asynchronous import (
    AdaptiveSpec,
    AsynchronousKeys,
    ConstantSpec,
    HingeSpec,
)
from qsfl_flower.simulations.config.timing import DeviceClassSpec
from qsfl_flower.strategies import BufferedAsync, FedAsync, ScaffoldFedAvg, StableFedAvg


def clock_of(experiment: Experiment) -> Clock:
    """Return the clock of an experiment: computed where devices have a profile."""
    if (timing := experiment.timing) is None:
        return WallClock()
    classes = [DeviceClass(spec.share, _device(spec)) for spec in timing.classes]
    devices = make_fleet(classes, experiment.clients.count, experiment.seed, spread=False)
    return VirtualClock(devices, experiment.seed, experiment.simulation.round_timeout)


def monitor_of(spec: MonitorSpec) -> Monitor:
    """Return the monitor of a strategy."""
    reactions = tuple(Reaction(name) for name in spec.reactions)
    return Monitor(spec.window, spec.loss_factor, spec.norm_factor, reactions, spec.patience)


def kind_of(experiment: Experiment) -> tuple[type[StableFedAvg], dict[str, Any]]:
    """Return the class of an experiment's strategy, and what it needs besides the usual."""
    spec = experiment.strategy
    if isinstance(spec, FedBuffSpec):
        return BufferedAsync, {
            **_asynchronous(spec),
            "buffer_size": spec.buffer_size,
            "min_replies": min(spec.min_replies, spec.buffer_size),
            "server_learning_rate": spec.server_learning_rate,
            "server_momentum": spec.server_momentum,
            "scale_by_staleness": spec.scale_by_staleness,
        }
    if isinstance(spec, FedAsyncSpec):
        return FedAsync, {**_asynchronous(spec), "mixing": spec.mixing, "min_replies": 1}
    common = {"over_selection": spec.over_selection, "min_replies": spec.min_replies}
    if isinstance(spec, ScaffoldSpec):
        return ScaffoldFedAvg, {**common, "participation": experiment.clients.fraction_train}
    return StableFedAvg, common


def _asynchronous(spec: AsynchronousKeys) -> dict[str, Any]:
    return {
        "concurrency": spec.concurrency,
        "staleness_weight": _weight(spec),
        "max_staleness": StalenessLimit(spec.max_staleness, spec.tighten_to, spec.tighten_over),
    }


def _weight(spec: AsynchronousKeys) -> StalenessWeight:
    rule = spec.staleness
    if isinstance(rule, ConstantSpec):
        return Constant()
    if isinstance(rule, HingeSpec):
        return Hinge(rule.slope, rule.tolerance)
    if isinstance(rule, AdaptiveSpec):
        return Adaptive(rule.horizon, rule.first, rule.last)
    return Polynomial(rule.exponent)


def _device(spec: DeviceClassSpec) -> Device:
    start = spec.online_from * HOUR
    end = start + spec.online_for * HOUR
    # What goes on after midnight stands at the beginning of the day.
    spans = [(start, end)] if end <= DAY else [(0.0, end - DAY), (start, DAY)]
    if spec.online_for == 24:
        spans = [(0.0, DAY)]
    return Device(
        spec.seconds,
        spec.jitter,
        spec.download or float("inf"),
        spec.upload or float("inf"),
        spec.dropout,
        Availability(tuple(spans)),
    )
