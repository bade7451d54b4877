"""Everything on: compression, record-level privacy, hidden Multi-Krum, signatures, asynchrony.

Twenty silos train a linear model on scattering features, which no data has shaped. Three of them
attack. Under the full chain the silos take private steps on 1 % of the coordinates, drawn anew for
every six models; updates are signed, shared among a committee, compared unseen and added up for
every buffer, older ones damped. Beside it, the same model by plain synchronous FedAvg without
privacy: without attackers, and under the same ones.

All federations run in this process, with the real strategies, mods and messages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.clientapp.typing import Mod

from qsfl_flower.asynchrony import Device, VirtualClock
from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.privacy import policy_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.mechanisms.compression.core import Mask
from qsfl_flower.mechanisms.robust.core.attacks import Attack, build_attack
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.rounds.record import ClientRow, RoundRecord
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.simulations.report.figures import BLUE, GREEN, ORANGE, Plot, draw, legend
from qsfl_flower.simulations.scenarios.processes import in_processes
from qsfl_flower.simulations.scenarios.silos import (
    CLASSES,
    Gang,
    Silo,
    features_of,
    probabilities,
)
from qsfl_flower.stages import Authenticate, Committee, RecordDP, SecureKrum, SharedMask
from qsfl_flower.strategies import BufferedAsync, RunObserver, StableFedAvg
from qsfl_flower.testing import LocalGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLIENTS, ATTACKERS = 20, (2, 9, 16)
DELTA, CLIP = 1e-5, 1.0
BUFFER, MAX_STALENESS, EPOCH, RATIO = 18, 5, 6, 0.01
CLIP_UPDATE, STEP = 24.0, 12.0
_REFERENCE = "FedAvg, no attackers"


@dataclass(frozen=True)
class Setting:
    """One federation.

    Parameters
    ----------
    dataset : str
        See `features_of`.
    protected : bool
        The full chain; else plain synchronous FedAvg.
    attack : str or None
        Name of the attack.
    rounds : int
        Aggregations.
    epsilon : float
        Of every record after all rounds, with `protected`.
    """

    dataset: str
    protected: bool
    attack: str | None
    rounds: int
    epsilon: float

    @property
    def label(self) -> str:
        """What to call it."""
        way = "full chain" if self.protected else "FedAvg"
        return f"{way}, {self.attack or 'no attackers'}"


def attack_named(name: str | None) -> Attack | None:
    """Return an attack; flipped updates are ten times as long."""
    if name is None:
        return None
    return build_attack(name, scale=10.0) if name == "sign-flip" else build_attack(name)


class Recorder(RunObserver):
    """Keeps what the records say of liars and staleness."""

    def __init__(self) -> None:
        self.chosen, self.heard, self.stale, self.used = 0, 0, 0, 0

    def on_round(self, record: RoundRecord, clients: Sequence[ClientRow]) -> None:
        """Count whose updates were there, and whose were selected."""
        for row in clients:
            if row.status not in ("accepted", "not-selected"):
                continue
            self.used += 1
            self.stale += bool(row.staleness)
            if row.sent_s is not None and row.client in {str(n) for n in ATTACKERS}:
                self.heard += 1
                self.chosen += row.status == "accepted"


def federation(setting: Setting, folder: Path, seed: int) -> dict[str, Any]:
    """Train one federation and return its accuracy after every aggregation, and what it took."""
    started = time.process_time()
    data = features_of(setting.dataset, folder)
    x, y = data.pop("x_train"), data["y_train"]
    parts = np.array_split(np.random.default_rng(seed).permutation(len(y)), CLIENTS)
    size = CLASSES * x.shape[1]
    privacy, mask = None, None
    if setting.protected:
        privacy = RecordPrivacy.within(
            setting.epsilon, DELTA, setting.rounds,
            clip_norm=CLIP, sampling_rate=1.0, steps=1, size=size,
        )  # fmt: skip
        mask = SharedMask(Mask(ratio=RATIO), seed=seed, epoch=EPOCH)
    attack = attack_named(setting.attack)
    heard_at_once = BUFFER if setting.protected else CLIENTS
    gang = None if attack is None else Gang(attack, len(ATTACKERS), heard_at_once)
    silos = [
        Silo(n, x[rows], y[rows], privacy, mask, STEP, gang, n in ATTACKERS)
        for n, rows in enumerate(parts)
    ]
    del x
    keys = create_federation((str(n) for n in range(CLIENTS)), now=int(unix_time()))
    roster = open_roster(keys.roster, keys.authority)
    names = [str(n) for n in range(CLIENTS)]

    def silo_of(context: Context) -> Silo:
        return silos[int(context.node_config["partition-id"])]

    def credentials(context: Context) -> Credentials:
        return Credentials(keys.clients[names[int(context.node_config["partition-id"])]], roster)

    insists = policy_mod(NodePolicy(window=MAX_STALENESS + 1))
    protected: list[Mod] = [auth_mod(credentials), insists, qsfl_mod]
    mods: list[Mod] = protected if setting.protected else [qsfl_mod]
    grid = LocalGrid(numpy_client_app(silo_of, mods=mods), CLIENTS)
    accuracies: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        found = probabilities(data["x_test"], arrays["w"].numpy()).argmax(axis=1)
        accuracies.append(float((found == data["y_test"]).mean()))
        return MetricRecord({"accuracy": accuracies[-1]})

    seen = Recorder()
    options: dict[str, Any] = {
        "fraction_evaluate": 0.0, "min_available_nodes": CLIENTS, "min_train_nodes": CLIENTS,
        "seed": seed, "observer": seen, "max_failed_rounds": 10,
    }  # fmt: skip
    strategy: StableFedAvg
    if privacy is not None and mask is not None:
        budget = PrivacyBudget(delta=DELTA, epsilon=setting.epsilon)
        stages = [
            Authenticate(Credentials(keys.server, roster)),
            RecordDP(privacy, budget, rounds=setting.rounds),
            mask,
            SecureKrum(
                CLIP_UPDATE, len(ATTACKERS), Committee(7, 3, min_clients=4), bits=20, metrics=()
            ),
        ]
        speeds = [Device(180.0 if n % 5 == 4 else 60.0, jitter=0.2) for n in range(CLIENTS)]
        strategy = BufferedAsync(
            stages=stages, buffer_size=BUFFER, max_staleness=MAX_STALENESS,
            clock=VirtualClock(speeds, seed), **options,
        )  # fmt: skip
    else:
        strategy = StableFedAvg(**options)
    start = ArrayRecord({"w": Array(np.zeros((CLASSES, silos[0].x.shape[1]), np.float32))})
    with np.errstate(over="ignore", invalid="ignore"):
        strategy.start(grid, start, setting.rounds, timeout=600.0, evaluate_fn=evaluate)
    row: dict[str, Any] = {"dataset": setting.dataset, "federation": setting.label}
    row |= {"accuracy": accuracies[-1], "rounds": setting.rounds, "curve": accuracies}
    if privacy is not None:
        asked = max(strategy.states["record_dp"]["asked"].values())
        row |= {
            "epsilon": epsilon_of_events([privacy.event(size, asked)], DELTA),
            "noise_multiplier": privacy.noise_multiplier,
            "liars_heard": seen.heard,
            "liars_selected": seen.chosen,
            "stale_share": seen.stale / max(1, seen.used),
        }
    return {**row, "cpu_s": round(time.process_time() - started)}


def run(
    folder: Path,
    *,
    datasets: Mapping[str, tuple[int, int]] | None = None,
    attacks: Sequence[str] = ("sign-flip", "alie"),
    epsilon: float = 1.0,
    seed: int = 1,
) -> dict[str, Any]:
    """Train all federations, write the table and the pictures, and return the numbers.

    Parameters
    ----------
    folder : Path
        Where ``chain.md``, ``chain-*.png`` and the features (0.5 GB for MNIST) go.
    datasets : mapping of str to (int, int), optional
        Rounds of plain FedAvg and of the chain by data set; by default MNIST 50 and 100, CIFAR-10
        50 and 60.
    attacks : sequence of str
        Names of attacks.
    epsilon : float
        Of every record, after all rounds.
    seed : int
        Of the partition, the coordinates and the speeds; the noise is secret and differs.

    Returns
    -------
    dict
        JSON values: a row per federation, and the points lost against FedAvg without attackers.
    """
    sizes = {"mnist": (50, 100), "cifar10": (50, 60)} if datasets is None else datasets
    for dataset in sizes:
        features_of(dataset, folder)  # before there are several processes that would do so
    settings = [
        Setting(dataset, protected, attack, rounds[protected], epsilon)
        for dataset, rounds in sizes.items()
        for protected, attack in [
            *((True, attack) for attack in attacks),
            *((False, a) for a in (None, *attacks)),
        ]
    ]
    tasks = [partial(federation, setting, folder, seed) for setting in settings]
    found = dict(in_processes(tasks))
    rows = sorted(found.values(), key=lambda row: (row["dataset"], row["federation"]))
    files = [folder / "chain.md"]
    files[0].write_text(table(rows))
    for dataset in sizes:
        plot = picture(dataset, rows, attacks[0])
        files.append(folder / f"{plot.name}.png")
        files[-1].write_bytes(plot.png)
    return {
        "rows": [{k: v for k, v in row.items() if k != "curve"} for row in rows],
        "points_lost": points_lost(rows),
        "files": [str(file) for file in files],
        "table": table(rows).splitlines(),
    }


def points_lost(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return by how many points each federation is below FedAvg without attackers."""
    best = {r["dataset"]: r["accuracy"] for r in rows if r["federation"] == _REFERENCE}
    if missing := {r["dataset"] for r in rows} - set(best):
        raise ConfigError(f"chain: no run of {_REFERENCE} on {', '.join(sorted(missing))}")
    return {
        f"{r['dataset']}: {r['federation']}": round(100 * (best[r["dataset"]] - r["accuracy"]), 2)
        for r in rows
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a line per federation."""
    lost = points_lost(rows)
    lines = [
        "| data | federation | accuracy | points lost | epsilon | attackers selected | stale |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        points = lost[f"{row['dataset']}: {row['federation']}"]
        private = ["", "", ""]
        if "epsilon" in row:
            liars = f"{row['liars_selected']} of {row['liars_heard']}"
            private = [f"{row['epsilon']:.3f}", liars, f"{row['stale_share']:.0%}"]
        cells = [row["dataset"], row["federation"], f"{row['accuracy']:.2%}", f"{points:.1f}"]
        lines.append("| " + " | ".join([*cells, *private]) + " |")
    return "\n".join(lines) + "\n"


def picture(dataset: str, rows: Sequence[Mapping[str, Any]], attack: str) -> Plot:
    """Draw accuracy by round: the reference, and FedAvg and the chain under an attack."""
    known = {r["federation"]: r for r in rows if r["dataset"] == dataset}
    labels = (_REFERENCE, f"FedAvg, {attack}", f"full chain, {attack}")
    wanted = {name: known[name] for name in labels if name in known}
    colors = dict(zip(labels, (BLUE, ORANGE, GREEN), strict=True))

    def paint(axes: Axes) -> None:
        for name, row in wanted.items():
            curve = 100 * np.array(row["curve"])
            axes.plot(np.linspace(0, 100, len(curve)), curve, color=colors[name], label=name)
        axes.set_xlabel("share of the rounds, %")
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(0, 100)
        legend(axes, columns=1)

    ends = ", ".join(f"{name}: {row['accuracy']:.1%}" for name, row in wanted.items())
    alt = f"Accuracy by round on {dataset}; at the end {ends}."
    return draw(f"chain-{dataset}", f"Everything on: {dataset}", alt, paint, height=3.4)
