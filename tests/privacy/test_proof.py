"""The lemmas of docs/privacy-proof.md on sensitivity, attacked by search over neighbouring inputs.

A hill climber looks for the neighbours that move a release most, through real strategies, mods and
messages. It must come close to what is claimed and never beyond, and find what is wrong in mutants.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from qsfl_flower.clients import qsfl_mod
from qsfl_flower.clients.models import build_model
from qsfl_flower.clients.per_example import clipped_gradient_sum
from qsfl_flower.mechanisms.compression.core import Mask, Scheme
from qsfl_flower.mechanisms.privacy.server import CentralDP
from qsfl_flower.stages import Clip, Compress, Robust, SharedMask
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.testing import LocalGrid

CLIENTS, SIZE, C = 4, 4, 1.0
SILENT = 1e-6
"""Noise so small that the release is what it hides."""


def release(stages, rows, absent):
    """Return the model after a round in which the client `absent`, if any, is missing."""

    def answer(message, context):
        client = int(context.node_config["partition-id"])
        if client == absent:
            return Message(Error(1, "not there"), reply_to=message)
        model = message.content["arrays"]["w"].numpy()
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(model + rows[client])}),
                "metrics": MetricRecord({"num-examples": 1 + 50 * client}),
            }
        )
        return Message(content, reply_to=message)

    def app(message, context):
        return qsfl_mod(message, context, answer)

    strategy = StableFedAvg(
        fraction_evaluate=0.0, stages=stages(), min_available_nodes=CLIENTS, seed=1
    )
    start = ArrayRecord({"w": Array(np.zeros(SIZE))})
    result = strategy.start(LocalGrid(app, CLIENTS), start, 1, timeout=5)
    return result.arrays["w"].numpy()


def climb(moved, point, rng, steps):
    """Return the largest value of `moved` that a hill climber finds."""
    best = moved(point)
    for step in range(steps):
        width = (3.0, 1.0, 0.3)[step % 3]
        tried = point + width * rng.standard_cauchy(point.shape)
        if (value := moved(tried)) > best:
            best, point = value, tried
    return best


def worst(stages):
    """Return how far one client can be made to move the release, in search."""
    rng = np.random.default_rng(7)

    def moved(rows):
        rows = np.clip(rows, -20, 20)
        whole = release(stages, rows, None)
        return max(np.linalg.norm(whole - release(stages, rows, out)) for out in range(2))

    return climb(moved, rng.normal(size=(CLIENTS, SIZE)), rng, steps=40)


def private(*others, **options):
    return lambda: [Clip(C), CentralDP(SILENT, CLIENTS, **options), *(make() for make in others)]


@pytest.mark.parametrize(
    ("stages", "claimed"),
    [
        (private(), C / CLIENTS),
        (private(lambda: Compress(Scheme(ratio=0.5, values="float32"))), C / CLIENTS),
        (private(lambda: SharedMask(Mask(ratio=0.5, values="float32"))), C / CLIENTS),
        (private(lambda: Robust("median", 1), accept_worst_case=True), 2 * C),
        (private(lambda: Robust("multi_krum", 0), accept_worst_case=True), 2 * C),
    ],
    ids=["mean", "compress", "shared mask", "median", "Multi-Krum"],
)
def test_no_neighbours_move_a_release_further_than_is_claimed(stages, claimed):
    found = worst(stages)
    # The noise has a norm of about 4e-6 of the claim.
    assert found <= claimed * (1 + 5e-5)
    # Means are tight; of the worst case of rules it is known only that it is more than C / n.
    assert found > (0.99 * claimed if claimed < C else 1.5 * C / CLIENTS)


class DividesByWhoCame(CentralDP):
    """A mutant: the divisor depends on the clients."""

    def __init__(self):
        super().__init__(SILENT, CLIENTS)

    def bind(self, stages):
        return super().bind(stages).knowing(denominator=None)


class ClipsOnDevicesOnly(Clip):
    """A mutant: what clients send is believed, and here they clip to too much."""

    def apply(self, cohort, state, context):
        return cohort, state, {}

    def client_steps(self, state, context):
        return ()


@pytest.mark.parametrize(
    "stages",
    [lambda: [Clip(C), DividesByWhoCame()], lambda: [ClipsOnDevicesOnly(C), CentralDP(SILENT, 4)]],
    ids=["divisor", "clipping"],
)
def test_the_search_finds_what_is_wrong(stages):
    assert worst(stages) > 1.2 * C / CLIENTS


@pytest.mark.parametrize("name", ["linear", "mlp", "mnist-cnn"])
def test_no_record_moves_a_sum_of_gradients_further_than_the_clip_norm(name):
    shape = (1, 16, 16)
    model = build_model(name, shape, 10, 3)
    generator = torch.Generator().manual_seed(5)
    others = torch.randn(3, *shape, generator=generator)
    labels = torch.tensor([1, 2, 3, 4])
    without = _flat(clipped_gradient_sum(model, others, labels[:3], C))
    rng = np.random.default_rng(2)

    def moved(record):
        batch = torch.cat([others, torch.from_numpy(record[None]).float()])
        return float(
            torch.linalg.norm(_flat(clipped_gradient_sum(model, batch, labels, C)) - without)
        )

    found = climb(moved, rng.normal(size=shape), rng, steps=30)
    assert 0.99 * C < found <= C * (1 + 1e-4)


def _flat(found):
    return torch.cat([gradient.flatten() for gradient in found.gradients]).double()
