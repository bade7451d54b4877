"""Models: shapes, seeds, import paths, strict arrays, helpful errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qsfl_flower.clients.models import MODELS, build_model, get_arrays, roles_of, set_arrays
from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Layout


def own_factory(input_shape: tuple[int, ...], num_classes: int, width: int = 3) -> nn.Module:
    """Build a model as a user of the suite would."""
    size = int(np.prod(input_shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.Linear(width, num_classes))


def not_a_model(input_shape: tuple[int, ...], num_classes: int) -> Any:
    return "model"


def wrong_output(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return own_factory(input_shape, num_classes + 1)


def one_channel_only(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(num_classes))


NOT_CALLABLE = 3
HERE = __name__


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("linear", (1, 8, 8)),
        ("mlp", (1, 8, 8)),
        ("mlp", (1, 28, 28)),
        ("mlp", (3, 32, 32)),
        ("mlp", (13,)),
        ("mnist-cnn", (1, 28, 28)),
        ("mnist-cnn", (3, 32, 32)),
        ("mnist-cnn", (1, 16, 17)),
        ("cifar-cnn", (3, 32, 32)),
        ("cifar-cnn", (1, 28, 28)),
        ("resnet18", (3, 32, 32)),
    ],
)
def test_every_model_maps_a_batch_to_logits(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(name, shape, 7, seed=1)
    logits = model(torch.zeros(4, *shape))
    assert logits.shape == (4, 7)
    assert model.training


def test_sizes_by_hand() -> None:
    # mlp: 64*128 + 128 + 128*10 + 10
    assert parameters(build_model("mlp", (1, 8, 8), 10, 0)) == 9610
    assert parameters(build_model("resnet18", (3, 32, 32), 10, 0)) == 11_173_962
    # mnist-cnn: 25*16+16, 25*16*32+32, 32*4*4*64+64, 64*10+10
    assert parameters(build_model("mnist-cnn", (1, 28, 28), 10, 0)) == 416 + 12832 + 32832 + 650
    # cifar-cnn: three convolutions without bias, their group norms, 96*4*4*64+64, 64*10+10
    convolutions = 9 * (3 * 24 + 24 * 48 + 48 * 96) + 2 * (24 + 48 + 96)
    assert parameters(build_model("cifar-cnn", (3, 32, 32), 10, 0)) == convolutions + 98368 + 650


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    first = get_arrays(build_model(name, (3, 32, 32), 10, seed=7))
    assert torch.equal(torch.rand(3), expected_next), "torch's random state was disturbed"
    torch.rand(100)
    second = get_arrays(build_model(name, (3, 32, 32), 10, seed=7))
    other = get_arrays(build_model(name, (3, 32, 32), 10, seed=8))
    assert list(first) == list(second)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["mnist-cnn", "cifar-cnn"])
def test_norms(name: str) -> None:
    kinds = {"group": nn.GroupNorm, "batch": nn.BatchNorm2d, "none": nn.Identity}
    for norm, kind in kinds.items():
        model = build_model(name, (3, 32, 32), 10, 0, {"norm": norm})
        assert any(isinstance(part, kind) for part in model.modules())
    with pytest.raises(ConfigError, match="'group', 'batch' or 'none', found 'layer'"):
        build_model(name, (3, 32, 32), 10, 0, {"norm": "layer"})


def test_cifar_cnn_normalizes_by_groups_unless_told_otherwise() -> None:
    kinds = {type(part) for part in build_model("cifar-cnn", (3, 32, 32), 10, 0).modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds


def test_bring_your_own() -> None:
    model = build_model(f"{HERE}:own_factory", (2, 3), 4, 0, {"width": 5})
    assert parameters(model) == 6 * 5 + 5 + 5 * 4 + 4


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("mnist-ccn", (1, 28, 28), {}, "allowed are linear, mlp, .* Did you mean 'mnist-cnn'"),
        ("resnet", (1, 28, 28), {}, "import path 'package.module:factory'"),
        ("no.such.module:f", (1, 28, 28), {}, "cannot be imported: No module named 'no'"),
        *(
            (name, (1, 28, 28), {}, "an import path is 'package.module:name'")
            for name in (".x:y", "..:a", "os:", ":", "a b:c", "\x00:a")
        ),
        ("builtins:exit", (1, 28, 28), {}, "cannot be built"),
        (f"{HERE}:nothing", (1, 28, 28), {}, "cannot be imported: .* 'nothing'"),
        (f"{HERE}:NOT_CALLABLE", (1, 28, 28), {}, "is a int, not callable"),
        (f"{HERE}:not_a_model", (4,), {}, "returned str, not a torch.nn.Module"),
        (f"{HERE}:wrong_output", (4,), {}, r"logits \(2, 7\), found \(2, 8\)"),
        (f"{HERE}:one_channel_only", (3, 8, 8), {}, r"does not accept examples of shape \(3, 8,"),
        ("mnist-cnn", (64,), {}, r"at least 16 x 16 pixels, found examples of shape \(64,\)"),
        ("mnist-cnn", (1, 8, 8), {}, "at least 16 x 16"),
        ("cifar-cnn", (3, 8, 8), {}, "at least 16 x 16"),
        ("mlp", (4,), {"depth": 3}, r"options \{'depth': 3\}: .*'depth'"),
        ("mnist-cnn", (1, 28, 28), {"dropout": 2.0}, "cannot be built"),
    ],
)
def test_bad_models_are_config_errors(
    name: str, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, shape, 7, 0, options)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_arrays_round_trip_in_state_dict_order(norm: str) -> None:
    source = build_model("cifar-cnn", (3, 32, 32), 10, 1, {"norm": norm})
    target = build_model("cifar-cnn", (3, 32, 32), 10, 2, {"norm": norm})
    arrays = get_arrays(source)
    assert list(arrays) == list(source.state_dict())
    set_arrays(target, arrays)
    for key, value in get_arrays(target).items():
        assert value.flags["C_CONTIGUOUS"]
        assert value.dtype == arrays[key].dtype  # batch norm's counter stays a whole number
        np.testing.assert_array_equal(value, arrays[key])


def test_arrays_are_copies_both_ways() -> None:
    model = build_model("mlp", (4,), 2, 0)
    arrays = get_arrays(model)
    for array in arrays.values():
        array[...] = 9.0
    assert not np.any(get_arrays(model)["1.weight"] == 9.0)
    set_arrays(model, arrays)
    arrays["1.weight"][...] = 7.0
    assert np.all(get_arrays(model)["1.weight"] == 9.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("1.bias"), r"missing \['1.bias'\], unknown \[\]"),
        (lambda a: a.update(extra=np.zeros(1)), r"unknown \['extra'\]"),
        (lambda a: a.update({"1.bias": np.zeros((128, 1), np.float32)}), r"found .*\(128, 1\)"),
        (lambda a: a.update({"1.bias": np.zeros(128)}), r"expected float32 .* found float64"),
    ],
)
def test_set_arrays_is_strict_and_changes_nothing_on_error(change: Any, message: str) -> None:
    model = build_model("mlp", (4,), 2, 0)
    before = get_arrays(model)
    arrays = {key: value + 1 for key, value in before.items()}
    change(arrays)
    with pytest.raises(ConfigError, match=message):
        set_arrays(model, arrays)
    for key, value in get_arrays(model).items():
        np.testing.assert_array_equal(value, before[key])


class Tied(nn.Module):
    """Two layers with one weight, in front of a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.zeros(2, 2))
        self.register_buffer("order", torch.arange(2))

    def forward(self, x):
        return self.second(self.first(x))


def test_roles_are_found_by_gradient_buffer_and_storage():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Tied())
    model[0].requires_grad_(False)
    assert roles_of(model) == {
        "0.weight": "frozen",
        "0.bias": "frozen",
        "1.running_mean": "buffer",
        "1.running_var": "buffer",
        "2.second.weight": "tied:2.first.weight",
        "2.mask": "buffer",
    }
    Layout.of(get_arrays(model), roles_of(model))
    norm = {n: "local" for n in get_arrays(model) if n.startswith("1.")}
    assert roles_of(model, local=(nn.BatchNorm1d,)) == {**roles_of(model), **norm}


def test_arrays_of_a_list_are_named_by_their_numbers():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Tied())
    number = {name: str(i) for i, name in enumerate(get_arrays(model))}
    named, numbered = roles_of(model), roles_of(model, numbered=True)
    assert numbered.pop(number["2.second.weight"]) == "tied:" + number["2.first.weight"]
    assert numbered == {number[n]: r for n, r in named.items() if not r.startswith("tied:")}
    arrays = {number[name]: array for name, array in get_arrays(model).items()}
    Layout.of(arrays, roles_of(model, numbered=True))


def test_roles_of_a_keras_model_are_found_by_what_is_trained_and_by_name():
    def weight(name, dtype="float32"):
        return SimpleNamespace(name=name, dtype=dtype)

    trained = [weight("kernel"), weight("gamma")]
    fixed = [weight("moving_mean"), weight("moving_variance"), weight("kernel")]
    weights = [*trained, *fixed, weight("seed_generator_state", "uint32")]
    model = SimpleNamespace(weights=weights, trainable_weights=trained, get_weights=list)
    assert roles_of(model) == {"2": "buffer", "3": "buffer", "4": "frozen"}
    with pytest.raises(ConfigError, match="layers of torch modules only"):
        roles_of(model, local=["norm"])
    with pytest.raises(ConfigError, match="no torch module and no Keras model"):
        roles_of({})


def test_a_plain_model_has_usual_roles_only():
    assert roles_of(build_model("mlp", (1, 8, 8), 10, seed=0)) == {}
