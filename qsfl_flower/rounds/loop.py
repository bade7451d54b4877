"""The loop over rounds: exchange, combine, evaluate, record, checkpoint."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Result

from qsfl_flower.errors import BudgetExceeded, CheckpointError, TooFewReplies
from qsfl_flower.numerics import MonitorState, Reaction
from qsfl_flower.rounds.aggregate import Outcome
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.checkpoint import Snapshot
from qsfl_flower.rounds.guard import Guard, remember, respond
from qsfl_flower.rounds.policies import History
from qsfl_flower.rounds.post import collect
from qsfl_flower.rounds.record import ClientRow, RoundRecord, causes, client_rows, first
from qsfl_flower.rounds.training import Job, Rounds
from qsfl_flower.wire import from_record, to_record

log = logging.getLogger("qsfl_flower")

_LOSS = ("loss", "eval-loss", "eval_loss")
_ACCURACY = ("accuracy", "eval-accuracy", "eval_accuracy", "eval-acc", "eval_acc")
_FEWEST_CLAIMS = 3
"""Of fewer losses the median is what one client claims."""
_SHORT = 32
"""Numbers of a list of metrics that stand in the record of a round, at most."""
_TRAIN_LOSS = ("train-loss", "train_loss", "loss")
_TRAIN_ACCURACY = ("train-accuracy", "train_accuracy", "accuracy")


@dataclass
class _Progress:
    """What changes from round to round and is not the strategy's own."""

    result: Result
    monitor: MonitorState
    started: float
    done: int = 0
    failed: int = 0
    halted: bool = False


@dataclass
class _Clock:
    """Seconds spent in the parts of a round."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


def run_rounds(
    rounds: Rounds, job: Job, initial_arrays: ArrayRecord, resume: Snapshot | None
) -> Result:
    """Run from the first or the next round to the last; see `StableFedAvg.start`."""
    engine = rounds.engine
    if resume is not None:
        try:
            progress = _restore(rounds, resume)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run: {error!r}") from error
    engine.recover(resume)
    if resume is None:
        engine.layout_of(from_record(initial_arrays))  # what does not fit is said before any work
        progress = _Progress(Result(arrays=initial_arrays), engine.monitor.init(), _now())
        clock = _Clock()
        central = _evaluate_centrally(job, 0, progress.result)
        clock.lap("evaluate")
        record = RoundRecord(0, _now() - progress.started)
        engine.observer.on_round(_finish(record, clock, central, None), ())
    last = progress.done if progress.halted else job.num_rounds
    for server_round in range(progress.done + 1, last + 1):
        try:
            record, rows = _one_round(rounds, job, progress, server_round)
        except BudgetExceeded as error:
            log.warning("round %d does not take place: %s; training ends here", server_round, error)
            engine.observer.on_end(server_round, str(error))
            break
        if engine.checkpoints is not None:
            engine.checkpoints.save(_snapshot(rounds, progress, record))
        engine.observer.on_round(record, rows)
        hopeless = progress.failed == server_round == job.num_rounds
        if hopeless or progress.failed >= engine.max_failed_rounds:
            raise TooFewReplies(_why(record, rows, progress.failed))
        if progress.halted:
            break
    return progress.result


def _one_round(
    rounds: Rounds, job: Job, progress: _Progress, server_round: int
) -> tuple[RoundRecord, tuple[ClientRow, ...]]:
    engine, clock, result = rounds.engine, _Clock(), progress.result
    trained = rounds.train(job, server_round, result.arrays, clock.lap)
    messages, replies, metrics = trained.messages, trained.replies, trained.metrics
    if trained.arrays is not None:
        result.arrays = trained.arrays
    if metrics is not None:
        result.train_metrics_clientapp[server_round] = metrics
    clock_s = engine.post.clock.now
    questions = _questions(rounds, job, server_round, result.arrays)
    answers = collect(
        job.grid,
        questions,
        timeout=engine.timeout,
        stop=engine.observer.should_stop,
        on_reply=partial(engine.observer.on_progress, server_round, "evaluate"),
    )
    told = rounds.hooks.aggregate_evaluate(server_round, answers) if questions else None
    if told is not None:
        result.evaluate_metrics_clientapp[server_round] = told
    central = _evaluate_centrally(job, server_round, result)
    clock.lap("evaluate")

    model_bytes = sum(len(array.data) for array in result.arrays.values())
    traffic = engine.traffic.plus((*messages, *questions), (*replies, *answers))
    beside, more = engine.take_beside()
    record = RoundRecord(
        round=server_round,
        elapsed_s=_now() - progress.started,
        clock_s=clock_s,
        train_loss=first(metrics or {}, *_TRAIN_LOSS),
        train_accuracy=first(metrics or {}, *_TRAIN_ACCURACY),
        bytes_down=traffic.down + more.down,
        bytes_up=traffic.up + more.up,
        dense_down=model_bytes * len((*messages, *questions)),
        dense_up=model_bytes * sum(m.has_content() for m in replies),
        selected=len(messages),
        replies=sum(m.has_content() for m in replies),
        stages=beside,
    )
    rows: tuple[ClientRow, ...] = ()
    if (outcome := trained.outcome) is not None:
        rows = client_rows(server_round, outcome.cohort)
        record = replace(
            record,
            accepted=outcome.cohort.accepted,
            rejected=outcome.cohort.reasons(),
            unused=outcome.cohort.unused(),
            capped=outcome.capped,
            update_norm=outcome.update_norm,
            skipped=outcome.skipped,
            stages={**outcome.measured, **beside},
            epsilon=engine.chain.epsilon(engine.states),
        )
        progress.failed = progress.failed + 1 if outcome.skipped else 0
    record = _finish(record, clock, central, told)
    record = replace(record, stage_seconds=engine.chain.take_seconds())
    loss = record.eval_loss
    if loss is None and beside and not engine.chain.withstands_liars:
        # Of bounded sums, charged where they are noisy. A liar can move them as it can the model.
        loss = record.client_eval_loss
    if loss is None and trained.outcome is not None:
        loss = _usual_loss(engine.chain, trained.outcome)
    monitor = engine.monitor
    progress.monitor, cause = monitor.observe(progress.monitor, loss, None)
    progress.monitor, long = monitor.observe(progress.monitor, None, record.update_norm)
    alarm = "; ".join(filter(None, (cause, long))) or None
    if alarm:
        log.warning("round %d: %s", server_round, alarm)
    if engine.chain.withstands_liars:
        cause = alarm  # elsewhere one client can make a step long
    progress.monitor, reaction = monitor.react(progress.monitor, cause, loss)
    done = None
    if reaction is not None:
        result.arrays, done = respond(engine, reaction, result.arrays, server_round)
        progress.halted = reaction is Reaction.HALT
        log.warning("round %d: %s", server_round, done)
    elif not cause and Guard.name in engine.states:
        best = remember(engine.states[Guard.name], result.arrays, server_round, loss)
        engine.states = {**engine.states, Guard.name: best}
    return replace(record, alarm=alarm, reaction=done), rows


def _questions(rounds: Rounds, job: Job, server_round: int, arrays: ArrayRecord) -> list[Message]:
    """Return the instructions to evaluate, as they are sent."""
    opened = rounds.engine.opened
    opened.pop("evaluate", None)
    messages = list(
        rounds.hooks.configure_evaluate(server_round, arrays, job.evaluate_config, job.grid)
    )
    if "evaluate" in opened:
        opened["evaluate"] = replace(opened["evaluate"], messages=messages)
    return messages


def _usual_loss(chain: Chain, outcome: Outcome) -> float | None:
    """Return the median of the losses that clients claim, if a reaction may follow it.

    Fewer than half of the clients cannot move it out of the range of the others' losses, whatever
    they claim. Sums of hidden losses and losses that noise is to hide are not looked at: one claim
    decides about the former, and a reaction would tell the latter.
    """
    if chain.hides or chain.protects_clients:
        return None
    told = [first(u.metrics, *_TRAIN_LOSS) for u in outcome.cohort.updates]
    claims = [loss for loss in told if loss is not None]
    return statistics.median_low(claims) if len(claims) >= _FEWEST_CLAIMS else None


def _evaluate_centrally(job: Job, server_round: int, result: Result) -> MetricRecord | None:
    if job.evaluate_fn is None:
        return None
    metrics = job.evaluate_fn(server_round, result.arrays)
    if metrics is not None:
        result.evaluate_metrics_serverapp[server_round] = metrics
    return metrics


def _finish(
    record: RoundRecord, clock: _Clock, central: MetricRecord | None, told: MetricRecord | None
) -> RoundRecord:
    return replace(
        record,
        time_s=sum(clock.seconds.values()),
        timing=dict(clock.seconds),
        eval_loss=first(central or {}, *_LOSS),
        eval_accuracy=first(central or {}, *_ACCURACY),
        client_eval_loss=first(told or {}, *_LOSS),
        client_eval_accuracy=first(told or {}, *_ACCURACY),
        client_metrics=_single(told or {}),
    )


def _single(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among metrics, and those of short lists by their place."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, float):
            found[name] = value
        elif isinstance(value, list) and len(value) <= _SHORT:
            found |= {f"{name}[{i}]": float(one) for i, one in enumerate(value)}
    return found


def _snapshot(rounds: Rounds, progress: _Progress, record: RoundRecord) -> Snapshot:
    engine, result = rounds.engine, progress.result
    history = {
        "train": result.train_metrics_clientapp,
        "evaluate": result.evaluate_metrics_clientapp,
        "server": result.evaluate_metrics_serverapp,
    }
    states, under_way = rounds.to_save()
    arrays = from_record(result.arrays)
    return Snapshot(
        record.round,
        arrays,
        states,
        {
            "layout": engine.layout_of(arrays).digest,
            "halted": progress.halted,
            "under_way": under_way,
            "monitor": progress.monitor.to_dict(),
            "failed": progress.failed,
            "selection": engine.sampling.history.to_dict(),
            "elapsed_s": record.elapsed_s,
            "history": {
                kind: {str(r): dict(metrics) for r, metrics in rounds.items()}
                for kind, rounds in history.items()
            },
        },
        engine.charges,
    )


def _restore(rounds: Rounds, snapshot: Snapshot) -> _Progress:
    engine, saved = rounds.engine, snapshot.progress
    # Checkpoints of the release before do not tell.
    if saved.get("layout") not in (None, engine.layout_of(snapshot.arrays).digest):
        raise CheckpointError(
            "the checkpoint was written with other roles of the arrays: momentum and what else "
            "the stages keep does not fit; give the same roles, or start anew"
        )
    rounds.restore(snapshot)
    engine.sampling.history = History.from_dict(saved["selection"])

    def past(kind: str) -> dict[int, MetricRecord]:
        known: Mapping[str, Any] = saved["history"][kind]
        return {int(r): MetricRecord(metrics) for r, metrics in known.items()}

    result = Result(to_record(snapshot.arrays), past("train"), past("evaluate"), past("server"))
    return _Progress(
        result,
        MonitorState.from_dict(saved["monitor"]),
        _now() - saved["elapsed_s"],
        snapshot.server_round,
        saved["failed"],
        saved["halted"],
    )


def _why(record: RoundRecord, rows: Iterable[ClientRow], failed: int) -> str:
    reasons = ", ".join(causes(record, rows))
    return (
        f"{failed} round(s) in a row left the model unchanged, the last one (round {record.round}) "
        f"because: {record.skipped}. Of {record.selected} clients asked, {record.accepted} were "
        f"usable; rejected: {reasons or 'none'}"
    )


def _now() -> float:
    return time.perf_counter()
