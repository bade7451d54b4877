"""Which rule withstands which attack: accuracy on MNIST for all of them, with few and many liars.

Twenty clients train a small perceptron; three or six of them attack from the first round on. Data
are dealt out evenly or by Dirichlet(0.3). Every cell is a federation of its own, run in this
process (`qsfl_flower.simulations.scenarios.cohort`) with the package's rules and attacks.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qsfl_flower.clients.data import Dataset, load_dataset
from qsfl_flower.clients.partition import Dirichlet, Iid, partition
from qsfl_flower.crypto.files import replace_file
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.detection.core import (
    DETECTORS,
    Detection,
    Forest,
    Memory,
    counted,
    extract,
    inspect,
    path_contributions,
)
from qsfl_flower.mechanisms.robust.core import (
    RULES,
    NearestNeighbourMixing,
    TooFewUpdates,
    Updates,
    aggregate,
)
from qsfl_flower.mechanisms.robust.core.attacks import Attack, Backdoor, build_attack
from qsfl_flower.simulations.scenarios import detection
from qsfl_flower.simulations.scenarios.cohort import Cohort, Floats, Training
from qsfl_flower.simulations.scenarios.heatmap import heat_map
from qsfl_flower.simulations.scenarios.processes import in_processes

CLIENTS = 20
ROOT_SIZE = 100
TRAINING = Training(hidden=32, steps=20, batch_size=32, learning_rate=0.05)
SCHEMES: Mapping[str, Iid | Dirichlet] = {"IID": Iid(), "Dirichlet 0.3": Dirichlet(0.3)}


def attacks_against(attackers: int) -> dict[str, Attack | None]:
    """Return the attacks of the tables; a backdoor replaces the mean of all clients."""
    return {
        "none": None,
        "sign-flip": build_attack("sign-flip"),
        "sign-flip x3": build_attack("sign-flip", scale=3.0),
        "scaling x10": build_attack("scaling", factor=10.0),
        "scaling x1000": build_attack("scaling", factor=1000.0),
        "gaussian": build_attack("gaussian"),
        "label-flip": build_attack("label-flip"),
        "backdoor": build_attack("backdoor", boost=CLIENTS / attackers),
        "zero": build_attack("zero"),
        "replay": build_attack("replay"),
        "sparse": build_attack("sparse"),
        "alie": build_attack("alie"),
        "alie z=1": build_attack("alie", z=1.0),
        "inner-product": build_attack("inner-product"),
        "mimic": build_attack("mimic"),
        "min-max": build_attack("min-max"),
        "min-sum": build_attack("min-sum"),
        "fang-krum": build_attack("fang-krum"),
        "fang-trimmed-mean": build_attack("fang-trimmed-mean"),
    }


# SHAP values would take most of the time, and nobody reads a table's reasons.
DETECTORS["isolation-forest (paths)"] = Forest(path_contributions)


class Defence(ABC):
    """How the server combines a round; it may remember earlier rounds."""

    @abstractmethod
    def step(self, cohort: Cohort, updates: Floats, root: Floats, server_round: int) -> Floats:
        """Return the step of the global model, shape (d,)."""


@dataclass(frozen=True)
class ByRule(Defence):
    """A robust rule, after nearest-neighbour mixing if `mixed`."""

    rule: str
    attackers: int
    mixed: bool = False

    def step(self, cohort: Cohort, updates: Floats, root: Floats, server_round: int) -> Floats:
        """Combine by the rule."""
        more = {"root": root} if self.rule == "fltrust" else {}
        attackers = None if self.rule == "mean" else self.attackers
        rule = RULES[self.rule](num_byzantine=attackers, **more)
        before = NearestNeighbourMixing() if self.mixed else None
        return aggregate(Updates.of(updates), rule, before, threads=1).vector


class ByDetection(Defence):
    """The mean of what detection lets through; flags and standings stay for the tables."""

    def __init__(self, detector: str = "isolation-forest (paths)") -> None:
        self.how = Detection(detector)
        self.memory = Memory.new(0)
        self.last: Floats | None = None
        self.flagged: list[list[bool]] = []
        self.kinds: list[list[str]] = []
        self.quarantined: list[list[bool]] = []

    def step(self, cohort: Cohort, updates: Floats, root: Floats, server_round: int) -> Floats:
        """Inspect the round and average what counts, as the stage `Detect` does."""
        names = [str(client) for client in range(len(updates))]
        trusted = self.memory.trusted(names, server_round)
        table = extract(Updates.of(updates), cohort.layout, self.last, trusted)
        findings, self.memory = inspect(table, names, self.memory, self.how, server_round)
        self.flagged.append([finding.flagged for finding in findings])
        self.kinds.append([finding.kind for finding in findings])
        self.quarantined.append([f.before.quarantined(server_round) for f in findings])
        limits = counted(findings, np.linalg.norm(updates, axis=1), server_round)
        kept = np.flatnonzero(limits)
        scaled = updates[kept] * limits[kept, None]
        self.last = scaled.mean(axis=0) if len(kept) else np.zeros(updates.shape[1])
        return self.last


Factory = Callable[[int], Defence]


def defences() -> dict[str, Factory]:
    """Return the defences of the tables; each is made for a number of attackers."""
    rules: dict[str, Factory] = {
        "mean (no defence)" if name == "mean" else name: partial(ByRule, name)
        for name in RULES
        if name != "fast_krum"  # which chooses as krum does
    }
    return {
        **rules,
        "nnm + krum": lambda f: ByRule("krum", f, mixed=True),
        "nnm + trimmed_mean": lambda f: ByRule("trimmed_mean", f, mixed=True),
        "detection + mean": lambda f: ByDetection(),
    }


def federation(
    data: Dataset, scheme: str, attack: Attack | None, attackers: int, seed: int
) -> Cohort:
    """Make the federation of a cell; the attackers are drawn with the seed."""
    rng = np.random.default_rng([seed, attackers])
    chosen = sorted(int(c) for c in rng.choice(CLIENTS, attackers, replace=False))
    root = rng.choice(len(data.y_train), min(ROOT_SIZE, len(data.y_train)), replace=False)
    parts = partition(data.y_train, CLIENTS, SCHEMES[scheme], seed)
    return Cohort(data, parts, TRAINING, attack, chosen, root=root, seed=seed)


def train(
    cohort: Cohort, defence: Defence, rounds: int, judged: int = 3
) -> tuple[Floats, list[float]]:
    """Train and return the model, and its accuracy after each of the last `judged` rounds."""
    model, accuracies = cohort.initial(), []
    with np.errstate(over="ignore", invalid="ignore"):
        for server_round in range(1, rounds + 1):
            updates, root = cohort.updates(model, server_round)
            model = model + defence.step(cohort, updates, root, server_round)
            if not np.isfinite(model).all() or np.abs(model).max() > 1e30:
                return np.nan_to_num(model), [0.1]  # beyond float32: as good as guessing
            if server_round > rounds - judged:
                accuracies.append(cohort.accuracy(model))
    return model, accuracies


def cell(
    dataset: str, scheme: str, attackers: int, defence: str, attack: str, rounds: int, seed: int
) -> dict[str, Any]:
    """Run one federation and return its numbers; no accuracy if the rule is not applicable."""
    data = load_dataset(dataset)
    chosen = attacks_against(attackers)[attack]
    cohort = federation(data, scheme, chosen, attackers, seed)
    row: dict[str, Any] = {
        "partition": scheme,
        "attackers": attackers,
        "defence": defence,
        "attack": attack,
        "accuracy": None,
    }
    chosen_defence = defences()[defence](attackers)
    try:
        model, accuracies = train(cohort, chosen_defence, rounds)
    except TooFewUpdates as error:
        return {**row, "why": str(error)}
    row["accuracy"] = float(np.mean(accuracies))
    if isinstance(chosen_defence, ByDetection):
        flagged, away = np.array(chosen_defence.flagged), np.array(chosen_defence.quarantined)
        row |= detection.counts(flagged, away, cohort.attackers)
        row["looks_like"] = detection.kinds(flagged, chosen_defence.kinds, cohort.attackers)
    if isinstance(chosen, Backdoor):
        others = data.x_test[data.y_test != chosen.target]
        shown = chosen.triggered(others)
        row["backdoor_success"] = cohort.predicted_share(model, shown, chosen.target)
    return row


def rounds_to(cohort: Cohort, defence: Defence, target: float, most: int) -> int | None:
    """Return the first round after which the accuracy is at least `target`."""
    model = cohort.initial()
    for server_round in range(1, most + 1):
        updates, root = cohort.updates(model, server_round)
        model = model + defence.step(cohort, updates, root, server_round)
        if cohort.accuracy(model) >= target:
            return server_round
    return None


def convergence(data: Dataset, seed: int, target: float = 0.9) -> dict[str, Any]:
    """Compare rounds to an accuracy: FedAvg without attackers, Multi-Krum without and with six."""
    found: dict[str, Any] = {"target": target, "partition": "IID", "attackers": 6}
    calm = federation(data, "IID", None, 6, seed)
    found["mean, no attackers"] = rounds_to(calm, ByRule("mean", 0), target, 60)
    found["multi_krum, no attackers"] = rounds_to(calm, ByRule("multi_krum", 6), target, 60)
    for name in ("sign-flip x3", "scaling x10", "alie"):
        cohort = federation(data, "IID", attacks_against(6)[name], 6, seed)
        found[f"multi_krum, {name}"] = rounds_to(cohort, ByRule("multi_krum", 6), target, 60)
    return found


def run(
    folder: Path,
    *,
    rounds: int = 20,
    seed: int = 1,
    schemes: Sequence[str] = tuple(SCHEMES),
    liars: Sequence[int] = (3, 6),
    only_defences: Sequence[str] | None = None,
    only_attacks: Sequence[str] | None = None,
    dataset: str = "mnist",
) -> dict[str, Any]:
    """Fill the tables, write them and their pictures, and return the summary.

    Finished cells are kept in ``cells.json`` in `folder`, so that an interrupted run goes on where
    it was.

    Parameters
    ----------
    folder : Path
        Where ``robustness.json``, ``robustness.md``, ``detection.md`` and the pictures go.
    rounds, seed : int
        Rounds of every federation; seed of data, model, attackers and batches.
    schemes, liars : sequence
        Keys of `SCHEMES`; numbers of attackers among 20.
    only_defences, only_attacks : sequence of str, optional
        Rows and columns to fill; by default all.
    dataset : str
        A data set of pictures with one channel.

    Returns
    -------
    dict
        JSON values: rounds to an accuracy; for every setting the defence with the best worst case,
        and the rates of detection over the attacks that do not hide; the files.
    """
    data = load_dataset(dataset)
    rules = list(defences() if only_defences is None else only_defences)
    attacks = list(attacks_against(3) if only_attacks is None else only_attacks)
    for chosen, known in ((rules, defences()), (attacks, attacks_against(3)), (schemes, SCHEMES)):
        if unknown := [name for name in chosen if name not in known]:
            raise ConfigError(f"robustness: unknown {unknown[0]!r}; there are {', '.join(known)}")
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "cells.json"
    done: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = list(product(schemes, liars))
        cells = [
            (dataset, scheme, f, rule, attack, rounds, seed)
            for (scheme, f), rule, attack in product(settings, rules, attacks)
        ]
        missing = [one for one in cells if str(one) not in done]
        for index, row in in_processes([partial(cell, *one) for one in missing]):
            done[str(missing[index])] = row
            replace_file(kept, json.dumps(done).encode())
        rows = [done[str(one)] for one in cells]
        summary: dict[str, Any] = {"rounds": rounds, "seed": seed, "cells": len(rows)}
        if only_defences is None:
            summary["rounds_to_accuracy"] = convergence(data, seed)
    finally:
        torch.set_num_threads(threads)
    files = [folder / f"robustness.{kind}" for kind in ("json", "md")]
    files.append(folder / "detection.md")
    tables, caught = [], []
    summary["best_worst_case"], summary["detection"] = {}, {}
    for scheme, f in settings:
        of = [row for row in rows if row["partition"] == scheme and row["attackers"] == f]
        values = {(row["defence"], row["attack"]): row["accuracy"] for row in of}
        title = f"{scheme}, {f} of {CLIENTS} attack"
        tables.append(markdown(title, of, rules, attacks))
        slug = f"robustness-{scheme.split()[0].lower()}-{f}"
        files.append(folder / f"{slug}.png")
        files[-1].write_bytes(heat_map(title, rules, attacks, values))
        summary["best_worst_case"][title] = best_worst_case(of, rules)
        detected = [row for row in of if "caught" in row]
        caught.append(detection.table(title, detected))
        plain = [row for row in detected if row["attack"] in detection.PLAIN]
        summary["detection"][title] = detection.rates(plain)
    files[0].write_text(json.dumps({**summary, "rows": rows}, indent=1))
    files[1].write_text("\n".join(tables))
    files[2].write_text("\n".join(caught))
    return {**summary, "files": [str(file) for file in files]}


def best_worst_case(rows: Sequence[Mapping[str, Any]], rules: Sequence[str]) -> dict[str, Any]:
    """Return the rule whose lowest accuracy over the attacks is highest."""
    worst: dict[str, tuple[float, str]] = {}
    for rule in rules:
        known = [(r["accuracy"], r["attack"]) for r in rows if r["defence"] == rule]
        if known and all(accuracy is not None for accuracy, _ in known):
            worst[rule] = min(known)
    if not worst:
        return {}
    rule = max(worst, key=lambda name: worst[name][0])
    return {"defence": rule, "accuracy": worst[rule][0], "attack": worst[rule][1]}


def markdown(
    title: str, rows: Sequence[Mapping[str, Any]], rules: Sequence[str], attacks: Sequence[str]
) -> str:
    """Write a table with a line per attack; bold is within 5 points of the best without attack."""
    values = {(row["defence"], row["attack"]): row for row in rows}
    reference = max((row["accuracy"] or 0.0 for row in rows if row["attack"] == "none"), default=1)
    lines = [f"### {title}", "", "| attack | " + " | ".join(rules) + " |"]
    lines.append("|---|" + "---|" * len(rules))
    for attack in attacks:
        cells = [values[rule, attack]["accuracy"] for rule in rules]
        lines.append(f"| {attack} | " + " | ".join(_cell(c, reference) for c in cells) + " |")
        shares = [values[rule, attack].get("backdoor_success") for rule in rules]
        if any(share is not None for share in shares):
            told = ["-" if s is None else f"{100 * s:.0f}" for s in shares]
            lines.append(f"| {attack}: trigger obeyed | " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def _cell(accuracy: float | None, reference: float) -> str:
    if accuracy is None:
        return "-"
    text = f"{100 * accuracy:.1f}"
    return f"**{text}**" if accuracy >= reference - 0.05 else text
