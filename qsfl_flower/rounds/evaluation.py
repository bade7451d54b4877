"""The clients' evaluation of a model: many reports, one mean."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial

from flwr.app import MetricRecord, RecordDict

from qsfl_flower.numerics import bounded_weights, example_count
from qsfl_flower.rounds.admission import finite_metrics, single
from qsfl_flower.rounds.combine import Metric, mean_metrics
from qsfl_flower.rounds.update import Rejection, Sender, Weighting, catch, told_with_frames
from qsfl_flower.wire import records_of

log = logging.getLogger("qsfl_flower")

MetricsFunction = Callable[[list[RecordDict], str], MetricRecord]


def own_metrics(
    function: MetricsFunction, contents: list[RecordDict], weighted_by_key: str, server_round: int
) -> MetricRecord:
    """Call the user's function on what clients sent; if it fails, log why and go on without."""
    try:
        return function(contents, weighted_by_key)
    except Exception as error:
        log.error(
            "round %d: the metrics function failed on what %d clients sent, there are no metrics; "
            "let it check what it reads: %s",
            server_round,
            len(contents),
            told_with_frames(error),
        )
        return MetricRecord()


def mean_evaluation(
    server_round: int,
    entries: Sequence[tuple[Sender, Callable[[], RecordDict] | Rejection]],
    weighted_by_key: str,
    weighting: Weighting,
    own: MetricsFunction | None,
) -> MetricRecord | None:
    """Average the clients' metrics with bounded weights; None if there are none.

    Parameters
    ----------
    server_round : int
        For the log.
    entries : Sequence[tuple[Sender, Callable or Rejection]]
        What reads the reply of each client, in canonical order.
    weighted_by_key : str
        Name of the metric that counts the examples.
    weighting : Weighting
        How claims become weights.
    own : Callable, optional
        The user's function, called with the usable replies instead.
    """

    def read(answer: Callable[[], RecordDict]) -> tuple[float, dict[str, Metric], RecordDict]:
        content = answer()
        metrics = single(records_of(content, MetricRecord), "MetricRecord", "metrics")
        claim = example_count(metrics.get(weighted_by_key))
        return claim, finite_metrics(metrics, weighted_by_key).all, content

    kept, lost = [], dict[str, list[str]]()
    for sender, reply in entries:
        found = reply if isinstance(reply, Rejection) else catch(sender, partial(read, reply))
        if not isinstance(found, Rejection):
            kept.append(found)
            continue
        lost.setdefault(found.reason, []).append(f"{sender.label}: {found.detail}")
    for reason, said in lost.items():
        told = "round %d: no evaluation, %d x %s (%s)"
        log.warning(told, server_round, len(said), reason, said[0])
    if not kept:
        return None
    if own is not None:
        return own_metrics(own, [content for *_, content in kept], weighted_by_key, server_round)
    weights, _ = bounded_weights(
        [claim for claim, *_ in kept],
        max_num_examples=weighting.max_num_examples,
        max_weight_ratio=weighting.max_weight_ratio,
    )
    # A sum below one keeps products with finite metrics finite; a power of two rounds nothing.
    _, exponent = math.frexp(float(weights.sum()))
    rows = [
        (math.ldexp(float(w), -exponent), metrics)
        for w, (_, metrics, _) in zip(weights, kept, strict=True)
    ]
    return MetricRecord({**mean_metrics(rows)})
