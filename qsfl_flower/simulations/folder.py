"""Writing a run folder: everything that a run leaves behind, as it happens."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from qsfl_flower.crypto.files import open_to_append, replace_file
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import RunError
from qsfl_flower.rounds.charges import read_charges
from qsfl_flower.simulations.config import Experiment, dump_experiment
from qsfl_flower.simulations.loggers import RoundLogger
from qsfl_flower.simulations.runs import CHECKPOINTS, FINISHED
from qsfl_flower.strategies import ClientRow, RoundRecord

PACKAGES = (
    "qsfl-flower", "flwr", "flwr-datasets", "torch", "torchvision", "opacus", "numpy", "scipy",
    "pqcrypto", "cryptography", "scikit-learn", "ray",
)  # fmt: skip
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_SPARE_BYTES = 16 * 1024 * 1024


def new_folder(experiment: Experiment, model_bytes: int) -> Path:
    """Make the folder of a new run, and fail now rather than after training.

    Parameters
    ----------
    experiment : Experiment
        Its name and its ``output.folder`` are used.
    model_bytes : int
        Size of the model, to tell whether the checkpoints will fit.

    Raises
    ------
    RunError
        If the folder cannot be written or the disk is too full.
    """
    root = Path(experiment.output.folder).expanduser()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = root / f"{experiment.name}-{stamp}-{random_bytes(2, 'run folder').hex()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RunError(
            f"output.folder: the run folder {folder} cannot be made: {error.strerror}"
        ) from error
    check_room(folder, experiment, model_bytes)
    return folder


def check_room(folder: Path, experiment: Experiment, model_bytes: int) -> None:
    """Check that a run folder can be written and has room for the run's files.

    Raises
    ------
    RunError
        If it is not writable or the disk is too full.
    """
    # A checkpoint holds the model and at most two float64 moments of a server optimizer.
    needed = (experiment.output.keep_checkpoints + 1) * 5 * model_bytes + _SPARE_BYTES
    try:
        probe = folder / f".probe.{random_bytes(8, 'file name').hex()}"
        replace_file(probe, b"x")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be written: {error.strerror}") from error
    if free < needed:
        raise RunError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free; this run needs about "
            f"{needed / 1e6:.0f} MB (output.keep_checkpoints: {experiment.output.keep_checkpoints})"
        )


class RunFolder:
    """Writes the files of one run.

    Parameters
    ----------
    path : Path
        An existing folder.
    experiment : Experiment
        What is run; its resolved form is written at once.
    loggers : list[RoundLogger]
        Told about every round as well.
    """

    def __init__(self, path: Path, experiment: Experiment, loggers: list[RoundLogger]) -> None:
        self.path = path
        self.experiment = experiment
        self._loggers = loggers
        self._started = datetime.now(UTC)
        self._last: Mapping[str, Any] = {}
        self._totals: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._unused: Counter[str] = Counter()

    def begin(self, partition: Mapping[str, Any]) -> None:
        """Write what is known before the first round."""
        self._write("config.yaml", dump_experiment(self.experiment))
        self._write("environment.json", _json(environment(), indent=2))
        self._write("partition.json", _json(partition))

    def rewind(self, server_round: int) -> None:
        """Forget the records of rounds after `server_round`, for a run that is resumed there."""
        for name in ("metrics.jsonl", "clients.jsonl", "events.jsonl", "security.jsonl"):
            path = self.path / name
            if not path.exists():
                continue
            kept = []
            try:
                for line in path.read_text().splitlines():
                    try:
                        record = json.loads(line)
                    except ValueError:
                        continue  # the last line of a killed run
                    if record.get("round", 0) <= server_round:
                        kept.append(line)
                        if name == "metrics.jsonl":
                            self._count(record)
                            self._last = record
            except _DAMAGE as error:
                raise RunError(f"{path} cannot be gone on with: {error!r}") from None
            self._write(name, "".join(line + "\n" for line in kept))
        self.event("resumed", f"resumed after round {server_round}")

    def add_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        """Append a round."""
        values = record.to_dict()
        self._last = values
        self._count(values)
        self._append("metrics.jsonl", [values])
        self._append("clients.jsonl", [asdict(row) for row in clients])
        self._append(
            "security.jsonl",
            [
                {
                    "time": _now(),
                    "round": row.round,
                    "client": row.client,
                    "node": row.node,
                    "reason": "flagged" if row.status == "accepted" else row.status,
                    "detail": row.detail or row.flag or None,
                    "anomaly": row.anomaly,
                }
                for row in clients
                if row.status != "accepted" or row.flag
            ],
        )
        if record.skipped:
            text = f"round {record.round}: model unchanged: {record.skipped}"
            self.event("skipped", text, round=record.round)
        if record.alarm:
            self.event("alarm", f"round {record.round}: {record.alarm}", round=record.round)
        if record.reaction:
            self.event("reaction", f"round {record.round}: {record.reaction}", round=record.round)
        for logger in self._loggers:
            logger.log(values)

    def event(self, kind: str, message: str, **more: Any) -> None:
        """Append a notable event."""
        self._append("events.jsonl", [{"time": _now(), "kind": kind, "message": message, **more}])

    def finish(
        self,
        status: str,
        seconds: float,
        arrays: Mapping[str, NDArray[Any]] | None,
        error: str | None,
    ) -> dict[str, Any]:
        """Write the final model and the summary, and return the summary."""
        for logger in self._loggers:
            logger.close()
        if arrays is not None:
            tensors = {k: np.asarray(v, order="C") for k, v in arrays.items()}
            replace_file(self.path / "model.safetensors", save_tensors(tensors), 0o644)
        last = self._last
        summary = {
            "status": status,
            "name": self.experiment.name,
            "run": self.path.name,
            "rounds": last.get("round", 0),
            "accuracy": last.get("eval_accuracy"),
            "loss": last.get("eval_loss"),
            "bytes_up": self._totals["bytes_up"],
            "bytes_down": self._totals["bytes_down"],
            "seconds": seconds,
            "epsilon": self._spent(status),
            "rejected": dict(sorted(self._rejected.items())),
            "unused": dict(sorted(self._unused.items())),
            "error": error,
            "started": self._started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._write("summary.json", _json(summary, indent=2))
        return summary

    def _spent(self, status: str) -> float | None:
        """Return the epsilon of all rounds that were begun; the last one may not have ended."""
        recorded = self._last.get("epsilon")
        charges = None if status == FINISHED else read_charges(self.path / CHECKPOINTS)
        charged = None if charges is None else charges.epsilon
        return max((e for e in (recorded, charged) if e is not None), default=None)

    def _count(self, record: Mapping[str, Any]) -> None:
        self._totals.update({k: record[k] for k in ("bytes_up", "bytes_down")})
        self._rejected.update(record["rejected"])
        self._unused.update(record.get("unused", record["rejected"]))

    def _write(self, name: str, text: str) -> None:
        replace_file(self.path / name, text.encode(), 0o644)

    def _append(self, name: str, records: list[dict[str, Any]]) -> None:
        if records:
            with open_to_append(self.path / name) as file:
                file.write("".join(_json(r) + "\n" for r in records))


def environment() -> dict[str, Any]:
    """Describe the software and the machine of a run."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "packages": packages,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "git": _git(),
    }


def _git() -> dict[str, Any]:
    here = Path(__file__).resolve().parent

    def ask(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *command], cwd=here, capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    revision = ask("rev-parse", "HEAD")
    changed = ask("status", "--porcelain", "--untracked-files=no") if revision else None
    return {"revision": revision, "dirty": bool(changed) if changed is not None else None}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON has no NaN; an unknown number is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
