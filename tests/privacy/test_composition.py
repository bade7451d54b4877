from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from distributions import fits_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import CompositionError, ConfigError, Refusal
from qsfl_flower.privacy.clipping import AdaptiveClip
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.policy import MinimumPolicy, Protection
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.sensitivity import Release, sensitivity


def clipped(rng, clients, size, clip):
    rows = rng.normal(size=(clients, size)) * rng.uniform(0.1, 10, (clients, 1))
    return rows * np.minimum(1, clip / np.linalg.norm(rows, axis=1))[:, None]


@pytest.mark.parametrize(("clients", "weight"), [*itertools.product([1, 5, 20], [1.0, 0.3])])
def test_the_mean_moves_by_no_more_than_its_sensitivity(clients, weight):
    rng = np.random.default_rng(clients)
    rows, clip, expected = clipped(rng, clients, 10, 2.0), 2.0, 8.0
    bound = sensitivity(Release(clip_norm=clip, denominator=expected, max_weight=weight))
    whole = weight * rows.sum(axis=0) / expected
    for out in range(clients):
        without = weight * np.delete(rows, out, axis=0).sum(axis=0) / expected
        assert np.linalg.norm(whole - without) <= bound.l2 * (1 + 1e-12)
    assert bound.l2 == pytest.approx(clip * weight / expected)


def test_dividing_by_the_actual_number_would_break_it():
    # All others at -C: the client that comes moves a mean by 2 C / n, twice what is claimed.
    n, clip = 10, 1.0
    rows = np.array([[clip]] + [[-clip]] * (n - 1))
    moved = abs(rows.mean() - rows[1:].mean())
    claimed = sensitivity(Release(clip_norm=clip, denominator=n)).l2
    assert moved > 1.9 * claimed
    with pytest.raises(CompositionError, match="fixed"):
        sensitivity(Release(clip_norm=clip, denominator=n, weighting="accepted clients"))


def test_a_selecting_rule_moves_by_twice_the_clip_norm_and_no_more():
    # A median of five in one dimension: one client turns -C into +C.
    clip = 1.0
    before = np.median([-clip, -clip, -clip, clip, clip])
    after = np.median([clip, -clip, -clip, clip, clip])
    release = Release(clip_norm=clip, rule="median", denominator=5, accept_worst_case=True)
    assert abs(after - before) == sensitivity(release).l2 == 2 * clip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"clip_norm": None}, "needs a clip stage"),
        ({"weighting": "num-examples"}, "private data"),
        ({"rule": "krum"}, "2 C = 2"),
        ({"rule": "trimmed-mean", "weighting": "none"}, "record-level"),
        ({"filters": ("reputation",)}, "filter reputation"),
        ({"compression": "top-k", "clipped_last": False}, "after error feedback"),
    ],
)
def test_combinations_without_a_proof_are_refused_with_reason_and_way_out(change, why):
    with pytest.raises(CompositionError, match=why):
        sensitivity(Release(**{"clip_norm": 1.0, "denominator": 10.0, **change}))


def test_keeping_few_coordinates_does_not_lower_it():
    plain = sensitivity(Release(clip_norm=1.0, denominator=10.0))
    sparse = sensitivity(Release(clip_norm=1.0, denominator=10.0, compression="top-k"))
    assert sparse.l2 == plain.l2
    assert "does not lower" in sparse.reason


def test_the_clip_norm_follows_the_quantile_of_the_norms():
    rng, clip = np.random.default_rng(0), 10.0
    adaptive = AdaptiveClip(initial=clip, quantile=0.5, bit_noise=5.0)
    source = Keystream.seeded("adaptive")
    for _ in range(60):
        norms = rng.lognormal(0, 0.5, 100)
        clip, share = adaptive.next_clip(clip, int((norms <= clip).sum()), 100, 100, source)
        assert 0 <= share <= 1
    assert 0.7 < clip < 1.4  # the true median is 1
    for _ in range(60):
        norms = rng.lognormal(-2, 0.5, 100)
        clip, _ = adaptive.next_clip(clip, int((norms <= clip).sum()), 100, 100, source)
    assert 0.08 < clip < 0.2  # and now exp(-2) = 0.135


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 20), st.floats(1.01, 100))
def test_bits_and_updates_together_cost_the_stated_multiplier(multiplier, factor):
    adaptive = AdaptiveClip(initial=1.0, bit_noise=multiplier / 2 * factor)
    updates = adaptive.update_noise_multiplier(multiplier)
    assert updates**-2 + (2 * adaptive.bit_noise) ** -2 == pytest.approx(multiplier**-2)
    with pytest.raises(ConfigError, match="bits alone"):
        AdaptiveClip(initial=1.0, bit_noise=multiplier / 2.0001).update_noise_multiplier(multiplier)


SHARE = {"clip_norm": 1.0, "noise_multiplier": 2.0, "fewest": 6, "non_contributors": 2}


@pytest.mark.parametrize("survivors", [4, 6, 10])
def test_every_sum_that_may_be_combined_carries_the_promised_noise(survivors):
    size = 20_000
    share = NoiseShare(**SHARE, size=size)
    source = Keystream.seeded("share", survivors)
    total = sum(share.privatize(np.zeros(size), 1.0, source) for _ in range(survivors))
    noise = total * share.resolution
    assert fits_normal(noise, share.std(survivors))
    # fewest - non_contributors = 4 honest shares are promised 2.0; more carry more.
    assert share.std(survivors) >= 2.0 * math.sqrt(survivors / 4)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param({"fewest": 8}, id="sized for clients that drop out"),
        pytest.param({"non_contributors": 0}, id="non-contributors forgotten"),
        pytest.param({"noise_multiplier": 1.8}, id="a tenth less"),
    ],
)
def test_shares_that_are_too_small_are_noticed(mutant):
    size = 20_000
    promised = NoiseShare(**SHARE, size=size).std(4)
    wrong = NoiseShare(**{**SHARE, **mutant}, size=size)
    source = Keystream.seeded("mutant")
    total = sum(wrong.privatize(np.zeros(size), 1.0, source) for _ in range(4))
    assert not fits_normal(total * wrong.resolution, promised)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(1e-3, 100),
    st.floats(0.2, 500),
    st.integers(1, 40),
    st.data(),
)
def test_grid_and_steps_always_fit(clip, multiplier, fewest, data):
    without = data.draw(st.integers(0, fewest - 1))
    share = NoiseShare(
        clip_norm=clip,
        noise_multiplier=multiplier,
        fewest=fewest,
        non_contributors=without,
        size=100,
        resolution=2.0**-30,
    )
    vector = np.zeros(100)
    vector[0] = clip
    sent = share.privatize(vector, clip, Keystream.seeded(0))
    assert np.all(sent % (1 << share.shift) == 0)
    assert np.abs(sent).max() <= share.largest(clip)
    assert share.std(share.honest) >= multiplier * clip
    assert share.event().noise_multiplier == multiplier


def test_rounding_keeps_the_vector():
    share = NoiseShare(**SHARE, size=1000)
    vector = np.random.default_rng(0).normal(size=1000)
    vector /= np.linalg.norm(vector)
    source = Keystream.seeded("round")
    sent = np.mean([share.privatize(vector, 1.0, source) for _ in range(50)], axis=0)
    assert fits_normal(sent * share.resolution - vector, share.std(1) / math.sqrt(50))


def test_a_vector_that_was_not_clipped_is_not_sent():
    share = NoiseShare(**SHARE, size=4)
    for vector in (np.full(4, 0.6), np.zeros(3), np.full(4, math.nan)):
        with pytest.raises(ConfigError, match="norm is not up to 1"):
            share.privatize(vector, 1.0, Keystream.seeded(0))


@pytest.mark.parametrize(
    "bad",
    [{"non_contributors": 6}, {"fewest": 0}, {"resolution": 0.1}, {"noise_multiplier": math.nan}],
)
def test_shares_that_cannot_work_are_refused(bad):
    with pytest.raises(ConfigError):
        NoiseShare(**{**SHARE, "size": 10, **bad})


OFFER = Protection(
    placement="central",
    clip_norm=1.0,
    noise_multiplier=6.0,
    sampling_rate=0.05,
    releases=1000,
    delta=1e-5,
)


def test_a_client_accepts_what_is_strong_enough():
    assert OFFER.epsilon() == pytest.approx(1.0, abs=0.01)
    MinimumPolicy(epsilon=1.0).check(OFFER)
    assert Protection.from_dict(OFFER.to_dict()) == OFFER


@pytest.mark.parametrize(
    ("policy", "offer", "reason"),
    [
        (MinimumPolicy(epsilon=1.0), None, "no-protection"),
        (MinimumPolicy(epsilon=0.9), OFFER, "epsilon-too-large"),
        (MinimumPolicy(epsilon=2.0, delta=1e-6), OFFER, "delta-too-large"),
        (MinimumPolicy(epsilon=2.0, placements=("record",)), OFFER, "placement-not-accepted"),
    ],
)
def test_a_client_refuses_what_is_weaker_and_says_why(policy, offer, reason):
    with pytest.raises(Refusal) as refusal:
        policy.check(offer)
    assert refusal.value.reason == f"privacy-{reason}"


@pytest.mark.parametrize(
    "change",
    [{"placement": "magic"}, {"releases": 0}, {"delta": math.nan}, {"more": 1}],
)
def test_a_forged_offer_is_not_read(change):
    with pytest.raises(ConfigError):
        Protection.from_dict({**OFFER.to_dict(), **change})
