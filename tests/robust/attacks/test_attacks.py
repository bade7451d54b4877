from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core import RULES, Updates, aggregate
from qsfl_flower.mechanisms.robust.core.attacks import ATTACKS, View, build_attack
from qsfl_flower.mechanisms.robust.core.attacks.collusion import largest_hidden

D = 40


def view(honest: int = 14, attackers: int = 6, *, seed: int = 0, d: int = D, **more) -> View:
    rng = np.random.default_rng(seed)
    known = rng.normal(0.3, 1.0, (honest, d))
    own = more.pop("own", rng.normal(0.3, 1.0, d))
    return View(
        own=own,
        known=known,
        clients=honest + attackers,
        attackers=attackers,
        server_round=1,
        rng=np.random.default_rng(seed + 1),
        **more,
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_a_finite_function_of_its_view_and_changes_nothing(name):
    attack = build_attack(name)
    first, again = view(), view()
    before = first.own.copy(), first.known.copy()
    sent = attack.craft(first)
    assert sent.shape == (D,)
    assert np.isfinite(sent).all()
    assert np.array_equal(sent, attack.craft(again))
    assert np.array_equal(first.own, before[0])
    assert np.array_equal(first.known, before[1])
    assert not np.shares_memory(sent, first.known)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("known", "own"),
    [
        (np.zeros((1, 3)), np.zeros(3)),
        (np.ones((2, 1)), np.ones(1)),
        (np.ones((5, 4)), -np.ones(4)),
    ],
)
def test_degenerate_cohorts_give_finite_poison(name, known, own):
    rng = np.random.default_rng(0)
    seen = View(own, known, len(known) + 1, 1, 1, rng)
    assert np.isfinite(build_attack(name).craft(seen)).all()


def test_solo_attacks_do_what_their_names_say():
    seen = view()
    assert np.array_equal(build_attack("sign-flip", scale=2.0).craft(seen), -2 * seen.own)
    assert np.array_equal(build_attack("scaling", factor=1000).craft(seen), 1000 * seen.own)
    assert not build_attack("zero").craft(seen).any()
    sparse = build_attack("sparse", share=0.05, scale=7.0).craft(seen)
    kept = np.flatnonzero(sparse)
    assert len(kept) == 2
    assert set(kept) == set(np.argsort(np.abs(seen.own))[-2:])
    assert np.array_equal(sparse[kept], -7 * seen.own[kept])


def test_gaussian_noise_has_the_expected_norm():
    d = 20_000
    seen = view(d=d)
    noise = build_attack("gaussian", norm_ratio=3.0).craft(seen)
    # The norm of d standard normals has standard deviation below sqrt(1/2), so six of these are
    # exceeded with probability below 2e-9.
    expected = 3.0 * np.linalg.norm(seen.own)
    assert abs(np.linalg.norm(noise) / expected - 1) < 6 * math.sqrt(0.5 / d)


def test_replay_repeats_what_was_first_and_is_honest_before_that():
    attack = build_attack("replay", scale=3.0)
    seen = view()
    assert np.array_equal(attack.craft(seen), seen.own)
    old = np.arange(D, dtype=float)
    assert np.array_equal(attack.craft(view(first=old)), 3 * old)


def test_alie_shifts_by_standard_deviations_and_its_default_is_the_papers():
    seen = view()
    expected = seen.known.mean(axis=0) - 1.5 * seen.known.std(axis=0)
    assert np.allclose(build_attack("alie", z=1.5).craft(seen), expected, rtol=0, atol=1e-12)
    # Baruch et al.'s own example: 50 clients of whom 24 lie need 2 supporters of 26 honest ones,
    # so that z is the quantile of 24/26.
    assert largest_hidden(50, 24) == pytest.approx(1.426, abs=1e-3)


def test_inner_product_is_negative_and_mimic_is_a_copy():
    seen = view()
    mean = seen.known.mean(axis=0)
    sent = build_attack("inner-product", epsilon=0.5).craft(seen)
    assert sent @ mean == pytest.approx(-0.5 * (mean @ mean))
    outlier = seen.known.copy()
    outlier[4] += 50.0
    odd = View(seen.own, outlier, 20, 6, 1, seen.rng)
    assert np.array_equal(build_attack("mimic").craft(odd), outlier[4])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    honest=st.integers(2, 12),
    direction=st.sampled_from(["std", "unit", "sign"]),
)
def test_min_max_and_min_sum_touch_their_limits(seed, honest, direction):
    seen = view(honest, 1, seed=seed, d=7)
    known = seen.known
    between = ((known[:, None] - known[None]) ** 2).sum(axis=2)
    for name, of, limit in (
        ("min-max", np.max, between.max()),
        ("min-sum", np.sum, between.sum(axis=1).max()),
    ):
        sent = build_attack(name, direction=direction).craft(seen)
        reached = of(((sent - known) ** 2).sum(axis=1))
        assert reached == pytest.approx(limit, rel=1e-9)
        step = sent - known.mean(axis=0)
        beyond = known.mean(axis=0) + 1.001 * step
        assert of(((beyond - known) ** 2).sum(axis=1)) > limit


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), attackers=st.integers(1, 6))
def test_krum_chooses_the_poison_that_was_made_for_it(seed, attackers):
    seen = view(14, attackers, seed=seed)
    poison = build_attack("fang-krum").craft(seen)
    cohort = np.vstack([seen.known, *[poison] * attackers])
    chosen = aggregate(Updates.of(cohort), RULES["krum"](num_byzantine=attackers)).vector
    fooled = np.array_equal(chosen, poison)
    smallest = np.abs(poison).max() < 1e-3
    assert fooled or smallest
    assert (np.sign(poison) == -np.sign(seen.known.mean(axis=0))).all()


def test_six_of_twenty_fool_krum_and_not_the_mean_of_the_honest():
    seen = view()
    poison = build_attack("fang-krum").craft(seen)
    cohort = np.vstack([seen.known, *[poison] * 6])
    assert np.array_equal(
        aggregate(Updates.of(cohort), RULES["krum"](num_byzantine=6)).vector, poison
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(1.1, 5))
def test_fang_on_trimmed_mean_stays_just_outside_the_honest_values(seed, spread):
    seen = view(seed=seed)
    sent = build_attack("fang-trimmed-mean", spread=spread).craft(seen)
    low, high = seen.known.min(axis=0), seen.known.max(axis=0)
    grows = seen.known.mean(axis=0) > 0
    assert (sent[grows] <= low[grows]).all()
    assert (sent[~grows] >= high[~grows]).all()
    reach = (spread - 1) * np.maximum(np.abs(low), np.abs(high))
    assert (np.abs(sent - np.where(grows, low, high)) <= reach + 1e-12).all()


def test_label_flip_relabels_all_or_one_class():
    x, y = np.zeros((10, 1, 4, 4), np.uint8), np.arange(10)
    rng = np.random.default_rng(0)
    assert np.array_equal(build_attack("label-flip").poison(x, y, 10, rng)[1], 9 - y)
    _, new = build_attack("label-flip", source=3, target=7).poison(x, y, 10, rng)
    assert new[3] == 7
    assert np.array_equal(np.delete(new, 3), np.delete(y, 3))


def test_a_backdoor_marks_a_share_of_the_pictures_and_leaves_the_rest():
    x = np.random.default_rng(0).integers(0, 200, (40, 1, 8, 8)).astype(np.uint8)
    y = np.full(40, 5)
    attack = build_attack("backdoor", target=2, share=0.25, size=3, boost=4.0)
    new_x, new_y = attack.poison(x, y, 10, np.random.default_rng(1))
    marked = new_y == 2
    assert marked.sum() == 10
    assert (new_x[marked][:, :, -3:, -3:] == 255).all()
    assert np.array_equal(new_x[~marked], x[~marked])
    assert x.max() < 200
    assert np.array_equal(attack.triggered(x)[marked], new_x[marked])
    seen = view()
    assert np.array_equal(attack.craft(seen), 4 * seen.own)


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("sing-flip", {}, "did you mean 'sign-flip'"),
        ("scaling", {"factor": 0.0}, "factor"),
        ("scaling", {"faktor": 2.0}, "faktor"),
        ("sign-flip", {"scale": -1.0}, "scale"),
        ("gaussian", {"norm_ratio": math.inf}, "norm_ratio"),
        ("alie", {"z": -1.0}, "z"),
        ("alie", {"knowledge": "none"}, "knowledge"),
        ("min-max", {"direction": "up"}, "direction"),
        ("sparse", {"share": 0.0}, "share"),
        ("label-flip", {"source": 1}, "source is 1 and target None"),
        ("backdoor", {"size": 0}, "size"),
    ],
)
def test_wrong_parameters_are_told(name, parameters, told):
    with pytest.raises(ConfigError, match=told):
        build_attack(name, **parameters)


def test_a_target_that_is_no_label_and_a_trigger_on_no_picture_are_told():
    x, y = np.zeros((4, 1, 4, 4), np.uint8), np.zeros(4, np.int64)
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="target"):
        build_attack("label-flip", source=0, target=12).poison(x, y, 10, rng)
    with pytest.raises(ConfigError, match="pictures"):
        build_attack("backdoor").poison(x.reshape(4, 16), y, 10, rng)


@pytest.mark.parametrize(("known", "attackers"), [(np.zeros((0, 3)), 1), (np.zeros((2, 4)), 1)])
def test_an_impossible_view_is_refused(known, attackers):
    with pytest.raises(ConfigError, match="view"):
        View(np.zeros(3), known, 5, attackers, 1, np.random.default_rng(0))


def test_multi_krum_excludes_three_colluders_of_ten():
    """The honest updates agree on a direction; the colluders push the other way together."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=500) + 0.3 * rng.normal(size=(7, 500))
    seen = View(known[0], known, 10, 3, 1, rng)
    rule = RULES["multi_krum"](num_byzantine=3)
    for name, parameters in (
        ("inner-product", {"epsilon": 2.0}),
        ("alie", {"z": 3.0}),
        ("fang-trimmed-mean", {}),
        ("gaussian", {}),
        ("scaling", {"factor": -10.0}),
    ):
        poison = build_attack(name, **parameters).craft(seen)
        cohort = np.vstack([seen.known, poison, poison, poison])
        result = aggregate(Updates.of(cohort), rule)
        assert not result.selected[7:].any(), name
