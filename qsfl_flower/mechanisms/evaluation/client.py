"""The client's half of private evaluation: a bounded vector of what the app reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.mechanisms.evaluation.core import Metric, batch_of, size_of, take
from qsfl_flower.node.steps import PARAMETERS, ClientUpdate, StepContext
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
        ``policy-plan``: the metrics cannot be read.
    """
    del context
    try:
        metrics = [Metric(**one) for one in parameters["metrics"]]
    except (ConfigError, TypeError) as error:
        raise Refusal("policy-plan", f"{MEASURE_STEP}: {error}") from None
    if (size := parameters["size"]) != size_of(metrics):
        raise Refusal("policy-plan", f"{MEASURE_STEP}: {size} numbers are not those of its metrics")
    weight: dict[str, float] = {parameters["weighted_by"]: MAX_EXAMPLES}  # any limit: all weigh 1
    if parameters["unit"] == "record":
        weight |= batch_of(metrics).told()
    return replace(update, vector=take(metrics, update.numbers), metrics=weight)


@dataclass(frozen=True)
class _ToMeasure:
    metrics: tuple[object, ...]
    size: int
    weighted_by: str
    unit: Literal["client", "record"]


PARAMETERS[MEASURE_STEP] = _ToMeasure

MEASURE_STEPS = {MEASURE_STEP: measure_step}
"""The client's half, under the name that plans use."""
