"""Private evaluation: declared metrics as bounded sums, exact or noisy, that show no client."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from qsfl_flower.clients import qsfl_mod
from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.mechanisms.evaluation.core import norm_of, read, size_of, take
from qsfl_flower.node.steps import STEPS
from qsfl_flower.numerics import Monitor, Reaction
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.stages import (
    CentralDP,
    Clip,
    Committee,
    DistributedDP,
    MaskedSum,
    RecordDP,
    SecureKrum,
    SecureSum,
)
from qsfl_flower.strategies import (
    BufferedAsync,
    CheckpointStore,
    Evaluation,
    Metric,
    PrivacyBudget,
    RunObserver,
    SecAggFedAvg,
    SecureFedAvg,
    SecureMultiKrum,
    StableFedAvg,
    cross_silo,
    research,
)
from qsfl_flower.testing import LocalFederation
from qsfl_flower.wire import PLAN_KEY, Plan, config_of
from qsfl_flower.wire.keys import PROTECTION

CLIENTS = 6
METRICS = (
    Metric(name="accuracy"),
    Metric(name="logloss", high=4.0),
    Metric(name="right", kind="count", most=128.0),
    Metric(name="margin", kind="sum", low=-2.0, high=2.0),
    Metric(name="by-class", kind="histogram", size=3, most=128.0),
    Metric(name="confused", kind="confusion", size=2, most=128.0),
    Metric(name="accuracy-of", kind="spread", size=4),
)
METRICS = (*METRICS[:-1], replace(METRICS[-1], name="accuracy_"))


def told(number: int) -> dict:
    right = 60 + number
    return {
        "num-examples": 100 + 10 * number,
        "accuracy": right / 128,
        "accuracy_": right / 128,
        "logloss": 0.25 * number,
        "right": right,
        "margin": 0.5 - 0.25 * number,
        "by-class": [right - 20, 10, 10],
        "confused": [right - 10, 4, 6, 10],
        "undeclared": 7.0,
    }


def app(told=told):
    def call(message, context, call_next):
        if message.metadata.message_type != "evaluate":
            return call_next(message, context)
        own = told(int(context.node_config["partition-id"]))
        return Message(RecordDict({"m": MetricRecord(own)}), reply_to=message)

    return call


class Results(RunObserver):
    def __init__(self):
        self.rounds = []

    def on_round(self, record, clients):
        self.rounds.append(record)


def federation_of(told=told, clients=CLIENTS, **options):
    return LocalFederation(clients, size=16, mods=(qsfl_mod, app(told)), **options)


def stages_of(federation, kind):
    time = federation.grid_time
    if kind == "masks":
        keys = federation.credentials
        return [Clip(1.0), MaskedSum(keys, bound=1.0, clock=time, metrics=())]
    if kind == "krum":
        return [SecureKrum(1.0, 1, Committee(3, 2), clock=time, metrics=())]
    if kind == "noisy":
        options = {"weighted": False, "metrics": (), "bound": 100.0}
        return [
            SecureSum(1.0, Committee(3, 2), clock=time, **options),
            DistributedDP(1.0, CLIENTS, rounds=2),
        ]
    if kind == "central":
        return [Clip(1.0), CentralDP(1.0, CLIENTS)]
    return [] if kind == "plain" else [SecureSum(1.0, Committee(3, 2), clock=time, metrics=())]


def run(federation, kind, evaluation, rounds=1, strategy=StableFedAvg, **options):
    seen = Results()
    made = strategy(
        stages=[federation.authenticate(), *stages_of(federation, kind)],
        min_available_nodes=federation.clients, min_train_nodes=federation.clients,
        observer=seen, evaluation=evaluation, **options,
    )  # fmt: skip
    start = ArrayRecord({"w": Array(np.zeros(16))})
    with federation.grid.time.for_strategies():
        result = made.start(federation.grid, start, num_rounds=rounds, timeout=20.0)
    return result.evaluate_metrics_clientapp, seen.rounds


def plain_sum(clients=range(CLIENTS)):
    vectors = [take(METRICS, told(n)) for n in clients]
    return read(METRICS, np.sum([np.rint(v * 2**24) for v in vectors], axis=0) / 2**24)


@pytest.mark.parametrize("kind", ["committee", "krum", "masks", "plain"])
def test_exact_metrics_equal_the_plain_sum_bit_for_bit(kind):
    federation = federation_of()
    view = federation.watch()
    metrics, rounds = run(federation, kind, Evaluation(metrics=METRICS))
    expected = plain_sum()
    assert metrics[1].keys() == expected.keys()
    if kind in ("committee", "krum"):
        assert dict(metrics[1]) == expected
    for name, value in expected.items():
        assert metrics[1][name] == pytest.approx(value, rel=1e-6)
    assert metrics[1]["right"] == pytest.approx(sum(60 + n for n in range(CLIENTS)), rel=1e-9)
    assert rounds[-1].stages["evaluation"] == {"clients": CLIENTS}
    assert rounds[-1].client_metrics["by-class[1]"] == pytest.approx(60)
    if kind != "plain":  # there the server sees the declared numbers of each, and no others
        sent = b"".join(view.bytes_up())
        assert not any(take(METRICS, told(n)).tobytes() in sent for n in range(CLIENTS))
    assert np.float64(7.0).tobytes() not in view.bytes_up()


def test_asynchronous_rounds_evaluate_too():
    federation = federation_of()
    metrics, _ = run(
        federation, "committee", Evaluation(metrics=METRICS), 2, BufferedAsync,
        buffer_size=4, max_staleness=0,
    )  # fmt: skip
    assert dict(metrics[1]) == dict(metrics[2]) == plain_sum()


@pytest.mark.parametrize("kind", ["noisy", "masks", "central"])
def test_noisy_metrics_have_intervals_and_are_charged(kind, tmp_path):
    evaluation = Evaluation(
        metrics=METRICS[:3], noise_multiplier=0.5, budget=PrivacyBudget(delta=1e-6), rounds=2,
        min_clients=4, level=1 - 1e-9,
    )  # fmt: skip
    store = CheckpointStore(tmp_path)
    metrics, rounds = run(federation_of(), kind, evaluation, 2, checkpoints=store)
    # A false failure has probability 1e-9 for each of the intervals.
    for number in (1, 2):
        found = metrics[number]
        assert found["right-low"] < sum(60 + n for n in range(CLIENTS)) < found["right-high"]
    spent = [record.stages["evaluation"]["epsilon"] for record in rounds[1:]]
    assert 0 < spent[0] < spent[1]
    charges = store.charged().stages
    (name,) = [name for name in charges if name.startswith("evaluate:")]
    assert charges[name].epsilon == pytest.approx(spent[1])
    saved = store.latest().states[name]
    assert saved["events"][0]["count"] == 2


@pytest.mark.parametrize("kind", ["committee", "central"])
def test_what_is_promised_counts_evaluations_and_not_rounds(kind):
    """A node that takes the planned evaluations takes the last one, too."""
    promised = []

    def listen(message, context, call_next):
        asked = config_of(message.content)
        if message.metadata.message_type == "evaluate" and PLAN_KEY in asked:
            items = {item.name: item for item in Plan.decode(asked[PLAN_KEY]).items}
            promised.append(items[PROTECTION].parameters["releases"])
        return call_next(message, context)

    evaluation = Evaluation(
        metrics=METRICS[:1], noise_multiplier=1.0, budget=PrivacyBudget(), rounds=2, every=2
    )
    federation = LocalFederation(CLIENTS, size=16, mods=(listen, qsfl_mod, app()))
    metrics, _ = run(federation, kind, evaluation, 5)
    assert list(metrics) == [2, 4]
    assert promised == [2] * 2 * CLIENTS


def test_a_spent_budget_ends_evaluation_and_not_training(caplog):
    evaluation = Evaluation(
        metrics=METRICS[:1], noise_multiplier=0.5, budget=PrivacyBudget(epsilon=12.0), rounds=3
    )
    metrics, rounds = run(federation_of(), "committee", evaluation, 3)
    assert list(metrics) == [1]
    assert len(rounds) == 4
    assert "the clients evaluate no more" in caplog.text


def test_intervals_cover_the_truth_at_their_rate():
    """A thousand sums with the noise of six clients: 95 % intervals of a count and of a mean.

    Fewer than 910 of 1,000 are covered with probability below 1e-7 (binomial, 0.95), so that the
    test fails by chance with probability below 4e-7.
    """
    metrics = METRICS[:3]
    vectors = np.sum([take(metrics, told(n)) for n in range(CLIENTS)], axis=0)
    truth = read(metrics, vectors)
    share = NoiseShare(
        clip_norm=norm_of(metrics), noise_multiplier=0.2, fewest=CLIENTS, size=size_of(metrics)
    )
    source, covered = Keystream.secure(), dict.fromkeys(truth, 0)
    for _ in range(1000):
        noise = sum(
            share.privatize(np.zeros(share.size), share.clip_norm, source) for _ in range(CLIENTS)
        )
        noisy = read(metrics, vectors + noise * share.resolution, share.std(CLIENTS), 0.95)
        for name, value in truth.items():
            covered[name] += noisy[f"{name}-low"] <= value <= noisy[f"{name}-high"]
    assert min(covered.values()) > 910, covered
    assert covered["right"] < 985  # they are no wider than they say; binomial, 1e-8


@pytest.mark.parametrize("claim", [10**6, float("inf")])
def test_a_client_that_claims_a_million_right_answers_counts_its_bound(claim):
    lie = {0: claim}

    def said(number):
        value = lie.get(number, 60 + number)
        numbers = {"num-examples": 100, "right": value}
        return {k: v for k, v in numbers.items() if not isinstance(v, str)}

    metrics, _ = run(federation_of(said), "committee", Evaluation(metrics=METRICS[2:3]))
    honest = sum(60 + n for n in range(1, CLIENTS))
    assert honest <= metrics[1]["right"] <= honest + 128


@pytest.mark.parametrize("kind", ["committee", "masks"])
def test_sums_that_so_many_clients_cannot_have_are_not_used(kind, monkeypatch, caplog):
    """A program without the mods' bounds shares what is within the range of the sum alone."""
    measure, clip = STEPS["measure"], STEPS["clip"]

    def lies(context):
        return context.purpose == "evaluate" and context.context.node_config["partition-id"] == 5

    def lying(update, parameters, context):
        made = measure(update, parameters, context)
        return replace(made, vector=made.vector - 0.999) if lies(context) else made

    def unclipped(update, parameters, context):
        return update if lies(context) else clip(update, parameters, context)

    monkeypatch.setitem(STEPS, "measure", lying)
    monkeypatch.setitem(STEPS, "clip", unclipped)
    evaluation = Evaluation(metrics=[Metric(name="rare", kind="count", most=128.0), METRICS[0]])
    metrics, _ = run(federation_of(), kind, evaluation)
    assert not metrics
    assert "6 clients within their bounds cannot have such sums of 'rare'" in caplog.text


def test_fairness_over_clients_without_seeing_one():
    values = [0.1, 0.6, 0.6, 0.7, 0.9, 0.9]
    spread = Metric(name="acc", kind="spread", size=10)
    told = read([spread], np.sum([take([spread], {"acc": v}) for v in values], axis=0))
    assert told["acc-clients"] == [0, 1, 0, 0, 0, 0, 2, 1, 0, 2]
    assert told["acc-worst-decile"] < 0.2
    assert 0.6 <= told["acc-median"] <= 0.8
    assert told["acc-spread"] == pytest.approx(np.std([0.15, 0.65, 0.65, 0.75, 0.95, 0.95]))
    groups = Metric(name="acc", by="region", groups=2)
    rows = [{"acc": v, "region": i % 2, "num-examples": 10} for i, v in enumerate(values)]
    told = read([groups], np.sum([take([groups], row) for row in rows], axis=0))
    assert told["acc"] == pytest.approx([np.mean(values[::2]), np.mean(values[1::2])])


def test_refusals():
    federation = federation_of(clients=3)
    gate = federation.authenticate()

    def make(kind, stages=None, **options):
        evaluation = Evaluation(**{"metrics": METRICS[:1], **options.pop("evaluation", {})})
        chain = stages_of(federation, kind) if stages is None else stages
        return StableFedAvg(stages=[gate, *chain], evaluation=evaluation, **options)

    for kind in ("noisy", "central"):
        with pytest.raises(CompositionError, match="set evaluation's noise_multiplier"):
            make(kind)
    with pytest.raises(CompositionError, match=r"fraction is 0\.5"):
        make("committee", evaluation={"fraction": 0.5})
    make("committee", evaluate_metrics_aggr_fn=aggregate_metricrecords)

    def largest(records, key):
        return MetricRecord({"top": max(r["metrics"]["accuracy"] for r in records)})

    with pytest.raises(CompositionError, match="it must be a weighted mean"):
        make("committee", evaluate_metrics_aggr_fn=largest)


def test_noise_for_single_records_is_less_and_needs_metrics_that_records_bound():
    federation = federation_of()
    evaluation = Evaluation(
        metrics=METRICS[:1], unit="record", noise_multiplier=1.0, budget=PrivacyBudget(delta=1e-6)
    )
    metrics, rounds = run(federation, "committee", evaluation)
    assert dict(metrics[1])["accuracy"] == pytest.approx(plain_sum()["accuracy"], abs=0.1)
    assert rounds[-1].stages["evaluation"]["epsilon"] == pytest.approx(4.9, abs=0.2)
    for metric in METRICS[3], METRICS[6]:
        with pytest.raises(ConfigError, match="one record can change all"):
            Evaluation(metrics=[metric], unit="record", noise_multiplier=1.0)


def test_every_preset_evaluates():
    keys = LocalFederation(9).credentials
    exact, noisy = Evaluation(), Evaluation(noise_multiplier=2.0)
    steps = {"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 5}
    record = RecordDP(RecordPrivacy(**steps))
    made = [
        cross_silo(credentials=keys, num_byzantine=1, clip_norm=1.0),  # by default, without noise
        cross_silo(
            credentials=keys, num_byzantine=1, clip_norm=1.0, privacy=record, evaluation=noisy
        ),
        research(num_byzantine=1, clip_norm=1.0, evaluation=exact),
        SecureFedAvg(credentials=keys, evaluation=exact),
        SecAggFedAvg(credentials=keys, evaluation=exact),
        SecureMultiKrum(credentials=keys, num_byzantine=1, evaluation=exact),
    ]
    assert all(strategy.evaluator.session.inner.chain.stages for strategy in made)


@pytest.mark.parametrize("kind", ["committee", "krum"])
def test_reactions_follow_bounded_sums_unless_malicious_clients_are_to_decide_nothing(kind):
    """Losses that get worse by the round: the guard goes back to the best model."""
    asked = {"rounds": 0}

    def worse(number):
        asked["rounds"] += number == 0
        return {"num-examples": 100, "loss": 0.5 if asked["rounds"] < 2 else 3.5}

    evaluation = Evaluation(metrics=[Metric(name="loss", high=4.0)])
    monitor = Monitor(window=1, patience=1, reactions=(Reaction.ROLL_BACK,))
    _, rounds = run(federation_of(worse), kind, evaluation, 2, monitor=monitor)
    assert any(record.reaction for record in rounds) == (kind == "committee")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier is 0.0; it must be a number > 0"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier is nan"),
        ({"every": 1.5}, "every is 1.5; it must be a whole number"),
        ({"non_contributors": -1}, "non_contributors is -1"),
        ({"metrics": ["accuracy"]}, "each must be a Metric"),
    ],
)
def test_errors_say_what_is_allowed(change, told):
    with pytest.raises(ConfigError, match=told):
        Evaluation(**change)
