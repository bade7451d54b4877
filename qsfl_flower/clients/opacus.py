"""For apps that train with Opacus themselves: say what they did, so that `RecordDP` can check it.

::

    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader,
        noise_multiplier=1.0, max_grad_norm=1.0,
    )
    ...  # train
    did = record_privacy(engine, optimizer, loader)
    arrays = ArrayRecord(unwrapped(model).state_dict())
    metrics = MetricRecord({"num-examples": count, **did.told()})
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from opacus import PrivacyEngine
from opacus.grad_sample import AbstractGradSampleModule
from opacus.optimizers import (
    DPOptimizer,
    DPOptimizerFastGradientClipping,
    DPPerLayerOptimizer,
)
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import nn

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.record import RecordPrivacy

_FIXED = (DPOptimizer, DPOptimizerFastGradientClipping, DPPerLayerOptimizer)

History = Sequence[tuple[float, float, int]]
"""Noise multiplier, sampling rate and number of steps, as Opacus' accountants keep them."""


def record_privacy(
    engine: PrivacyEngine, optimizer: Any, data_loader: Any, *, before: History = ()
) -> RecordPrivacy:
    """Return what Opacus did for each record; report its `told()` with the metrics.

    `RecordDP` accounts for what it requires, and the mod sends nothing if this is less; where steps
    differ, the least noise and the highest rate count for all of them.

    Parameters
    ----------
    engine : opacus.PrivacyEngine
        Its accountant's history is read.
    optimizer, data_loader
        As `engine.make_private` returned them.
    before : sequence of (noise multiplier, sampling rate, steps)
        The history before this round, ``list(engine.accountant.history)``, if the engine is older.

    Returns
    -------
    RecordPrivacy
        Clip norm, noise, sampling and steps of the round.

    Raises
    ------
    ConfigError
        If no step was taken, batches are not drawn by Poisson sampling, or clipping is adaptive.

    Notes
    -----
    Who sees what: the metrics tell the settings and the number of steps, nothing of the records.
    Opacus' noise is a floating-point Gaussian; `PrivateTrainingClient` adds an exact one.
    """
    sampler = getattr(data_loader, "batch_sampler", None)
    if not isinstance(sampler, UniformWithReplacementSampler):
        raise ConfigError(
            f"batches come from {type(sampler).__name__}; the accountant rewards Poisson sampling "
            "alone: use make_private(..., poisson_sampling=True) and its data loader"
        )
    if type(optimizer) not in _FIXED:
        raise ConfigError(
            f"{type(optimizer).__name__} is not known to keep one clip norm; allowed are "
            f"{', '.join(kind.__name__ for kind in _FIXED)}"
        )
    steps: Counter[tuple[float, float]] = Counter()
    for noise, rate, count in engine.accountant.history:
        steps[noise, rate] += count
    for noise, rate, count in before:
        steps[noise, rate] -= count
    taken = {pair: count for pair, count in steps.items() if count}
    if not taken or min(taken.values()) < 0:
        raise ConfigError("Opacus' accountant has counted no step of this round")
    bounds = optimizer.max_grad_norm
    return RecordPrivacy(
        clip_norm=math.hypot(*bounds) if isinstance(bounds, list | tuple) else float(bounds),
        noise_multiplier=float(min(noise for noise, _ in taken)),
        sampling_rate=float(max(rate for _, rate in taken)),
        steps=sum(taken.values()),
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the app's own model, whose arrays have no ``_module.`` before their names."""
    return model._module if isinstance(model, AbstractGradSampleModule) else model
