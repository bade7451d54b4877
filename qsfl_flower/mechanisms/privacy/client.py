"""The client's half of differential privacy: the steps of the placements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qsfl_flower.errors import QSFLError
from qsfl_flower.mechanisms.privacy.options import LocalNoise
from qsfl_flower.node.steps import PARAMETERS, STEPS, ClientUpdate, StepContext
from qsfl_flower.numerics.validation import MAX_EXAMPLES
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.policy import Protection
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from qsfl_flower.secure.pairwise.ring import RingCode
from qsfl_flower.wire import PLAN_KEY, QSFL_RECORD, Plan, PlanItem
from qsfl_flower.wire.keys import (
    DISTRIBUTED_DP,
    LOCAL_DP,
    MASKED_SUM,
    PROTECTION,
    RECORD_DP,
    SHARES,
)


def protection_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Read the offer strictly; `privacy_mod` has decided before training whether it is enough."""
    Protection.from_dict(parameters)
    return update


def record_dp_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Send nothing that the app has not trained privately: no metrics of records, no counters."""
    public = parameters["public_metrics"]
    required = RecordPrivacy(**{k: v for k, v in parameters.items() if k != "public_metrics"})
    difference = required.weaker(update.metrics)
    if difference is not None:
        raise QSFLError(
            f"record_dp: the app did not train as the strategy requires: {difference}; use "
            "PrivateTrainingClient, or report the metrics dp-... of your own DP-SGD"
        )
    allowed = {*public, *required.told()}
    metrics = {k: v for k, v in update.metrics.items() if k in allowed}
    return replace(update, metrics=metrics, carried=context.carried)


def local_dp_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Clip the update, add all of the noise, and keep metrics and counters here."""
    noise = LocalNoise.from_dict(parameters)
    norm = float(np.linalg.norm(update.vector))
    scaled = update.vector * min(1.0, noise.clip_norm / norm) if norm > 0 else update.vector
    noisy, _ = add_noise(scaled, 2 * noise.clip_norm, noise.noise_multiplier, Keystream.secure())
    return replace(update, vector=noisy, metrics={"num-examples": 1}, carried=context.carried)


def distributed_dp_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Add this client's share of the noise, on the grid of the secure sum that comes next.

    The client counts like all others; its metrics, counters and statistics stay here.

    Raises
    ------
    QSFLError
        If what the plan does next would show more than a sum with all of the noise, if the noise is
        not what the plan promises, or if the app did not bound its records as it requires.
    """
    share, bound = NoiseShare(**parameters["share"]), float(parameters["bound"])
    plan = Plan.decode(context.content.config_records[QSFL_RECORD][PLAN_KEY])
    placement, rate, moved = "distributed", 1.0, bound
    if parameters["batch"] is not None:
        required = RecordBatch(**parameters["batch"])
        required.check_layout(update.layout)
        placement, rate = "distributed-record", required.sampling_rate
        moved = required.clip_norm
        if (difference := required.weaker(update.metrics)) is not None:
            raise QSFLError(
                f"distributed_dp: the app did not train as the strategy requires: {difference}; "
                "use GradientSumClient"
            )
    done = (placement, moved, share.noise_multiplier, rate)
    offers = [Protection.from_dict(i.parameters) for i in plan.items if i.name == PROTECTION]
    told = [(o.placement, o.clip_norm, o.noise_multiplier, o.sampling_rate) for o in offers]
    if done not in told or moved > share.clip_norm:
        raise QSFLError(
            f"distributed_dp: noise for a clip norm of {share.clip_norm:g} would make {done}, the "
            f"plan promises {told}"
        )
    weighted_by = _sum_after(plan.items[-1], share, bound)
    noisy = share.privatize(update.vector, bound, Keystream.secure())
    # More examples than any limit: the client's weight is 1 whatever the sum makes of examples.
    metrics = {weighted_by: MAX_EXAMPLES}
    vector = noisy.astype(np.float64)
    vector *= share.resolution
    return replace(update, vector=vector, metrics=metrics, carried=context.carried)


def _sum_after(last: PlanItem, share: NoiseShare, bound: float) -> str:
    """Return what the sum that hides the share weighs by, or refuse a sum that does not fit it."""
    p = last.parameters
    if last.name == SHARES and p["terms"] is not None:
        fewest, bits, room = (p["terms"][name] for name in ("min_clients", "bits", "bound"))
    elif last.name == MASKED_SUM:
        fewest, bits, room = p["min_clients"], RingCode(p["bound"], p["clients"]).bits, p["bound"]
    else:
        raise QSFLError(
            f"distributed_dp: the plan ends with {last.name!r}; a share of the noise is sent only "
            "under a secure sum"
        )
    if fewest < share.fewest or 2.0**-bits != share.resolution:
        raise QSFLError(
            f"distributed_dp: noise for sums of {share.fewest} clients in steps of "
            f"{share.resolution:g}, but the sum may have {fewest} clients, in steps of 2^-{bits}"
        )
    if share.largest(bound) * share.resolution > room:
        raise QSFLError(
            f"distributed_dp: the sum has room for {room:g}, a value with its noise may reach "
            f"{share.largest(bound) * share.resolution:g}: that a client's is larger would show by "
            "its silence, with no other noise than its own share"
        )
    return str(p["weighted_by"])


@dataclass(frozen=True, kw_only=True)
class _RecordNoise(RecordPrivacy):
    public_metrics: tuple[str, ...]


@dataclass(frozen=True)
class _SharedNoise:
    share: NoiseShare
    bound: float
    batch: RecordBatch | None


SHARE_STEPS = {DISTRIBUTED_DP: distributed_dp_step}
RECORD_STEPS = {RECORD_DP: record_dp_step}
LOCAL_STEPS = {LOCAL_DP: local_dp_step}
"""The clients' halves of the records in `qsfl_flower.mechanisms.privacy`."""

STEPS[PROTECTION] = protection_step  # of every placement, central noise included
PARAMETERS |= {PROTECTION: Protection, DISTRIBUTED_DP: _SharedNoise}
PARAMETERS |= {RECORD_DP: _RecordNoise, LOCAL_DP: LocalNoise}
