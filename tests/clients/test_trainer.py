"""Training: bit-for-bit repeatable, FedProx, unusable batches, optimizers, evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qsfl_flower.clients.data import Dataset, Normalization, load_dataset
from qsfl_flower.clients.models import build_model, get_arrays, set_arrays
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient, derive_seed, evaluate_model
from qsfl_flower.clients.training import train
from qsfl_flower.errors import ConfigError

PLAIN = Normalization((0.0,), (1.0,))


def features(count: int = 40, width: int = 6, seed: int = 0) -> Dataset:
    """Return a small data set of two classes that a straight line separates."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    scale = Normalization((0.0,) * width, (1.0,) * width)
    return Dataset("npz", x, y, x, y, (width,), 2, None, "made here", scale)


def client(data: Dataset | None = None, seed: int = 3, client_id: int = 0, **config: Any) -> Any:
    data = data or features()
    model = build_model("mlp", data.input_shape, data.num_classes, 1)
    return TrainingClient(model, data, TrainConfig(**config), seed=seed, client_id=client_id)


def start(of: TrainingClient) -> list[np.ndarray]:
    return of.get_parameters({})


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    pairs = zip(a, b, strict=True)
    return math.sqrt(sum(float(((x - y).astype(float) ** 2).sum()) for x, y in pairs))


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_fit_learns_and_tells_what_it_did() -> None:
    of = client(epochs=5, learning_rate=0.1, momentum=0.9, batch_size=8)
    arrays, count, metrics = of.fit(start(of), {"server-round": 1})
    assert count == 40
    assert set(metrics) == {"train-loss", "train-accuracy", "skipped-batches", "seconds"}
    assert all(type(value) in (int, float) for value in metrics.values())
    assert metrics["skipped-batches"] == 0
    loss, examples, evaluation = of.evaluate(arrays, {})
    assert examples == 40
    assert loss < 0.2
    assert evaluation == {"accuracy": pytest.approx(1.0, abs=0.05)}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("model_name", ["mlp", "mnist-cnn", "cifar-cnn"])
def test_fit_is_stateless_and_bit_identical(optimizer: str, model_name: str) -> None:
    synthetic = load_dataset("synthetic")
    data = synthetic.client_view(np.arange(48), np.arange(48, 60))
    config = TrainConfig(optimizer=optimizer, batch_size=16, epochs=2, learning_rate=0.01)
    options = {} if model_name == "mlp" else {"dropout": 0.3}
    model = build_model(model_name, data.input_shape, 10, 1, options)
    of = TrainingClient(model, data, config, seed=3, client_id="7")
    initial = start(of)
    expected, _, _ = of.fit(initial, {"server-round": 2})
    torch.manual_seed(99)
    of.fit(initial, {"server-round": 5})
    again, _, _ = of.fit(initial, {"server-round": 2})
    other = build_model(model_name, data.input_shape, 10, 4, options)
    fresh, _, _ = TrainingClient(other, data, config, seed=3, client_id=7).fit(
        initial, {"server-round": 2}
    )
    assert equal(expected, again)
    assert equal(expected, fresh)
    assert not equal(expected, initial)


def test_another_process_gives_the_same_bits() -> None:
    code = (
        "import hashlib, torch; torch.set_num_threads(1); import numpy as np;"
        "from qsfl_flower.clients.data import load_dataset;"
        "from qsfl_flower.clients.models import build_model;"
        "from qsfl_flower.clients.trainer import TrainConfig, TrainingClient;"
        "data = load_dataset('digits').client_view(np.arange(100));"
        "model = build_model('mlp', (1, 8, 8), 10, 1);"
        "c = TrainingClient(model, data, TrainConfig(epochs=2), seed=1, client_id=2);"
        "a, _, _ = c.fit(c.get_parameters({}), {'server-round': 1});"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in a)).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    data = load_dataset("digits").client_view(np.arange(100))
    model = build_model("mlp", (1, 8, 8), 10, 1)
    here = TrainingClient(model, data, TrainConfig(epochs=2), seed=1, client_id=2)
    arrays, _, _ = here.fit(start(here), {"server-round": 1})
    expected = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()
    assert done.stdout.strip() == expected


def test_seed_client_and_round_change_the_order_of_examples() -> None:
    results = []
    for seed, client_id, server_round in ((3, 0, 1), (4, 0, 1), (3, 1, 1), (3, 0, 2)):
        of = client(seed=seed, client_id=client_id, batch_size=8)
        results.append(of.fit(start(of), {"server-round": server_round})[0])
    for first in range(4):
        for second in range(first):
            assert not equal(results[first], results[second])


def test_derived_seeds_are_distinct_and_do_not_depend_on_the_type_of_the_id() -> None:
    assert derive_seed(1, 7, 3) == derive_seed(1, "7", 3)
    seeds = {derive_seed(s, c, r) for s in range(10) for c in range(10) for r in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "1/1", 1) != derive_seed(1, "1", 11)


def test_training_leaves_torchs_random_state_and_settings_alone() -> None:
    of = client()
    initial = start(of)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    of.fit(initial, {"server-round": 1})
    of.evaluate(initial, {})
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_given_parameters_are_not_changed() -> None:
    of = client()
    initial = start(of)
    copies = [array.copy() for array in initial]
    of.fit(initial, {"server-round": 1})
    assert equal(initial, copies)


# --- FedProx -------------------------------------------------------------------------------------


def test_fedprox_with_mu_zero_is_plain_training_bit_for_bit() -> None:
    of = client(epochs=3, momentum=0.9)
    initial = start(of)
    plain = of.fit(initial, {"server-round": 1})[0]
    assert equal(plain, of.fit(initial, {"server-round": 1, "proximal-mu": 0.0})[0])
    assert equal(plain, of.fit(initial, {"server-round": 1, "proximal-mu": 0})[0])


def test_fedprox_pulls_towards_the_global_model() -> None:
    of = client(epochs=10, learning_rate=0.1)
    initial = start(of)
    drift = [
        distance(of.fit(initial, {"server-round": 1, "proximal-mu": mu})[0], initial)
        for mu in (0.0, 0.1, 1.0, 5.0)
    ]
    assert drift == sorted(drift, reverse=True)
    assert drift[-1] < drift[0] / 3


def test_fedprox_equals_the_loss_written_out() -> None:
    """Two full-batch steps against torch's own optimizer on loss + mu/2 |w - w0|^2."""
    data = features(10)
    of = client(data, epochs=2, batch_size=10, learning_rate=0.1)
    initial = start(of)
    ours = of.fit(initial, {"server-round": 1, "proximal-mu": 0.7})[0]
    model = build_model("mlp", data.input_shape, 2, 1)
    anchor = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.tensor(data.x_train), torch.tensor(data.y_train)
    for _ in range(2):
        proximal = sum(
            ((p - a) ** 2).sum() for p, a in zip(model.parameters(), anchor, strict=True)
        )
        optimizer.zero_grad()
        (functional.cross_entropy(model(x), y) + 0.35 * proximal).backward()
        optimizer.step()
    for mine, theirs in zip(ours, get_arrays(model).values(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


# --- Optimizers ----------------------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": ({}, lambda p: torch.optim.SGD(p, lr=0.02)),
    "momentum": (
        {"momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    ),
    "adam": (
        {"optimizer": "adam", "weight_decay": 0.01},
        lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.01),
    ),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    ),
    "clipped": ({"grad_clip_norm": 0.05}, lambda p: torch.optim.SGD(p, lr=0.02)),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_optimizers_equal_torchs_classes_bit_for_bit(case: str) -> None:
    options, build = OPTIMIZERS[case]
    data = features(32)
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=0.02, **options)
    ours, theirs = (build_model("mlp", data.input_shape, 2, 1) for _ in range(2))
    train(ours, data.x_train, data.y_train, data.normalization, config, seed=11)
    optimizer = build(theirs.parameters())
    shuffle = torch.Generator().manual_seed(11)
    x, y = torch.tensor(data.x_train), torch.tensor(data.y_train)
    for _ in range(3):
        for rows in torch.randperm(32, generator=shuffle).split(8):
            optimizer.zero_grad()
            functional.cross_entropy(theirs(x[rows]), y[rows]).backward()
            if config.grad_clip_norm:
                nn.utils.clip_grad_norm_(theirs.parameters(), config.grad_clip_norm)
            optimizer.step()
    for key, value in get_arrays(ours).items():
        np.testing.assert_array_equal(value, get_arrays(theirs)[key])


def test_a_clipped_step_is_no_longer_than_the_bound() -> None:
    of = client(batch_size=40, learning_rate=1.0, grad_clip_norm=1e-3)
    initial = start(of)
    moved = of.fit(initial, {"server-round": 1})[0]
    assert distance(moved, initial) == pytest.approx(1e-3, rel=1e-2)


def test_the_step_size_decays_with_the_server_round() -> None:
    """One full-batch step of plain SGD is proportional to the step size."""
    of = client(batch_size=40, learning_rate=0.5, lr_decay=0.5)
    initial = start(of)
    steps = [distance(of.fit(initial, {"server-round": r})[0], initial) for r in (1, 2, 4)]
    assert steps[1] / steps[0] == pytest.approx(0.5, rel=1e-3)
    assert steps[2] / steps[0] == pytest.approx(0.125, rel=1e-3)


def test_frozen_and_unused_parameters_do_not_move() -> None:
    data = features()

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen, self.unused = (nn.Linear(6, 2) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + self.frozen(x)

    for optimizer in ("sgd", "adam"):
        model = Partly()
        before = get_arrays(model)
        config = TrainConfig(optimizer=optimizer, weight_decay=0.1)
        train(
            model, data.x_train, data.y_train, data.normalization, config, seed=1, proximal_mu=0.1
        )
        changed = {k for k, v in get_arrays(model).items() if not np.array_equal(v, before[k])}
        assert changed == {"used.weight", "used.bias"}


def test_importing_and_training_does_not_load_torchs_compiler() -> None:
    """Building torch.optim's classes would cost every client process 1.5 s and 150 MB."""
    code = (
        "import sys, numpy as np;"
        "from qsfl_flower.clients.data import load_dataset;"
        "from qsfl_flower.clients.models import build_model;"
        "from qsfl_flower.clients.trainer import TrainConfig, TrainingClient;"
        "data = load_dataset('digits').client_view(np.arange(100), np.arange(10));"
        "model = build_model('mlp', (1, 8, 8), 10, 1);"
        "config = TrainConfig(optimizer='adamw', grad_clip_norm=1.0);"
        "c = TrainingClient(model, data, config, seed=1, client_id=2);"
        "a, _, _ = c.fit(c.get_parameters({}), {'server-round': 1});"
        "c.evaluate(a, {});"
        "print([m for m in ('torch._dynamo', 'torchvision', 'pandas', 'sklearn')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


# --- Unusable batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_nan_batch_is_skipped_and_counted(norm: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 1, 16, 16)).astype(np.float32)
    x[5] = np.nan
    y = np.arange(24) % 2
    model = build_model("cifar-cnn", (1, 16, 16), 2, 0, {"norm": norm})
    result = train(model, x, y, PLAIN, TrainConfig(epochs=2, batch_size=4), seed=0)
    assert result.skipped_batches == 2  # one of six batches in each epoch
    assert result.num_examples == 20
    assert math.isfinite(result.loss)
    assert all(np.isfinite(array).all() for array in get_arrays(model).values())


def test_a_skipped_batch_changes_nothing() -> None:
    """Training with a NaN example in its own batch equals training without that batch."""
    data = features(8)
    bad = data.x_train.copy()
    rows = torch.randperm(8, generator=torch.Generator().manual_seed(21)).split(4)[1]
    bad[rows[0]] = np.inf
    config = TrainConfig(batch_size=4, optimizer="adam")
    with_bad, without = (build_model("mlp", (6,), 2, 1) for _ in range(2))
    train(with_bad, bad, data.y_train, data.normalization, config, seed=21)
    first = torch.randperm(8, generator=torch.Generator().manual_seed(21)).split(4)[0]
    optimizer = torch.optim.Adam(without.parameters(), lr=config.learning_rate)
    loss = functional.cross_entropy(
        without(torch.tensor(data.x_train)[first]), torch.tensor(data.y_train)[first]
    )
    loss.backward()
    optimizer.step()
    for key, value in get_arrays(with_bad).items():
        np.testing.assert_array_equal(value, get_arrays(without)[key])


def test_no_usable_batch_returns_the_parameters_unchanged_with_weight_zero() -> None:
    data = features()
    data = dataclasses.replace(data, x_train=np.full_like(data.x_train, np.nan))
    of = client(data, epochs=2, batch_size=8)
    initial = start(of)
    arrays, count, metrics = of.fit(initial, {"server-round": 1})
    assert count == 0
    assert equal(arrays, initial)
    assert metrics["skipped-batches"] == 10
    assert metrics["train-loss"] == 0.0


def test_a_finite_loss_with_an_infinite_gradient_is_skipped() -> None:
    class Cliff(nn.Module):
        """The square root has an infinite slope at 0."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2] * self.w.abs().sqrt()

    data, model = features(), Cliff()
    result = train(model, data.x_train, data.y_train, data.normalization, TrainConfig(), seed=0)
    assert result.num_examples == 0
    assert result.skipped_batches == 2
    assert model.w.tolist() == [0.0, 0.0]


def test_a_model_that_diverges_in_the_last_step_is_not_returned() -> None:
    of = client(batch_size=40, learning_rate=1e38, epochs=2)
    initial = [array * np.float32(1e3) for array in start(of)]
    arrays, count, _ = of.fit(initial, {"server-round": 1})
    assert count == 0
    assert equal(arrays, initial)


def test_a_client_without_examples_has_weight_zero() -> None:
    of = client(features().client_view(np.array([], dtype=np.int64)))
    initial = start(of)
    arrays, count, metrics = of.fit(initial, {"server-round": 1})
    assert count == 0
    assert equal(arrays, initial)
    assert metrics["skipped-batches"] == 0
    assert of.evaluate(initial, {}) == (0.0, 0, {"accuracy": 0.0})


# --- Augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 16)])
def test_augmentation_shifts_and_mirrors_only_photographs(shape: tuple[int, int, int]) -> None:
    from qsfl_flower.clients.batches import augmented

    pictures = torch.arange(np.prod(shape)).reshape(1, *shape).to(torch.float32) + 1
    pictures = pictures.expand(64, *shape)
    changed = augmented(pictures, torch.Generator().manual_seed(0))
    assert changed.shape == pictures.shape
    original = pictures[0]
    room = shape[1] // 8
    padded = functional.pad(original, (room,) * 4)
    allowed = []
    for top in range(2 * room + 1):
        for left in range(2 * room + 1):
            crop = padded[:, top : top + shape[1], left : left + shape[2]]
            allowed.append(crop)
            if shape[0] == 3:
                allowed.append(crop.flip(2))
    seen = {next(i for i, a in enumerate(allowed) if torch.equal(a, p)) for p in changed}
    assert len(seen) > 20  # of 162 or 25 equally likely outcomes


def test_augmented_training_is_repeatable() -> None:
    data = load_dataset("synthetic").client_view(np.arange(32))
    model = build_model("mlp", data.input_shape, 10, 1)
    of = TrainingClient(model, data, TrainConfig(augment=True), seed=0, client_id=0)
    initial = start(of)
    first = of.fit(initial, {"server-round": 1})[0]
    assert equal(first, of.fit(initial, {"server-round": 1})[0])
    plain = TrainingClient(model, data, TrainConfig(), seed=0, client_id=0)
    assert not equal(first, plain.fit(initial, {"server-round": 1})[0])


# --- Evaluation ----------------------------------------------------------------------------------


def test_evaluation_by_hand() -> None:
    """Logits are (x, 0): the loss of label 0 is log(1 + exp(-x)), of label 1 log(1 + exp(x))."""
    model = nn.Linear(1, 2)
    set_arrays(model, {"weight": np.array([[1.0], [0.0]], np.float32), "bias": np.zeros(2, "f4")})
    x, y = np.array([[0.0], [2.0], [-3.0]], np.float32), np.array([0, 0, 0])
    loss, accuracy = evaluate_model(model, x, y, PLAIN)
    expected = (math.log(2) + math.log1p(math.exp(-2)) + math.log1p(math.exp(3))) / 3
    assert loss == pytest.approx(expected, rel=1e-12)
    assert accuracy == pytest.approx(2 / 3)


def test_evaluation_normalizes_and_does_not_depend_on_the_batch_size() -> None:
    data = load_dataset("digits")
    model = build_model("mlp", data.input_shape, 10, 0)
    results = [
        evaluate_model(model, data.x_test, data.y_test, data.normalization, size)
        for size in (1, 7, 100, 10_000)
    ]
    mean, std = data.normalization.mean[0], data.normalization.std[0]
    with torch.inference_mode():
        logits = model((torch.tensor(data.x_test).double() - mean).div(std).float())
        oracle = functional.cross_entropy(logits.double(), torch.tensor(data.y_test)).item()
    for loss, accuracy in results:
        assert loss == pytest.approx(oracle, rel=1e-5)
        assert accuracy == pytest.approx(results[0][1], abs=1e-12)


def test_evaluation_uses_and_restores_the_modes() -> None:
    data = load_dataset("synthetic")
    x, y = data.x_test[:50], data.y_test[:50]
    model = build_model("mnist-cnn", data.input_shape, 10, 0, {"dropout": 0.5, "norm": "batch"})
    before = get_arrays(model)
    first = evaluate_model(model, x, y, data.normalization)
    assert model.training
    assert evaluate_model(model, x, y, data.normalization) == first
    for key, value in get_arrays(model).items():
        np.testing.assert_array_equal(value, before[key])
    model.eval()
    evaluate_model(model, x, y, data.normalization)
    assert not model.training


def test_a_broken_model_has_a_loss_that_says_so() -> None:
    data = features()
    model = build_model("mlp", data.input_shape, 2, 0)
    set_arrays(model, {k: np.full_like(v, np.nan) for k, v in get_arrays(model).items()})
    loss, _ = evaluate_model(model, data.x_test, data.y_test, data.normalization)
    assert math.isnan(loss)


# --- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be >= 1, found 0"),
        ("batch_size", -1, "batch_size must be >= 1, found -1"),
        ("learning_rate", 0.0, "learning_rate must be > 0, found 0.0"),
        ("learning_rate", math.nan, "learning_rate must be > 0, found nan"),
        ("learning_rate", math.inf, "learning_rate must be > 0, found inf"),
        ("lr_decay", 1.5, "lr_decay must be > 0 and <= 1, found 1.5"),
        ("lr_decay", 0.0, "lr_decay must be > 0"),
        ("optimizer", "sdg", "optimizer must be one of sgd, adam, adamw, found 'sdg'"),
        ("momentum", 1.0, "momentum must be >= 0 and < 1, found 1.0"),
        ("weight_decay", -0.1, "weight_decay must be >= 0, found -0.1"),
        ("grad_clip_norm", 0.0, "grad_clip_norm must be > 0 or null, found 0.0"),
    ],
)
def test_bad_settings_are_config_errors(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{field: value})


def test_momentum_belongs_to_sgd() -> None:
    with pytest.raises(ConfigError, match=r"momentum must be 0 unless sgd is used, found 0\.9"):
        TrainConfig(optimizer="adam", momentum=0.9)


@pytest.mark.parametrize(
    ("key", "value"),
    [("proximal-mu", -1.0), ("proximal-mu", math.nan), ("proximal-mu", "1"), ("server-round", -1)],
)
def test_bad_instructions_are_config_errors(key: str, value: Any) -> None:
    of = client()
    with pytest.raises(ConfigError, match=f"{key} must be a number >= 0"):
        of.fit(start(of), {key: value})


def test_parameters_must_fit_the_model() -> None:
    of = client()
    with pytest.raises(ConfigError, match="the model has 4 arrays, 3 were sent"):
        of.fit(start(of)[:3], {})


def test_properties_tell_the_numbers_of_examples() -> None:
    of = client(features().client_view(np.arange(7), np.arange(2)))
    assert of.get_properties({}) == {"num-train-examples": 7, "num-test-examples": 2}


def test_step_sizes_follow_the_schedule() -> None:
    plain = TrainConfig(learning_rate=0.4, lr_decay=0.5)
    assert [plain.rate(r) for r in (1, 2, 3)] == [0.4, 0.2, 0.1]
    warm = TrainConfig(learning_rate=0.4, warmup_rounds=4)
    assert [warm.rate(r) for r in (1, 2, 4, 9)] == pytest.approx([0.1, 0.2, 0.4, 0.4])
    cosine = TrainConfig(learning_rate=0.4, cosine_rounds=10)
    assert [cosine.rate(r) for r in (1, 6, 11, 50)] == pytest.approx([0.4, 0.2, 0.0, 0.0])


def test_accuracy_by_class_adds_up_to_the_whole() -> None:
    of = client(epochs=1)
    arrays, *_ = of.fit(start(of), {})
    _, count, told = of.evaluate(arrays, {"per-class": True})
    labels = features().y_test
    whole = sum(told[f"accuracy-class-{k}"] * (labels == k).sum() for k in (0, 1))
    assert whole / count == pytest.approx(told["accuracy"])


def test_half_precision_trains_and_leaves_the_weights_in_float32() -> None:
    of = client(epochs=5, learning_rate=0.1, momentum=0.9, batch_size=8, mixed_precision=True)
    arrays, _, metrics = of.fit(start(of), {"server-round": 1})
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    assert metrics["train-accuracy"] > 0.7
    assert not equal(arrays, client(epochs=5, learning_rate=0.1, momentum=0.9, batch_size=8).fit(
        start(of), {"server-round": 1})[0])  # fmt: skip


def test_labels_are_declared_only_on_demand() -> None:
    of = client()
    assert not any(k.startswith("label") for k in of.fit(start(of), {})[2])
    open_ = TrainingClient(
        of._model, features(), TrainConfig(), seed=3, client_id=0, declare_labels=True
    )
    told = open_.fit(start(of), {})[2]
    assert told["label-0"] + told["label-1"] == pytest.approx(1.0)
    assert told["label-1"] == pytest.approx(features().y_train.mean())
