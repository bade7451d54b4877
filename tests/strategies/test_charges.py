"""What a round costs is on disk before its instructions leave, and counts whatever happens next."""

import json
from unittest import mock

import numpy as np
import pytest

from qsfl_flower.clients import qsfl_mod
from qsfl_flower.errors import CheckpointError, RunInterrupted
from qsfl_flower.mechanisms.privacy.server import CentralDP, LocalDP, RecordDP
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.gaussian import grid_slack
from qsfl_flower.privacy.ledger import Budget, Ledger
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.rounds.charges import FILE, read_charges
from qsfl_flower.rounds.record import RunObserver
from qsfl_flower.stages import Clip
from qsfl_flower.strategies import CheckpointStore, PrivacyBudget, StableFedAvg
from qsfl_flower.wire import to_record

RECORD = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.2, steps=10)
SIZE = 4
STAGES = {
    "record_dp": (lambda budget: [RecordDP(RECORD, budget, rounds=5)], RECORD.event(SIZE)),
    "local_dp": (
        lambda budget: [LocalDP(1.0, 5.0, budget, rounds=5)],
        Event(5.0, 1.0, 1, grid_slack(SIZE)),
    ),
    "central_dp": (
        lambda budget: [Clip(1.0), CentralDP(5.0, 3, budget=budget, rounds=5)],
        Event(5.0, 1.0, 1, grid_slack(SIZE + 1)),
    ),
}


class Killed(BaseException):
    """The process ends here: nothing of it is left but its files."""


class Watch(RunObserver):
    def __init__(self):
        self.epsilon, self.ended = None, []

    def on_round(self, record, clients):
        self.epsilon = record.epsilon

    def on_end(self, server_round, reason):
        self.ended.append(reason)


class World:
    """Three devices that count what they send, and a server that is killed and started again."""

    def __init__(self, folder, name, fake_grid, trained, kills=(), budget=None):
        self.folder, self.kills, self.budget = folder, set(kills), budget or PrivacyBudget()
        self.stages, self.event = STAGES[name]
        self.sent, self.watch = [0, 0, 0], Watch()
        self.grid = fake_grid({n: self.device(n, trained) for n in range(3)})

    def device(self, n, trained):
        from flwr.app import Context, RecordDict

        context = Context(1, n, {"partition-id": n}, RecordDict(), {})
        work = trained(0.1, metrics=RECORD.told())

        def answer(message):
            self.sent[n] += 1
            charged = read_charges(self.folder).epsilon
            assert charged >= self.real(self.sent[n]) * (1 - 1e-9)  # durable before it is visible
            reply = qsfl_mod(message, context, lambda m, c: work(m))
            if n == 2 and self.sent[n] in self.kills:
                raise Killed
            return reply

        return answer

    def real(self, rounds):
        event = Event(**{**self.event.to_dict(), "count": rounds})
        return epsilon_of_events(
            [event if self.event.count == 1 else RECORD.event(SIZE, rounds)], 1e-5
        )

    def start(self, rounds=5):
        """Start again until training ends; return how often the process was killed."""
        for kills in range(20):
            store = CheckpointStore(self.folder)
            try:
                resume = store.latest()
            except CheckpointError:
                resume = None
            strategy = StableFedAvg(
                fraction_evaluate=0.0,
                min_available_nodes=3,
                stages=self.stages(self.budget),
                checkpoints=store,
                observer=self.watch,
            )
            initial = to_record({"w": np.zeros(SIZE)})
            try:
                strategy.start(self.grid, initial, rounds, timeout=5, resume=resume)
            except Killed:
                continue
            return kills
        raise AssertionError("training never ended")


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("kills", [{1}, {2, 4}, {1, 2, 3, 5, 7}])
def test_every_round_that_devices_worked_for_is_reported(tmp_path, fake_grid, trained, name, kills):
    world = World(tmp_path, name, fake_grid, trained, kills)
    assert world.start() == len(kills)
    assert max(world.sent) == 5 + len(kills)
    assert world.watch.epsilon == pytest.approx(world.real(5 + len(kills)), rel=1e-4)


@pytest.mark.parametrize("name", STAGES)
def test_a_budget_holds_over_interruptions(tmp_path, fake_grid, trained, name):
    limit = World(tmp_path, name, fake_grid, trained).real(5) * 1.0001
    budget = PrivacyBudget(epsilon=limit)
    world = World(tmp_path, name, fake_grid, trained, {1, 3, 4}, budget)
    world.start(rounds=50)
    assert max(world.sent) == 5
    assert "this run" in world.watch.ended[0]
    assert read_charges(tmp_path).epsilon <= limit


def test_a_ledger_and_the_run_agree_after_a_kill(tmp_path, fake_grid, trained):
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.grant("fed", Budget(100.0))
    budget = PrivacyBudget(ledger=ledger, accounts=["fed/1"])
    world = World(tmp_path / "checkpoints", "central_dp", fake_grid, trained, {2, 3}, budget)
    world.start(rounds=3)
    assert ledger.status("fed").spent == pytest.approx(world.real(5), rel=1e-4)
    assert world.watch.epsilon == pytest.approx(world.real(5), rel=1e-4)


def test_an_older_checkpoint_does_not_bring_the_budget_back(tmp_path, fake_grid, trained):
    world = World(tmp_path, "record_dp", fake_grid, trained)
    world.start(rounds=1)
    old = CheckpointStore(tmp_path).latest()
    world.start(rounds=4)
    for path in tmp_path.glob("round-00000[234].*"):
        path.unlink()
    CheckpointStore(tmp_path).save(old)
    world.start(rounds=2)
    assert max(world.sent) == 5
    assert world.watch.epsilon == pytest.approx(world.real(5), rel=1e-4)


def test_no_instruction_leaves_without_its_charge(tmp_path, fake_grid, trained):
    world = World(tmp_path, "record_dp", fake_grid, trained)
    world.start(rounds=1)
    full = mock.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(CheckpointError, match="charges of round 2 cannot be written"):
        world.start(rounds=2)
    assert max(world.sent) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "[", "[]", "{}", "[" * 100_000, '{"format": 1, "number": "x"}',
        '{"format": 1, "number": 1, "server_round": 1, "fingerprint": "", "stages": {"a": 5}}',
    ],
)  # fmt: skip
def test_damaged_charges_are_refused(tmp_path, fake_grid, trained, damage):
    world = World(tmp_path, "record_dp", fake_grid, trained)
    world.start(rounds=1)
    (tmp_path / FILE).write_text(damage)
    with pytest.raises(CheckpointError, match=r"charges.json is damaged"):
        world.start(rounds=2)
    assert max(world.sent) == 1


@pytest.mark.parametrize("wrong", [-1, 1.5, True, 10**30, "2", None])
def test_counts_in_charges_are_checked(tmp_path, fake_grid, trained, wrong):
    World(tmp_path, "record_dp", fake_grid, trained).start(rounds=1)
    path = tmp_path / FILE
    values = json.loads(path.read_text())
    values["stages"]["record_dp"]["state"]["events"][0]["count"] = wrong
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="damaged"):
        read_charges(tmp_path)


def test_charges_of_another_experiment_are_refused(tmp_path, fake_grid, trained):
    World(tmp_path, "record_dp", fake_grid, trained).start(rounds=1)
    with pytest.raises(CheckpointError, match="another experiment"):
        CheckpointStore(tmp_path, fingerprint="other").charged()


def test_after_a_restart_nobody_counts_for_less_than_the_client_asked_most_often(
    tmp_path, fake_grid, trained
):
    """Nodes may come back in another order, so that rank 0 is another client."""
    world = World(tmp_path, "record_dp", fake_grid, trained)
    world.start(rounds=2)
    state = {**CheckpointStore(tmp_path).latest().states["record_dp"], "asked": {"0": 2, "1": 1}}
    recovered = RecordDP(RECORD).spending.recover(state)
    assert (recovered["asked"], recovered["before"]) == ({}, 2)


def test_a_new_run_in_an_old_folder_replaces_its_checkpoints(tmp_path, fake_grid, trained):
    world = World(tmp_path, "record_dp", fake_grid, trained)
    world.start(rounds=4)
    strategy = StableFedAvg(
        fraction_evaluate=0.0, min_available_nodes=3, stages=world.stages(world.budget),
        checkpoints=CheckpointStore(tmp_path), observer=world.watch,
    )  # fmt: skip
    strategy.start(world.grid, to_record({"w": np.zeros(SIZE)}), 1, timeout=5)
    assert CheckpointStore(tmp_path).latest().server_round == 1
    assert world.watch.epsilon == pytest.approx(world.real(5), rel=1e-4)


def test_an_interruption_counts_like_a_kill(tmp_path, fake_grid, trained):
    world = World(tmp_path, "record_dp", fake_grid, trained)
    world.start(rounds=1)
    world.watch.should_stop = lambda: world.sent[0] == 2
    world.grid.clients[2] = lambda message: None  # still trains
    with pytest.raises(RunInterrupted):
        world.start(rounds=2)
    assert read_charges(tmp_path).epsilon == pytest.approx(world.real(2), rel=1e-4)
