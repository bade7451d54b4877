"""Kill drill: servers die at any point, no privacy loss is forgotten, no update counts twice.

A federation runs in a child process that is ended by SIGKILL after a random time and started again
on the same folder, many times. The devices write down what they send before they send it. After
every kill the epsilon that the folder reports must be at least the one recomputed from that, and in
the final model each update that was ever sent is there once or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from qsfl_flower.clients import qsfl_mod
from qsfl_flower.errors import CheckpointError
from qsfl_flower.privacy.accountant import Accountant
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.gaussian import grid_slack
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.rounds.charges import read_charges
from qsfl_flower.stages import CentralDP, Clip, LocalDP, RecordDP, Stage
from qsfl_flower.strategies import (
    BufferedAsync,
    CheckpointStore,
    ClientRow,
    RoundRecord,
    RunObserver,
    StableFedAvg,
)
from qsfl_flower.testing import LocalGrid

NAME = "kills"
DESCRIPTION = "200 kills of an in-process federation and 20 of qsfl run: epsilon and updates"

CLIENTS = 3
MOST = 4000  # updates that one device may send
SIZE = CLIENTS * MOST
DELTA = 1e-5
GRID = 1e-4  # relative: bounds of one loss on different grids; one round more costs over 1e-3
RECORD = RecordPrivacy(clip_norm=1.0, noise_multiplier=4.0, sampling_rate=0.01, steps=2)
NOISE = 50.0

Row = dict[str, Any]


def record_stage() -> list[Stage]:
    """Have the devices train privately."""
    return [RecordDP(RECORD, rounds=MOST)]


def local_stage() -> list[Stage]:
    """Have the devices add noise to their updates."""
    return [LocalDP(1.0, NOISE, rounds=MOST)]


def central_stage() -> list[Stage]:
    """Have the server add noise to the mean."""
    return [Clip(1.0), CentralDP(NOISE, CLIENTS, rounds=MOST)]


def central_event(releases: int) -> Event:
    """Return what so many noisy models cost."""
    return Event(NOISE, 1.0, releases, grid_slack(SIZE + 1))


Stages = Callable[[], list[Stage]]

CASES: dict[str, tuple[type[StableFedAvg], Stages, Callable[[int], Event]]] = {
    "record_dp": (StableFedAvg, record_stage, lambda n: RECORD.event(SIZE, n)),
    "record_dp, async": (BufferedAsync, record_stage, lambda n: RECORD.event(SIZE, n)),
    "local_dp": (StableFedAvg, local_stage, lambda n: Event(NOISE, 1.0, n, grid_slack(SIZE))),
    "central_dp": (StableFedAvg, central_stage, central_event),
}


def run(quick: bool) -> list[Row]:
    """Return a row for each mechanism, and one for `qsfl run`."""
    kills = 20 if quick else 200
    rows = []
    for case in CASES:
        with TemporaryDirectory() as folder:
            rows.append(drill(case, Path(folder), kills))
    if not quick:
        with TemporaryDirectory() as folder:
            rows.append(drill_run(Path(folder), 20))
    return rows


def drill(case: str, folder: Path, kills: int, seed: int = 0) -> Row:
    """Kill a federation in a child process so many times, and look at what is left each time."""
    chance, killed, least = random.Random(seed), 0, float("inf")
    while killed < kills:
        child = os.fork()
        if child == 0:
            _live(case, folder, MOST)
        _wait(folder, chance.randrange(5))
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise RuntimeError(f"the federation ended by itself (status {status}) in {folder}")
        killed += 1
        charges = read_charges(folder)
        reported = 0.0 if charges is None else charges.epsilon or 0.0
        least = min(least, reported - _real(case, folder) * (1 - GRID))
    child = os.fork()
    if child == 0:
        _live(case, folder, _rounds(folder) + 2)
    _, status = os.waitpid(child, 0)
    rounds, model = _rounds(folder), CheckpointStore(folder).latest().arrays["w"]
    reported = float((folder / "reported").read_text())
    real, sent, twice = _real(case, folder), _sent(folder), None
    if case.startswith("record_dp"):
        counted = np.rint(model * CLIENTS)
        twice = int(np.count_nonzero(counted > 1))
        twice += abs(int(counted.sum()) - CLIENTS * rounds)  # nothing is missing either
    good = status == 0 and reported >= real * (1 - GRID) and least >= 0 and not twice
    return _row(case, killed, rounds, sent, real, reported, twice, good)


def _wait(folder: Path, instructions: int) -> None:
    """Wait until the devices have answered so many more instructions."""
    target, end = _sent(folder) + instructions, time.monotonic() + 60
    while _sent(folder) < target and time.monotonic() < end:
        time.sleep(0.002)


def _row(
    case: str, kills: int, rounds: int, sent: int, real: float, reported: float,
    twice: int | None, ok: bool,
) -> Row:  # fmt: skip
    return {
        "case": case,
        "kills": kills,
        "rounds": rounds,
        "most sent by a device": sent,
        "epsilon from the devices": round(real, 6),
        "epsilon reported": round(reported, 6),
        "updates counted twice": "not seen under noise" if twice is None else twice,
        "ok": ok,
    }


class _Report(RunObserver):
    """Writes the epsilon that a round reports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        if record.epsilon is not None:
            (self._folder / "reported").write_text(repr(record.epsilon))


def _live(case: str, folder: Path, rounds: int) -> None:
    """Run the federation in this process until somebody kills it; does not return."""
    code = 1
    try:
        logging.disable()
        kind, stages, _ = CASES[case]
        store = CheckpointStore(folder)
        try:
            resume = store.latest()
        except CheckpointError:
            resume = None
        options: dict[str, Any] = {"buffer_size": CLIENTS} if kind is BufferedAsync else {}
        strategy = kind(
            fraction_evaluate=0.0,
            min_available_nodes=CLIENTS,
            min_train_nodes=CLIENTS,
            stages=stages(),
            checkpoints=store,
            observer=_Report(folder),
            **options,
        )
        start = ArrayRecord({"w": Array(np.zeros(SIZE))})
        strategy.start(
            LocalGrid(_device(folder), CLIENTS), start, rounds, timeout=60, resume=resume
        )
        code = 0
    finally:
        os._exit(code)


def _device(folder: Path) -> Callable[[Message, Context], Message]:
    """Make the devices: each adds 1 at a place that it never used before."""

    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        model = message.content.array_records["arrays"]["w"].numpy().copy()
        journal = folder / f"sent-{client}"
        number = len(journal.read_bytes().splitlines()) if journal.exists() else 0
        seen = hashlib.sha256(model.tobytes()).hexdigest()
        with journal.open("a") as file:
            file.write(f"{seen}\n")
        model[client * MOST + number] += 1.0
        metrics = MetricRecord({"num-examples": 1, **RECORD.told()})
        content = RecordDict({"arrays": ArrayRecord({"w": Array(model)}), "metrics": metrics})
        return Message(content, reply_to=message)

    def app(message: Message, context: Context) -> Message:
        return qsfl_mod(message, context, train)

    return app


def _sent(folder: Path) -> int:
    return max((len(p.read_bytes().splitlines()) for p in folder.glob("sent-*")), default=0)


def _real(case: str, folder: Path) -> float:
    """Recompute epsilon from what the devices wrote down."""
    releases = _sent(folder)
    if case == "central_dp":  # what was released are the noisy models that devices saw
        seen = {line for p in folder.glob("sent-*") for line in p.read_bytes().splitlines()}
        releases = len(seen) - 1
    return Accountant([CASES[case][2](releases)]).epsilon(DELTA) if releases > 0 else 0.0


def _rounds(folder: Path) -> int:
    try:
        return CheckpointStore(folder).latest().server_round
    except CheckpointError:
        return 0


JOURNAL = "QSFL_KILL_DRILL"
"""Environment variable that names the file in which devices of `qsfl run` write that they train."""


def recording_model(input_shape: Sequence[int], num_classes: int) -> Any:
    """Return the model ``linear``, which writes down when it is trained for the first time."""
    import torch

    from qsfl_flower.clients.models import linear

    model, trained = linear(input_shape, num_classes), []

    def first(module: torch.nn.Module, batch: object) -> None:
        journal = os.environ.get(JOURNAL)
        if journal and module.training and torch.is_grad_enabled() and not trained:
            trained.append(True)
            with Path(journal).open("a") as file:
                file.write(f"{os.getpid()}\n")

    model.register_forward_pre_hook(first)
    return model


def drill_run(folder: Path, kills: int, seed: int = 0) -> Row:
    """Kill `qsfl run` so many times.

    A device builds its model anew whenever it trains, and all devices train in every round, so the
    number of models that were trained outside the server's process, over the number of devices, is
    a lower bound of how often some device was asked.
    """
    chance, journal, servers = random.Random(seed), folder / "journal", set[int]()
    clients, least, name = 4, float("inf"), ""
    settings = [
        "model.name=benchmarks.bench_kills:recording_model", f"clients.count={clients}",
        "rounds=100000", f"output.folder={folder}", "simulation.actors=1",
    ]  # fmt: skip
    begin = [sys.executable, "-m", "qsfl_flower.simulations.cli", "run"]
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, JOURNAL: str(journal), "PYTHONPATH": path}
    charges = None
    for life in range(kills):
        resumable = name and any((folder / name / "checkpoint").glob("round-*.json"))
        command = ["dp_record"]
        if resumable:  # a run folder imports nothing by itself
            command = ["--resume", str(folder / name), "--plugin", "benchmarks.bench_kills"]
        if not resumable:  # a new run, with an account of its own
            journal.unlink(missing_ok=True)
        sets = [part for setting in settings for part in ("--set", setting)]
        process = subprocess.Popen(
            [*begin, *command, *sets], env=environment, cwd=folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        servers.add(process.pid)
        target = _built(journal, servers) + clients * chance.randrange(1, 6)
        while process.poll() is None and _built(journal, servers) < target:
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 0.5))
        if process.poll() is not None:
            _, said = process.communicate()
            raise RuntimeError(f"qsfl run ended by itself in life {life}: {said}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        name = max(p.parent.name for p in folder.glob("*/config.yaml"))
        charges = read_charges(folder / name / "checkpoint")
        reported = 0.0 if charges is None else charges.epsilon or 0.0
        real = _real_run(folder / name, journal, servers, clients)
        least = min(least, reported - real * (1 - GRID))
    real = _real_run(folder / name, journal, servers, clients)
    asked = -(-_built(journal, servers) // clients)
    rounds = max((int(p.stem[6:]) for p in folder.glob("*/checkpoint/round-*.json")), default=0)
    reported = 0.0 if charges is None else charges.epsilon or 0.0
    return _row("qsfl run, record_dp", kills, rounds, asked, real, reported, None, least >= 0)


def _built(journal: Path, servers: set[int]) -> int:
    lines = journal.read_text().splitlines() if journal.exists() else []
    return sum(int(line) not in servers for line in lines)


def _real_run(run: Path, journal: Path, servers: set[int], clients: int) -> float:
    asked = -(-_built(journal, servers) // clients)
    if not asked:
        return 0.0
    charged = json.loads((run / "checkpoint" / "charges.json").read_text())
    (stage,) = charged["stages"].values()
    (event,) = stage["state"]["events"]  # of all rounds, in each of which every device is asked
    steps = event["count"] // charged["number"]
    return Accountant([Event(**{**event, "count": steps * asked})]).epsilon(stage["delta"])
