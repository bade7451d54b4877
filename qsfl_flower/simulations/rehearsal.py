"""The first rounds of an experiment on a few examples, in this process: what its messages weigh.

Everything but the data is real: keys, steps, stages, evaluation, the order in which clients answer.
Nothing outlives it: its files are in a folder of its own, and no ledger is charged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qsfl_flower.clients.models import get_arrays
from qsfl_flower.rounds.record import ClientRow, RoundRecord
from qsfl_flower.rounds.stages import DecodeStage
from qsfl_flower.simulations.app import make_client_app
from qsfl_flower.simulations.build import Owners, owners_of, strategy_of
from qsfl_flower.simulations.config import Experiment
from qsfl_flower.simulations.fleet import FleetGrid, hosts_of
from qsfl_flower.simulations.materials import model_of
from qsfl_flower.simulations.phones import DAY
from qsfl_flower.strategies import CheckpointStore, RunObserver
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import to_record

_EXAMPLES = 16
"""Examples of a client, held-out ones included."""

_LONGEST = 16
"""Rounds from one evaluation on the clients to the next that are rehearsed."""


@dataclass(frozen=True)
class Traffic:
    """Bytes for each selected client and round.

    Parameters
    ----------
    first : float
        In the first round, where keys are agreed upon and nobody knows the model.
    later : float
        From the second round to the last, on average.
    least, most : float
        In the rehearsed rounds from the second on.
    whole : float
        Of all clients in all rounds.
    """

    first: float
    later: float
    least: float
    most: float
    whole: float


@dataclass(frozen=True)
class Rehearsal:
    """What rehearsed rounds have shown.

    Parameters
    ----------
    records : sequence of RoundRecord
        The rounds from the first on.
    period : int
        After so many rounds sizes repeat, >= 1.
    rounds : int
        How many rounds the experiment has.
    """

    records: Sequence[RoundRecord]
    period: int
    rounds: int

    @property
    def up(self) -> Traffic:
        """What clients send."""
        return self._traffic([record.bytes_up for record in self.records])

    @property
    def down(self) -> Traffic:
        """What they are sent."""
        return self._traffic([record.bytes_down for record in self.records])

    def _traffic(self, sizes: Sequence[int]) -> Traffic:
        clients = [max(record.selected, 1) for record in self.records]
        each = [size / count for size, count in zip(sizes, clients, strict=True)]
        more = self.rounds - len(sizes)
        last = slice(max(len(sizes) - self.period, min(1, len(sizes) - 1)), None)
        scale = more / len(sizes[last])
        later = sum(sizes[1:]) + scale * sum(sizes[last])
        selected = sum(clients[1:]) + scale * sum(clients[last])
        return Traffic(
            first=each[0],
            later=later / selected if selected else each[0],
            least=min(each[1:] or each),
            most=max(each[1:] or each),
            whole=sizes[0] + later,
        )


def rehearse(experiment: Experiment) -> Rehearsal:
    """Run the first rounds without attacks and faults, until sizes repeat.

    Raises
    ------
    QSFLError
        If they end without a usable result, as the run would.
    """
    with TemporaryDirectory() as folder, _quiet():
        output = experiment.output.model_copy(update={"folder": folder})
        clients = experiment.clients.model_copy(update={"epochs": 1})
        stages = map(_without_ledger, experiment.strategy.stages)
        strategy_spec = experiment.strategy.model_copy(update={"stages": (*stages,)})
        changes = {"output": output, "clients": clients, "strategy": strategy_spec}
        changes["evaluation"] = _without_ledger(experiment.evaluation)
        trial = experiment.model_copy(update={**changes, "attacks": (), "faults": ()})
        seen = _Records()
        strategy = strategy_of(trial, CheckpointStore(Path(folder) / "checkpoints"), seen)
        period, rounds = _planned(trial, strategy.chain.decoder)
        app = make_client_app(trial, _few(owners_of(trial)))
        hosts = LocalGrid(app, hosts_of(trial))
        supernodes = trial.simulation.supernodes
        strategy.start(
            hosts if supernodes is None else FleetGrid(hosts, trial.clients.count, supernodes),
            to_record(get_arrays(model_of(trial))),
            num_rounds=rounds,
            timeout=trial.simulation.round_timeout,
        )
    return Rehearsal([r for r in seen.records if r.round], period, experiment.rounds)


def _planned(experiment: Experiment, decoder: DecodeStage | None) -> tuple[int, int]:
    """Return after how many rounds sizes repeat, and how many rounds show it."""
    epoch, warmup = (1, 0) if decoder is None else (decoder.epoch, decoder.warmup_rounds)
    devices, period = experiment.devices, epoch
    if devices.simulate:  # every day is like the next
        period = max(epoch, round(DAY / (60 * devices.round_minutes)))
    every = getattr(experiment.evaluation, "every", 1)
    if every <= _LONGEST:  # in rarer rounds it weighs little
        period = lcm(period, every)
    return period, min(experiment.rounds, 1 + max(epoch if epoch > 1 else 0, warmup) + period)


def _without_ledger(stage: Any) -> Any:
    """Return a stage that charges no account: what is tried here releases nothing."""
    if getattr(stage, "ledger", None) is None:
        return stage
    changes = {"ledger": None, "exhausted": "stop"}
    return stage.model_copy(update={k: v for k, v in changes.items() if hasattr(stage, k)})


def _few(owners: Owners) -> Owners:
    few = np.full_like(owners, -1)
    for client in range(int(owners.max(initial=-1)) + 1):
        rows = np.flatnonzero(owners == client)[:_EXAMPLES]
        few[rows] = client
    return few


class _Records(RunObserver):
    def __init__(self) -> None:
        self.records: list[RoundRecord] = []

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        self.records.append(record)


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("flwr", "qsfl_flower")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
