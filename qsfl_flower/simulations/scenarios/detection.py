"""How many attackers detection catches, and how many honest clients it suspects.

Twenty clients on MNIST, three or six of them attacking from the first round on, twenty rounds, data
dealt out evenly or by Dirichlet(0.3): the federations of the scenario ``robustness`` with detection
and quarantine before the mean. An update counts as kept out if it is flagged or its client is in
quarantine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from qsfl_flower.clients.data import load_dataset
from qsfl_flower.simulations.scenarios.robustness import (
    CLIENTS,
    SCHEMES,
    ByDetection,
    attacks_against,
    federation,
    in_processes,
    train,
)

PLAIN = (
    "sign-flip",
    "sign-flip x3",
    "scaling x10",
    "scaling x1000",
    "gaussian",
    "label-flip",
    "backdoor",
)
"""Attacks that do not try to hide."""


def measure(
    dataset: str, scheme: str, attackers: int, attack: str, detector: str, rounds: int, seed: int
) -> dict[str, Any]:
    """Run one federation and count."""
    chosen = attacks_against(attackers)[attack]
    cohort = federation(load_dataset(dataset), scheme, chosen, attackers, seed)
    defence = ByDetection(detector)
    _, accuracies = train(cohort, defence, rounds)
    flagged, away = np.array(defence.flagged), np.array(defence.quarantined)
    bad, good = list(cohort.attackers), list(cohort.honest)
    out = flagged | away
    return {
        "partition": scheme,
        "attackers": attackers,
        "attack": attack,
        "detector": detector,
        "seed": seed,
        "attacks": out[:, bad].size,
        "caught": int(out[:, bad].sum()),
        "caught_by_flag": int(flagged[:, bad].sum()),
        "honest": out[:, good].size,
        "false_alarms": int(out[:, good].sum()),
        "false_flags": int(flagged[:, good].sum()),
        "all_away_from": _all_away(away[:, bad]),
        "honest_ever_away": int(away[:, good].any(axis=0).sum()),
        "accuracy": float(np.mean(accuracies)),
    }


def _all_away(away: np.ndarray[Any, np.dtype[np.bool_]]) -> int | None:
    """Return the first round in which all attackers are in quarantine."""
    together = away.all(axis=1)
    return int(together.argmax()) + 1 if away.shape[1] and together.any() else None


def run(
    folder: Path,
    *,
    rounds: int = 20,
    seeds: Sequence[int] = (1, 2, 3),
    detectors: Sequence[str] = ("isolation-forest (paths)",),
    schemes: Sequence[str] = tuple(SCHEMES),
    liars: Sequence[int] = (3, 6),
    only_attacks: Sequence[str] | None = None,
    dataset: str = "mnist",
) -> dict[str, Any]:
    """Fill the tables, write them, and return the rates.

    Parameters
    ----------
    folder : Path
        Where ``detection.json`` and ``detection.md`` go.
    rounds, seeds : int, sequence of int
        Rounds of every federation; each is run once per seed.
    detectors, schemes, liars : sequence
        What is compared.
    only_attacks : sequence of str, optional
        Attacks to run; by default all of the scenario ``robustness``.
    dataset : str
        A data set of pictures with one channel.

    Returns
    -------
    dict
        JSON values: true and false positive rates over the attacks of `PLAIN` together, for every
        detector, partition and number of attackers; and the files.
    """
    attacks = list(attacks_against(3) if only_attacks is None else only_attacks)
    rows = in_processes(
        [
            partial(measure, dataset, scheme, f, attack, detector, rounds, seed)
            for scheme, f, attack, detector, seed in product(
                schemes, liars, attacks, detectors, seeds
            )
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "detection.json", folder / "detection.md"]
    summary = []
    for detector, scheme, f in product(detectors, schemes, liars):
        chosen = [r for r in _of(rows, detector, scheme, f) if r["attack"] in PLAIN]
        if chosen:
            summary.append(
                {"detector": detector, "partition": scheme, "attackers": f, **rates(chosen)}
            )
    files[0].write_text(json.dumps({"rounds": rounds, "plain": summary, "rows": rows}, indent=1))
    tables = [
        markdown(
            f"{scheme}, {f} of {CLIENTS} attack, {detector}",
            _of(rows, detector, scheme, f),
            attacks,
        )
        for detector, scheme, f in product(detectors, schemes, liars)
    ]
    files[1].write_text("\n".join(tables))
    return {"rounds": rounds, "plain": summary, "files": [str(file) for file in files]}


def _of(
    rows: Sequence[Mapping[str, Any]], detector: str, scheme: str, attackers: int
) -> list[Mapping[str, Any]]:
    wanted = (detector, scheme, attackers)
    return [r for r in rows if (r["detector"], r["partition"], r["attackers"]) == wanted]


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the shares of attacking and of honest updates that were kept out."""
    total = {key: sum(row[key] for row in rows) for key in ("attacks", "caught", "honest")}
    alarms = sum(row["false_alarms"] for row in rows)
    return {
        "true_positives": total["caught"] / total["attacks"] if total["attacks"] else None,
        "false_positives": alarms / total["honest"],
    }


def markdown(title: str, rows: Sequence[Mapping[str, Any]], attacks: Sequence[str]) -> str:
    """Write a table with a line per attack, over all seeds."""
    head = "attack | kept out | by a flag | false alarms | all away from round | honest ever away"
    lines = [f"### {title}", "", f"| {head} | accuracy |", "|---|---|---|---|---|---|---|"]
    for attack in attacks:
        of = [row for row in rows if row["attack"] == attack]
        found = rates(of)
        hit = found["true_positives"]
        by_flag = sum(r["caught_by_flag"] for r in of) / max(1, sum(r["attacks"] for r in of))
        known = [r["all_away_from"] for r in of]
        cells = (
            attack,
            "" if hit is None else f"{100 * hit:.1f} %",
            "" if hit is None else f"{100 * by_flag:.1f} %",
            f"{100 * (found['false_positives'] or 0.0):.1f} %",
            "" if hit is None else ", ".join("-" if k is None else str(k) for k in known),
            str(sum(r["honest_ever_away"] for r in of)),
            f"{100 * float(np.mean([r['accuracy'] for r in of])):.1f} %",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
