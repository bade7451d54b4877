"""Meta-gradients against finite differences and closed forms on quadratics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.personalization import (
    Personalization,
    adapt,
    few_shots,
    hessian_free_gradient,
    meta_gradient,
    plain_gradient,
    support_and_query,
)

D = 4


def quadratic(weights, batch):
    """Half of (w - b)' A (w - b), in two named parts to show that names do not matter."""
    a, b = batch
    w = torch.cat([weights["first"], weights["second"]])
    return 0.5 * (w - b) @ a @ (w - b)


def split(w):
    return {"first": w[:1], "second": w[1:]}


def whole(parts):
    return torch.cat([parts["first"], parts["second"]])


def problem(seed):
    generator = torch.Generator().manual_seed(seed)

    def one():
        m = torch.randn(D, D, generator=generator, dtype=torch.float64)
        return m @ m.T / D + torch.eye(D), torch.randn(D, generator=generator, dtype=torch.float64)

    return torch.randn(D, generator=generator, dtype=torch.float64), one(), one(), one()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_reptile_on_a_quadratic_is_its_closed_form(seed, steps):
    w, (a, b), _, _ = problem(seed)
    moved = whole(adapt(quadratic, split(w), (a, b), 0.1, steps)) - w
    shrink = torch.linalg.matrix_power(torch.eye(D) - 0.1 * a, steps)
    torch.testing.assert_close(moved, (shrink - torch.eye(D)) @ (w - b))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_meta_gradient_of_a_quadratic_is_analytic(seed, steps):
    w, (a, b), (aq, bq), _ = problem(seed)
    slope, value = meta_gradient(quadratic, split(w), (a, b), (aq, bq), 0.1, steps)
    shrink = torch.linalg.matrix_power(torch.eye(D) - 0.1 * a, steps)
    end = b + shrink @ (w - b)
    torch.testing.assert_close(whole(slope), shrink.T @ aq @ (end - bq))
    assert value == pytest.approx(float(quadratic(split(end), (aq, bq))))
    first, _ = meta_gradient(quadratic, split(w), (a, b), (aq, bq), 0.1, steps, first_order=True)
    torch.testing.assert_close(whole(first), aq @ (end - bq))
    assert not torch.allclose(whole(first), whole(slope), rtol=1e-2)


def network(weights, batch):
    x, y = batch
    hidden = torch.tanh(x @ weights["in"])
    return torch.nn.functional.cross_entropy(hidden @ weights["out"], y)


def examples(seed, count=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 2, (count,), generator=generator)


def start():
    generator = torch.Generator().manual_seed(9)
    shapes = {"in": (3, 4), "out": (4, 2)}
    return {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}


def test_the_meta_gradient_of_a_network_equals_finite_differences():
    """Central differences of step 1e-5 in float64 are right to about 1e-9."""
    weights, support, query = start(), examples(1), examples(2)

    def value(changed):
        end = adapt(network, changed, support, 0.5, 3)
        return float(network(end, query))

    slope, _ = meta_gradient(network, weights, support, query, 0.5, 3)
    first, _ = meta_gradient(network, weights, support, query, 0.5, 3, first_order=True)
    for name, tensor in weights.items():
        numeric = torch.zeros_like(tensor)
        for index in np.ndindex(*tensor.shape):
            step = torch.zeros_like(tensor)
            step[index] = 1e-5
            ahead, behind = (value({**weights, name: tensor + s}) for s in (step, -step))
            numeric[index] = (ahead - behind) / 2e-5
        torch.testing.assert_close(slope[name], numeric, atol=1e-8, rtol=1e-6)
        assert (first[name] - numeric).abs().max() > 1e-4


def test_the_hessian_free_gradient_errs_by_the_square_of_its_step():
    weights, support, query = start(), examples(1), examples(2)
    exact, _ = meta_gradient(network, weights, support, query, 0.5, 1)

    def error(delta):
        found = hessian_free_gradient(network, weights, support, query, support, 0.5, delta=delta)
        return max(float((found[k] - exact[k]).abs().max()) for k in exact)

    assert error(1e-3) < 1e-5
    assert error(1e-1) / error(1e-2) == pytest.approx(100, rel=0.2)
    with pytest.raises(ConfigError, match="delta"):
        error(0.0)


def test_nothing_that_is_given_is_changed():
    weights, support, query = start(), examples(1), examples(2)
    before = {k: v.clone() for k, v in weights.items()}
    adapt(network, weights, support, 0.5, 2)
    meta_gradient(network, weights, support, query, 0.5, 2)
    plain_gradient(network, weights, support)
    for name, tensor in weights.items():
        assert torch.equal(tensor, before[name])
        assert not tensor.requires_grad


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.integers(0, 2**32))
@settings(max_examples=50)
def test_support_and_query_are_disjoint_complete_and_stable(count, share, seed):
    support, query = support_and_query(count, share, seed)
    assert len(support) >= 1 <= len(query)
    assert sorted([*support, *query]) == list(range(count))
    again = support_and_query(count, share, seed)
    assert (again[0] == support).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 60))
@settings(max_examples=50)
def test_few_shots_are_even_and_nested(labels, shots):
    labels, shots = np.array(labels), min(shots, len(labels))
    rows = few_shots(labels, shots, 3)
    assert len(set(rows)) == len(rows) == shots
    assert (few_shots(labels, len(labels), 3)[:shots] == rows).all()
    counts = {k: (labels[rows] == k).sum() for k in labels}
    for k, count in counts.items():
        if count < (labels == k).sum():
            assert count >= max(counts.values()) - 1


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "magic"},
        {"inner_steps": 0},
        {"method": "maml", "meta_steps": 2},
        {"order": "hessian-free"},
        {"method": "fedper"},
        {"query_share": 1.0},
        {"proximal": -1},
    ],
)
def test_settings_say_what_is_wrong(bad):
    with pytest.raises(ConfigError, match="must be"):
        Personalization(**bad)


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (5, 0.0)])
def test_too_little_to_divide(count, share):
    with pytest.raises(ConfigError):
        support_and_query(count, share, 0)
