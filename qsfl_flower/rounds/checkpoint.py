"""Server checkpoints: everything that the next round depends on, written atomically.

A checkpoint is two files: ``round-000012.safetensors`` with all arrays and
``round-000012.json`` with the rest and the SHA-256 of the arrays. The JSON file is written last,
so that a checkpoint exists only when it is complete; a damaged one is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from qsfl_flower.crypto.files import replace_file
from qsfl_flower.errors import CheckpointError
from qsfl_flower.moved import STAGES
from qsfl_flower.rounds.charges import Charge, Charges, read_charges, write_charges

log = logging.getLogger("qsfl_flower")

FORMAT = 1
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError,
)  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """The state of a federation after a round.

    Parameters
    ----------
    server_round : int
        The last finished round.
    arrays : Mapping[str, numpy.ndarray]
        The global model.
    states : Mapping[str, Mapping[str, Any]]
        State of every stage: arrays and JSON values.
    progress : Mapping[str, Any]
        JSON values of the strategy itself (monitor, metric history).
    charges : int
        Number of the newest charges that the states hold, see `Charges`.
    """

    server_round: int
    arrays: Mapping[str, NDArray[Any]]
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    charges: int = 0


class CheckpointStore:
    """Keeps the newest checkpoints of one run in a folder.

    Parameters
    ----------
    folder : Path
        Created when needed.
    keep : int
        How many checkpoints stay, >= 1.
    fingerprint : str
        Identifies the experiment; a checkpoint with another one is refused.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from qsfl_flower.testing import LocalFederation
    >>> store = CheckpointStore(Path(mkdtemp()), keep=2)
    >>> outcome = LocalFederation().run(rounds=3, checkpoints=store)
    >>> store.latest().server_round
    3
    """

    def __init__(self, folder: Path, keep: int = 2, fingerprint: str = "") -> None:
        if keep < 1:
            raise CheckpointError(f"keep is {keep}; at least one checkpoint must be kept")
        self.folder, self.keep, self.fingerprint = folder, keep, fingerprint

    def charge(self, server_round: int, stages: Mapping[str, Charge]) -> int:
        """Write what a round charges for privacy, before its instructions leave.

        Charges are never taken back: those of a round that was interrupted count, and so do those
        of an earlier run in the same folder.

        Returns
        -------
        int
            The number of the charges, for the next `Snapshot`.

        Raises
        ------
        CheckpointError
            If they cannot be written; the round must not take place then.
        """
        before = self.charged()
        number = 1 if before is None else before.number + 1
        try:
            write_charges(self.folder, Charges(number, server_round, self.fingerprint, stages))
        except OSError as error:
            raise CheckpointError(
                f"the charges of round {server_round} cannot be written to {self.folder}: "
                f"{error.strerror}"
            ) from error
        return number

    def charged(self) -> Charges | None:
        """Return what was charged in this folder, or None.

        Raises
        ------
        CheckpointError
            If the charges are damaged, or belong to another experiment.
        """
        charges = read_charges(self.folder)
        if charges is not None and charges.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{self.folder} holds the privacy charges of another experiment; give each "
                "experiment a folder of its own"
            )
        return charges

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint and remove the oldest beyond `keep`.

        Raises
        ------
        CheckpointError
            If the folder cannot be written (the previous checkpoint stays intact).
        """
        arrays = {f"model/{k}": np.asarray(v, order="C") for k, v in snapshot.arrays.items()}
        values: dict[str, dict[str, Any]] = {}
        for stage, state in snapshot.states.items():
            values[stage] = {k: v for k, v in state.items() if not isinstance(v, np.ndarray)}
            for key, value in state.items():
                if isinstance(value, np.ndarray):
                    arrays[f"state/{stage}/{key}"] = np.asarray(value, order="C")
        data = save_tensors(arrays)
        meta = {
            "format": FORMAT,
            "round": snapshot.server_round,
            "fingerprint": self.fingerprint,
            "sha256": hashlib.sha256(data).hexdigest(),
            "order": list(snapshot.arrays),
            "states": values,
            "progress": snapshot.progress,
            "charges": snapshot.charges,
        }
        stem = self.folder / f"round-{snapshot.server_round:06d}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(stem.with_suffix(".safetensors"), data)
            replace_file(stem.with_suffix(".json"), json.dumps(meta).encode())
        except OSError as error:
            raise CheckpointError(
                f"checkpoint of round {snapshot.server_round} cannot be written to "
                f"{self.folder}: {error.strerror}"
            ) from error
        files = self._files()
        # Rounds only go on, so a later one is that of an earlier run in the same folder.
        later = [path for path in files if path.stem > stem.name]
        for old in (*later, *files[: len(files) - len(later)][: -self.keep]):
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)
        return stem.with_suffix(".json")

    def latest(self) -> Snapshot:
        """Return the newest complete checkpoint.

        Raises
        ------
        CheckpointError
            If there is none, or the newest belongs to another experiment.
        """
        for path in reversed(self._files()):
            try:
                snapshot = self._load(path)
            except _DAMAGE as error:
                log.warning("checkpoint %s is damaged (%s); trying an older one", path.name, error)
                continue
            if (charges := self.charged()) is None or charges.number <= snapshot.charges:
                return snapshot
            states = charges.over(snapshot.states)
            return replace(snapshot, states=states, charges=charges.number)
        raise CheckpointError(f"no usable checkpoint in {self.folder}")

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.json"))

    def _load(self, path: Path) -> Snapshot:
        meta = json.loads(path.read_bytes())
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {meta['format']!r}; this release reads {FORMAT}")
        if meta["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{path} belongs to another experiment: its configuration differs from this one"
            )
        data = path.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != meta["sha256"]:
            raise ValueError("checksum mismatch")
        tensors = load_tensors(data)
        counts = (meta["round"], meta.get("charges", 0))
        if not all(type(count) is int and 0 <= count < 1 << 31 for count in counts):
            raise ValueError("a number in it is no whole number, or out of range")
        if not isinstance(meta["progress"], dict):
            raise ValueError("it has no progress")
        states: dict[str, dict[str, Any]] = {
            STAGES.get(name, name): dict(state) for name, state in meta["states"].items()
        }
        for name, value in tensors.items():
            if name.startswith("state/"):
                _, stage, key = name.split("/", 2)
                states[STAGES.get(stage, stage)][key] = value
        return Snapshot(
            server_round=meta["round"],
            arrays={name: tensors[f"model/{name}"] for name in meta["order"]},
            states=states,
            progress=meta["progress"],
            charges=meta.get("charges", 0),
        )
