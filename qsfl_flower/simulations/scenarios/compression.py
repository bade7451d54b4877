"""What compression costs in accuracy and rounds: every scheme against the same dense federation.

Ten clients with uneven classes (Dirichlet 0.5), real pictures, the real strategy, mods, messages
and records, in one process. A round is short, so that rounds can be compared to within a few
percent: each client takes five steps on 160 of its pictures, drawn anew in every round.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.compression import Scheme
from qsfl_flower.simulations.build import evaluator_of, owners_of
from qsfl_flower.simulations.config import Experiment, load_experiment
from qsfl_flower.simulations.local import LocalGrid
from qsfl_flower.simulations.materials import dataset_of, model_of
from qsfl_flower.simulations.report.figures import Plot, draw, legend
from qsfl_flower.simulations.scenarios.processes import in_processes
from qsfl_flower.strategies import Compress, RoundRecord, RunObserver, StableFedAvg
from qsfl_flower.wire import to_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLIENTS = 10
PICTURES = 160
BATCH = 32
EVERY = 4
"""Rounds between two evaluations."""


@dataclass(frozen=True)
class Setting:
    """A data set with its model, and how its clients train."""

    config: str
    rounds: int
    learning_rate: float
    momentum: float


SETTINGS = {
    "mnist": Setting("mnist", rounds=200, learning_rate=0.05, momentum=0.0),
    "cifar10": Setting("cifar10", rounds=120, learning_rate=0.02, momentum=0.9),
}
SCHEMES: dict[str, Scheme | None] = {
    "dense": None,
    "1 %": Scheme(ratio=0.01),
    "1 %, no feedback": Scheme(ratio=0.01, feedback=False),
    "0.1 %": Scheme(ratio=0.001),
    "0.1 %, no feedback": Scheme(ratio=0.001, feedback=False),
    "10 %": Scheme(ratio=0.1),
    "10 %, no feedback": Scheme(ratio=0.1, feedback=False),
    "1 %, momentum 0.5": Scheme(ratio=0.01, momentum=0.5),
}


class _Sampling(NumPyClient):
    """Trains on a few of the client's pictures, drawn from its number and the round."""

    def __init__(self, train: Callable[[NDArrays, dict[str, Scalar]], Any]) -> None:
        self._train = train

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> Any:
        """Train as `TrainingClient` does."""
        return self._train(parameters, config)


@dataclass
class _Watch(RunObserver):
    records: list[RoundRecord] = field(default_factory=list)

    def on_round(self, record: RoundRecord, clients: Sequence[Any]) -> None:
        """Keep what is known about the round."""
        self.records.append(record)


def federate(
    name: str, scheme: Scheme | None, rounds: int | None = None, seed: int = 42
) -> dict[str, Any]:
    """Run one federation.

    Parameters
    ----------
    name : str
        One of `SETTINGS`.
    scheme : Scheme or None
        What clients send; None: everything in float32.
    rounds : int, optional
        By default those of the setting.
    seed : int
        Of the partition, the first weights and everything that is drawn.

    Returns
    -------
    dict
        ``accuracy`` by round, and the payload bytes of one reply and one instruction.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    setting = SETTINGS[name]
    rounds = rounds or setting.rounds
    experiment = load_experiment(
        setting.config,
        [f"clients.count={CLIENTS}", "data.partition.alpha=0.5", f"seed={seed}"],
    )
    accuracy: dict[int, float] = {}
    evaluate = evaluator_of(experiment)

    def look(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round % EVERY:
            return None
        found = evaluate(server_round, arrays)
        accuracy[server_round] = float(found["accuracy"])  # type: ignore[arg-type]
        return found

    watch = _Watch()
    strategy = StableFedAvg(
        fraction_evaluate=0,
        min_available_nodes=CLIENTS,
        stages=[] if scheme is None else [Compress(scheme, seed=seed)],
        seed=seed,
        observer=watch,
    )
    grid = LocalGrid(numpy_client_app(_clients(experiment, setting)), CLIENTS)
    start = to_record(get_arrays(model_of(experiment)))
    strategy.start(grid, start, num_rounds=rounds, evaluate_fn=look)
    replies = sum(r.replies for r in watch.records)
    return {
        "accuracy": accuracy,
        "bytes_up": sum(r.bytes_up for r in watch.records) / replies,
        "bytes_down": sum(r.bytes_down for r in watch.records) / replies,
    }


def _clients(experiment: Experiment, setting: Setting) -> Callable[[Context], NumPyClient]:
    torch.set_num_threads(1)
    data, model, owners = dataset_of(experiment), model_of(experiment), owners_of(experiment)
    rows = [np.flatnonzero(owners == client) for client in range(CLIENTS)]
    config = TrainConfig(
        batch_size=BATCH,
        learning_rate=setting.learning_rate,
        momentum=setting.momentum,
    )

    def client_of(context: Context) -> NumPyClient:
        client = int(context.node_config["partition-id"])

        def train(parameters: NDArrays, told: dict[str, Scalar]) -> Any:
            drawn = np.random.default_rng((experiment.seed, client, int(told["server-round"])))
            mine = rows[client]
            chosen = np.sort(drawn.choice(mine, min(PICTURES, mine.size), replace=False))
            view = data.client_view(chosen, chosen[:0])
            trainer = TrainingClient(model, view, config, seed=experiment.seed, client_id=client)
            return trainer.fit(parameters, told)

        return _Sampling(train)

    return client_of


def compare(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per scheme.

    ``accuracy`` is the mean of the last five evaluations. ``rounds`` is the first evaluated round
    that reaches the dense accuracy minus one point; ``more_rounds`` compares it with the dense run.
    """
    final = {name: fmean(list(run["accuracy"].values())[-5:]) for name, run in runs.items()}
    target = final["dense"] - 0.01
    reached = {
        name: next((r for r, value in run["accuracy"].items() if value >= target), None)
        for name, run in runs.items()
    }
    rows = []
    for name, run in runs.items():
        mine, dense = reached[name], reached["dense"]
        rows.append(
            {
                "scheme": name,
                "accuracy": round(final[name], 4),
                "points_lost": round(100 * (final["dense"] - final[name]), 2),
                "rounds": mine,
                "more_rounds": None if not mine or not dense else round(mine / dense - 1, 3),
                "reply_bytes": round(run["bytes_up"]),
                "share_of_dense": round(run["bytes_up"] / runs["dense"]["bytes_up"], 5),
            }
        )
    return rows


def run(
    folder: Path, *, settings: Sequence[str] = tuple(SETTINGS), rounds: int | None = None
) -> dict[str, Any]:
    """Run all schemes on all data sets, write pictures, and return the tables.

    Every finished federation is kept in ``compression-SETTING.json`` in `folder`, so that an
    interrupted comparison goes on where it was.

    Parameters
    ----------
    folder : Path
        Where pictures and results go.
    settings : sequence of str
        Some of `SETTINGS`.
    rounds : int, optional
        Fewer or more rounds than the settings say.

    Returns
    -------
    dict
        JSON values: for each data set the rows of `compare`, and the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Any] = {"files": []}
    for name in settings:
        kept = folder / f"compression-{name}.json"
        runs: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        missing = [title for title in SCHEMES if title not in runs]
        tasks = [partial(federate, name, SCHEMES[title], rounds) for title in missing]
        for index, found in in_processes(tasks):
            runs[missing[index]] = found
            kept.write_text(json.dumps(runs))
        runs = {title: json.loads(kept.read_text())[title] for title in SCHEMES}
        for one in runs.values():
            one["accuracy"] = {int(r): value for r, value in one["accuracy"].items()}
        plot = _plot(name, runs)
        picture = folder / f"{plot.name}.png"
        picture.write_bytes(plot.png)
        tables[name] = compare(runs)
        tables["files"] += [str(kept), str(picture)]
    return tables


def _plot(name: str, runs: dict[str, dict[str, Any]]) -> Plot:
    ends = {title: f"{list(r['accuracy'].values())[-1]:.3f}" for title, r in runs.items()}

    def paint(axes: Axes) -> None:
        for title, one in runs.items():
            style = "--" if "no feedback" in title else "-"
            rounds, values = list(one["accuracy"]), list(one["accuracy"].values())
            axes.plot(rounds, values, linewidth=1.4, linestyle=style, label=title)
        axes.set_xlabel("round")
        axes.set_ylabel("accuracy")
        legend(axes, columns=2)

    alt = f"Accuracy by round; at the end {ends}."
    return draw(f"compression-{name}", f"Compression on {name}", alt, paint, height=3.6)
