"""Every shipped configuration, three rounds in one process, with repeated noise, keys and clocks.

What a run leaves is compared with ``tests/golden/NAME.json``: the bits of the model after every
round, and what the records say of rounds and clients. Left out: seconds that were measured
(`elapsed_s`, `time_s`, `timing`, `stage_seconds`, a client's `seconds`) and, where time is not
simulated, readings of the clock (`clock_s`, `sent_s`, `arrived_s`). The bits of floats depend on
the processor and on the libraries; `machine` says on which, and only the same kind is compared.
"""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import scipy
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from qsfl_flower.errors import QSFLError
from qsfl_flower.simulations import faults
from qsfl_flower.simulations import serve as server
from qsfl_flower.simulations.app import make_client_app
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.fleet import hosts_of
from qsfl_flower.testing import LocalGrid, fixed
from qsfl_flower.wire import from_record

HERE = Path(__file__).parent
CONFIGS = sorted(
    p.stem
    for p in (HERE.parents[1] / "configs").glob("*.yaml")
    if p.stem not in ("base", "analytics")
)
ROUNDS = 3

_PICTURES = {"mnist": (28, 28), "cifar10": (32, 32, 3)}
_MEASURED = {"elapsed_s", "time_s", "timing", "stage_seconds", "seconds", "time"}
_CLOCK = {"clock_s", "sent_s", "arrived_s"}


def machine() -> dict[str, str]:
    """Return what decides how floats are rounded."""
    blas = sorted({str(pool.get("architecture")) for pool in threadpool_info()} - {"None"})
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "blas": ", ".join(blas),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Return the kind of processor: its features and caches decide which kernels run."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "stepping", "cache size", "flags")
    first = path.read_text().split("\n\n")[0].splitlines()
    kept = [line for line in first if line.partition(":")[0].strip() in wanted]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def golden(name: str) -> Path:
    """Return the file of what a configuration gave."""
    return HERE / f"{name}.json"


def write(name: str, folder: Path) -> None:
    """Keep what a configuration gives today, one row of the records a line."""
    parts = {"machine": machine(), **play(name, folder)}
    lines = []
    for key, value in parts.items():
        rows = value if isinstance(value, list) else [value]
        text = ",\n".join(json.dumps(row, sort_keys=True) for row in rows)
        lines.append(f"{json.dumps(key)}: " + (f"[\n{text}\n]" if rows is value else text))
    golden(name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def play(name: str, folder: Path, *overrides: str, seed: int = 0) -> dict[str, Any]:
    """Run a configuration and return its models, by digest, and what its records say.

    Parameters
    ----------
    name : str
        Of a file in ``configs/``.
    folder : Path
        An empty folder to run in.
    *overrides : str
        Further settings, as ``--set`` takes them.
    seed : int
        Of noise and keys.
    """
    experiment = load_experiment(
        name,
        [f"rounds={ROUNDS}", f"output.folder={folder}", *pictures(name, folder), *overrides],
    )
    models: list[str] = []
    evaluator = server.evaluator_of(experiment)

    def evaluate(server_round: int, arrays: Any) -> Any:
        models.append(_digest(arrays))
        return evaluator(server_round, arrays)

    def die(code: int) -> None:
        raise QSFLError(f"this process ends with {code}")

    torch.set_num_threads(1)
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(1))
        stack.enter_context(fixed(seed))
        stack.enter_context(patch.object(server, "evaluator_of", lambda _: evaluate))
        stack.enter_context(patch.object(faults.os, "_exit", die))
        job = server.prepare(experiment)
        grid = LocalGrid(make_client_app(experiment, job.owners), hosts_of(experiment))
        server.serve(job, grid)
    measured = _MEASURED if experiment.timing else _MEASURED | _CLOCK
    files = {path.stem: _lines(path, measured) for path in sorted(job.folder.path.glob("*.jsonl"))}
    return {"models": models, "final": _digest(job.final), **files}


def pictures(name: str, folder: Path) -> list[str]:
    """Return where a data set lies that has to be downloaded otherwise: a small one of noise."""
    if name not in _PICTURES:
        return []
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 400), ("test", 100)):
        arrays[f"x_{part}"] = rng.integers(256, size=(count, *_PICTURES[name])).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(folder / f"{name}.npz", **arrays)
    return [f"data.root={folder}"]


def _digest(arrays: Any) -> str:
    whole = hashlib.sha256()
    for key, array in sorted(from_record(arrays).items()):
        whole.update(f"{key} {array.dtype} {array.shape}".encode() + array.tobytes())
    return whole.hexdigest()


def _lines(path: Path, measured: set[str]) -> list[dict[str, Any]]:
    """Return the lines of a file without what was measured, and without what was not known."""
    return [
        {k: v for k, v in json.loads(line).items() if k not in measured and v not in (None, {}, "")}
        for line in path.read_text().splitlines()
    ]
