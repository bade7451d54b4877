r"""How stale updates make training diverge, and what stops it.

Twenty clients pull a model towards 0 on a quadratic; every round combines ten updates, each made 5
to 10 versions ago, with learning rate 0.1. In most directions the curvature is at most 1, and the
loss falls. In one it is 3.5: a synchronous server is stable there up to a learning rate times
curvature of 2, but with a delay of :math:`\tau` versions only up to
:math:`2 \sin(\pi / (4\tau + 2))`, 0.15 for ten versions. Steps of 0.35 overshoot, and each
correction comes too late. At first that direction is invisible in the loss; then the loss swings,
and then it explodes.

With constant weights, half of the buffer has to be fresh to keep it stable. What helps here are
weights with a fixed denominator, a learning rate divided by the staleness, or a guard that lowers
the step when the loss has doubled. Momentum makes it worse, unless what staleness adds itself is
taken off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.asynchrony import Constant, Polynomial, StalenessWeight
from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Layout, Monitor, Reaction, Vector
from qsfl_flower.simulations.report.figures import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    Plot,
    draw,
    legend,
    rounds_axis,
)
from qsfl_flower.stages import RoundContext, ServerMomentum, StaleStep, VectorStage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

RATE = 0.1
BUFFER = 10
OLDEST, YOUNGEST = 10, 5
CURVATURE = 3.5
PARAMETERS = 200
_HALF_FRESH = "constant, half of them fresh"
_BUG = "constant weights"
_GUARDED = "constant weights, guard"


@dataclass(frozen=True)
class Server:
    """A way to combine a buffer.

    Parameters
    ----------
    weight : StalenessWeight
        Weight of an update by its staleness; the denominator is the buffer size.
    step : VectorStage
        What the server does with the sum.
    fresh : float
        Share of the updates that are not stale.
    monitor : Monitor
        Its reaction `Reaction.LOWER_RATE` halves the step.
    """

    weight: StalenessWeight
    step: VectorStage
    fresh: float = 0.0
    monitor: Monitor = field(default_factory=Monitor)


SERVERS: Mapping[str, Server] = {
    _BUG: Server(Constant(), StaleStep()),
    _GUARDED: Server(
        Constant(),
        StaleStep(),
        monitor=Monitor(window=10, patience=40, reactions=(Reaction.LOWER_RATE,)),
    ),
    "weights 1 / (1 + s)": Server(Polynomial(1.0), StaleStep()),
    "rate / (1 + mean s)": Server(Constant(), StaleStep(scale_by_staleness=True)),
    "weights and momentum": Server(Polynomial(1.0), ServerMomentum(1.0, 0.9)),
    "the same, corrected": Server(Polynomial(1.0), StaleStep(1.0, 0.9)),
    _HALF_FRESH: Server(Constant(), StaleStep(), fresh=0.5),
}


def critical(delay: int) -> float:
    """Return the largest stable learning rate times curvature at a fixed delay of versions."""
    return 2 * math.sin(math.pi / (4 * delay + 2))


def train(server: Server, rounds: int, seed: int) -> tuple[list[float], list[int]]:
    """Train, and return the loss of every round and the rounds in which there was a reaction."""
    generator = np.random.default_rng(seed)
    curvature = np.append(np.geomspace(0.1, 1.0, PARAMETERS - 1), CURVATURE)
    # The dangerous direction starts small, as a direction does in which training has converged.
    models = [np.append(np.ones(PARAMETERS - 1), 1e-3)]
    layout = Layout.of({"x": models[0]})
    state, watched, rate = server.step.init(layout), server.monitor.init(), 1.0
    losses: list[float] = []
    reactions: list[int] = []
    for version in range(rounds):
        model = models[-1]
        losses.append(0.5 * float(np.mean(curvature * model**2)))
        ages = generator.integers(YOUNGEST, OLDEST + 1, BUFFER)
        ages[generator.random(BUFFER) < server.fresh] = 0
        ages = np.minimum(ages, version)
        step = np.zeros(PARAMETERS)
        for age in ages.tolist():
            update = -RATE * curvature * models[-1 - age]
            step += server.weight.weight(age, version) / BUFFER * update
        context = RoundContext(
            version + 1, layout, Vector.dense(model), staleness=float(ages.mean())
        )
        step, state, _ = server.step.apply(step, state, context)
        models = [*models[-OLDEST:], model + rate * step]
        watched, alarm = server.monitor.observe(watched, losses[-1], None)
        watched, reaction = server.monitor.react(watched, alarm, losses[-1])
        if reaction is Reaction.LOWER_RATE:
            rate /= 2
            reactions.append(version)
    return losses, reactions


def run(folder: Path, *, rounds: int = 500, seed: int = 0) -> dict[str, Any]:
    """Train with every server, write the picture, and return the numbers.

    Parameters
    ----------
    folder : Path
        Where ``staleness.png`` goes.
    rounds : int
        At least 2; the loss has exploded after 400.
    seed : int
        Of the staleness of the updates.

    Returns
    -------
    dict
        JSON values: losses at some rounds, reactions of the guard, the stable limits, the file.
    """
    if rounds < 2:
        raise ConfigError(f"staleness: {rounds} rounds; at least 2 are needed")
    results = {name: train(server, rounds, seed) for name, server in SERVERS.items()}
    losses = {name: values for name, (values, _) in results.items()}
    plot = _plot(losses, results[_GUARDED][1])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{plot.name}.png"
    file.write_bytes(plot.png)
    return {
        "rounds": rounds,
        "rate_times_curvature": RATE * CURVATURE,
        "stable_below": {
            "synchronous": 2.0,
            f"delay {YOUNGEST}": critical(YOUNGEST),
            f"delay {OLDEST}": critical(OLDEST),
        },
        "loss": {
            name: {str(at): values[at] for at in (0, 100, 200, 300, 400, 499) if at < rounds}
            for name, values in losses.items()
        },
        "guard_reacts_in": results[_GUARDED][1],
        "file": str(file),
    }


def _plot(losses: Mapping[str, Sequence[float]], reactions: Sequence[int]) -> Plot:
    colors = (ORANGE, PINK, BLUE, GREEN, "#999999", SKY, BLACK)

    def paint(axes: Axes) -> None:
        for (name, values), color in zip(losses.items(), colors, strict=True):
            style = ":" if name == _HALF_FRESH else "-"
            axes.plot(values, color=color, linewidth=1.6, linestyle=style, label=name)
        for at in reactions:
            axes.axvline(at, color=PINK, linewidth=0.8, linestyle=":")
        axes.set_yscale("log")
        axes.set_ylim(1e-8, 1e9)
        axes.set_ylabel("loss")
        rounds_axis(axes, range(len(losses[_BUG])))
        legend(axes, columns=2)

    ends = {name: f"{values[-1]:.1e}" for name, values in losses.items()}
    alt = f"Loss by round with updates 5 to 10 versions old; at the end {ends}."
    return draw("staleness", "Stale updates, and what helps", alt, paint, height=3.9)
