"""What personal models are worth, on devices whose data are very different.

Two federations of real pictures, both in one process without Ray:

* *Label skew.* Each device knows two classes. The common model is compared with each device's
  personal one for every method, on examples that the device has never learned from.
* *Private names.* Each device sorts two classes into "0" and "1" in an order of its own, so that no
  common model can be right for all; only a start from which a device learns quickly helps. New
  devices get a few examples and take a few steps from each start.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.common import NDArrays

from qsfl_flower.clients.data import Dataset, load_dataset
from qsfl_flower.clients.models import build_model, get_arrays, set_arrays
from qsfl_flower.clients.partition import Shards, partition, split
from qsfl_flower.clients.personal import PersonalClient
from qsfl_flower.clients.training import TrainConfig, evaluate_model
from qsfl_flower.errors import DataError
from qsfl_flower.personalization import Personalization, few_shots
from qsfl_flower.simulations.report.figures import Plot, draw, legend, palette, percents

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EACH = 100
HELD_OUT = 0.3
NEW_DEVICES = 20
SHOTS = (0, 1, 2, 5, 10)
STEPS = 5
TRAIN = TrainConfig(epochs=1, batch_size=14, learning_rate=0.05)


@dataclass(frozen=True)
class Entry:
    """A method, and the step that the server takes along the mean update."""

    how: Personalization
    server_rate: float = 1.0


SKEWED = {
    "fine-tune": Entry(Personalization(inner_rate=0.05)),
    "maml": Entry(Personalization(method="maml", meta_rate=0.1, meta_batch=35)),
    "maml, first order": Entry(
        Personalization(method="maml", meta_rate=0.1, meta_batch=35, order="first")
    ),
    "per-fedavg": Entry(
        Personalization(method="per-fedavg", meta_steps=5, meta_rate=0.1, order="first")
    ),
    "reptile": Entry(Personalization(method="reptile"), server_rate=0.7),
    "fedper": Entry(Personalization(method="fedper", head=("3.",))),
    "fedrep": Entry(Personalization(method="fedrep", head=("3.",))),
    "ditto": Entry(Personalization(method="ditto")),
}
NAMED = {
    "fedavg": Entry(Personalization(inner_rate=0.1)),
    "reptile": Entry(Personalization(method="reptile", inner_rate=0.1), server_rate=0.7),
    "maml": Entry(Personalization(method="maml", meta_rate=0.5, meta_batch=35, inner_rate=0.1)),
}


class Federation:
    """Devices of one method, and the rounds that they train in.

    Parameters
    ----------
    devices : sequence of Dataset
        The data of each device.
    entry : Entry
        What they do.
    per_round : int
        Devices that train in a round.
    seed : int
        Of the model, the draws and the clients.
    train : TrainConfig
        Ordinary training.
    """

    def __init__(
        self,
        devices: Sequence[Dataset],
        entry: Entry,
        per_round: int,
        seed: int,
        train: TrainConfig = TRAIN,
    ) -> None:
        self.devices, self.entry, self.per_round, self.seed = devices, entry, per_round, seed
        self.train = train
        first = devices[0]
        self.model = build_model("mlp", first.input_shape, first.num_classes, seed)
        self.arrays: NDArrays = list(get_arrays(self.model).values())
        self.states = [RecordDict() for _ in devices]
        self.round = 0
        self.seconds = 0.0

    def client(self, index: int, data: Dataset | None = None) -> PersonalClient:
        """Return one device; its memory lasts."""
        return PersonalClient(
            copy.deepcopy(self.model),
            data or self.devices[index],
            self.train,
            seed=self.seed,
            client_id=index,
            personalization=self.entry.how,
            state=RecordDict() if data else self.states[index],
        )

    def advance(self, rounds: int) -> None:
        """Train so many rounds."""
        for _ in range(rounds):
            self.round += 1
            draw_ = np.random.default_rng((self.seed, self.round))
            chosen = np.sort(draw_.choice(len(self.devices), self.per_round, replace=False))
            began = time.process_time()
            replies = [
                self.client(int(i)).fit(self.arrays, {"server-round": self.round}) for i in chosen
            ]
            self.seconds += time.process_time() - began
            weights = np.array([count for _, count, _ in replies], dtype=np.float64)
            shares = weights / weights.sum()
            steps = [
                sum(s * (new[k].astype(np.float64) - old) for s, (new, *_) in zip(
                    shares, replies, strict=True))
                for k, old in enumerate(self.arrays)
            ]  # fmt: skip
            rate = self.entry.server_rate
            self.arrays = [
                (old + rate * step).astype(old.dtype)
                for old, step in zip(self.arrays, steps, strict=True)
            ]

    def common_accuracy(self, index: int, arrays: NDArrays | None = None) -> float:
        """Return the accuracy of the common model, or of given arrays, on one device."""
        names = list(self.model.state_dict())
        set_arrays(self.model, dict(zip(names, arrays or self.arrays, strict=True)))
        data = self.devices[index]
        return evaluate_model(self.model, data.x_test, data.y_test, data.normalization)[1]


def evaluate(federation: Federation) -> dict[str, float]:
    """Compare the common and the personal model over all devices, before and after a round.

    ``kept`` is the share of the gain that is left when the server's model moves on by a round and
    the device puts what it had learned on top of it, without learning anew.
    """
    indices = range(len(federation.devices))
    common = np.array([federation.common_accuracy(i) for i in indices])
    clients = [federation.client(i) for i in indices]
    personal = np.array([c.evaluate_personal(federation.arrays)[1] for c in clients])
    own = [list(get_arrays(c.personalize(federation.arrays)).values()) for c in clients]
    before = federation.arrays
    remembered = [copy.deepcopy(s) for s in federation.states]
    seconds = federation.seconds / federation.round
    federation.advance(1)
    federation.states = remembered
    moved = [
        [
            new + (mine - old)
            for new, mine, old in zip(federation.arrays, model, before, strict=True)
        ]
        for model in own
    ]
    next_common = np.array([federation.common_accuracy(i) for i in indices])
    after = np.array(
        [federation.common_accuracy(i, m) for i, m in zip(indices, moved, strict=True)]
    )
    gain = float((personal - common).mean())
    worst = max(1, len(personal) // 10)
    return {
        "common": float(common.mean()),
        "personal": float(personal.mean()),
        "gain": gain,
        "worst decile, common": float(np.sort(common)[:worst].mean()),
        "worst decile, personal": float(np.sort(personal)[:worst].mean()),
        "kept": float((after - next_common).mean()) / gain if gain > 0 else 0.0,
        "CPU seconds per round": seconds,
    }


def few_shot_curve(federation: Federation, new: Sequence[Dataset]) -> dict[str, list[float]]:
    """Return the mean accuracy on new devices after 0 to 5 steps, for each number of examples."""
    curve = {}
    for shots in SHOTS:
        rows = [few_shots(d.y_train, shots, federation.seed) for d in new]
        curve[str(shots)] = [
            float(
                np.mean(
                    [
                        federation.client(10**6 + i, d).evaluate_personal(
                            federation.arrays, mine, steps
                        )[1]
                        for i, (d, mine) in enumerate(zip(new, rows, strict=True))
                    ]
                )
            )
            for steps in range(STEPS + 1)
        ]
    return curve


def skewed_devices(data: Dataset, count: int, seed: int) -> list[Dataset]:
    """Give each device examples of about two classes, and hold some of them out."""
    rows = np.random.default_rng(seed).permutation(len(data.y_train))[: EACH * count]
    parts = partition(data.y_train[rows], count, Shards(2), seed)
    return [
        data.client_view(*split(rows[part], HELD_OUT, (seed, i))) for i, part in enumerate(parts)
    ]


def named_devices(data: Dataset, count: int, seed: int) -> list[Dataset]:
    """Give each device examples of two classes, called 0 and 1 in an order of its own."""
    devices = []
    for index in range(count):
        generator = np.random.default_rng((seed, index))
        pair = generator.choice(data.num_classes, 2, replace=False)
        each = [
            generator.choice(np.flatnonzero(data.y_train == label), EACH // 2, replace=False)
            for label in pair
        ]
        view = data.client_view(*split(np.concatenate(each), HELD_OUT, (seed, index)))
        devices.append(
            replace(
                view,
                y_train=(view.y_train == pair[1]).astype(np.int64),
                y_test=(view.y_test == pair[1]).astype(np.int64),
                num_classes=2,
                class_names=None,
            )
        )
    return devices


def run(
    folder: Path,
    *,
    clients: int = 100,
    rounds: int = 100,
    per_round: int = 10,
    seed: int = 0,
    dataset: str = "mnist",
) -> dict[str, Any]:
    """Run both federations with every method, write the pictures, and return the tables.

    Parameters
    ----------
    folder : Path
        Where ``personalization-gain.png`` and ``personalization-few-shots.png`` go.
    clients, rounds, per_round : int
        Devices in all, rounds, and devices that train in each.
    seed : int
        Of everything.
    dataset : str
        ``mnist`` where it is found, else ``digits``, which comes with scikit-learn.
    """
    torch.set_num_threads(1)  # a second thread only waits on a model this small
    try:
        data = load_dataset(dataset)
    except DataError:
        data = load_dataset("digits")
    clients = min(clients, len(data.y_train) // EACH)
    skewed = skewed_devices(data, clients, seed)
    table = {}
    for name, entry in SKEWED.items():
        federation = Federation(skewed, entry, min(per_round, clients), seed)
        federation.advance(rounds)
        table[name] = evaluate(federation)
    named = named_devices(data, clients + NEW_DEVICES, seed)
    curves = {}
    for name, entry in NAMED.items():
        federation = Federation(named[:clients], entry, min(per_round, clients), seed)
        federation.advance(rounds)
        curves[name] = few_shot_curve(federation, named[clients:])
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for plot in (_gains(table), _few_shots(curves)):
        files.append(str(folder / f"{plot.name}.png"))
        Path(files[-1]).write_bytes(plot.png)
    return {
        "data": data.source,
        "devices": clients,
        "rounds": rounds,
        "label skew": table,
        "few shots": curves,
        "files": files,
    }


def _gains(table: dict[str, dict[str, float]]) -> Plot:
    def paint(axes: Axes) -> None:
        places = np.arange(len(table))
        bars = ("common", "personal", "worst decile, personal")
        for offset, (key, color) in enumerate(zip(bars, palette(3), strict=True)):
            heights = [row[key] for row in table.values()]
            axes.bar(places + 0.27 * (offset - 1), heights, 0.26, color=color, label=key)
        axes.set_xticks(places, list(table), rotation=20, ha="right")
        percents(axes.yaxis)
        legend(axes, columns=3)

    told = ", ".join(f"{name} {row['gain']:+.1%}" for name, row in table.items())
    alt = f"Accuracy of common and personal models; gains: {told}."
    return draw("personalization-gain", "Two classes per device", alt, paint, height=3.4)


def _few_shots(curves: dict[str, dict[str, list[float]]]) -> Plot:
    most = str(SHOTS[-1])

    def paint(axes: Axes) -> None:
        for (name, curve), color in zip(curves.items(), palette(len(curves)), strict=True):
            axes.plot(range(STEPS + 1), curve[most], color=color, marker="o", label=name)
        axes.set_xlabel(f"steps on {most} examples")
        percents(axes.yaxis)
        legend(axes, columns=3)

    ends = {name: f"{curve[most][-1]:.1%}" for name, curve in curves.items()}
    alt = f"Accuracy of new devices by steps from each start; at the end {ends}."
    return draw("personalization-few-shots", "New devices", alt, paint, height=3.0)
