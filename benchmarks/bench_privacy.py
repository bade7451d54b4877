"""What privacy costs: a DP-SGD step, noise, clipping, accounting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Context
from torch.nn import functional

from benchmarks.timing import alternate
from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.dpsgd import flat
from qsfl_flower.clients.models import get_arrays, mnist_cnn
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.per_example import ClippedGradients, made_up
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.privacy.discrete import discrete_gaussian
from qsfl_flower.privacy.gaussian import add_noise
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.schedule import NoiseSchedule
from qsfl_flower.rounds.context import RoundContext, State
from qsfl_flower.rounds.spending import Spending
from qsfl_flower.stages import CentralDP, Clip, Stage
from qsfl_flower.strategies import PrivacyBudget, StableFedAvg
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import to_record

NAME = "privacy"
DESCRIPTION = "DP-SGD step beside Opacus', noise, and accounting round by round"

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per piece of work."""
    return [
        *_steps(3 if quick else 30, quick),
        *_noise(1 if quick else 5, quick),
        *_whole_rounds(1 if quick else 7, quick),
        *_rounds(quick),
    ]


def _steps(repetitions: int, quick: bool) -> list[Row]:
    """A step of the MNIST CNN on one thread, batch 64; Opacus' noise is torch's own generator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, target = torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,))
    model = mnist_cnn((1, 28, 28), 10)
    parameters = list(model.parameters())
    gradients = ClippedGradients(model, made_up(batch), made_up(target))
    source = Keystream.secure()

    def plain() -> None:
        torch.autograd.grad(functional.cross_entropy(model(batch), target), parameters)

    def clipped() -> torch.Tensor:
        return flat(gradients.sum(batch, target, 1.0))

    def noisy() -> None:
        add_noise(clipped().numpy(), 1.0, 1.0, source)

    ways: dict[str, Callable[[], object]] = {
        "plain gradient": plain,
        "ours, clipped": clipped,
        "ours, clipped, exact noise": noisy,
        "Opacus hooks, clipped, floating-point noise": _opacus(batch, target, ghost=False),
        "Opacus ghost clipping, floating-point noise": _opacus(batch, target, ghost=True),
    }
    timings = alternate(ways, repetitions)
    torch.set_num_threads(threads)
    base = timings["plain gradient"].cpu
    half = 0.5 * timings["Opacus hooks, clipped, floating-point noise"].cpu
    limits = {"ours, clipped": min(1.5 * base, half), "ours, clipped, exact noise": 2.2 * base}
    rows: list[Row] = []
    for name, timing in timings.items():
        row: Row = {"work": f"MNIST CNN, batch 64: {name}", "cpu ms": round(timing.cpu, 1)}
        row["to plain"] = round(timing.cpu / base, 2)
        if name in limits and not quick:
            row |= {"limit": f"<= {limits[name]:.1f}", "ok": timing.cpu <= limits[name]}
        rows.append(row)
    return rows


def _opacus(batch: torch.Tensor, target: torch.Tensor, *, ghost: bool) -> Callable[[], object]:
    """Return a step of Opacus on a model of its own."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model = mnist_cnn((1, 28, 28), 10).to(memory_format=torch.contiguous_format)
    common = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": 64}
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    loss: Any = functional.cross_entropy
    if ghost:
        wrapped: Any = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0)
        optimizer: Any = DPOptimizerFastGradientClipping(sgd, **common)
        loss = DPLossFastGradientClipping(wrapped, optimizer, torch.nn.CrossEntropyLoss())
    else:
        wrapped, optimizer = GradSampleModule(model), DPOptimizer(sgd, **common)

    def step() -> None:
        optimizer.zero_grad()
        loss(wrapped(batch), target).backward()
        optimizer.step()

    return step


def _noise(repetitions: int, quick: bool) -> list[Row]:
    source, values = Keystream.secure(), np.zeros(1_000_000)
    ways: dict[str, Callable[[], object]] = {
        "discrete Gaussian, 1e6 values": lambda: discrete_gaussian(
            1 << 64, values.size, source, 32
        ),
        "central noise on 1e6 parameters": lambda: add_noise(values, 1.0, 1.0, source),
    }
    rows: list[Row] = []
    for name, timing in alternate(ways, repetitions).items():
        row: Row = {"work": name, "cpu ms": round(timing.cpu, 1)}
        if not quick:
            row |= {"limit": "<= 100", "ok": timing.cpu <= 100}
        rows.append(row)
    return rows


def _whole_rounds(repetitions: int, quick: bool) -> list[Row]:
    """A round in one process: ten clients train the MNIST CNN for an epoch of 600 pictures each."""
    rng, clients = np.random.default_rng(0), 10
    x = rng.integers(0, 255, (60 if quick else 600, 1, 28, 28), dtype=np.uint8)
    y = rng.integers(0, 10, len(x))
    scale = Normalization((0.13,), (0.31,))
    data = Dataset("noise", x, y, x[:0], y[:0], (1, 28, 28), 10, None, "random", scale)
    model = mnist_cnn((1, 28, 28), 10)

    config = TrainConfig(batch_size=64, learning_rate=1e-4)

    def client(context: Context) -> TrainingClient:
        return TrainingClient(model, data, config, seed=0, client_id=0)

    grid = LocalGrid(numpy_client_app(client, mods=[qsfl_mod]), clients)
    start = to_record(get_arrays(model))

    def round_with(stages: list[Stage]) -> Callable[[], object]:
        return lambda: StableFedAvg(
            fraction_evaluate=0.0, min_available_nodes=clients, stages=stages
        ).start(grid, start, 1)

    ways = {"without privacy": round_with([]), "clip and noise": round_with(_private(clients))}
    timings = alternate(ways, repetitions)
    plain, private = (timings[name].cpu for name in ways)
    rows: list[Row] = [
        {"work": f"round of 10 clients, MNIST CNN: {name}", "cpu ms": round(timing.cpu, 1)}
        for name, timing in timings.items()
    ]
    if not quick:
        rows[-1] |= {"limit": f"<= {1.1 * plain:.1f}", "ok": private <= 1.1 * plain}
    return rows


def _private(clients: int) -> list[Stage]:
    return [Clip(1.0), CentralDP(1.0, clients)]


def _rounds(quick: bool) -> list[Row]:
    """What a stage asks in each of 1,000 planned rounds with equal, or ever different, noise."""
    rounds = 20 if quick else 1000
    rows: list[Row] = []
    for kind, ratio in (("equal", 1.0), ("rising", 2.0), ("falling", 0.5)):
        events = NoiseSchedule(1.5, ratio, rounds).events(0.01)
        events = [replace(events[0], count=1)] * rounds if ratio == 1 else events
        spending = Spending(PrivacyBudget(epsilon=50.0), partial(list, events))
        state: State = {}
        spent: list[float] = []
        for event in events:
            began = time.process_time()
            state = spending.reserve(state, event, cast(RoundContext, None))
            state = spending.commit(state, event)
            spending.epsilon(state)
            spent.append(1e3 * (time.process_time() - began))
        row: Row = {
            "work": f"account for a round, mean of {rounds} of {kind} noise",
            "cpu ms": round(sum(spent) / rounds, 2),
            "largest ms": round(max(spent), 1),
        }
        if not quick:
            row |= {"limit": "<= 50 each", "ok": max(spent) <= 50}
        rows.append(row)
    return rows
