"""Phones, personal models, control variates and private records together, pair by pair."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from qsfl_flower.clients import dpsgd
from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.device import DeviceClass, DeviceProfile
from qsfl_flower.clients.dpsgd import DPSGD, GradientSums
from qsfl_flower.clients.models import build_model
from qsfl_flower.clients.personal import STATE
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from tests.clients.support import (
    HEAD,
    KINDS,
    META,
    MODEL,
    NAMES,
    PRIVACY,
    PRIVATE,
    Killed,
    build,
    data,
    equal,
    kept,
    noise,
    phone,
    start,
)

BATCH = RecordBatch(clip_norm=0.5, sampling_rate=0.5, sum_norm=5.0)


@pytest.fixture(autouse=True, scope="module")
def _measured() -> None:
    """Measure once what a private step needs: that takes noisy sums of blank records."""
    build("plain", records=DPSGD(PRIVACY), device=phone())._memory()


def two_rounds(
    kind: str, of: Dataset, state: RecordDict, device: bool, replay: Any = None
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return all that leaves a client in two rounds, and the noisy sums that were taken."""
    sent: list[Any] = []
    given = start(kind)
    with noise(replay) as seen:
        for turn in (1, 2):
            # 12 examples are expected in a step, which take 0.12 s: time for four of six.
            own = phone(deadline=0.5) if device else None
            client = build(kind, of, state, records=DPSGD(PRIVACY), device=own)
            given, count, told = client.fit(given, {"server-round": turn, "proximal-mu": 0.1})
            sent += [*given, count, {k: v for k, v in told.items() if device or k != "seconds"}]
    return sent, seen


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("kind", PRIVATE)
def test_all_that_leaves_is_a_function_of_the_noisy_sums(kind: str, device: bool) -> None:
    """A client with other records and the same noisy sums sends the same bits.

    That holds over rounds, in which heads and control variates are used again, and for what a
    device tells about its time, with a deadline that ends training.
    """
    state, other = RecordDict(), RecordDict()
    sent, seen = two_rounds(kind, data(1), state, device)
    replayed, again = two_rounds(kind, data(2), other, device, [s["noisy"] for s in seen])
    assert len(seen) == len(again)
    assert not any(np.array_equal(a["sum"], b["sum"]) for a, b in zip(seen, again, strict=True))
    for one, two in zip(sent, replayed, strict=True):
        assert one.tobytes() == two.tobytes() if isinstance(one, np.ndarray) else one == two
    # What stays is either made of the noisy sums as well, or moves nothing that is sent.
    assert equal(kept(state), kept(other)) == (kind != "ditto")
    assert len(kept(state)) == {"ditto": 4, "fedper": 2, "fedrep": 2, "scaffold": 4}.get(kind, 0)


def test_a_head_that_is_trained_without_noise_would_show_records() -> None:
    """The attack on heads without noise: one record moves the gradients of all others."""

    def clipped_sum(of: Dataset) -> torch.Tensor:
        head = TrainingClient(
            build_model("mlp", (6,), 2, 1, {"hidden": 8}), of,
            TrainConfig(batch_size=10, learning_rate=1.0, epochs=5), seed=3, client_id=0,
        )  # fmt: skip
        trained = head.fit(MODEL, {})[0]
        own = [
            t if n.startswith(HEAD) else g for n, g, t in zip(NAMES, MODEL, trained, strict=True)
        ]
        client = build("plain", of, records=DPSGD(PRIVACY))
        client._load(own)
        for name, parameter in client.model.named_parameters():
            parameter.requires_grad_(not name.startswith(HEAD))
        gradients = dpsgd.gradients_of(client.model, of.x_train, of.y_train, of.normalization)
        x, y = torch.tensor(of.x_train[:29]), torch.tensor(of.y_train[:29])
        return dpsgd.flat(gradients.sum(x, y, PRIVACY.clip_norm))

    whole = data(1)
    whole.x_train[29] *= 20
    whole.y_train[29] ^= 1
    fewer = replace(whole, x_train=whole.x_train[:29], y_train=whole.y_train[:29])
    # The sums are over the same 29 records; the noise is for a change by the clip norm.
    assert float((clipped_sum(whole) - clipped_sum(fewer)).norm()) > 4 * PRIVACY.clip_norm


@pytest.mark.parametrize("kind", PRIVATE)
def test_the_accountant_counts_every_noisy_step_and_bounds_cover_all_that_moves(kind: str) -> None:
    """One record, always in the batch, with a large gradient: it moves each sum by C at most."""
    of = data(1, count=1)
    of.x_train[:] *= 50
    privacy = replace(PRIVACY, sampling_rate=1.0)
    with noise() as seen:
        client = build(kind, of, records=DPSGD(privacy))
        _, _, told = client.fit(start(kind), {"server-round": 1})
    assert len(seen) == privacy.steps
    assert privacy.weaker(told) is None
    assert "train-loss" not in told
    for one in seen:
        assert (one["clip"], one["multiplier"]) == (privacy.clip_norm, privacy.noise_multiplier)
        assert np.linalg.norm(one["sum"]) <= privacy.clip_norm * (1 + 1e-6)
    coordinates = {n: a.size for n, a in zip(NAMES, MODEL, strict=True)}
    head = sum(size for n, size in coordinates.items() if n.startswith(HEAD))
    whole = sum(coordinates.values())
    sizes = [whole] * 6 if kind != "fedrep" else [head] * 4 + [whole - head] * 2
    assert [len(one["sum"]) for one in seen] == sizes


@pytest.mark.parametrize("kind", PRIVATE)
def test_without_noise_and_bound_it_is_the_training_without_privacy(kind: str) -> None:
    """Batches of all records in both, so that only noise and bound differ."""
    steps = 3 if kind == "fedrep" else 2
    free = RecordPrivacy(clip_norm=100.0, noise_multiplier=1e-8, sampling_rate=1.0, steps=steps)
    plain, private = RecordDict(), RecordDict()
    given = theirs = start(kind)
    for turn in (1, 2):
        config = {"server-round": turn, "proximal-mu": 0.1}
        given, count, _ = build(kind, None, plain, 30).fit(given, config)
        theirs, their_count, _ = build(kind, None, private, 30, records=DPSGD(free)).fit(
            theirs, config
        )
        assert count == their_count == 30
    for a, b in zip([*given, *kept(plain)], [*theirs, *kept(private)], strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)


@pytest.mark.parametrize("kind", ["plain", "fine-tune", "reptile", "ditto"])
def test_sums_of_gradients_are_sent_by_personal_clients_and_phones_too(kind: str) -> None:
    every = replace(BATCH, sampling_rate=1.0)
    expected = build("plain", records=GradientSums(every)).fit(MODEL, {})[0]
    state = RecordDict()
    client = build(kind, None, state, records=GradientSums(every), device=phone())
    sent, count, told = client.fit(MODEL, {})
    assert equal(sent, expected)
    assert count == 30
    assert every.weaker(told) is None
    assert (STATE in state) == (kind == "ditto")


@pytest.mark.parametrize(
    ("kind", "records", "why"),
    [
        *((kind, DPSGD(PRIVACY), "changes the gradients of all") for kind in META),
        *((kind, GradientSums(BATCH), "changes the gradients of all") for kind in META),
        *((kind, GradientSums(BATCH), "sums without noise") for kind in ("fedper", "fedrep")),
        ("scaffold", GradientSums(BATCH), "no noise covers"),
        ("fedrep", DPSGD(replace(PRIVACY, steps=1)), "set steps to 2 or more"),
    ],
)
def test_what_no_noise_would_cover_is_refused(kind: str, records: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(kind, records=records)


@pytest.mark.parametrize("kind", KINDS)
def test_an_undisturbed_device_does_what_the_method_does(kind: str) -> None:
    plain, mobile = RecordDict(), RecordDict()
    given = start(kind)
    for turn in (1, 2):
        config = {"server-round": turn, "proximal-mu": 0.1}
        expected, count, _ = build(kind, None, plain).fit(given, config)
        given, used, told = build(kind, None, mobile, device=phone()).fit(given, config)
        assert equal(given, expected)
        assert equal(kept(mobile), kept(plain))
        assert used == count
        assert told["staleness"] == 0


BATCHES = {"fedrep": 9, "ditto": 12, "maml": 1, "per-fedavg": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again_a_method_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    """Killed after each batch, of what stays and what is sent; nothing is kept before the end."""
    plain, state = RecordDict(), RecordDict()
    given = start(kind)
    for turn in (1, 2):
        config = {"server-round": turn, "proximal-mu": 0.1}
        expected, *_ = build(kind, None, plain).fit(given, config)
        before, kills = kept(state), 0
        while True:
            client = build(kind, None, state, device=phone(tmp_path, at=1))
            try:
                given, _, told = client.fit(given, config)
                break
            except Killed:
                kills += 1
                assert equal(kept(state), before)
        # The last batch of a training has no reading after it.
        trainings = 2 if kind in ("fedrep", "ditto") else 1
        assert kills == BATCHES.get(kind, 6) - trainings
        assert equal(given, expected)
        assert equal(kept(state), kept(plain))
        assert not list(tmp_path.glob("*.ckpt"))
    del told


@pytest.mark.parametrize("kind", ["plain", "scaffold", "fedper"])
def test_stale_training_moves_the_newer_model(kind: str, tmp_path: Path) -> None:
    old, *_ = build(kind).fit(start(kind), {"server-round": 1})
    with pytest.raises(Killed):
        build(kind, device=phone(tmp_path, at=3)).fit(start(kind), {"server-round": 1})
    newer = [a + np.float32(1) for a in start(kind)]
    new, _, told = build(kind, device=phone(tmp_path)).fit(newer, {"server-round": 3})
    assert told["staleness"] == 2
    for now, trained, base in zip(new, old, start(kind), strict=True):
        np.testing.assert_allclose(now - 1, trained, atol=1e-5)
        assert not np.array_equal(trained, base) or kind == "fedper"


@pytest.mark.parametrize("kind", ["plain", "scaffold", "fedper", "fedrep"])
def test_a_private_training_that_is_taken_up_again_takes_no_step_twice(
    kind: str, tmp_path: Path
) -> None:
    state = RecordDict()
    with noise() as seen:
        for at in (1, 2, None):
            try:
                build(kind, None, state, records=DPSGD(PRIVACY), device=phone(tmp_path, at)).fit(
                    start(kind), {"server-round": 1}
                )
            except Killed:
                continue
    assert len(seen) == PRIVACY.steps


@pytest.mark.parametrize("first", [None, DPSGD(replace(PRIVACY, noise_multiplier=0.1))])
def test_training_that_began_with_less_privacy_is_not_taken_up(first: Any, tmp_path: Path) -> None:
    """A checkpoint holds what was trained without noise; the private client must not send it."""
    with pytest.raises(Killed):
        build("plain", records=first, device=phone(tmp_path, at=4)).fit(MODEL, {"server-round": 1})
    private = build("plain", records=DPSGD(PRIVACY), device=phone(tmp_path))
    with noise() as seen:
        _, _, told = private.fit(MODEL, {"server-round": 1})
    assert told["resumed-step"] == 0
    assert len(seen) == PRIVACY.steps


def test_a_small_device_takes_its_records_in_parts() -> None:
    """The sum is the same; the memory is that of single gradients, which training does not need."""
    every = GradientSums(replace(BATCH, sampling_rate=1.0))
    expected, *_ = build("plain", records=every).fit(MODEL, {})
    need = build("plain", records=every, device=phone())._memory()
    small = replace(phone(), profile=DeviceProfile((need.needed(4) + 1) / 1e6, 1, DeviceClass.LOW))
    sent, count, told = build("plain", records=every, device=small).fit(MODEL, {})
    assert told["micro-batch"] == 3  # 30, 15, 7, 3
    assert count == 30
    for a, b in zip(sent, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_slow_devices_take_fewer_noisy_steps() -> None:
    slow = phone(epochs=dict.fromkeys(DeviceClass, 0.5))
    with noise() as seen:
        build("plain", records=DPSGD(PRIVACY), device=slow).fit(MODEL, {})
    assert len(seen) == math.ceil(PRIVACY.steps / 2)
