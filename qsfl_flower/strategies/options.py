"""What every ready strategy takes beside its own arguments, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from qsfl_flower.asynchrony import Clock, Selection
from qsfl_flower.mechanisms.evaluation.server import Evaluation
from qsfl_flower.numerics import Monitor
from qsfl_flower.rounds.checkpoint import CheckpointStore
from qsfl_flower.rounds.evaluation import MetricsFunction
from qsfl_flower.rounds.record import RunObserver
from qsfl_flower.rounds.stages import Stage


class StrategyOptions(TypedDict, total=False):
    """Keyword arguments of `StableFedAvg`; those of Flower's ``FedAvg`` first."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: MetricsFunction | None
    evaluate_metrics_aggr_fn: MetricsFunction | None
    stages: Sequence[Stage]
    proximal_mu: float
    seed: int | None
    max_num_examples: float | None
    max_weight_ratio: float
    min_replies: int
    max_failed_rounds: int
    client_api: Literal["message", "legacy"]
    monitor: Monitor | None
    checkpoints: CheckpointStore | None
    observer: RunObserver | None
    selection: Selection | None
    over_selection: float
    deadline: float | None
    clock: Clock | None
    evaluation: Evaluation | None
    roles: Mapping[str, str] | None


def first(options: StrategyOptions, *stages: Stage) -> StrategyOptions:
    """Return the options with stages before those that the user gave."""
    return {**options, "stages": [*stages, *options.get("stages", ())]}


def without_evaluation(options: StrategyOptions) -> StrategyOptions:
    """Return the options; clients evaluate only if the user says so."""
    return {"fraction_evaluate": 0.0, **options}


def at_least(options: StrategyOptions, nodes: int) -> StrategyOptions:
    """Return the options with at least so many nodes: a round with fewer would be in vain."""
    return {
        **options,
        "min_train_nodes": max(options.get("min_train_nodes", nodes), nodes),
        "min_available_nodes": max(options.get("min_available_nodes", nodes), nodes),
    }
