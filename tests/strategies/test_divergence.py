"""What strategies do when training diverges, synchronous or not."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from qsfl_flower.asynchrony import Constant, Device, VirtualClock
from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Monitor, Reaction
from qsfl_flower.stages import CentralDP, Clip, Committee, Robust, SecureSum, ServerMomentum
from qsfl_flower.strategies import BufferedAsync, CheckpointStore, RunObserver, StableFedAvg

from .conftest import MODEL, NOW, task_of
from .conftest import Device as KeyedDevice


class Recorder(RunObserver):
    def __init__(self):
        self.rounds = []

    def on_round(self, record, clients):
        self.rounds.append(record)


def squared(server_round, arrays):
    return MetricRecord({"loss": float(np.mean(arrays["w"].numpy() ** 2))})


def run(grid, rounds, reactions, kind=StableFedAvg, resume=None, evaluate=squared, **options):
    """Train towards 0 from 1; the loss is the square of the model."""
    recorder = Recorder()
    strategy = kind(
        fraction_evaluate=0.0,
        min_available_nodes=len(grid.clients),
        min_train_nodes=1,
        seed=0,
        monitor=Monitor(window=2, patience=3, norm_factor=1e6, reactions=reactions),
        observer=recorder,
        clock=VirtualClock([Device()] * len(grid.clients)),
        **options,
    )
    result = strategy.start(
        grid,
        ArrayRecord({"w": Array(np.ones(3, np.float32))}),
        num_rounds=rounds,
        timeout=1e4,
        evaluate_fn=evaluate,
        resume=resume,
    )
    return result.arrays["w"].numpy(), recorder.rounds, strategy


@pytest.fixture
def overshooting(fake_grid, trained):
    """Clients whose step is `factor` times too long: a factor above 2 diverges."""

    def make(factor, clients=2):
        def change(arrays):
            return {"w": (arrays["w"] * np.float32(1 - factor)).astype("f4")}

        return fake_grid({n: trained(0.0, change=change) for n in range(clients)})

    return make


def test_a_lower_rate_brings_training_back(overshooting):
    """Steps 2.6 times too long grow by 1.6 a round; halved, they shrink by 0.3."""
    model, rounds, _ = run(overshooting(2.6), 30, (Reaction.LOWER_RATE,))
    told = [r.reaction for r in rounds if r.reaction]
    assert told == ["the server's step is scaled by 0.5 from now on"]
    assert abs(model).max() < 1e-3
    assert rounds[-1].stages["guard"]["rate"] == 0.5
    reference, rounds, _ = run(overshooting(2.6), 30, ())
    assert abs(reference).max() > 1e5
    assert any(r.alarm for r in rounds)


def test_roll_back_returns_to_the_best_model_and_forgets_momentum(fake_grid, trained):
    """Training goes well for five rounds, then an update of 50 spoils it."""
    turn = {"n": 0}

    def change(arrays):
        turn["n"] += 1
        return {"w": arrays["w"] * np.float32(0.5) + np.float32(50 if turn["n"] == 6 else 0)}

    grid = fake_grid({0: trained(0.0, change=change)})
    model, rounds, _ = run(grid, 20, (Reaction.ROLL_BACK,), stages=[ServerMomentum(1.0, 0.3)])
    told = {r.round: r.reaction for r in rounds if r.reaction}
    assert told == {6: "the model is that of round 5 again"}
    assert rounds[6].eval_loss > 1000  # what was evaluated is what led to the reaction
    assert abs(model).max() < 1e-2


def test_halt_ends_the_run_with_the_best_model(overshooting):
    model, rounds, _ = run(overshooting(2.6), 50, (Reaction.HALT,))
    assert rounds[-1].reaction == "the run ends; the model is that of round 1 again"
    assert len(rounds) < 8
    assert model.tolist() == pytest.approx([-1.6] * 3)


def test_reactions_escalate(overshooting):
    """Steps 9 times too long: halving once is not enough, rolling back is no cure, so it ends."""
    _, rounds, _ = run(
        overshooting(9.0), 60, (Reaction.LOWER_RATE, Reaction.ROLL_BACK, Reaction.HALT)
    )
    told = [r.reaction for r in rounds if r.reaction]
    assert [t.split()[1] for t in told] == ["server's", "model", "run"]
    assert rounds[-1].reaction == told[-1]


def test_a_loss_that_is_not_finite_halts_at_once(fake_grid, trained):
    """In the fourth round, although patience has not run out since the third."""
    losses = iter([1.0, 1.0, 1.0, 9.0, math.nan, 0.0])
    grid = fake_grid({0: trained(1.0)})
    _, rounds, _ = run(
        grid, 50, (Reaction.LOWER_RATE, Reaction.HALT),
        evaluate=lambda r, a: MetricRecord({"loss": next(losses)}),
    )  # fmt: skip
    assert [r.round for r in rounds if r.reaction] == [3, 4]
    assert rounds[-1].round == 4


@pytest.mark.parametrize("private", [True, False])
def test_reactions_do_not_follow_losses_that_central_noise_is_to_hide(fake_grid, private):
    """Without an evaluation on the server, losses of the clients are all that there is."""

    def lost(message):
        arrays = {"w": Array(message.content["arrays"]["w"].numpy())}
        loss = 10.0 ** message.content["config"]["server-round"]
        metrics = MetricRecord({"num-examples": 10, "train-loss": loss})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    stages = [Clip(1.0), CentralDP(0.01, 3)] if private else []
    grid = fake_grid({0: lost, 1: lost, 2: lost})
    _, rounds, _ = run(grid, 9, (Reaction.LOWER_RATE,), evaluate=None, stages=stages)
    assert any(r.reaction for r in rounds) == (not private)


def test_tightened_staleness_shuts_old_updates_out(fake_grid, trained):
    """The slow client is seven versions behind and pushes away; with 8 // 2 it is not heard."""

    def fast(arrays):
        return {"w": (arrays["w"] * 0.5).astype("f4")}

    clients = {0: trained(0.0, change=fast), 1: trained(40.0)}
    recorder = Recorder()
    strategy = BufferedAsync(
        fraction_evaluate=0.0, min_available_nodes=2, min_train_nodes=1, buffer_size=1, seed=0,
        staleness_weight=Constant(), max_staleness=8, observer=recorder,
        monitor=Monitor(window=2, patience=2, reactions=(Reaction.TIGHTEN_STALENESS,)),
        clock=VirtualClock([Device(1.0), Device(7.5)]),
    )  # fmt: skip
    result = strategy.start(
        fake_grid(clients),
        ArrayRecord({"w": Array(np.ones(3, np.float32))}),
        num_rounds=60,
        timeout=1e4,
        evaluate_fn=squared,
    )
    told = [r.reaction for r in recorder.rounds if r.reaction]
    assert told[0] == "max_staleness is divided by 2 from now on"
    assert sum(r.rejected.get("too-stale", 0) for r in recorder.rounds) >= 3
    assert abs(result.arrays["w"].numpy()).max() < 1e-3


def test_tasks_under_way_from_a_model_that_was_taken_back_do_not_count(fake_grid, trained):
    turn = {"n": 0}

    def change(arrays):
        turn["n"] += 1
        spoiled = 8 <= turn["n"] <= 10
        return {"w": arrays["w"] * np.float32(0.5) + np.float32(90 if spoiled else 0)}

    grid = fake_grid({n: trained(0.0, change=change) for n in range(4)})
    _, rounds, strategy = run(
        grid, 25, (Reaction.ROLL_BACK,), kind=BufferedAsync, buffer_size=2, concurrency=3
    )
    (at,) = [r.round for r in rounds if r.reaction]
    assert set(rounds[at + 1].rejected) == {"rolled-back"}
    assert strategy.states["guard"]["valid_from"] == at


def test_reactions_survive_a_restart(overshooting, tmp_path):
    store = CheckpointStore(tmp_path)
    whole, whole_rounds, _ = run(overshooting(2.6), 20, (Reaction.LOWER_RATE,))
    done = next(r.round for r in whole_rounds if r.reaction)
    run(overshooting(2.6), done, (Reaction.LOWER_RATE,), checkpoints=store)
    rest, _, _ = run(overshooting(2.6), 20, (Reaction.LOWER_RATE,), resume=store.latest())
    assert rest.tobytes() == whole.tobytes()


def test_a_halted_run_stays_halted(overshooting, tmp_path):
    store = CheckpointStore(tmp_path)
    model, _, _ = run(overshooting(2.6), 50, (Reaction.HALT,), checkpoints=store)
    again, rounds, _ = run(overshooting(2.6), 50, (Reaction.HALT,), resume=store.latest())
    assert rounds == []
    assert again.tobytes() == model.tobytes()


def test_synchronous_rounds_have_no_staleness_to_tighten():
    with pytest.raises(ConfigError, match="no staleness to tighten"):
        StableFedAvg(monitor=Monitor(reactions=(Reaction.TIGHTEN_STALENESS,)))


LIES = {
    "huge from round 5": lambda r, loss: 1e9 if r >= 5 else loss,
    "largest float": lambda r, loss: 1.7e308 if r == 5 else loss,
    "doubled": lambda r, loss: loss + 25 if r >= 5 else loss,
    "far below zero at first": lambda r, loss: -1e9 if r <= 3 else loss,
    "infinite": lambda r, loss: math.inf if r == 4 else loss,
    "not a number": lambda r, loss: math.nan if r >= 4 else loss,
}
SHORT = Monitor(window=3, patience=2, reactions=(Reaction.HALT,))


def claims(trained, lie, seen=None):
    """Clients whose loss decreases by 5 % a round; the first one's claim is `lie`."""

    def make(number):
        def client(message):
            server_round = message.content["config"]["server-round"]
            loss = 2.0 * 0.95**server_round
            told = lie(server_round, loss) if number == 0 else loss
            return trained(0.1, metrics={"train-loss": told})(message)

        return client

    return {number: make(number) for number in range(10)}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("reaction", [Reaction.HALT, Reaction.ROLL_BACK, Reaction.LOWER_RATE])
def test_one_claimed_loss_neither_halts_nor_slows_nor_rolls_back(fake_grid, trained, lie, reaction):
    watch = Recorder()
    strategy = StableFedAvg(
        fraction_evaluate=0.0,
        min_available_nodes=10,
        monitor=Monitor(window=3, patience=2, reactions=(reaction,)),
        observer=watch,
    )
    grid = fake_grid(claims(trained, LIES[lie]))
    start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    result = strategy.start(grid, start, num_rounds=12, timeout=5)
    assert len(watch.rounds) == 13
    assert not any(r.reaction for r in watch.rounds)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 1.2, rtol=1e-5)


def test_a_majority_that_diverges_is_noticed_beside_a_liar(fake_grid, trained):
    """The guard still works: nine losses grow, and one client says that all is well."""
    watch = Recorder()
    clients = claims(trained, lambda r, loss: 0.0)

    def diverging(message):
        loss = 2.0 ** message.content["config"]["server-round"]
        return trained(0.1, metrics={"train-loss": loss})(message)

    grid = fake_grid({n: client if n == 0 else diverging for n, client in clients.items()})
    strategy = StableFedAvg(
        fraction_evaluate=0.0, min_available_nodes=10, monitor=SHORT, observer=watch
    )
    start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    strategy.start(grid, start, num_rounds=12, timeout=5)
    assert watch.rounds[-1].reaction
    assert watch.rounds[-1].round < 8


@pytest.mark.parametrize("robust", [False, True])
def test_one_long_update_is_told_and_halts_nothing(fake_grid, trained, robust):
    """Under a clip norm one update can make the step long, under a rule it cannot."""

    def client(number):
        def change(arrays):
            far = number == 0 and arrays["w"][0] > 0.004
            return {"w": arrays["w"] + np.float32(5.0 if far else 0.001)}

        return trained(0.0, change=change)

    watch = Recorder()
    strategy = StableFedAvg(
        fraction_evaluate=0.0,
        min_available_nodes=10,
        monitor=SHORT,
        observer=watch,
        stages=[Clip(1.0), *([Robust("median")] if robust else [])],
    )
    start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    strategy.start(fake_grid({n: client(n) for n in range(10)}), start, num_rounds=9, timeout=5)
    assert any(r.alarm for r in watch.rounds) == (not robust)
    assert not any(r.reaction for r in watch.rounds)
    assert watch.rounds[-1].round == 9


def test_under_hidden_sums_no_claimed_loss_has_an_effect(federation, monkeypatch):
    asked = []

    def attack(message, answer):
        asked.append(message)
        with monkeypatch.context() as lying:
            if sum(task_of(m) == "train" for m in asked) >= 4:
                lying.setattr(sys.modules[KeyedDevice.__module__], "loss_of", lambda number: 500.0)
            return answer(message)

    grid, _ = federation(6, {3: attack})
    watch = Recorder()
    strategy = StableFedAvg(
        fraction_evaluate=0.0,
        min_available_nodes=6,
        monitor=SHORT,
        observer=watch,
        stages=[
            federation.gate,
            SecureSum(5.0, Committee(5, 3, quorum=4, min_clients=4), bits=20, clock=lambda: NOW),
        ],
    )
    start = ArrayRecord({k: Array(np.asarray(v)) for k, v in MODEL.items()})
    strategy.start(grid, start, num_rounds=7, timeout=5)
    assert watch.rounds[-1].round == 7
    assert not any(r.reaction for r in watch.rounds)
    assert max(r.train_loss or 0 for r in watch.rounds) > 10, "the attack takes place"
