"""Clients of all methods on a small problem, and what watches the noise of their training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from qsfl_flower.clients import dpsgd
from qsfl_flower.clients.checkpoints import ClientCheckpoints
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.device import DeviceClass, DeviceProfile, Reading, TraceMonitor
from qsfl_flower.clients.dpsgd import PrivateTraining, gradients_of
from qsfl_flower.clients.mobile import Device
from qsfl_flower.clients.models import build_model
from qsfl_flower.clients.personal import PersonalClient
from qsfl_flower.clients.scaffold import ScaffoldClient
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.clients.workload import Workload
from qsfl_flower.personalization import METHODS, Personalization
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.wire import from_record

FINE = Reading(battery=0.9, charging=True, metered=False, in_use=False, online=True)
HEAD = ("3.",)
PRIVACY = RecordPrivacy(clip_norm=0.5, noise_multiplier=1.0, sampling_rate=0.4, steps=6)
META = ("maml", "per-fedavg")
KINDS = ["plain", "scaffold", *METHODS]
PRIVATE = [kind for kind in KINDS if kind not in META]


class Killed(BaseException):
    """Stands for SIGKILL."""


def data(seed: int = 0, count: int = 30) -> Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    y = (x[:, seed % 6] > 0).astype(np.int64)
    scale = Normalization((0.0,) * 6, (1.0,) * 6)
    return Dataset("npz", x, y, x[:9], y[:9], (6,), 2, None, "here", scale)


def phone(folder: Path | None = None, at: int | None = None, **limits: Any) -> Device:
    """Return a device that works on 100 examples a second; it is killed at one of its readings."""
    reads = iter(range(10**6))

    def trace(moment: float) -> Reading:
        if next(reads) == at:
            raise Killed
        return FINE

    return Device(
        DeviceProfile(2000.0, 4, DeviceClass.HIGH),
        TraceMonitor(trace, 0.0, 100.0),
        workload=Workload(**limits),
        checkpoints=None if folder is None else ClientCheckpoints(folder),
        checkpoint_every=1,
    )


def build(
    kind: str,
    of: Dataset | None = None,
    state: RecordDict | None = None,
    batch_size: int = 10,
    **how: Any,
) -> TrainingClient:
    model = build_model("mlp", (6,), 2, 1, {"hidden": 8})
    config = TrainConfig(batch_size=batch_size, learning_rate=0.1, epochs=2)
    parts: Any = (model, of or data(), config)
    how = {"seed": 3, "client_id": 0, **how}
    memory = RecordDict() if state is None else state
    if kind == "plain":
        return TrainingClient(*parts, **how)
    if kind == "scaffold":
        return ScaffoldClient(*parts, state=memory, **how)
    steps = 3 if kind == "per-fedavg" else 1
    method: Any = kind
    personal = Personalization(method=method, head=HEAD, meta_steps=steps)
    return PersonalClient(*parts, personalization=personal, state=memory, **how)


NAMES = list(build("plain").model.state_dict())
MODEL = [a + np.float32(0.01) for a in build("plain").get_parameters({})]


def start(kind: str) -> list[np.ndarray]:
    return [*MODEL, *(np.full_like(a, 0.02) for a in MODEL)] if kind == "scaffold" else MODEL


def equal(a: Any, b: Any) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def kept(state: RecordDict) -> list[np.ndarray]:
    return [a for r in state.array_records.values() for a in from_record(r).values()]


@contextmanager
def noise(replay: list[np.ndarray] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Watch the noisy sums of training, or have those of another run in their place."""
    seen: list[dict[str, Any]] = []
    real = dpsgd.add_noise

    def watched(total: Any, clip: float, multiplier: float, source: Any) -> Any:
        noisy = real(total, clip, multiplier, source)
        if replay is not None:
            noisy = (replay[len(seen)], noisy[1])
        seen.append({"sum": total, "noisy": noisy[0], "clip": clip, "multiplier": multiplier})
        return noisy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpsgd, "add_noise", watched)
        yield seen


def train_privately(
    model: Any, x: Any, y: Any, scale: Any, config: Any, privacy: Any, *, source: Any, **how: Any
) -> bool:
    """Train a model in place, and return whether it may be used."""
    gradients = how.pop("gradients", None) or gradients_of(model, x, y, scale)
    training = PrivateTraining(model, x, y, scale, config, privacy, gradients, source, **how)
    training.run()
    return training.result().num_examples > 0
