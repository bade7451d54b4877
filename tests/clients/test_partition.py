"""Partitions: disjoint, covering, deterministic, skewed as asked, impossible ones refused."""

from __future__ import annotations

import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.clients.partition import (
    Dirichlet,
    Iid,
    Partition,
    Shards,
    by_writer,
    label_counts,
    partition,
    split,
)
from qsfl_flower.errors import ConfigError, DataError

LABELS = np.repeat(np.arange(10), 120)

schemes = st.one_of(
    st.just(Iid()),
    st.builds(Dirichlet, alpha=st.sampled_from([0.3, 1.0, 100.0]), min_size=st.integers(1, 3)),
    st.builds(Shards, shards_per_client=st.integers(1, 4)),
)


@given(
    scheme=schemes,
    clients=st.integers(1, 8),
    labels=st.lists(st.integers(0, 4), min_size=60, max_size=150),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_parts_are_disjoint_covering_not_empty_and_repeatable(
    scheme: Partition, clients: int, labels: list[int], seed: int
) -> None:
    y = np.array(labels)
    parts = partition(y, clients, scheme, seed)
    together = np.concatenate(parts)
    assert len(parts) == clients
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < len(y)
    smallest = scheme.min_size if isinstance(scheme, Dirichlet) else 1
    assert min(map(len, parts)) >= smallest
    if isinstance(scheme, Shards):
        size = len(y) // (clients * scheme.shards_per_client)
        assert {len(part) for part in parts} == {size * scheme.shards_per_client}
    else:
        assert len(together) == len(y)
    for part, again in zip(parts, partition(y, clients, scheme, seed), strict=True):
        assert part.dtype == np.int64
        np.testing.assert_array_equal(part, again)


def label_skew(counts: np.ndarray) -> float:
    """Mean over examples of the distance between the labels of the example's client and of all."""
    sizes = counts.sum(axis=1, keepdims=True)
    expected = sizes * (counts.sum(axis=0, keepdims=True) / counts.sum())
    return float(np.abs(counts - expected).sum() / (2 * counts.sum()))


def test_iid_sizes_differ_by_at_most_one_and_labels_are_mixed() -> None:
    parts = partition(LABELS, 7, Iid(), 3)
    assert sorted(map(len, parts)) == [171, 171, 171, 171, 172, 172, 172]
    # The labels are sorted, so contiguous parts would have a skew of about 0.85.
    assert label_skew(label_counts(LABELS, parts, 10)) < 0.2


def test_smaller_alpha_gives_more_label_skew() -> None:
    skews = [
        label_skew(label_counts(LABELS, partition(LABELS, 10, Dirichlet(alpha, 2), 1), 10))
        for alpha in (0.1, 1.0, 10.0, 1000.0)
    ]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5
    assert skews[-1] < 0.1


def test_two_shards_give_at_most_two_or_three_labels() -> None:
    # 20 shards of 60 examples: each of the 120 examples of a label fills two shards exactly.
    parts = partition(LABELS, 10, Shards(2), 0)
    counts = label_counts(LABELS, parts, 10)
    assert counts.sum(axis=1).tolist() == [120] * 10
    assert (counts > 0).sum(axis=1).max() <= 2


def test_seeds_give_different_partitions() -> None:
    for scheme in (Iid(), Dirichlet(0.5), Shards(2)):
        one, two = (partition(LABELS, 5, scheme, seed) for seed in (1, 2))
        assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_caller_may_change_what_it_gets() -> None:
    first = partition(LABELS, 4, Iid(), 9)
    expected = first[0].copy()
    first[0][:] = -1
    np.testing.assert_array_equal(partition(LABELS, 4, Iid(), 9)[0], expected)


@pytest.mark.parametrize(
    ("scheme", "clients", "message"),
    [
        (Iid(), 1201, "1200 examples are too few for 1201 clients with at least 1"),
        (Dirichlet(0.5, 200), 10, "at least 200 each"),
        (Shards(200), 10, "at least 200 each"),
        (Dirichlet(0.001, 100), 10, r"no Dirichlet\(0.001\) draw .* raise alpha"),
    ],
)
def test_impossible_partitions_are_data_errors(
    scheme: Partition, clients: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        partition(LABELS, clients, scheme, 0)


def test_many_clients_and_few_examples_still_work() -> None:
    """One draw seldom suffices here; draws are repeated with derived seeds."""
    labels = np.arange(600) % 10
    parts = partition(labels, 60, Dirichlet(0.5, 2), 5)
    assert min(map(len, parts)) >= 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Dirichlet(0.0), "alpha must be a finite number > 0, found 0.0"),
        (lambda: Dirichlet(float("nan")), "found nan"),
        (lambda: Dirichlet(1.0, 0), "min_size must be >= 1, found 0"),
        (lambda: Shards(0), "shards_per_client must be >= 1, found 0"),
        (lambda: partition(LABELS, 0, Iid(), 0), "number of clients must be >= 1, found 0"),
        (lambda: split(np.arange(5), 1.0, 0), "test_fraction must be >= 0 and < 1, found 1.0"),
    ],
)
def test_bad_arguments_are_config_errors(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]


@given(
    count=st.integers(0, 50),
    fraction=st.floats(0, 0.999),
    seed=st.integers(0, 2**32),
    client=st.integers(0, 1000),
)
def test_split_divides_and_leaves_something_to_train_on(
    count: int, fraction: float, seed: int, client: int
) -> None:
    rows = np.arange(100, 100 + count)
    train, held_out = split(rows, fraction, (seed, client))
    assert sorted([*train, *held_out]) == rows.tolist()
    assert len(held_out) == min(round(count * fraction), max(count - 1, 0))
    again, _ = split(rows, fraction, (seed, client))
    np.testing.assert_array_equal(train, again)


def test_clients_hold_out_different_positions() -> None:
    rows = np.arange(100)
    assert not np.array_equal(split(rows, 0.2, (0, 1))[1], split(rows, 0.2, (0, 2))[1])


def test_label_counts_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    counts = label_counts(labels, [np.array([0, 1]), np.array([2, 3])], 3)
    assert counts.tolist() == [[2, 0, 0], [0, 2, 0]]


def test_partitioning_needs_no_network_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for scheme in (Iid(), Dirichlet(0.2, 1), Shards(3)):
        partition(LABELS[::7], 11, scheme, 123)
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == ""


def test_the_module_itself_imports_nothing_heavy() -> None:
    code = (
        "import sys, qsfl_flower.clients.partition; "
        "print([m for m in ('torch', 'pandas', 'pyarrow', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_writers_stay_whole_and_are_dealt_out_evenly() -> None:
    writers = np.repeat(np.arange(10), np.arange(5, 15))
    parts = by_writer(writers, 4, 0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(writers)))
    held = [set(writers[part].tolist()) for part in parts]
    assert sorted(len(h) for h in held) == [2, 2, 3, 3]
    assert sum(len(h) for h in held) == 10
    assert all((a == b).all() for a, b in zip(parts, by_writer(writers, 4, 0), strict=True))
    with pytest.raises(DataError, match="10 writers"):
        by_writer(writers, 11, 0)
