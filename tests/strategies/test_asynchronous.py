"""Buffered asynchronous aggregation against scripted clients in simulated and in real time."""

from __future__ import annotations

import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower.asynchrony import (
    Availability,
    Constant,
    Device,
    FasterFirst,
    Polynomial,
    StalenessLimit,
    VirtualClock,
)
from qsfl_flower.clients import qsfl_mod
from qsfl_flower.errors import CompositionError, ConfigError, TooFewReplies
from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.mechanisms.privacy.server import CentralDP
from qsfl_flower.rounds.buffered import BufferedRounds
from qsfl_flower.stages import (
    Clip,
    CombineStage,
    Compress,
    Robust,
    ServerAdam,
    ServerMomentum,
    SharedMask,
)
from qsfl_flower.strategies import (
    POLICIES,
    BufferedAsync,
    CheckpointStore,
    FedAsync,
    RunObserver,
    StableFedAvg,
)
from qsfl_flower.testing import LocalGrid


class Recorder(RunObserver):
    def __init__(self):
        self.rounds, self.rows = [], []

    def on_round(self, record, clients):
        self.rounds.append(record)
        self.rows.append(clients)


def zeros(size=3):
    return ArrayRecord({"w": Array(np.zeros(size, np.float32))})


def run(grid, devices, rounds=1, kind=BufferedAsync, resume=None, **arguments):
    recorder = Recorder()
    arguments = {"min_train_nodes": 1, "seed": 5, **arguments}
    strategy = kind(
        fraction_evaluate=0.0,
        min_available_nodes=len(devices),
        clock=VirtualClock(devices),
        observer=recorder,
        **arguments,
    )
    result = strategy.start(grid, zeros(), num_rounds=rounds, timeout=1000.0, resume=resume)
    return result.arrays["w"].numpy(), recorder, strategy


def speeds(*seconds, **profile):
    return [Device(seconds=s, **profile) for s in seconds]


def test_equals_the_synchronous_strategy_when_the_buffer_is_everybody(fake_grid, trained):
    clients = {n: trained(float(n), 10 + n) for n in range(6)}
    devices = speeds(1, 2, 3, 4, 5, 6)
    ours, ours_rows, _ = run(fake_grid(clients), devices, rounds=3, buffer_size=6)
    theirs, theirs_rows, _ = run(fake_grid(clients), devices, rounds=3, kind=StableFedAvg)
    assert ours.tobytes() == theirs.tobytes()
    assert [r.clock_s for r in ours_rows.rounds] == [r.clock_s for r in theirs_rows.rounds]
    assert ours_rows.rows == theirs_rows.rows


def test_two_clients_step_by_step(fake_grid, trained):
    """The fast one adds 1 every second, the slow one 10 every 2.5 seconds; K = 1.

    At 1 s and 2 s the fast one is fresh. At 2.5 s the slow one is two versions old: weight 1/3. The
    fast one, asked at 2 s, is one version old at 3 s: 1/2. Asked again at once, it is fresh at 4 s.
    At 5 s both arrive, the slow one was asked first: two versions old; then the fast one: 1/2.
    """
    grid = fake_grid({0: trained(1.0), 1: trained(10.0)})
    values, seen = [], []
    for rounds in range(1, 8):
        model, recorder, _ = run(
            grid, speeds(1, 2.5), rounds, buffer_size=1, staleness_weight=Polynomial(1.0)
        )
        values.append(float(model[0]))
        row = recorder.rows[-1][-1]
        seen.append((recorder.rounds[-1].clock_s, row.client, row.staleness))
    steps = [1, 1, 10 / 3, 1 / 2, 1, 10 / 3, 1 / 2]
    np.testing.assert_allclose(values, np.cumsum(steps), rtol=1e-6)
    assert seen == [
        (1.0, "0", 0), (2.0, "0", 0), (2.5, "1", 2), (3.0, "0", 1),
        (4.0, "0", 0), (5.0, "1", 2), (5.0, "0", 1),
    ]  # fmt: skip


def test_weights_are_divided_by_the_fixed_buffer_size(fake_grid, trained):
    """One of four sends NaN: the other three count for 3/4 together, not for 1."""
    clients = {n: trained(8.0) for n in range(3)}
    clients[3] = trained(8.0, change=lambda a: {"w": a["w"] * np.float32(np.nan)})
    model, recorder, _ = run(fake_grid(clients), speeds(1, 1, 1, 1), buffer_size=4)
    assert model.tolist() == [6.0] * 3
    assert [r.weight for r in recorder.rows[-1][:3]] == [0.25] * 3


def test_too_stale_updates_are_rejected_before_they_are_read(fake_grid, trained):
    """The slow client's update is five versions old when it comes, and full of rubbish."""
    clients = {0: trained(1.0), 1: trained(1.0, change=lambda a: {"rubbish": a["w"]})}
    _, recorder, _ = run(
        fake_grid(clients), speeds(1, 5.5), rounds=6, buffer_size=1, max_staleness=4
    )
    assert recorder.rounds[-1].rejected == {"too-stale": 1}
    (row,) = [row for row in recorder.rows[-1] if row.client == "1"]
    assert "5 versions old; at most 4" in row.detail


def test_the_limit_tightens_with_the_rounds(fake_grid, trained):
    """A client three versions behind is heard at first, and not any more when the limit is 2."""
    clients = {0: trained(1.0), 1: trained(1.0)}
    _, recorder, _ = run(
        fake_grid(clients),
        speeds(1, 3.5),
        rounds=30,
        buffer_size=1,
        max_staleness=StalenessLimit(4, final=2, horizon=20),
    )
    slow = [row.status for rows in recorder.rows[1:] for row in rows if row.client == "1"]
    assert slow[0] == "accepted"
    assert slow[-1] == "too-stale"
    assert slow == sorted(slow)  # accepted ones first


def noisy(trained, rng):
    """Clients whose answer depends on what they got, so that order and staleness matter."""

    def make(n):
        pull, target = rng.uniform(0.1, 0.6), rng.normal()
        return trained(
            0.0, 5 + n, change=lambda a: {"w": (a["w"] + pull * (target - a["w"])).astype("f4")}
        )

    return {n: make(n) for n in range(12)}


def test_the_same_run_again_and_again(fake_grid, trained):
    """Whatever the real order of answers and Flower's node ids: bit-identical, record by record."""
    seen = set()
    devices = [Device(1 + n % 4, jitter=0.4, upload=100.0, dropout=0.05) for n in range(12)]
    for seed in range(4):
        clients = noisy(trained, np.random.default_rng(1))
        numbers = random.Random(seed)
        ids = [numbers.getrandbits(63) for _ in clients]
        grid = fake_grid(dict(zip(ids, clients.values(), strict=True)), seed=seed)
        model, recorder, _ = run(
            grid, devices, rounds=25, buffer_size=4, concurrency=8, deadline=30.0,
            selection=FasterFirst(),
        )  # fmt: skip
        rows = [
            (r.round, r.status, r.staleness, r.weight, r.norm, r.sent_s, r.arrived_s)
            for rows in recorder.rows
            for r in rows
        ]
        seen.add((model.tobytes(), repr(rows), repr([r.clock_s for r in recorder.rounds])))
        assert any(r.staleness for rows in recorder.rows for r in rows)
        assert any(r.status == "no-reply" for rows in recorder.rows for r in rows)
    assert len(seen) == 1


def test_a_target_number_of_clients_is_at_work(fake_grid, trained, monkeypatch):
    most, take = [], BufferedRounds._take_one

    def watch(rounds, *arguments):
        most.append(len(rounds.engine.post.ledger.open) + 1)
        take(rounds, *arguments)

    grid = fake_grid({n: trained(1.0) for n in range(10)})
    monkeypatch.setattr(BufferedRounds, "_take_one", watch)
    run(grid, speeds(*range(1, 11)), 20, buffer_size=3, concurrency=4)
    assert max(most) == 4
    assert len(grid.pushed) >= 60


def test_policies_hear_who_was_asked_and_who_answered(fake_grid, trained):
    """Ten clients of one speed, two at work: `fair` asks each as often as any other."""
    grid = fake_grid({n: trained(1.0) for n in range(10)})
    _, recorder, strategy = run(
        grid, speeds(*[1] * 10), 10, buffer_size=2, concurrency=2, selection=POLICIES["fair"]()
    )
    past = [strategy.engine.sampling.history.of(rank) for rank in range(10)]
    asked = [p.asked for p in past]
    assert sum(asked) == len(grid.pushed)
    assert max(asked) - min(asked) <= 1
    accepted = [row.client for rows in recorder.rows for row in rows if row.status == "accepted"]
    assert [p.answered for p in past] == [accepted.count(str(rank)) for rank in range(10)]


def test_a_client_has_one_place_in_a_buffer(fake_grid, trained):
    """However fast it is: a liar that answers at once does not fill the buffer."""
    grid = fake_grid({n: trained(1.0) for n in range(6)})
    _, recorder, _ = run(grid, speeds(0.001, 1, 1, 1, 1, 1), rounds=10, buffer_size=5)
    for rows in recorder.rows[1:]:
        assert len({row.client for row in rows}) == len(rows)
    assert sum(row.client == "0" for rows in recorder.rows for row in rows) == 10


def test_silent_clients_are_given_up_and_others_asked_instead(fake_grid, trained):
    devices = [*speeds(1, 1, 1, 1), *speeds(1, 1, dropout=1.0)]
    grid = fake_grid({n: trained(1.0) for n in range(6)})
    model, recorder, strategy = run(
        grid, devices, rounds=10, buffer_size=3, concurrency=3, deadline=2.0,
        staleness_weight=Constant(),
    )  # fmt: skip
    assert model.tolist() == pytest.approx([10.0] * 3)
    assert all(r.accepted == 3 for r in recorder.rounds[1:])
    lost = [row for rows in recorder.rows for row in rows if row.status == "no-reply"]
    assert {row.client for row in lost} == {"4", "5"}
    assert strategy.engine.post.ledger.misses  # they rest longer and longer


def test_when_nobody_is_left_the_buffer_is_combined_as_it_is(fake_grid, trained):
    """Two of five fail: three updates of a buffer of five make three fifths of a step."""
    failing = {n: lambda m: Message(Error(2, "boom"), reply_to=m) for n in (3, 4)}
    grid = fake_grid({**{n: trained(10.0) for n in range(3)}, **failing})
    model, recorder, _ = run(grid, speeds(1, 1, 1, 1, 1), buffer_size=5)
    assert model.tolist() == pytest.approx([6.0] * 3)
    assert recorder.rounds[-1].rejected == {"client-error": 2}


def test_rounds_without_any_usable_update_end_the_run(fake_grid):
    grid = fake_grid({n: lambda m: Message(Error(2, "boom"), reply_to=m) for n in range(3)})
    with pytest.raises(TooFewReplies, match="3 x client-error"):
        run(grid, speeds(1, 1, 1), rounds=5, buffer_size=2)


def test_offline_devices_are_asked_when_they_are_back(fake_grid, trained):
    """One is online in the first hour of four only, the other two in the other three.

    All three are needed: at 70 min (the first did its part at once), at 4 h 10 min (the others did
    theirs before, and go offline until 5 h), and at 5 h 10 min.
    """
    first = Availability(((0.0, 3600.0),), 4 * 3600.0)
    others = Availability(((3600.0, 4 * 3600.0),), 4 * 3600.0)
    devices = [Device(600.0, available=a) for a in (first, others, others)]
    grid = fake_grid({n: trained(1.0) for n in range(3)})
    _, recorder, _ = run(grid, devices, rounds=3, buffer_size=3, deadline=1e5)
    assert [r.accepted for r in recorder.rounds[1:]] == [3, 3, 3]
    assert [r.clock_s / 60 for r in recorder.rounds[1:]] == [70.0, 250.0, 310.0]


def test_fedasync_mixes_every_model_in(fake_grid, trained):
    grid = fake_grid({0: trained(1.0)})
    model, recorder, strategy = run(grid, speeds(1), rounds=4, kind=FedAsync, mixing=0.5)
    assert model.tolist() == [2.0] * 3
    assert strategy.buffer_size == 1
    assert recorder.rounds[-1].stages["stale_step"] == {"rate": 0.5}


def test_the_step_shrinks_with_the_mean_staleness(fake_grid, trained):
    grid = fake_grid({0: trained(1.0), 1: trained(10.0)})
    options = {"buffer_size": 1, "staleness_weight": Constant(), "scale_by_staleness": True}
    before, _, _ = run(grid, speeds(1, 2.5), 2, **options)
    after, recorder, _ = run(grid, speeds(1, 2.5), 3, **options)
    assert after[0] - before[0] == pytest.approx(10 / 3)  # two versions old: a third of the step
    assert recorder.rounds[-1].stages["stale_step"]["rate"] == pytest.approx(1 / 3)


def test_momentum_is_lowered_by_what_staleness_adds_itself(fake_grid, trained):
    grid = fake_grid({0: trained(1.0), 1: trained(10.0)})
    options = {"buffer_size": 1, "server_momentum": 0.9}
    _, recorder, _ = run(grid, speeds(1, 2.5), 4, **options)
    momenta = [r.stages["stale_step"]["momentum"] for r in recorder.rounds[1:]]
    assert momenta == pytest.approx([0.9, 0.9, 0.9 - 2 / 3, 0.9 - 1 / 2])


def test_without_staleness_the_step_is_that_of_fedavgm(fake_grid, trained):
    clients = {n: trained(float(n), 10 + n) for n in range(3)}
    ours, _, _ = run(
        fake_grid(clients), speeds(1, 1, 1), rounds=5, buffer_size=3,
        server_momentum=0.5, server_learning_rate=0.7,
    )  # fmt: skip
    theirs, _, _ = run(
        fake_grid(clients), speeds(1, 1, 1), rounds=5, kind=StableFedAvg,
        stages=[ServerMomentum(0.7, 0.5)],
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("interrupted_after", [1, 4, 9])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    fake_grid, trained, tmp_path, interrupted_after
):
    """Tasks under way are asked for again, from the models that they had started from."""
    devices = [Device(1 + n % 4, jitter=0.4, upload=100.0, dropout=0.1) for n in range(12)]
    options = {
        "buffer_size": 3, "concurrency": 7, "deadline": 6.0, "selection": FasterFirst(),
        "server_momentum": 0.5,
    }  # fmt: skip

    def grid(seed):
        return fake_grid(noisy(trained, np.random.default_rng(1)), seed=seed)

    whole, whole_rows, _ = run(grid(0), devices, rounds=15, **options)
    store = CheckpointStore(tmp_path)
    run(grid(1), devices, rounds=interrupted_after, checkpoints=store, **options)
    rest, rest_rows, _ = run(grid(2), devices, rounds=15, resume=store.latest(), **options)
    assert rest.tobytes() == whole.tobytes()
    assert rest_rows.rows == whole_rows.rows[interrupted_after + 1 :]
    assert [r.clock_s for r in rest_rows.rounds] == [
        r.clock_s for r in whole_rows.rounds[interrupted_after + 1 :]
    ]


def resumed_after_every_round(fake_grid, trained, folder, rounds, buffer_size, max_staleness):
    """Ten fast devices and two so slow that the versions they start from are long forgotten."""
    devices = [Device(1 + n % 4, jitter=0.4, upload=50.0, dropout=0.1) for n in range(10)]
    devices += [Device(30.0, upload=5.0), Device(45.0, upload=2.0)]
    options = {
        "buffer_size": buffer_size, "max_staleness": max_staleness, "deadline": 60.0,
        "server_momentum": 0.5,
    }  # fmt: skip

    def grid(seed):
        return fake_grid(noisy(trained, np.random.default_rng(1)), seed=seed)

    store = CheckpointStore(folder, keep=rounds)
    whole, whole_rows, _ = run(grid(0), devices, rounds, checkpoints=store, **options)
    saved = sorted(folder.glob("round-*.json"))
    assert len(saved) == rounds
    for path in saved:
        snapshot = store._load(path)
        rest, rest_rows, _ = run(grid(2), devices, rounds, resume=snapshot, **options)
        assert rest.tobytes() == whole.tobytes()
        assert rest_rows.rows == whole_rows.rows[snapshot.server_round + 1 :]
        clocks = [r.clock_s for r in whole_rows.rounds[snapshot.server_round + 1 :]]
        assert [r.clock_s for r in rest_rows.rounds] == clocks
    return {row.status for rows in whole_rows.rows for row in rows}


def test_tasks_whose_model_is_forgotten_survive_a_checkpoint(fake_grid, trained, tmp_path):
    """Resuming after any round ends alike, whatever is under way."""
    seen = resumed_after_every_round(fake_grid, trained, tmp_path, 24, 2, 3)
    assert {"accepted", "too-stale"} <= seen


@given(rounds=st.integers(1, 20), buffer_size=st.integers(1, 6), max_staleness=st.integers(0, 12))
@settings(
    max_examples=8, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_buffer_and_staleness_can_be_resumed(
    fake_grid, trained, tmp_path_factory, rounds, buffer_size, max_staleness
):
    folder = tmp_path_factory.mktemp("checkpoints")
    resumed_after_every_round(fake_grid, trained, folder, rounds, buffer_size, max_staleness)


def test_evaluation_asks_clients_that_are_idle(fake_grid, trained):
    asked = []

    def client(n):
        def answer(message):
            asked.append((message.metadata.message_type, n))
            return trained(1.0, metrics={"loss": 0.5})(message)

        return answer

    recorder = Recorder()
    strategy = BufferedAsync(
        fraction_evaluate=1.0, min_available_nodes=4, min_train_nodes=1, seed=0, buffer_size=2,
        concurrency=2, clock=VirtualClock(speeds(1, 1, 5, 5)), observer=recorder,
    )  # fmt: skip
    grid = fake_grid({n: client(n) for n in range(4)})
    result = strategy.start(grid, zeros(), num_rounds=3, timeout=10.0)
    assert set(result.evaluate_metrics_clientapp) == {1, 2, 3}
    assert result.evaluate_metrics_clientapp[1]["loss"] == 0.5


def test_twice_as_fast_where_one_in_five_is_ten_times_slower(fake_grid, trained):
    """A quadratic with 20 clients; the synchronous loss is reached in at most half the time."""
    rng = np.random.default_rng(3)
    targets = 1.0 + 0.1 * rng.normal(size=(20, 3))

    def client(target):
        return trained(0.0, change=lambda a: {"w": (a["w"] + 0.2 * (target - a["w"])).astype("f4")})

    def loss(model):
        return float(np.mean((model - targets.mean(axis=0)) ** 2))

    devices = [Device(10.0 if n % 5 == 0 else 1.0, jitter=0.2) for n in range(20)]

    def curve(kind, rounds, **options):
        grid = fake_grid({n: client(t) for n, t in enumerate(targets)})
        times, losses = [], []
        strategy = kind(
            fraction_evaluate=0.0, min_available_nodes=20, min_train_nodes=1, seed=0,
            clock=VirtualClock(devices), **options,
        )  # fmt: skip

        def evaluate(server_round, arrays):
            times.append(strategy.engine.post.clock.now)
            losses.append(loss(arrays["w"].numpy()))

        strategy.start(grid, zeros(), num_rounds=rounds, timeout=1e4, evaluate_fn=evaluate)
        return times, losses

    times, losses = curve(StableFedAvg, 6)
    target, reference = losses[-1], times[-1]
    times, losses = curve(BufferedAsync, 40, buffer_size=10)
    reached = next(t for t, value in zip(times, losses, strict=True) if value <= target)
    assert reached <= reference / 2


class Hidden(CombineStage):
    name = "hidden"
    hides = True

    def combine(self, cohort, state, context):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("error", "named", "bad"),
    [
        (ConfigError, "buffer_size", {"buffer_size": 0}),
        (ConfigError, "concurrency", {"concurrency": 0}),
        (ConfigError, "over_selection", {"over_selection": 0.5}),
        (ConfigError, "server_learning_rate", {"server_learning_rate": 0.0}),
        (ConfigError, "server_momentum", {"server_momentum": 1.0}),
        (ConfigError, "maximum", {"max_staleness": -1}),
        (
            ConfigError,
            "buffer_size is 5: krum withstands at most 1 malicious ones among 5",
            {"buffer_size": 5, "stages": [Robust("krum", 3)]},
        ),
        (CompositionError, "hidden hides single updates", {"stages": [Hidden()]}),
        (
            CompositionError,
            "server optimizers",
            {"stages": [ServerAdam()], "server_momentum": 0.5},
        ),
    ],
)
def test_impossible_arguments_are_named(error, named, bad):
    with pytest.raises(error, match=named):
        BufferedAsync(fraction_evaluate=0.0, **bad)
    with pytest.raises(ConfigError, match="mixing"):
        FedAsync(mixing=0.0)


def test_what_needs_a_common_start_is_refused():
    private = [Clip(1.0), CentralDP(1.0, expected_cohort=4, sampling_rate=0.5)]
    with pytest.raises(
        CompositionError, match="central_dp needs clients that are sampled independently"
    ):
        BufferedAsync(fraction_evaluate=0.0, stages=private)
    with pytest.raises(CompositionError, match="who is cut off is not random"):
        StableFedAvg(fraction_evaluate=0.0, over_selection=0.5, stages=private)
    with pytest.raises(CompositionError, match="shared_mask has other coordinates"):
        BufferedAsync(fraction_evaluate=0.0, stages=[SharedMask()])


def test_with_a_fixed_denominator_no_weight_exceeds_its_inverse(fake_grid, trained):
    """Client-level privacy: claims do not count, staleness damps, nothing is divided by a count."""
    grid = fake_grid({n: trained(0.1, 10 ** (n + 1)) for n in range(6)})
    stages = [Clip(1.0), CentralDP(1e-6, expected_cohort=3, seed=1)]
    model, recorder, _ = run(grid, speeds(1, 1, 1, 4, 4, 4), rounds=8, buffer_size=3, stages=stages)
    used = [row for rows in recorder.rows for row in rows if row.status == "accepted"]
    assert {row.staleness for row in used} >= {0, 1}
    for row in used:
        assert row.weight == pytest.approx((1 + row.staleness) ** -0.5 / 3)
    assert model[0] == pytest.approx(0.1 * sum(row.weight for row in used), abs=1e-3)


def test_robust_rules_see_buffers_and_damped_updates(fake_grid, trained):
    """A fast liar has one place in each buffer of five, which Multi-Krum with f = 1 can bear."""
    clients = {n: trained(1.0) for n in range(7)} | {7: trained(-100.0)}
    devices = speeds(1, 1, 1, 1, 1, 3.5, 3.5, 0.01)
    stages = [Robust("multi_krum", num_byzantine=1)]
    model, recorder, _ = run(fake_grid(clients), devices, rounds=12, buffer_size=5, stages=stages)
    liar = [r for rows in recorder.rows for r in rows if r.client == "7"]
    assert len(liar) >= 10
    assert all(r.weight == 0 for r in liar)
    assert 8 < model[0] <= 12  # twelve steps of 1, those with stale updates a little shorter


def adding_app():
    app = ClientApp(mods=[qsfl_mod])

    @app.train()
    def train(message, context):
        arrays = {k: Array(a.numpy() + np.float32(1)) for k, a in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 10})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def test_compressed_updates_are_decoded_as_their_own_round_asked():
    """Every client keeps what it did not send; nothing is lost between versions."""
    recorder = Recorder()
    strategy = BufferedAsync(
        fraction_evaluate=0.0, min_available_nodes=4, min_train_nodes=1, buffer_size=2, seed=0,
        staleness_weight=Constant(), observer=recorder,
        stages=[Compress(Scheme("topk", 0.5, values="float32"))],
        clock=VirtualClock(speeds(1, 1.5, 2.5, 4)),
    )  # fmt: skip
    grid = LocalGrid(adding_app(), 4)
    result = strategy.start(grid, zeros(10), num_rounds=20, timeout=100.0)
    assert [r.rejected for r in recorder.rounds] == [{}] * 21
    assert any(row.staleness for rows in recorder.rows for row in rows)
    # A round adds 1 to every coordinate; each client holds back at most one round of its own.
    values = result.arrays["w"].numpy()
    assert 17 <= values.min() <= values.max() <= 20.5


def test_other_stages_work_on_the_buffer(fake_grid, trained):
    grid = fake_grid({n: trained(100.0) for n in range(4)})
    model, _, _ = run(grid, speeds(1, 1, 1, 1), buffer_size=4, stages=[Clip(3**0.5)])
    assert model.tolist() == pytest.approx([1.0] * 3)
