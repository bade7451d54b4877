"""What `ClippedGradients` refuses, and what it does besides the plain case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm

from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.models import build_model, mnist_cnn
from qsfl_flower.clients.per_example import ClippedGradients, clipped_gradient_sum, made_up
from qsfl_flower.clients.per_example.functional import ByVmap, OneByOne
from qsfl_flower.clients.per_example.work import Work, buffers_kept
from qsfl_flower.clients.private_training import GradientSumClient, PrivateTrainingClient
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from tests.clients.support import train_privately

X, Y = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1] * 3 + [0])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def chosen(model, x=X, y=Y, **options):
    return ClippedGradients(model, made_up(x), made_up(y), **options)


def by_loop(model, x, y, clip, loss=functional.cross_entropy):
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(y)):
        found = torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]), parameters)
        factor = min(1.0, clip / float(torch.cat([g.flatten() for g in found]).norm()))
        total = [t + factor * g for t, g in zip(total, found, strict=True)]
    return total


def same(found, exact):
    for ours, theirs in zip(found, exact, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-7


class Centred(nn.Module):
    """Mixes examples by a function, in no layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        x = self.layer(x)
        return 100 * (x - x.mean(0).detach()) / (x.std(0).detach() + 1e-6)


class Average(nn.Module):
    """Keeps a running mean of what it has seen in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        out = x - self.seen
        if self.training:
            self.seen.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return out


class Recurrent(nn.Module):
    """Takes the axis of the examples for time."""

    def __init__(self, **options):
        super().__init__()
        self.inner, self.last = nn.GRU(3, 4, **options), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.inner(x.view(-1, 2, 3))[0][:, -1])


class Carries(nn.Module):
    """Hands a number on from one batch to the next, without a buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(6, 3), [torch.zeros(())]

    def forward(self, x):
        out = self.layer(x) + self.kept[0]
        self.kept[0] = x.detach().mean()
        return out


class OneAtLeastTwo(nn.Module):
    """Fails on one example."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x.squeeze()).reshape(len(x), 3).squeeze(0)


def between(layer):
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 3))


def tracked():
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (3, 2)), norm, nn.Flatten(), nn.Linear(6, 3))


REFUSED = {
    "batch norm": (lambda: between(nn.BatchNorm1d(6)), r"'1' \(BatchNorm1d\) mixes.*group norm"),
    "batch norm without buffers": (
        lambda: between(nn.BatchNorm1d(6, track_running_stats=False)), r"'1' .* mixes",
    ),
    "a function that mixes": (Centred, r"the model \(Centred\) mixes"),
    "attention over the batch": (
        lambda: between(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0)), r"'1\.?.*mixes",
    ),
    "time and batch exchanged": (Recurrent, r"\(GRU\) mixes"),
    "running mean": (lambda: between(Average()), r"'1' \(Average\) writes.*'1.seen'"),
    "tracked instance norm": (tracked, r"'1' \(InstanceNorm1d\) writes.*'1.running_"),
    "renormed embedding": (
        lambda: nn.Sequential(
            nn.Embedding(9, 4, max_norm=0.1), nn.Flatten(), nn.Linear(24, 3)
        ), r"'0' \(Embedding\) writes.*'0.weight'",
    ),
    "a number from batch to batch": (Carries, "remembers"),
    "fails on one example": (OneAtLeastTwo, "model"),
    "lazy": (lambda: nn.LazyLinear(3), "call the model once"),
    "nothing to train": (lambda: nn.Linear(6, 3).requires_grad_(False), "no parameter"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_without_a_bound_are_refused_by_name(name):
    make, message = REFUSED[name]
    x = torch.zeros(7, 6, dtype=torch.long) if name == "renormed embedding" else X
    with pytest.raises(ConfigError, match=message):
        chosen(make(), x)


def test_clients_refuse_before_training():
    x, y = np.zeros((5, 6), np.float32), np.zeros(5, np.int64)
    data = Dataset("toy", x, y, x[:0], y[:0], (6,), 3, None, "toy", Normalization((0.0,), (1.0,)))
    model = between(nn.BatchNorm1d(6))
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5, steps=1)
    with pytest.raises(ConfigError, match="BatchNorm1d"):
        PrivateTrainingClient(model, data, TrainConfig(), privacy, seed=0, client_id=0)
    batch = RecordBatch(clip_norm=1.0, sampling_rate=0.5, sum_norm=1.0)
    with pytest.raises(ConfigError, match="BatchNorm1d"):
        GradientSumClient(model, data, batch, seed=0, client_id=0)


class Moody(nn.Module):
    """Depends on the number of examples, but not if they are made up."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        out = self.layer(x / 60)
        return out * 5 * len(x) if float(x.max()) > 50 else out


def test_the_first_batch_is_held_against_the_choice():
    gradients = chosen(Moody())
    gradients.sum(X[:0], Y[:0], 1.0)
    with pytest.raises(ConfigError, match="first batch"):
        gradients.sum(X + 60, Y, 1.0)


def test_the_suites_models_take_the_fast_way():
    for name, shape in (("mnist-cnn", (1, 28, 28)), ("cifar-cnn", (3, 32, 32))):
        x = torch.zeros(1, *shape)
        assert chosen(build_model(name, shape, 10, 0), x).engine == "by layer"


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_a_wrong_rule_of_opacus_is_not_used(mode):
    conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode)
    model = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), conv, nn.Flatten(), nn.Linear(32, 3))
    x = torch.randn(7, 16)
    exact = by_loop(model, x, Y, 0.1)
    same(chosen(model, x).sum(x, Y, 0.1).gradients, exact)
    wrapped = GradSampleModule(model, loss_reduction="sum")  # the reason for our own rule
    functional.cross_entropy(wrapped(x), Y, reduction="sum").backward()
    alone = torch.autograd.grad(functional.cross_entropy(model(x[:1]), Y[:1]), conv.weight)[0]
    assert float((conv.weight.grad_sample[0] - alone).norm()) > 0.01 * float(alone.norm())


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("at_once", [None, 2])
@pytest.mark.parametrize(
    "make", [lambda: mnist_cnn((1, 16, 16), 3), lambda: nn.Sequential(nn.Flatten(), nn.PReLU(),
    nn.Linear(256, 3)), lambda: nn.Sequential(nn.Flatten(1, 2), nn.RNN(16, 3, batch_first=True),
    Last())], ids=["by layer", "torch.func", "one by one"],
)  # fmt: skip
def test_copies_and_parts_make_no_difference_to_the_sum(make, at_once, copies, request):
    model, x, y = make(), torch.randn(5 * copies, 1, 16, 16), torch.tensor([0, 1, 2, 0, 1])
    y = y.repeat_interleave(copies)
    gradients = chosen(model, x, y, at_once=at_once)
    assert gradients.engine in request.node.name
    found = gradients.sum(x, y, 0.05, copies=copies)
    assert found.norms.shape == (5,)
    exact = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(5):
        rows = slice(i * copies, (i + 1) * copies)
        one = torch.autograd.grad(
            functional.cross_entropy(model(x[rows]), y[rows]), list(model.parameters())
        )
        factor = min(1.0, 0.05 / float(torch.cat([g.flatten() for g in one]).norm()))
        exact = [t + factor * g for t, g in zip(exact, one, strict=True)]
    same(found.gradients, exact)


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, -1]


def test_empty_batches_are_zeros():
    found = chosen(nn.Linear(6, 3)).sum(X[:0], Y[:0], 1.0)
    assert [g.shape for g in found.gradients] == [(3, 6), (3,)]
    assert not any(g.any() for g in found.gradients)
    assert found.norms.shape == (0,)


class Tagger(nn.Module):
    """Says something about every token."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.last(torch.tanh(self.table(tokens)))


def token_loss(outputs, labels):
    return functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=-100)


def test_losses_are_the_models_own():
    tokens, labels = torch.randint(0, 5, (6, 8)), torch.randint(0, 3, (6, 8))
    labels[:, 5:] = -100
    labels[0, 1:] = -100
    model = Tagger()
    gradients = chosen(model, tokens, labels, loss=token_loss)
    assert gradients.engine == "by layer"
    found = gradients.sum(tokens, labels, 0.1).gradients
    same(found, by_loop(model, tokens, labels, 0.1, token_loss))
    assert not found[0][0].any()  # nothing is trained for padding


def test_inputs_may_be_several():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, mask):
            return self.layer(x * mask)

    mask = (X > 0).float()
    for batch in ((X, mask), {"x": X, "mask": mask}):
        model = Two()
        made = tuple(made_up(t) for t in (X, mask))
        made = made if isinstance(batch, tuple) else dict(zip(batch, made, strict=True))
        found = ClippedGradients(model, made, made_up(Y)).sum(batch, Y, 0.1)
        same(found.gradients, clipped_gradient_sum(model.layer, X * mask, Y, 0.1).gradients)


def test_buffers_that_hold_nothing_of_the_records_move_once_a_step():
    model = nn.Sequential(spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3))
    twin = nn.Sequential(spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3))
    twin.load_state_dict(model.state_dict())
    gradients = chosen(model)
    assert torch.equal(model[0].weight_u, twin[0].weight_u)
    for batch in (X, X[:0], X[:1]):
        gradients.sum(batch, Y[: len(batch)], 1.0)
        twin(X)
        assert torch.equal(model[0].weight_u, twin[0].weight_u)


@pytest.mark.parametrize("engine", [ByVmap(), OneByOne()])
def test_every_example_meets_the_same_buffers(engine):
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3))
    work = Work(model, functional.cross_entropy, X, Y)
    for _ in range(3):  # whatever was computed before
        with buffers_kept(model):
            together = engine.sum(work, 1e9).gradients
    with buffers_kept(model):
        alone = []
        for i in range(len(Y)):
            with buffers_kept(model):
                alone.append(engine.sum(work.part(i, i + 1), 1e9).gradients)
    same(together, [torch.stack(parts).sum(0) for parts in zip(*alone, strict=True)])


def test_a_probe_leaves_no_trace():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    chosen(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_private_training_takes_copies_parts_and_a_loss():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (40, 1, 16, 16), dtype=np.uint8), rng.integers(0, 3, 40)
    scale = Normalization((0.5,), (0.3,))
    data = Dataset("toy", x, y, x[:0], y[:0], (1, 16, 16), 3, None, "toy", scale)
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.2, steps=3)
    client = PrivateTrainingClient(
        mnist_cnn((1, 16, 16), 3), data, TrainConfig(augment=True), privacy, seed=0, client_id=0,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1), at_once=2, copies=4,
    )  # fmt: skip
    _, count, _ = client.fit(client.get_parameters({}), {})
    assert count == 40
    with pytest.raises(ConfigError, match="copies"):
        train_privately(
            mnist_cnn((1, 16, 16), 3), x, y, scale, TrainConfig(), privacy,
            source=Keystream.seeded(0), copies=2,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_precision_train(dtype):
    x, y = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32), np.zeros(20, np.int64)
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)).to(dtype)
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5, steps=2)
    before = model[0].weight.clone()
    assert train_privately(
        model, x, y, Normalization((0.0,), (1.0,)), TrainConfig(), privacy,
        source=Keystream.seeded(0),
    )  # fmt: skip
    assert model[0].weight.dtype is dtype
    assert not torch.equal(model[0].weight, before)
