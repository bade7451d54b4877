"""A realistic run folder, made up from a seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CONFIG = """\
name: quickstart
seed: 1
rounds: {rounds}
data:
  dataset: digits
  test_fraction: 0.2
  partition:
    scheme: dirichlet
    alpha: 0.5
model:
  name: mlp
clients:
  count: {clients}
  epochs: 2
  batch_size: 32
  learning_rate: {rate}
strategy:
  name: fedavg
  stages:
  - stage: validate
    max_norm: 100.0
  - stage: clip
    clip_norm: 5.0
faults:
- client: 3
  kind: nan
  rounds: all
"""


def build_run(
    folder: Path,
    *,
    clients: int = 10,
    rounds: int = 15,
    classes: int = 10,
    status: str | None = "finished",
    rate: float = 0.1,
    seed: int = 1,
) -> Path:
    """Write a run folder: one client sends NaN, one is absent at times, one round is skipped."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(rounds=rounds, clients=clients, rate=rate))
    labels = _labels(rng, clients, classes)
    _json(folder / "partition.json", _partition(labels))
    _json(
        folder / "environment.json",
        {
            "packages": {"flwr": "1.41.0", "numpy": "2.3.0", "torch": "2.14.1"},
            "python": "3.11.2",
            "platform": "Linux-6.1-x86_64",
            "cpus": 2,
            "git": {"revision": "0123abcd" * 5, "dirty": True},
        },
    )
    metrics, records, events = _rounds(rng, rounds, labels.sum(axis=1))
    _journal(folder / "metrics.jsonl", metrics)
    _journal(folder / "clients.jsonl", records)
    _journal(folder / "events.jsonl", events)
    if status is not None:
        _json(folder / "summary.json", _summary(folder.name, status, metrics))
    return folder


def _labels(rng: np.random.Generator, clients: int, classes: int) -> np.ndarray:
    shares = rng.dirichlet([0.5] * clients, size=classes).T
    return np.floor(shares * 1437 * clients / 10 / classes).astype(int) + 1


def _partition(labels: np.ndarray) -> dict[str, Any]:
    return {
        "scheme": "dirichlet",
        "num_classes": labels.shape[1],
        "class_names": None,
        "clients": [
            {
                "client": str(index),
                "num_train": int(row.sum()),
                "num_test": int(row.sum()) // 5,
                "label_counts": row.tolist(),
            }
            for index, row in enumerate(labels)
        ],
    }


def _rounds(
    rng: np.random.Generator, rounds: int, sizes: np.ndarray
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    metrics = [_initial()]
    records: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    elapsed, progress = 0.4, 0.0
    for number in range(1, rounds + 1):
        skipped = "2 usable replies, at least 3 are needed" if number == 6 else None
        progress += 0.0 if skipped else 1.0
        rejected: dict[str, int] = {}
        for client, size in enumerate(sizes):
            status, detail = _fate(rng, number, client, len(sizes))
            if status != "accepted":
                rejected[status] = rejected.get(status, 0) + 1
                events.append(
                    {
                        "time": f"2025-11-22T10:{number:02d}:{client % 60:02d}+00:00",
                        "kind": "rejected",
                        "message": f"round {number}: client {client}: {status}: {detail}",
                        "round": number,
                        "client": str(client),
                        "reason": status,
                    }
                )
            records.append(_record(rng, number, client, status, detail, int(size), sizes.sum()))
        if skipped:
            events.append(
                {
                    "time": "2025-11-22T10:06:59+00:00",
                    "kind": "skipped",
                    "message": f"round {number}: model unchanged: {skipped}",
                }
            )
        timing = {
            "configure": 0.02 + 0.01 * rng.random(),
            "clients": 1.6 + 0.5 * rng.random(),
            "aggregate": 0.03 + 0.02 * rng.random(),
            "evaluate": 0.15 + 0.05 * rng.random(),
        }
        spent = sum(timing.values()) + 0.01
        elapsed += spent
        accuracy = 0.945 - 0.84 * math.exp(-progress / 3) + 0.008 * rng.normal()
        metrics.append(
            {
                "round": number,
                "elapsed_s": elapsed,
                "time_s": spent,
                "train_loss": 2.0 * math.exp(-progress / 3) + 0.1,
                "train_accuracy": min(1.0, accuracy + 0.03),
                "eval_loss": 2.1 * math.exp(-progress / 3.5) + 0.2 + 0.02 * rng.random(),
                "eval_accuracy": accuracy,
                "client_eval_loss": 2.1 * math.exp(-progress / 3.2) + 0.25,
                "client_eval_accuracy": accuracy - 0.02,
                "bytes_down": 19_420 * len(sizes),
                "bytes_up": 19_420 * (len(sizes) - rejected.get("no-reply", 0)),
                "selected": len(sizes),
                "replies": len(sizes) - rejected.get("no-reply", 0),
                "accepted": len(sizes) - sum(rejected.values()),
                "rejected": rejected,
                "update_norm": 0.0 if skipped else 2.5 * math.exp(-progress / 5),
                "skipped": skipped,
                "alarm": None,
                "epsilon": None,
                "stages": {"clip": {"share": 0.3 * math.exp(-progress / 4)}},
                "timing": timing,
            }
        )
    return metrics, records, events


def _initial() -> dict[str, Any]:
    return {
        "round": 0,
        "elapsed_s": 0.4,
        "time_s": 0.4,
        "eval_loss": 2.31,
        "eval_accuracy": 0.104,
        "train_loss": None,
        "rejected": {},
    }


def _fate(
    rng: np.random.Generator, number: int, client: int, clients: int
) -> tuple[str, str | None]:
    if number == 6 and client % 10 < 8:
        return "no-reply", "no reply within 30 s"
    if client == 3:
        return "not-finite", "the update holds NaN or infinity"
    if client == clients - 2 and rng.random() < 0.25:
        return "no-reply", "no reply within 30 s"
    return "accepted", None


def _record(
    rng: np.random.Generator,
    number: int,
    client: int,
    status: str,
    detail: str | None,
    size: int,
    total: int,
) -> dict[str, Any]:
    there = status != "no-reply"
    return {
        "round": number,
        "client": str(client),
        "node": str(9_000_000_000 + client),
        "status": status,
        "detail": detail,
        "num_examples": size if there else None,
        "weight": size / total if status == "accepted" else None,
        "norm": float("nan") if status == "not-finite" else 2.0 + rng.random() if there else None,
        "train_loss": 2.0 * math.exp(-number / 3) + 0.1 * rng.random() if there else None,
        "train_accuracy": None,
        "bytes_up": 19_420 if there else 0,
        "seconds": 0.2 + 0.1 * rng.random() if there else None,
    }


def _summary(name: str, status: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    last = metrics[-1]
    return {
        "status": status,
        "name": "quickstart",
        "run": name,
        "rounds": last["round"],
        "accuracy": last.get("eval_accuracy"),
        "loss": last.get("eval_loss"),
        "bytes_up": sum(record.get("bytes_up", 0) for record in metrics),
        "bytes_down": sum(record.get("bytes_down", 0) for record in metrics),
        "seconds": last["elapsed_s"],
        "epsilon": None,
        "rejected": {},
        "error": "RunError: too few replies" if status == "failed" else None,
        "started": "2025-11-22T10:00:00+00:00",
        "ended": "2025-11-22T10:01:00+00:00",
    }


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _journal(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(name="build_run")
def build_run_fixture() -> Callable[..., Path]:
    """Give the builder of run folders."""
    return build_run
