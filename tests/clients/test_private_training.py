from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.models import build_model, get_arrays, mlp, mnist_cnn
from qsfl_flower.clients.per_example import clipped_gradient_sum
from qsfl_flower.clients.private_training import GradientSumClient, PrivateTrainingClient
from qsfl_flower.clients.scattering import scattering
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.audit import audit
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from tests.clients.support import train_privately


def by_loop(model, batch, target, clip):
    """One example after the other, in float64."""
    model = copy.deepcopy(model).double()
    parameters = list(model.parameters())
    sums, norms = [torch.zeros_like(p) for p in parameters], []
    for i in range(len(batch)):
        loss = functional.cross_entropy(model(batch[i : i + 1].double()), target[i : i + 1])
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        norms.append(norm)
        for total, g in zip(sums, gradients, strict=True):
            total += min(1.0, clip / norm) * g
    return sums, torch.tensor(norms, dtype=torch.float64)


class Odd(nn.Module):
    """A layer norm, a shared layer and a parameter of its own: none of the fast rules apply."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(36, 8), nn.LayerNorm(8)
        self.shared, self.shift = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.first(x.flatten(1)))
        return self.last(torch.relu(self.shared(torch.relu(self.shared(x))) + self.shift))


def shared():
    layer = nn.Linear(36, 36)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(36, 3))


MODELS = {
    "cnn": (lambda: mnist_cnn((1, 28, 28), 10), (1, 28, 28), 10),
    "cnn with group norm": (lambda: mnist_cnn((1, 28, 28), 10, norm="group"), (1, 28, 28), 10),
    "mlp": (lambda: mlp((6, 6), 3), (6, 6), 3),
    "strided and padded": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.ReLU(),
            nn.Conv2d(4, 5, 2), nn.Flatten(), nn.Linear(40, 4),
        ), (3, 6, 6), 4,
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3)),
        (2, 6, 6), 3,
    ),
    "odd": (Odd, (6, 6), 3),
    "a layer twice": (shared, (6, 6), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_clipped_sums_are_those_of_a_loop(name, clip):
    torch.manual_seed(0)
    make, shape, classes = MODELS[name]
    model = make()
    batch, target = torch.randn(21, *shape), torch.randint(0, classes, (21,))
    found = clipped_gradient_sum(model, batch, target, clip)
    sums, norms = by_loop(model, batch, target, clip)
    assert torch.allclose(found.norms, norms, rtol=1e-4)
    for ours, exact in zip(found.gradients, sums, strict=True):
        assert ours.shape == exact.shape
        assert float((ours - exact).abs().max()) <= 2e-5 * max(1.0, float(exact.abs().max()))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_opacus_gradients_are_the_same():
    from opacus.grad_sample import GradSampleModule

    torch.manual_seed(0)
    model = mnist_cnn((1, 28, 28), 10).to(memory_format=torch.contiguous_format)
    batch, target = torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,))
    found = clipped_gradient_sum(model, batch, target, 1.0)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    functional.cross_entropy(wrapped(batch), target, reduction="sum").backward()
    samples = [p.grad_sample for p in wrapped.parameters()]
    norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
    factors = (1.0 / norms).clamp(max=1.0)
    for ours, sample in zip(found.gradients, samples, strict=True):
        assert torch.allclose(ours, torch.tensordot(factors, sample, 1), atol=1e-5)


@pytest.mark.parametrize("make", [lambda: mlp((6, 6), 3), Odd])
def test_one_bad_example_spoils_nothing(make):
    torch.manual_seed(0)
    model, batch, target = make(), torch.randn(5, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    bad = batch.clone()
    bad[2] = math.nan
    good = [0, 1, 3, 4]
    found = clipped_gradient_sum(model, bad, target, 0.1).gradients
    expected = clipped_gradient_sum(model, batch[good], target[good], 0.1).gradients
    for ours, other in zip(found, expected, strict=True):
        assert torch.allclose(ours, other, atol=1e-6)


def toy(records=400, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, records)
    x = rng.normal(size=(records, 6)) * 0.3
    x[np.arange(records), y] += 2.0
    return x.astype(np.float32), y.astype(np.int64)


NORMAL = Normalization((0.0,), (1.0,))


def linear():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def test_private_training_learns_and_counts_its_noise():
    x, y = toy()
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.25, steps=40)
    model = linear()
    usable = train_privately(
        model, x, y, NORMAL, TrainConfig(learning_rate=0.5), privacy, source=Keystream.seeded(1)
    )
    assert usable
    accuracy = (model(torch.tensor(x)).argmax(1).numpy() == y).mean()
    assert accuracy > 0.9


def test_noise_in_a_step_is_that_of_the_accountant():
    # No record in any batch: what moves the weights is noise alone.
    x, y = toy(100)
    privacy = RecordPrivacy(clip_norm=2.0, noise_multiplier=3.0, sampling_rate=1e-12, steps=1)
    steps = []
    for seed in range(200):
        model = linear()
        start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        train_privately(
            model, x, y, NORMAL, TrainConfig(learning_rate=1e-10), privacy,
            source=Keystream.seeded(seed),
        )  # fmt: skip
        now = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        steps.append((now - start).double().numpy())
    noise = np.concatenate(steps) / 1e-10 * 1e-12 * 100
    # 4,200 values: the standard deviation is known to 6 %, at six of its own standard deviations.
    assert noise.std() == pytest.approx(6.0, rel=0.07)


def test_the_client_tells_what_it_did_and_nothing_about_its_records():
    x, y = toy(60)
    data = Dataset("toy", x, y, x[:0], y[:0], (6,), 3, None, "toy", NORMAL)
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5, steps=3)
    client = PrivateTrainingClient(linear(), data, TrainConfig(), privacy, seed=1, client_id=0)
    parameters = client.get_parameters({})
    first, count, told = client.fit(parameters, {})
    again, _, _ = client.fit(parameters, {})
    assert count == 60
    assert set(told) == {*privacy.told(), "seconds"}
    assert privacy.weaker(told) is None
    assert not np.array_equal(first[0], again[0])  # noise is secret


def one_step_audit(noise_multiplier, clip_norm, canary, claimed=1.0):
    """Canaries are records with features of their own; each is included by a coin."""
    count = 200
    rng = np.random.default_rng(0)
    included = rng.random(count) < 0.5
    x = np.eye(count, dtype=np.float32)[included] * canary
    y = np.zeros(len(x), dtype=np.int64)
    torch.manual_seed(0)
    model = nn.Linear(count, 2)
    nn.init.zeros_(model.weight)
    before = get_arrays(model)["weight"].copy()
    privacy = RecordPrivacy(
        clip_norm=clip_norm, noise_multiplier=noise_multiplier, sampling_rate=1.0, steps=1
    )
    train_privately(
        model, x, y, NORMAL, TrainConfig(learning_rate=1.0), privacy, source=Keystream.seeded(5)
    )
    scores = (get_arrays(model)["weight"] - before)[0].astype(np.float64)
    return audit(scores, included, delta=1e-5, guesses=60).epsilon


def test_the_audit_believes_dp_sgd_and_not_its_broken_forms():
    from qsfl_flower.privacy.gaussian import gaussian_noise_multiplier

    noise = gaussian_noise_multiplier(1.0, 1e-5)
    assert one_step_audit(noise, 1.0, 5.0) <= 1.0
    assert one_step_audit(1e-3, 1.0, 5.0) > 1.0  # noise off
    # Clip off: the bound is far beyond every gradient, while the noise is that for a bound of 1.
    assert one_step_audit(noise / 1e6, 1e6, 100.0) > 1.0


def test_scattering_is_stable_under_small_shifts_and_sees_shapes():
    bar = torch.zeros(2, 1, 28, 28)
    bar[0, 0, 4:24, 12:15] = 1
    bar[1, 0, 12:15, 4:24] = 1
    upright, lying = scattering(bar)
    moved = scattering(torch.roll(bar, 1, 3))[0]
    assert upright.shape == (81 * 49,)
    assert (upright - moved).norm() < 0.5 * (upright - lying).norm()
    assert torch.allclose(scattering(bar, batch_size=1), scattering(bar), atol=1e-4)
    with pytest.raises(ConfigError, match="multiples"):
        scattering(torch.zeros(1, 1, 30, 28))


def test_the_built_in_cifar_model_is_served():
    model = build_model("cifar-cnn", (3, 32, 32), 10, 0)
    found = clipped_gradient_sum(model, torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2]), 1e6)
    sums, norms = by_loop(model, *[torch.randn(0, 3, 32, 32), torch.zeros(0)], 1.0)
    assert len(found.gradients) == len(sums)
    assert len(norms) == 0


def gradient_sum(x, y, batch, start=None):
    """Return what a client's parameters lose in a round, in float64."""
    data = Dataset("toy", x, y, x[:0], y[:0], x.shape[1:], 3, None, "toy", NORMAL)
    client = GradientSumClient(linear(), data, batch, seed=1, client_id=0)
    before = client.get_parameters({}) if start is None else start
    after, count, told = client.fit(before, {})
    assert count == len(y)
    assert told == {**batch.told(), "seconds": told["seconds"]}
    return np.concatenate(
        [(b.astype(float) - a.astype(float)).ravel() for b, a in zip(before, after, strict=True)]
    )


def test_a_round_sends_the_sum_of_clipped_gradients():
    x, y = toy(60)
    sent = gradient_sum(x, y, RecordBatch(clip_norm=0.5, sampling_rate=1.0, sum_norm=100.0))
    clipped, _ = by_loop(linear(), torch.tensor(x), torch.tensor(y), 0.5)
    expected = torch.cat([g.reshape(-1) for g in clipped]).numpy()
    np.testing.assert_allclose(sent, expected, atol=1e-5)


def test_batches_are_secret_and_empty_ones_change_nothing():
    x, y = toy(60)
    half = RecordBatch(clip_norm=0.5, sampling_rate=0.5, sum_norm=100.0)
    # Two equal batches of 60 coins: once in 2^60.
    assert not np.array_equal(gradient_sum(x, y, half), gradient_sum(x, y, half))
    never = RecordBatch(clip_norm=0.5, sampling_rate=1e-15, sum_norm=100.0)
    assert not gradient_sum(x, y, never).any()
    assert not gradient_sum(x[:0], y[:0], half).any()


@pytest.mark.parametrize("sum_norm", [0.5, 3.0, 1000.0])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_one_record_moves_what_is_sent_by_its_clip_norm_at_most(sum_norm, size):
    """Whatever the sum is scaled to, and whatever the rounding to float32 does."""
    x, y = toy(60)
    batch = RecordBatch(clip_norm=0.5, sampling_rate=1.0, sum_norm=sum_norm)
    start = [size * p for p in get_arrays(linear()).values()]
    whole = gradient_sum(x, y, batch, start)
    assert np.linalg.norm(whole) <= sum_norm + 1e-3
    # The allowance that `DistributedDP` adds for float32, and float32 sums of 60 gradients.
    norm = math.sqrt(sum(float((p.astype(float) ** 2).sum()) for p in start))
    allowed = 0.5 + 1.01 * np.finfo(np.float32).eps * (norm + sum_norm) + 60 * 0.5 * 6e-8
    for record in range(60):
        others = np.arange(60) != record
        moved = np.linalg.norm(whole - gradient_sum(x[others], y[others], batch, start))
        assert moved <= allowed
