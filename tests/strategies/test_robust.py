"""Robust rules in whole rounds, beside Flower's own strategies on the same replies."""

from __future__ import annotations

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from qsfl_flower import strategies
from qsfl_flower.errors import ConfigError, TooFewReplies
from qsfl_flower.mechanisms.robust import core as robust
from qsfl_flower.stages import Clip, Robust
from qsfl_flower.strategies import RobustFedAvg, RunObserver, StableFedAvg


class Rows(RunObserver):
    def __init__(self):
        self.rounds, self.rows = [], []

    def on_round(self, record, clients):
        self.rounds.append(record)
        self.rows.append(clients)


def model(size=40):
    rng = np.random.default_rng(1)
    arrays = {"w": rng.standard_normal(size), "b": rng.standard_normal((2, 3))}
    return ArrayRecord({k: Array(v.astype(np.float32)) for k, v in arrays.items()})


def noisy(trained, honest=9, liars=2, shift=50.0):
    """Honest clients with different small updates, and liars whose update is far off."""

    def client(seed, size):
        def change(arrays):
            rng = np.random.default_rng(seed)
            return {
                k: (v + size * rng.standard_normal(v.shape)).astype(v.dtype)
                for k, v in arrays.items()
            }

        return trained(0.0, 10, change=change)

    return {n + 1: client(n, shift if n < liars else 0.1) for n in range(honest + liars)}


def run(cls, grid, rounds=1, **arguments):
    rows = Rows()
    strategy = cls(
        fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, observer=rows, **arguments
    )
    return strategy.start(grid, model(), num_rounds=rounds, timeout=60.0), rows


def theirs(cls, grid, **arguments):
    strategy = cls(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, **arguments)
    messages = list(strategy.configure_train(1, model(), ConfigRecord(), grid))
    messages.sort(key=lambda m: m.metadata.dst_node_id)  # Flower samples in random order
    grid.push_messages(messages)
    arrays, _ = strategy.aggregate_train(
        1, grid.pull_messages([m.metadata.message_id for m in messages])
    )
    return {k: a.numpy() for k, a in arrays.items()}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Krum", {"num_malicious_nodes": 2}),
        ("MultiKrum", {"num_malicious_nodes": 2, "num_nodes_to_select": 5}),
        ("MultiKrum", {"num_malicious_nodes": 2}),
        ("FedMedian", {}),
        ("FedTrimmedAvg", {}),
        ("FedTrimmedAvg", {"beta": 0.3}),
        ("Bulyan", {"num_malicious_nodes": 2}),
        ("Bulyan", {"num_malicious_nodes": 0}),
    ],
)
def test_drop_in_gives_what_flowers_strategy_gives(fake_grid, trained, name, arguments):
    """Replies of equal sample counts, to float32 precision."""
    clients = noisy(trained)
    result, _ = run(getattr(strategies, name), fake_grid(clients), **arguments)
    if name == "Bulyan":
        # Flower selects once by Multi-Krum; the paper, and we, again and again without the chosen.
        def again(contents, f, theta):
            flat = [np.concatenate(c["arrays"].to_numpy_ndarrays(), axis=None) for c in contents]
            squared = robust.squared_distances(robust.Updates.of(flat))
            return [contents[i] for i in robust.bulyan_select(squared, f, theta)]

        known = theirs(flower.Bulyan, _ordered(fake_grid(clients)), selection_rule=again,
                       **arguments)  # fmt: skip
    else:
        known = theirs(getattr(flower, name), fake_grid(clients), **arguments)
    for key, value in known.items():
        np.testing.assert_allclose(result.arrays[key].numpy(), value, rtol=2e-6, atol=2e-6)


def _ordered(grid):
    """Flower samples in random order, and the last choices of Bulyan are often ties."""

    def pull(ids):
        replies = [grid.ready.pop(i) for i in ids if i in grid.ready]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    grid.pull_messages = pull
    return grid


@pytest.mark.parametrize("name", [n for n in robust.RULES if n not in {"mean", "fltrust"}])
@pytest.mark.parametrize("before", [None, "nnm"])
def test_every_rule_in_a_round(fake_grid, trained, name, before):
    """Two of eleven clients are far off: the model moves like the honest clients only."""
    result, rows = run(RobustFedAvg, fake_grid(noisy(trained)), rule=name, num_byzantine=2,
                       before=before)  # fmt: skip
    step = result.arrays["w"].numpy() - model()["w"].numpy()
    assert 0 < np.abs(step).max() < (2.0 if name in {"norm_bounded", "centered_clipping"} else 0.5)
    measured = rows.rounds[-1].stages["robust"]
    assert measured["num_byzantine"] == 2
    assert measured["excluded"] == 0
    assert measured["selected"] == sum(r.status == "accepted" for r in rows.rows[-1])


def test_rows_tell_who_was_selected_with_scores(fake_grid, trained):
    clients = {**noisy(trained), 12: trained(np.nan)}
    _, rows = run(strategies.MultiKrum, fake_grid(clients), num_malicious_nodes=3,
                  num_nodes_to_select=None)  # fmt: skip
    rows = {int(r.node): r for r in rows.rows[-1]}
    assert [n for n, r in rows.items() if r.status == "not-selected"] == [1, 2]
    assert rows[12].status == "not-finite"
    assert [rows[n].weight for n in (1, 3)] == [0.0, 1 / 9]
    assert min(rows[n].score for n in (1, 2)) > 100 * max(rows[n].score for n in range(3, 12))


def test_sample_counts_are_no_lever(fake_grid, trained):
    """Flower's MultiKrum weighs the selected by their claims; here each counts alike."""
    clients = {n: trained(float(n), 10**9 if n == 5 else 10) for n in range(1, 8)}
    result, _ = run(strategies.MultiKrum, fake_grid(clients), num_nodes_to_select=7)
    np.testing.assert_allclose(
        result.arrays["w"].numpy() - model()["w"].numpy(), np.full(40, 4.0), rtol=1e-5
    )
    greedy = theirs(flower.MultiKrum, fake_grid(clients), num_nodes_to_select=7)
    np.testing.assert_allclose(greedy["w"] - model()["w"].numpy(), np.full(40, 5.0), rtol=1e-5)


def test_the_order_of_arrival_does_not_matter(fake_grid, trained):
    results = [
        run(RobustFedAvg, fake_grid(noisy(trained), seed=seed), rule="bulyan")[0].arrays["w"]
        for seed in range(4)
    ]
    assert len({a.numpy().tobytes() for a in results}) == 1


def test_too_few_updates_leave_the_model_and_say_so(fake_grid, trained, caplog):
    """Ten clients and four liars: Krum needs eleven. The run goes on as long as it may."""
    grid = fake_grid(noisy(trained, 10, 0))
    rows = Rows()
    strategy = strategies.Krum(
        num_malicious_nodes=4, fraction_evaluate=0.0, max_failed_rounds=3, observer=rows
    )
    with pytest.raises(TooFewReplies):
        strategy.start(grid, model(), num_rounds=3, timeout=60.0)
    assert "krum withstands at most 3 malicious ones among 10 updates" in rows.rounds[-1].skipped
    assert "model unchanged: krum withstands" in caplog.text


def test_clipping_comes_first(fake_grid, trained):
    """Norms of 0.5 at most reach the rule, whole or layer by layer."""
    for per_layer in (False, True):
        result, _ = run(
            StableFedAvg,
            fake_grid(noisy(trained)),
            stages=[Clip(0.5, per_layer), Robust("norm_bounded", 2)],
        )
        step = [result.arrays[k].numpy() - model()[k].numpy() for k in ("w", "b")]
        assert np.sqrt(sum((s**2).sum() for s in step)) <= 0.5


def test_fltrust_follows_the_servers_own_update(fake_grid, trained):
    def root(context):
        return np.ones(context.layout.size)

    clients = {1: trained(3.0), 2: trained(-5.0), 3: trained(-1.0)}
    stage = Robust(robust.FLTrust(), root_update=root)
    result, rows = run(StableFedAvg, fake_grid(clients), stages=[stage])
    np.testing.assert_allclose(
        result.arrays["w"].numpy(), model()["w"].numpy() + 1, rtol=1e-5, atol=1e-6
    )
    assert [r.status for r in rows.rows[-1]] == ["accepted", "not-selected", "not-selected"]
    del clients[1]
    rows = Rows()
    with pytest.raises(TooFewReplies, match="no update is trusted"):
        StableFedAvg(stages=[stage], fraction_evaluate=0.0, max_failed_rounds=1).start(
            fake_grid(clients), model(), num_rounds=1, timeout=60.0
        )


def test_bucketing_shuffles_anew_every_round(fake_grid, trained):
    grid = fake_grid(noisy(trained, 11, 0))
    stage = Robust("krum", before="bucketing")
    _, rows = run(StableFedAvg, grid, rounds=6, stages=[stage])
    chosen = {tuple(r.node for r in rows if r.status == "accepted") for rows in rows.rows[1:]}
    assert len(chosen) > 1


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Robust("krumm"), "no rule 'krumm'; known are mean, krum"),
        (lambda: Robust("krum", before="mix"), "no preparation 'mix'; known are"),
        (lambda: Robust(robust.Krum(), 3), "to the rule itself"),
        (lambda: Robust("krum", -1), "num_byzantine is -1"),
        (lambda: Robust("fltrust"), "root_update"),
        (lambda: Robust("krum", root_update=lambda context: None), "root_update"),
        (lambda: strategies.MultiKrum(num_nodes_to_select=0), "num_selected is 0"),
        (lambda: strategies.FedTrimmedAvg(beta=0.5), "share is 0.5"),
        (lambda: strategies.Bulyan(selection_rule=len), "selection_rule"),
    ],
)
def test_bad_arguments_are_errors(make, what):
    with pytest.raises(ConfigError, match=what):
        make()


@pytest.fixture
def fresh_warnings(monkeypatch):
    monkeypatch.setattr("qsfl_flower.mechanisms.robust.server._warned", set())


@pytest.mark.parametrize("honest", [3, 4])
def test_a_trimmed_mean_of_few_clients_warns_once_or_trims_what_it_is_told(
    fake_grid, trained, caplog, fresh_warnings, honest
):
    """Flower's default trims nothing of fewer than five updates: one attacker sets the mean."""
    fake = fake_grid(noisy(trained, honest, 1))
    result, _ = run(strategies.FedTrimmedAvg, fake, rounds=3)
    few = honest < 4
    assert caplog.text.count("assumes no malicious client") == few
    assert ("one attacker can set the model. Give num_byzantine" in caplog.text) == few
    moved = np.abs(result.arrays["w"].numpy() - model()["w"].numpy()).max()
    assert (moved > 5) == few
    caplog.clear()
    result, _ = run(strategies.FedTrimmedAvg, fake, rounds=3, num_byzantine=1)
    assert np.abs(result.arrays["w"].numpy() - model()["w"].numpy()).max() < 2
    assert "assumes no" not in caplog.text


@pytest.mark.parametrize("rule", ["mean", "median", "multi_krum"])
def test_rules_without_a_number_warn_where_they_assume_nobody(
    fake_grid, trained, caplog, fresh_warnings, rule
):
    fake = fake_grid(noisy(trained, 2, 0))
    run(RobustFedAvg, fake, rounds=2, rule=rule)
    assert caplog.text.count("assumes no malicious client") == (rule != "mean")


RULES_FOR_COUNTERS = [n for n in robust.RULES if n != "fltrust"]
BOUNDS = {
    **{name: lambda name=name: Robust(name) for name in RULES_FOR_COUNTERS},
    "clip": lambda: Clip(1.0),
    "mixed": lambda: Robust("trimmed_mean", before="nnm"),
}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("absurd", [2**62, -(2**62)])
def test_one_liar_cannot_set_counters_and_flags(fake_grid, trained, bound, absurd):
    """The liar's float update is the one that every rule likes best; only its counter lies."""

    def client(number):
        counter = absurd if number == 4 else 5 + number % 2

        def change(arrays):
            step = np.float32(0.1 + (0 if number == 4 else 0.001 * (number - 4)))
            return {
                "w": arrays["w"] + step,
                "batches": np.array(counter),
                "flag": np.array(counter in (5, 6)),
            }

        return trained(0.0, 10, change=change)

    start = {"w": np.zeros(4, np.float32), "batches": np.array(0), "flag": np.array(True)}
    strategy = StableFedAvg(
        stages=[BOUNDS[bound]()], fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1
    )
    grid = fake_grid({n: client(n) for n in range(1, 8)})
    arrays = ArrayRecord({k: Array(np.asarray(v)) for k, v in start.items()})
    result = strategy.start(grid, arrays, num_rounds=1, timeout=5.0).arrays
    assert result["batches"].numpy() in (5, 6)
    assert result["flag"].numpy()
    np.testing.assert_allclose(result["w"].numpy(), 0.1, atol=0.005)


def test_counters_of_the_plain_mean_stay_means(fake_grid, trained):
    clients = {
        n: trained(0.0, 10, change=lambda a, n=n: {**a, "batches": np.array(10 * n)})
        for n in (1, 2, 3)
    }
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32)), "batches": Array(np.array(0))})
    strategy = StableFedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    result = strategy.start(fake_grid(clients), start, num_rounds=1, timeout=5.0).arrays
    assert result["batches"].numpy() == 20
