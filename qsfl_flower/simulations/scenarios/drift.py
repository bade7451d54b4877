"""Why sums are compensated: what float32 accumulation does to a thousand rounds of training.

Three stories on a problem whose exact solution is known (clients pull a model w towards targets
:math:`a_i`; the loss is half the mean squared distance to the mean target):

* *Lost updates.* Late in training an update is smaller than half the last digit of the weight it
  is added to, and float32 drops it. Training does not diverge, it stands still.
* *A running sum.* A server that keeps the sum of all client models and adds what changed, in
  float32, carries every rounding error into all later rounds. The error pushes the model in each
  round, so that the loss falls at first and rises again after some hundred rounds.
* *Overflow.* A float32 sum of models times numbers of examples, divided only at the end, leaves
  the range of float32 although the mean does not.

The right-hand sides use the numerics of this package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import CompensatedSum, Monitor, Vector, weighted_sum
from qsfl_flower.simulations.report.figures import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    Plot,
    draw,
    legend,
    rounds_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

# Chosen so that both faults show about half way through a thousand rounds.
RATE_LOST, RATE_RUNNING = 0.017, 0.02
GRADIENT_NOISE = 1e-3
DISAGREEMENT = 0.1


@dataclass(frozen=True)
class Problem:
    """Targets of all clients, and the model that training starts from.

    Parameters
    ----------
    targets : ndarray of float64, shape (clients, parameters)
        Where each client pulls the model.
    start : ndarray of float32, shape (parameters,)
        The initial model.
    """

    targets: Floats
    start: NDArray[np.float32]

    @classmethod
    def make(cls, clients: int, parameters: int, seed: int, disagreement: float) -> Problem:
        """Draw a problem; the clients' targets differ by about `disagreement`."""
        generator = np.random.default_rng(seed)
        target = generator.uniform(1, 2, parameters)
        away = generator.choice([-1, 1], parameters) * generator.uniform(0.2, 0.5, parameters)
        noise = disagreement * generator.standard_normal((clients, parameters))
        return cls(target + noise, (target + away).astype(np.float32))

    def loss(self, model: NDArray[Any]) -> float:
        """Half the mean squared distance of a model to the mean target."""
        return 0.5 * float(np.mean((model - self.targets.mean(axis=0)) ** 2))


def lost_updates(problem: Problem, rounds: int) -> dict[str, list[float]]:
    """Train with equal clients who send updates, and return the loss of every round.

    ``float32`` adds one client's share after the other to a float32 model. ``one rounding`` adds
    up in float64 and rounds the new float32 model once a round. ``float64 model`` adds up in
    float64 and keeps the model so on the server; the clients still get float32.
    """
    clients = len(problem.targets)
    naive, rounded = problem.start.copy(), problem.start.copy()
    master = problem.start.astype(np.float64)
    losses: dict[str, list[float]] = {"float32": [], "one rounding": [], "float64 model": []}
    for _ in range(rounds):
        models: tuple[NDArray[Any], ...] = (naive, rounded, master)
        for values, model in zip(losses.values(), models, strict=True):
            values.append(problem.loss(model))
        for update in _updates(problem, naive):
            naive += update / np.float32(clients)
        rounded = (rounded + _mean(_updates(problem, rounded))).astype(np.float32)
        master += _mean(_updates(problem, master.astype(np.float32)))
    return losses


def running_sum(problem: Problem, rounds: int, seed: int) -> dict[str, list[float]]:
    """Train with a server that keeps the sum of all client models, and return the losses.

    Each round adds to the sum what every client's model has changed. ``float32`` keeps the sum in
    float32, ``compensated`` in a `CompensatedSum`. Both see the same gradient noise.
    """
    clients, size = problem.targets.shape
    naive = np.zeros(size, np.float32)
    exact = CompensatedSum(size)
    models = {name: np.tile(problem.start, (clients, 1)) for name in ("float32", "compensated")}
    for model in models["float32"]:
        naive += model
        exact.add(Vector.dense(model), 1.0)
    losses: dict[str, list[float]] = {name: [] for name in models}
    generator = np.random.default_rng(seed)
    for _ in range(rounds):
        noise = GRADIENT_NOISE * generator.standard_normal((clients, size))
        for name, total in (("float32", naive), ("compensated", exact.value())):
            mean = (total / clients).astype(np.float32)
            losses[name].append(problem.loss(mean))
            gradients = mean - problem.targets + noise
            new = (mean - RATE_RUNNING * gradients).astype(np.float32)
            for before, after in zip(models[name], new, strict=True):
                if name == "float32":
                    naive += after - before
                else:
                    exact.add(Vector.dense(after), 1.0)
                    exact.add(Vector.dense(before), -1.0)
            models[name] = new
    return losses


def one_weight() -> dict[str, float]:
    """Add 1e-9 to a weight of 1 a thousand times, in float32 and with compensation."""
    step = Vector.dense(np.full(1, 1e-9, np.float32))
    naive, exact = np.float32(1), CompensatedSum(1)
    exact.add(Vector.dense(np.ones(1)), 1.0)
    for _ in range(1000):
        naive += np.float32(1e-9)
        exact.add(step, 1.0)
    return {"float32": float(naive), "compensated": float(exact.value()[0])}


def overflow() -> dict[str, float | None]:
    """Average ten clients with 60,000 examples each, whose parameter is 1e34.

    The float32 sum overflows (None: not finite). Scaled by a power of two, which is exact and can
    be undone exactly, float32 would have got there; float64 needs no such care.
    """
    value, examples, clients = np.float32(1e34), 60_000, 10
    total = scaled = np.float32(0)
    down = np.float32(2.0**-20)
    with np.errstate(over="ignore"):
        for _ in range(clients):
            total += value * np.float32(examples)
            scaled += (value * down) * np.float32(examples)
    vectors = [Vector.dense(np.array([value]))] * clients
    whole = weighted_sum(vectors, [float(examples)] * clients)[0] / (examples * clients)
    plain = float(total) / (examples * clients)
    return {
        "float32": plain if math.isfinite(plain) else None,
        "float32 scaled by a power of two": float(scaled) / float(down) / (examples * clients),
        "float64": float(np.float32(whole)),
        "exact": float(value),
    }


def first_alarm(losses: Sequence[float]) -> int | None:
    """Return the round at which the divergence monitor speaks up, counted from 0."""
    monitor = Monitor(window=20)
    state = monitor.init()
    for number, loss in enumerate(losses):
        state, alarm = monitor.observe(state, loss, None)
        if alarm is not None:
            return number
    return None


def run(
    folder: Path, *, parameters: int = 1000, clients: int = 20, rounds: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Run all three stories, write the pictures, and return the numbers.

    Parameters
    ----------
    folder : Path
        Where ``drift-lost-updates.png`` and ``drift-running-sum.png`` go.
    parameters : int
        Coordinates of the model, at least 1. Each is an experiment of its own, so more of them
        smooth the curves and change nothing else.
    clients, rounds : int
        At least 1 and 2. The effects show after 500 rounds.
    seed : int
        Of the targets and the gradient noise.

    Returns
    -------
    dict
        JSON values: the losses of each story at the start, half way and at the end, the round in
        which the monitor raises its alarm, the round after which the loss never changes, the
        examples of a single weight and of an overflow, and the files.
    """
    if min(parameters, clients, rounds - 1) < 1:
        raise ConfigError(
            f"drift: {parameters} parameters, {clients} clients, {rounds} rounds; "
            "at least 1, 1 and 2 are needed"
        )
    lost = lost_updates(Problem.make(clients, parameters, seed, 0.0), rounds)
    total = running_sum(Problem.make(clients, parameters, seed, DISAGREEMENT), rounds, seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for plot in (_lost_plot(lost), _running_plot(total)):
        files.append(str(folder / f"{plot.name}.png"))
        Path(files[-1]).write_bytes(plot.png)
    return {
        "rounds": rounds,
        "lost_updates": _ends(lost),
        "running_sum": _ends(total),
        "alarm_round": {name: first_alarm(losses) for name, losses in total.items()},
        "stands_still_from": {name: _last_move(losses) for name, losses in lost.items()},
        "one_weight": one_weight(),
        "overflow": overflow(),
        "files": files,
    }


def _updates(problem: Problem, model: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return what each client sends: its float32 step towards its target."""
    return list((RATE_LOST * (problem.targets - model)).astype(np.float32))


def _mean(updates: Sequence[NDArray[np.float32]]) -> Floats:
    weights = np.full(len(updates), 1 / len(updates))
    return weighted_sum([Vector.dense(update) for update in updates], weights)


def _last_move(losses: Sequence[float]) -> int:
    return max((i for i in range(1, len(losses)) if losses[i] != losses[i - 1]), default=0)


def _ends(losses: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"start": values[0], "half": values[len(values) // 2], "end": values[-1]}
        for name, values in losses.items()
    }


def _lost_plot(losses: dict[str, list[float]]) -> Plot:
    ends = {name: f"{values[-1]:.1e}" for name, values in losses.items()}
    alt = f"Loss by round; at the end {ends}."
    return _plot("drift-lost-updates", "Small updates get lost", alt, losses, None)


def _running_plot(losses: dict[str, list[float]]) -> Plot:
    ends = {name: f"{values[-1]:.1e}" for name, values in losses.items()}
    alt = f"Loss by round; at the end {ends}. The float32 loss falls and then rises again."
    alarm = first_alarm(losses["float32"])
    return _plot("drift-running-sum", "Errors of a running sum pile up", alt, losses, alarm)


def _plot(
    name: str, title: str, alt: str, losses: dict[str, list[float]], alarm: int | None
) -> Plot:
    def paint(axes: Axes) -> None:
        for (label, values), color in zip(losses.items(), (ORANGE, BLUE, GREEN), strict=False):
            axes.plot(range(len(values)), values, color=color, linewidth=1.6, label=label)
        if alarm is not None:
            axes.axvline(alarm, color=BLACK, linewidth=1, linestyle=":", label="alarm")
        axes.set_yscale("log")
        axes.set_xlabel("round")
        axes.set_ylabel("loss")
        rounds_axis(axes, range(len(next(iter(losses.values())))))
        legend(axes, columns=3)

    return draw(name, title, alt, paint, height=3.0)
