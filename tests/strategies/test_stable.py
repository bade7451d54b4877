"""The base strategy against scripted clients on a grid without processes."""

import math
import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from qsfl_flower.errors import CompositionError, ConfigError, RunInterrupted, TooFewReplies
from qsfl_flower.rounds.stages import MessageStage
from qsfl_flower.stages import Clip, Phase, ServerAdam, ServerMomentum, Validate
from qsfl_flower.strategies import RunObserver, StableFedAvg


def record(**arrays):
    return ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()})


def model(size=4):
    return record(w=np.zeros(size, np.float32), b=np.ones((2, 2), np.float32))


def values(result, name="w"):
    return result[name].numpy()


class Recorder(RunObserver):
    def __init__(self):
        self.rounds, self.rows = [], []

    def on_round(self, record, clients):
        self.rounds.append(record)
        self.rows.append(clients)


def run(grid, rounds=1, initial=None, timeout=5.0, **arguments):
    recorder = arguments.setdefault("observer", Recorder())
    strategy = StableFedAvg(
        fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, **arguments
    )
    result = strategy.start(grid, initial or model(), num_rounds=rounds, timeout=timeout)
    return result, recorder


def test_weights_are_the_claimed_examples(fake_grid, trained):
    """1000 examples at 1.0 and 100 at 12.0: (1000 + 1200) / 1100 = 2."""
    grid = fake_grid({11: trained(1.0, 1000), 22: trained(12.0, 100)})
    result, recorder = run(grid)
    assert values(result.arrays).tolist() == [2.0] * 4
    assert [r.weight for r in recorder.rows[-1]] == [10 / 11, 1 / 11]


def test_equals_flowers_fedavg_on_well_behaved_replies(fake_grid, trained):
    rng = np.random.default_rng(0)
    clients = {
        n: trained(float(rng.normal()), int(rng.integers(50, 150)), {"train-loss": 0.5})
        for n in range(1, 8)
    }
    grid = fake_grid(clients)
    strategy = StableFedAvg()
    messages = list(strategy.configure_train(1, model(), ConfigRecord(), grid))
    grid.push_messages(messages)
    replies = grid.pull_messages([m.metadata.message_id for m in messages])
    ours, metrics = strategy.aggregate_train(1, replies)
    theirs, _ = FedAvg().aggregate_train(1, replies)
    for name in ("w", "b"):
        np.testing.assert_allclose(values(ours, name), values(theirs, name), rtol=1e-6)
        assert values(ours, name).dtype == np.float32
    assert metrics["train-loss"] == 0.5


def test_result_does_not_depend_on_arrival_or_on_node_ids(fake_grid, trained):
    """Node ids are random in every Flower run; only the order of registration counts."""
    rng = random.Random(1)
    steps = [rng.uniform(-1, 1) * 10 ** rng.randint(-8, 8) for _ in range(30)]
    seen = set()
    for seed in range(5):
        ids = [random.Random(seed).getrandbits(63) for _ in steps]
        grid = fake_grid(
            {n: trained(s, 7 + i) for i, (n, s) in enumerate(zip(ids, steps, strict=True))},
            seed=seed,
        )
        result, _ = run(grid)
        seen.add(values(result.arrays).tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("reason", "change", "examples"),
    [
        ("not-finite", lambda a: {**a, "w": a["w"] * np.float32(np.nan)}, 10),
        ("not-finite", lambda a: {**a, "w": a["w"] + np.float32(np.inf)}, 10),
        ("missing-array", lambda a: {"w": a["w"]}, 10),
        ("unknown-array", lambda a: {**a, "extra": a["w"]}, 10),
        ("wrong-shape", lambda a: {**a, "w": a["w"][:1]}, 10),
        ("wrong-dtype", lambda a: {**a, "w": a["w"].astype(np.float64)}, 10),
        ("bad-num-examples", lambda a: a, -1),
        ("bad-num-examples", lambda a: a, math.nan),
        ("too-large", lambda a: {**a, "w": a["w"] + np.float32(3e38)}, 10),
    ],
)
def test_a_bad_reply_is_rejected_and_the_round_goes_on(
    fake_grid, trained, reason, change, examples
):
    grid = fake_grid({1: trained(1.0), 2: trained(9.0, examples, change=change), 3: trained(3.0)})
    result, recorder = run(grid)
    assert values(result.arrays).tolist() == [2.0] * 4
    assert recorder.rounds[-1].rejected == {reason: 1}
    assert recorder.rows[-1][1].status == reason
    assert recorder.rows[-1][1].detail


def test_errors_silence_and_strange_bytes_have_reasons(fake_grid, trained):
    def fails(message):
        return Message(
            Error(2, "<class 'X'>:<'\nException X occurred. Message: boom'>"), reply_to=message
        )

    def silent(message):
        return None

    def raw(message):
        good = trained(1.0)(message)
        good.content["arrays"]["w"] = Array(
            "float32", (4,), "numpy.ndarray", b"\x93NUMPY\x01\x00zz"
        )
        return good

    def strange(message):
        good = trained(1.0)(message)
        good.content["arrays"]["w"] = Array("float32", (4,), "pickle", b"cos\nsystem\n")
        return good

    def empty(message):
        return Message(RecordDict(), reply_to=message)

    grid = fake_grid({1: fails, 2: silent, 3: raw, 4: strange, 5: empty, 6: trained(2.0)})
    result, recorder = run(grid, timeout=0.2)
    assert recorder.rounds[-1].rejected == {"client-error": 1, "malformed": 3, "no-reply": 1}
    assert recorder.rows[-1][0].detail == "X: boom"
    assert values(result.arrays).tolist() == [2.0] * 4


@pytest.mark.parametrize(
    "reason",
    [
        "<class 'ValueError'>:<'the disk is full'>",  # as a SuperNode words it
        "<class 'flwr.clientapp.ClientAppException'>:<'ray::run()\n  File \"x.py\"\n"
        "flwr.clientapp.ClientAppException: \nException occurred. Message: the disk is full'>",
        "<class 'X'>:<'\nException ClientAppException occurred. Message: the disk is full'>",
    ],
)
def test_a_failure_is_told_in_the_clients_own_words_and_logged(fake_grid, trained, caplog, reason):
    def fails(message):
        return Message(Error(2, reason), reply_to=message)

    _, recorder = run(fake_grid({1: fails, 2: trained(2.0)}))
    assert recorder.rows[-1][0].detail == "the disk is full"
    # Flower shows the suite's warnings, but nothing below them.
    assert "round 1: client-error from client 1: the disk is full" in [
        entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"
    ]


def test_a_reply_counts_once_and_only_for_the_node_that_was_asked(fake_grid, trained):
    """A second reply to the same message, and a reply to no message, change nothing."""
    grid = fake_grid({1: trained(1.0), 2: trained(3.0)})
    strategy = StableFedAvg()
    messages = list(strategy.configure_train(1, model(), ConfigRecord(), grid))
    grid.push_messages(messages)
    replies = grid.pull_messages([m.metadata.message_id for m in messages])
    foreign = trained(100.0)(messages[0])
    foreign.metadata.__dict__["_reply_to_message_id"] = "elsewhere"
    arrays, _ = strategy.aggregate_train(1, [*replies, *replies, foreign])
    assert values(arrays).tolist() == [2.0] * 4


def test_a_huge_claim_does_not_own_the_mean(fake_grid, trained):
    """Nine honest clients at 0 and one at 5 with an absurd claim: at most half of 5."""
    clients = {n: trained(0.0, 100) for n in range(1, 10)}
    clients[10] = trained(5.0, 10**15)
    result, recorder = run(fake_grid(clients))
    assert 0 < values(result.arrays)[0] <= 2.5
    assert recorder.rounds[-1].capped == 1
    result, _ = run(fake_grid(clients), max_weight_ratio=1.0)
    assert values(result.arrays)[0] == pytest.approx(0.5)


def test_absurd_updates_that_cancel_are_rejected_too(fake_grid, trained):
    """Their sum looks ordinary, but would have taken the others' digits with it."""
    clients = {n: trained(1.5) for n in range(6)}
    clients |= {6: trained(1e30), 7: trained(-1e30)}
    result, recorder = run(fake_grid(clients))
    assert values(result.arrays).tolist() == [1.5] * 4
    assert recorder.rounds[-1].rejected == {"too-large": 2}


def test_clip_bounds_every_client(fake_grid, trained):
    """A step of 3 on 8 coordinates has norm 8.49; clipped to 1 each coordinate moves 1/sqrt(8)."""
    grid = fake_grid({1: trained(3.0), 2: trained(3.0)})
    result, recorder = run(grid, stages=[Clip(clip_norm=1.0)])
    assert values(result.arrays)[0] == pytest.approx(1 / math.sqrt(8), rel=1e-6)
    assert recorder.rounds[-1].stages["clip"] == {"clipped_share": 1.0}
    assert recorder.rounds[-1].update_norm == pytest.approx(1.0)
    result, _ = run(grid, stages=[Clip(clip_norm=1.0, per_layer=True)])
    moved = np.concatenate([values(result.arrays), values(result.arrays, "b").ravel() - 1])
    assert np.linalg.norm(moved) == pytest.approx(1.0, rel=1e-6)


def test_integer_arrays_are_averaged_and_keep_their_type(fake_grid, trained):
    initial = record(w=np.zeros(2, np.float32), steps=np.array(10), mask=np.array([True, False]))
    grid = fake_grid(
        {
            1: trained(1.0, 100, change=lambda a: {**a, "steps": np.array(20)}),
            2: trained(1.0, 300, change=lambda a: {**a, "steps": np.array(24)}),
        }
    )
    result, _ = run(grid, initial=initial)
    steps = values(result.arrays, "steps")
    assert steps == 23
    assert steps.dtype == np.int64
    assert values(result.arrays, "mask").tolist() == [True, False]


def test_too_few_replies_leave_the_model_and_end_the_run_in_words(fake_grid, trained):
    def fails(message):
        return Message(Error(2, "no memory"), reply_to=message)

    recorder = Recorder()
    grid = fake_grid({1: fails, 2: fails, 3: trained(1.0)})
    with pytest.raises(TooFewReplies) as caught:
        run(grid, rounds=9, min_replies=2, max_failed_rounds=3, observer=recorder)
    assert "3 round(s) in a row left the model unchanged" in str(caught.value)
    assert "2 x client-error" in str(caught.value)
    assert [r.skipped is None for r in recorder.rounds] == [True, False, False, False]


def test_a_run_in_which_nothing_ever_worked_is_an_error(fake_grid):
    grid = fake_grid({1: lambda m: Message(Error(2, "x"), reply_to=m)})
    with pytest.raises(TooFewReplies):
        run(grid, rounds=1)


def test_failed_rounds_count_in_a_row_only(fake_grid, trained):
    calls = {"n": 0}

    def moody(message):
        calls["n"] += 1
        return None if calls["n"] % 2 else trained(1.0)(message)

    result, recorder = run(fake_grid({1: moody}), rounds=4, timeout=0.05, max_failed_rounds=2)
    assert [bool(r.skipped) for r in recorder.rounds[1:]] == [True, False, True, False]
    assert values(result.arrays)[0] == 2.0


def test_sampling_is_reproducible_and_independent_of_node_ids(fake_grid, trained):
    def chosen(seed, offset):
        grid = fake_grid({n + offset: trained(1.0) for n in range(20)})
        run(grid, rounds=3, seed=seed, fraction_train=0.3)
        return [m.metadata.dst_node_id - offset for m in grid.pushed]

    assert chosen(5, 1) == chosen(5, 1000)
    assert chosen(5, 1) != chosen(6, 1)
    assert len(chosen(5, 1)) == 18


def test_nodes_that_never_come_are_an_error(fake_grid, trained):
    grid = fake_grid({1: trained(1.0)})
    strategy = StableFedAvg(min_available_nodes=5)
    with pytest.raises(TooFewReplies, match="1 nodes are connected and 5 are needed"):
        strategy.start(grid, model(), num_rounds=1, timeout=0.2)


def test_an_observer_can_stop_the_run(fake_grid):
    class Stop(RunObserver):
        def should_stop(self):
            return True

    with pytest.raises(RunInterrupted):
        run(fake_grid({1: lambda m: None}), observer=Stop())


def test_server_momentum_and_no_shared_state_between_strategies(fake_grid, trained):
    """Steps of 1 with momentum 0.5: 1, 1.5, 1.75."""
    for _ in range(2):
        result, _ = run(
            fake_grid({1: trained(1.0), 2: trained(1.0)}),
            rounds=3,
            stages=[ServerMomentum(server_momentum=0.5)],
        )
        assert values(result.arrays)[0] == 4.25


def test_config_of_the_caller_is_not_changed(fake_grid, trained):
    config = ConfigRecord({"lr": 0.1})
    grid = fake_grid({1: trained(1.0)})
    strategy = StableFedAvg(min_train_nodes=1, min_available_nodes=1, proximal_mu=0.3)
    (message,) = strategy.configure_train(4, model(), config, grid)
    assert dict(message.content["config"]) == {"lr": 0.1, "server-round": 4, "proximal-mu": 0.3}
    assert dict(config) == {"lr": 0.1}


def test_clients_that_cannot_evaluate_are_logged_once_per_reason(fake_grid, trained, caplog):
    """Flower's templates evaluate; an app without `@app.evaluate()` fails in every round."""

    def trains(message):
        if message.metadata.message_type == "train":
            return trained(1.0)(message)
        return Message(Error(2, "No evaluate function registered"), reply_to=message)

    grid = fake_grid(dict.fromkeys(range(1, 5), trains))
    StableFedAvg(min_available_nodes=4).start(grid, model(), num_rounds=1, timeout=1.0)
    (line,) = [r.getMessage() for r in caplog.records if "no evaluation" in r.getMessage()]
    assert "round 1: no evaluation, 4 x client-error (client 1: " in line


def test_evaluation_metrics_are_averaged_without_the_broken_ones(fake_grid):
    def evaluates(loss, examples):
        def client(message):
            metrics = MetricRecord({"loss": loss, "num-examples": examples})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        return client

    grid = fake_grid({1: evaluates(1.0, 10), 2: evaluates(3.0, 30), 3: evaluates(math.nan, 20)})
    strategy = StableFedAvg(fraction_train=0.0)
    result = strategy.start(grid, model(), num_rounds=1, timeout=1)
    assert result.evaluate_metrics_clientapp[1]["loss"] == 2.5


def test_all_metrics_are_kept_and_lists_are_averaged_number_by_number_as_flower_does(
    fake_grid, trained, caplog
):
    """A hundred names, and lists: what Flower's FedAvg makes of the same replies."""
    many = {f"class-{n}": 0.5 * n for n in range(100)}

    def told(n):
        return {**many, "recall": [1.0 * n, 0.25], "ints": [n, 4], "bad": float("nan")}

    clients = {n: trained(1.0, 10 * n, told(n)) for n in (1, 2, 3)}
    grid = fake_grid(clients)
    result, _ = run(grid)
    ours = result.train_metrics_clientapp[1]
    records = [clients[n](Message(RecordDict({"arrays": model()}), n, "train")) for n in (1, 2, 3)]
    theirs = aggregate_metricrecords([r.content for r in records], "num-examples")
    del theirs["bad"]
    assert ours.keys() == theirs.keys()
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-15)
    assert ours["ints"] == pytest.approx(theirs["ints"], rel=1e-15)
    assert ours["class-99"] == pytest.approx(theirs["class-99"], rel=1e-15)
    assert [r.getMessage() for r in caplog.records if "'bad'" in r.getMessage()] in (
        [], ["metric 'bad' of a reply is left out: NaN, infinity and what is no number has no "
             "mean; said once"],
    )  # fmt: skip


def test_a_list_of_another_length_does_not_spoil_a_mean(fake_grid, trained):
    clients = {n: trained(1.0, 10, {"recall": [0.5, 1.0]}) for n in (1, 2)}
    clients[3] = trained(1.0, 10**6, {"recall": [9.0] * 3})
    clients[4] = trained(1.0, 10**6, {"recall": 9.0})
    result, _ = run(fake_grid(clients))
    assert result.train_metrics_clientapp[1]["recall"] == [0.5, 1.0]


def test_users_own_metrics_function_gets_the_accepted_replies_in_canonical_order(
    fake_grid, trained
):
    seen = []

    def aggregate(contents, key):
        seen.append([c["metrics"][key] for c in contents])
        return MetricRecord({"n": len(contents)})

    bad = trained(1.0, 7, change=lambda a: {"w": a["w"]})
    grid = fake_grid({3: trained(1.0, 5), 1: bad, 2: trained(1.0, 9)}, seed=3)
    result, _ = run(grid, train_metrics_aggr_fn=aggregate)
    assert seen == [[5, 9]]
    assert result.train_metrics_clientapp[1]["n"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction_train": 1.5}, "fraction_train is 1.5; it must be in [0, 1]"),
        ({"fraction_evaluate": -0.1}, "fraction_evaluate is -0.1; it must be in [0, 1]"),
        ({"proximal_mu": -1.0}, "proximal_mu is -1.0; it must be >= 0"),
        ({"max_weight_ratio": 0.5}, "max_weight_ratio is 0.5; it must be >= 1"),
        ({"max_num_examples": 0}, "max_num_examples is 0; it must be > 0"),
        ({"min_replies": 0}, "min_replies is 0; it must be >= 1"),
        ({"max_failed_rounds": 0}, "max_failed_rounds is 0; it must be >= 1"),
        ({"client_api": "grpc"}, "client_api is 'grpc'; it must be message or legacy"),
        ({"stages": ["clip"]}, "stages: 'clip' is not a stage"),
        ({"stages": [Clip(1.0), Clip(2.0)]}, "stages: clip is given more than once"),
        (
            {"stages": [ServerAdam(), ServerMomentum()]},
            "fedadam and fedavgm are both server optimizers",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError) as caught:
        StableFedAvg(**arguments)
    assert message in str(caught.value)


def test_stages_stand_in_canonical_order_whatever_the_order_given():
    stages = [ServerAdam(), Clip(1.0), Validate()]
    for order in (stages, stages[::-1]):
        names = [s.name for s in StableFedAvg(stages=order).chain.stages]
        assert names == ["validate", "clip", "fedadam"]


def test_two_stages_on_whole_messages_are_refused():
    class Gate(MessageStage):
        phase = Phase.AUTHENTICATE
        instruct = admit = None

    first, second = type("A", (Gate,), {"name": "a"})(), type("B", (Gate,), {"name": "b"})()
    with pytest.raises(CompositionError, match="a and b both work on whole messages"):
        StableFedAvg(stages=[first, second])


def test_composition_errors_are_config_errors():
    assert issubclass(CompositionError, ConfigError)
