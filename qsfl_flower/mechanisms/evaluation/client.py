"""The client's half of private evaluation: a bounded vector of what the app reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.mechanisms.evaluation.core import Metric, batch_of, size_of, take
from qsfl_flower.node.instructions import must_stay
from qsfl_flower.node.steps import PARAMETERS, ClientUpdate, StepContext, owned
from qsfl_flower.numerics.validation import MAX_EXAMPLES
from qsfl_flower.wire.keys import MEASURE_STEP


def measure_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Count what the app reports, each metric within its bound; a missing one counts nothing.

    The client counts like all others: its number of examples is in what is counted, where a metric
    says so, and leaves the device in no other way.

    Raises
    ------
    Refusal
        ``policy-plan``: the metrics cannot be read, or need noise and there is none.
        ``policy-weights``: exact means weighed by a metric of the server's choice.
        ``policy-second-answer``: exact sums of other metrics than before in this run.
    """
    try:
        metrics = [Metric(**one) for one in parameters["metrics"]]
    except (ConfigError, TypeError) as error:
        raise Refusal("policy-plan", f"{MEASURE_STEP}: {error}") from None
    if (size := parameters["size"]) != size_of(metrics):
        raise Refusal("policy-plan", f"{MEASURE_STEP}: {size} numbers are not those of its metrics")
    if len({metric.name for metric in metrics}) < len(metrics):
        raise Refusal("policy-plan", f"{MEASURE_STEP}: a metric comes twice")
    if must_stay(context.content, context.purpose):
        _check_exact(metrics, context)
    weight: dict[str, float] = {parameters["weighted_by"]: MAX_EXAMPLES}  # any limit: all weigh 1
    if parameters["unit"] == "record":
        weight |= batch_of(metrics).told()
    return replace(update, vector=take(metrics, update.numbers), metrics=weight)


def _check_exact(metrics: Sequence[Metric], context: StepContext) -> None:
    """Refuse exact sums that together tell the numbers of one client.

    Sums of the same numbers within ever other bounds, or weighed by ever other metrics, have a
    solution: the numbers of every client.
    """
    for metric in metrics:
        if metric.by is not None:
            raise Refusal(
                "policy-plan",
                f"{MEASURE_STEP}: {metric.name!r:.60} is summed by group without noise, and a "
                "group may be one client",
            )
        if metric.kind == "mean":
            context.policy.check_hidden_weights(metric.weighted_by, 1)
    asked = hashlib.sha256(repr(metrics).encode()).digest()
    with context.facts() as facts:
        name = owned(f"exact/{context.context.run_id}/metrics", context.purpose)
        if facts.setdefault(name, asked) != asked:
            raise Refusal(
                "policy-second-answer",
                "other metrics, or bounds, were summed without noise before in this run; exact "
                "sums are of the same ones in every round, noisy ones may change",
            )


@dataclass(frozen=True)
class _ToMeasure:
    metrics: tuple[object, ...]
    size: int
    weighted_by: str
    unit: Literal["client", "record"]


PARAMETERS[MEASURE_STEP] = _ToMeasure

MEASURE_STEPS = {MEASURE_STEP: measure_step}
"""The client's half, under the name that plans use."""
