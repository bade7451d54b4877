from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.detection.core import NAMES, extract
from qsfl_flower.mechanisms.detection.core.features import describe
from qsfl_flower.mechanisms.robust.core import Updates
from qsfl_flower.numerics import Layout, Vector


def column(table, name: str) -> np.ndarray:
    return table.values[:, NAMES.index(name)]


def oracle(x: np.ndarray, layout: Layout, last: np.ndarray | None) -> dict[str, np.ndarray]:
    """Every feature in the obvious way."""
    centre = np.median(x, axis=0)
    norms = np.linalg.norm(x, axis=1)
    relative = lambda v: np.log(v / np.median(v))  # noqa: E731
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    others = np.sort(distances, axis=1)[:, 1:]
    layers = [np.linalg.norm(x[:, s], axis=1) for s in layout.slices.values()]
    cosines = [
        x[:, s] @ centre[s] / layer / np.linalg.norm(centre[s])
        for s, layer in zip(layout.slices.values(), layers, strict=True)
    ]
    mass = np.abs(centre)
    return {
        "norm": relative(norms),
        "distance": relative(np.linalg.norm(x - centre, axis=1)),
        "centre_cosine": x @ centre / norms / np.linalg.norm(centre),
        "last_cosine": norms * 0 if last is None else x @ last / norms / np.linalg.norm(last),
        "sign_agreement": ((x > 0) == (centre > 0)) @ mass / mass.sum(),
        "neighbours": relative(others[:, : others.shape[1] // 2].mean(axis=1)),
        "twin": relative(others[:, 0]),
        "layer_high": np.max([relative(v) for v in layers], axis=0),
        "layer_low": np.min([relative(v) for v in layers], axis=0),
        "layer_cosine": np.min(cosines, axis=0),
        "density": np.abs(x).sum(axis=1) / norms / layout.size**0.5,
    }


@pytest.mark.parametrize("clients", [3, 20])
def test_features_equal_the_obvious_computation(cohort, layout, clients):
    x, last = cohort(clients), cohort(1, seed=9)[0]
    table = extract(Updates.of(x), layout, last)
    for name, values in oracle(x, layout, last).items():
        assert column(table, name) == pytest.approx(values, abs=1e-9), name
    away = x - np.median(x, axis=0)
    size = np.linalg.norm(away, axis=1)
    expected = away @ away.T / size[:, None] / size[None]
    assert table.likeness == pytest.approx(expected, abs=1e-9)
    norms = np.linalg.norm(x, axis=1)
    assert table.cosines == pytest.approx(x @ x.T / norms[:, None] / norms[None], abs=1e-9)


def test_a_base_is_subtracted_and_blocks_make_no_difference(layout):
    rng = np.random.default_rng(3)
    big = Layout(("w", "b"), ((40_000,), (7,)), ("float64",) * 2)
    model, x = rng.normal(size=big.size) * 100, rng.normal(size=(4, big.size))
    sent = [Vector.dense(model + row) for row in x]
    table = extract(Updates(sent, [Vector.dense(model)] * 4), big)
    for name, values in oracle(x, big, None).items():
        assert column(table, name) == pytest.approx(values, abs=1e-9), name


def test_the_first_round_has_no_last_step(cohort, layout):
    assert not column(extract(Updates.of(cohort()), layout), "last_cosine").any()


@pytest.mark.parametrize("x", [np.zeros((5, 1000)), np.ones((5, 1000)), np.zeros((1, 1000))])
def test_features_of_equal_updates_are_finite(layout, x):
    table = extract(Updates.of(x), layout)
    assert np.isfinite(table.values).all()
    assert np.isfinite(table.likeness).all()
    assert np.isfinite(table.cosines).all()


def test_features_of_wild_updates_are_bounded(cohort, layout):
    x = cohort()
    x[0] *= 1e15
    x[1] *= 1e-30
    x[2] = 0
    values = extract(Updates.of(x), layout).values
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= 20.0


def test_medians_are_over_the_trusted_unless_they_are_few(cohort, layout):
    x = cohort(10)
    x[:4] *= -5
    trusted = np.arange(10) >= 4
    table = extract(Updates.of(x), layout, trusted=trusted)
    alone = extract(Updates.of(x[4:]), layout)
    assert column(table, "norm")[4:] == pytest.approx(column(alone, "norm"))
    assert column(table, "centre_cosine")[4:] == pytest.approx(column(alone, "centre_cosine"))
    everybody = extract(Updates.of(x), layout)
    few = extract(Updates.of(x), layout, trusted=~trusted)
    assert np.array_equal(few.values, everybody.values)


def test_a_wrong_size_is_told(cohort):
    with pytest.raises(ConfigError, match="1000"):
        extract(Updates.of(cohort()), Layout(("w",), ((3,),), ("float32",)))


def test_every_feature_has_words():
    assert all(describe(name, 0.5) for name in NAMES)
    assert describe("norm", np.log(97.0)) == "norm 97 times the median"
