from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower.clients import qsfl_mod
from qsfl_flower.clients.privacy import privacy_mod
from qsfl_flower.errors import CompositionError
from qsfl_flower.mechanisms.privacy.server import AdaptiveClip, CentralDP, LocalDP, RecordDP
from qsfl_flower.mechanisms.robust.server import Robust
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.privacy.calibration import epsilon_of_events, noise_multiplier_for, rounds_for
from qsfl_flower.privacy.clipping import AdaptiveClip as AdaptiveParameters
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.gaussian import grid_slack
from qsfl_flower.privacy.ledger import Budget, Ledger
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.privacy.schedule import NoiseSchedule
from qsfl_flower.rounds.context import RoundContext
from qsfl_flower.rounds.record import RunObserver
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.stages import Clip
from qsfl_flower.strategies import StableFedAvg

_spec = importlib.util.spec_from_file_location(
    "distributions", Path(__file__).parents[1] / "privacy" / "distributions.py"
)
distributions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(distributions)

SIZE = 20_000


def arrays(value=0.0, size=SIZE) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(size, value, dtype=np.float64))})


def with_mods(client, node, *mods):
    """Let a scripted client answer through the suite's mods."""
    from flwr.app import Context

    context = Context(1, node, {"partition-id": node}, RecordDict(), {})

    def app(message):
        def call(index):
            if index == len(mods):
                return lambda m, c: client(m)
            return lambda m, c: mods[index](m, c, call(index + 1))

        return call(0)(message, context)

    return app


class Watch(RunObserver):
    def __init__(self):
        self.records, self.ended = [], []

    def on_round(self, record, clients):
        self.records.append(record)

    def on_end(self, server_round, reason):
        self.ended.append((server_round, reason))


def run(grid, stages, rounds=1, initial=None, **options):
    watch = Watch()
    strategy = StableFedAvg(
        fraction_evaluate=0.0,
        min_evaluate_nodes=0,
        min_available_nodes=len(grid.clients),
        min_train_nodes=1,
        stages=stages,
        observer=watch,
        **options,
    )
    result = strategy.start(grid, initial or arrays(), rounds, timeout=10)
    return result.arrays["w"].numpy(), watch, strategy


def test_the_sum_is_divided_by_a_constant_whatever_clients_claim(fake_grid, trained):
    step = 1 / math.sqrt(SIZE)  # norm 1 each
    grid = fake_grid({n: trained(step, examples=10**n) for n in range(1, 6)})
    model, watch, _ = run(grid, [Clip(1.0), CentralDP(1e-3, expected_cohort=10, seed=1)])
    assert model.mean() == pytest.approx(5 * step / 10, rel=1e-3)
    told = watch.records[1].stages["central_dp"]
    assert told["sensitivity"] == pytest.approx(0.1)


def test_the_noise_is_that_of_the_accountant(fake_grid, trained):
    grid = fake_grid({n: trained(0.0) for n in range(1, 6)})
    model, watch, _ = run(grid, [Clip(2.0), CentralDP(3.0, expected_cohort=10)])
    assert distributions.fits_normal(model, 3.0 * 2.0 / 10)
    assert not distributions.fits_normal(model, 3.0 * 2.0 / 5)  # the cohort that came
    record = watch.records[1]
    assert record.epsilon == pytest.approx(epsilon_of_events([Event(3.0)], 1e-5), rel=1e-4)


def test_poisson_rounds_draw_everybody_alike_and_are_paid_as_such(fake_grid, trained):
    grid = fake_grid({n: trained(0.0) for n in range(1, 41)})
    stage = CentralDP(2.0, expected_cohort=8, sampling_rate=0.2)
    _, watch, _ = run(grid, [Clip(1.0), stage], rounds=20, initial=arrays(size=10))
    counts = [record.selected for record in watch.records[1:]]
    # 800 draws at 0.2: mean 160, std 11.3; six of them leave a false failure every 5e8 runs.
    assert abs(sum(counts) - 160) < 68
    assert len(set(counts)) > 1
    expected = epsilon_of_events([Event(2.0, 0.2, 20)], 1e-5)
    assert watch.records[-1].epsilon == pytest.approx(expected, rel=1e-4)


def test_a_round_without_clients_is_released_like_any_other(fake_grid, trained):
    grid = fake_grid({n: trained(1.0) for n in range(1, 4)})
    stage = CentralDP(1.0, expected_cohort=1, sampling_rate=1e-9)
    model, watch, _ = run(grid, [Clip(1.0), stage], rounds=2)
    assert distributions.fits_normal(model, math.sqrt(2.0))
    assert [record.selected for record in watch.records[1:]] == [0, 0]
    assert watch.records[2].skipped is None


def test_training_ends_before_the_round_that_would_overspend(fake_grid, trained, tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.grant("fed", Budget(10.0))
    accounts = [f"fed/{n}" for n in range(1, 4)]
    budget = PrivacyBudget(epsilon=1.0, ledger=ledger, accounts=accounts)
    allowed = rounds_for(1.0, 1e-5, 10.0)
    grid = fake_grid({n: trained(0.1) for n in range(1, 4)})
    model, watch, _ = run(grid, [Clip(1.0), CentralDP(10.0, 3, budget=budget)], 50, arrays(size=4))
    assert watch.records[-1].round == allowed < 50
    ((server_round, reason),) = watch.ended
    assert server_round == allowed + 1
    assert "epsilon" in reason
    assert 0.9 < watch.records[-1].epsilon <= 1.0
    assert np.isfinite(model).all()
    assert [row["status"] for row in ledger.history("fed/2")] == ["committed"] * allowed
    assert ledger.status("fed").spent == pytest.approx(watch.records[-1].epsilon, rel=1e-6)


def test_a_ledger_without_room_ends_training_too(fake_grid, trained, tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.grant("fed", Budget(0.5))
    budget = PrivacyBudget(ledger=ledger, accounts=["fed/1"])
    grid = fake_grid({n: trained(0.1) for n in range(1, 4)})
    _, watch, _ = run(grid, [Clip(1.0), CentralDP(10.0, 3, budget=budget)], 50, arrays(size=4))
    assert "'fed' would reach" in watch.ended[0][1]


def test_a_thousand_rounds_at_epsilon_one_use_the_budget_and_no_more():
    multiplier = noise_multiplier_for(1.0, 1e-5, 1000, slack=1e-12)
    stage = CentralDP(multiplier, 100, budget=PrivacyBudget(epsilon=1.0), rounds=1000)
    spending, state = stage.spending, {}
    for _ in range(1000):
        state = spending.commit(state, Event(multiplier, 1.0, 1, 1e-12))
    assert 0.9 <= spending.epsilon(state) <= 1.0
    assert len(state["events"]) == 1


def test_what_was_spent_survives_a_checkpoint():
    stage = CentralDP(NoiseSchedule(5.0, 0.5, 10), 10)
    spending, state = stage.spending, {}
    for r in range(1, 6):
        state = spending.commit(state, Event(stage.schedule.at(r)))
    restored = CentralDP(NoiseSchedule(5.0, 0.5, 10), 10).spending
    saved = json.loads(json.dumps(state))
    assert restored.epsilon(saved) == pytest.approx(spending.epsilon(state), rel=1e-12)


def test_the_clip_norm_learns_privately_and_its_cost_is_included(fake_grid, trained):
    grid = fake_grid({n: trained(0.01) for n in range(1, 21)})  # norms 0.01 sqrt(400) = 0.2
    clip = AdaptiveClip(
        AdaptiveParameters(initial=5.0, learning_rate=0.5, bit_noise=1.0), 20, seed=1
    )
    stage = CentralDP(0.5, 20, seed=1)
    _, watch, _ = run(grid, [clip, stage], rounds=20, initial=arrays(size=400))
    norms = [record.stages["adaptive_clip"]["clip_norm"] for record in watch.records[1:]]
    assert norms[0] == 5.0
    assert 0.1 < norms[-1] < 0.4
    told = watch.records[-1].stages["central_dp"]
    assert told["noise_multiplier"] > 0.5  # the updates pay for the bits
    assert told["sensitivity"] == pytest.approx(norms[-1] / 20)
    assert watch.records[-1].epsilon == pytest.approx(
        epsilon_of_events([Event(0.5, 1.0, 20, grid_slack(401))], 1e-5), rel=1e-3
    )


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ([CentralDP(1.0, 10)], "needs a clip stage"),
        ([Clip(1.0), Robust("median"), CentralDP(1.0, 10)], "2 C = 2"),
        (
            [AdaptiveClip(AdaptiveParameters(initial=1.0, bit_noise=5.0), 10)],
            "only central_dp pays",
        ),
    ],
)
def test_chains_without_a_proof_are_refused(stages, why):
    with pytest.raises(CompositionError, match=why):
        StableFedAvg(stages=stages)


def test_a_selecting_rule_gets_the_noise_of_its_worst_case(fake_grid, trained):
    grid = fake_grid({n: trained(0.0) for n in range(1, 6)})
    stage = CentralDP(1.0, 5, accept_worst_case=True)
    model, _, _ = run(grid, [Clip(1.0), Robust("median"), stage])
    assert distributions.fits_normal(model, 2.0)


RECORD = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.05, steps=20)


def test_clients_that_train_with_less_noise_are_rejected(fake_grid, trained):
    good, weak = RECORD.told(), {**RECORD.told(), "dp-noise-multiplier": 1.0}
    grid = fake_grid(
        {1: trained(1.0, metrics=good), 2: trained(9.0, metrics=weak), 3: trained(9.0)}
    )
    model, watch, _ = run(grid, [RecordDP(RECORD)], rounds=2, initial=arrays(size=3))
    assert model == pytest.approx([2.0] * 3)
    assert watch.records[1].rejected == {"privacy-weaker-than-required": 2}
    assert watch.records[2].epsilon == pytest.approx(
        epsilon_of_events([Event(1.1, 0.05, 40)], 1e-5), rel=1e-3
    )


def test_a_client_counts_for_the_rounds_in_which_it_was_asked(fake_grid, trained):
    grid = fake_grid({n: trained(1.0, metrics=RECORD.told()) for n in range(1, 11)})
    _, watch, strategy = run(
        grid, [RecordDP(RECORD)], rounds=10, initial=arrays(size=3), fraction_train=0.3, seed=1
    )
    worst = max(strategy.states["record_dp"]["asked"].values())
    assert worst < 10
    assert watch.records[-1].epsilon == pytest.approx(
        epsilon_of_events([Event(1.1, 0.05, 20 * worst)], 1e-5), rel=1e-3
    )


def test_the_mod_sends_nothing_that_was_not_trained_privately(fake_grid, trained):
    grid = fake_grid({n: with_mods(trained(1.0), n, qsfl_mod) for n in range(1, 3)})
    with pytest.raises(Exception, match="did not train as the strategy requires"):
        run(grid, [RecordDP(RECORD)], initial=arrays(size=3))


def test_local_noise_is_added_on_the_device(fake_grid, trained):
    clients = {n: with_mods(trained(1.0, metrics={"loss": 1.0}), n, qsfl_mod) for n in range(1, 5)}
    model, watch, _ = run(fake_grid(clients), [LocalDP(clip_norm=0.5, noise_multiplier=4.0)])
    noise = model - 0.5 / math.sqrt(SIZE)
    assert distributions.fits_normal(noise, 4.0 * 2 * 0.5 / math.sqrt(4))
    assert watch.records[1].train_loss is None
    assert watch.records[1].epsilon == pytest.approx(
        epsilon_of_events([Event(4.0)], 1e-5), rel=1e-4
    )


def test_a_client_with_its_own_minimum_refuses_and_says_why(fake_grid, trained):
    clients = {n: trained(1.0) for n in range(1, 4)}
    strict = MinimumPolicy(epsilon=1.0)
    clients[4] = with_mods(trained(1.0), 4, privacy_mod(strict), qsfl_mod)
    clients[5] = with_mods(
        trained(1.0), 5, privacy_mod(MinimumPolicy(epsilon=9.0, placements=("record",))), qsfl_mod
    )
    _, watch, _ = run(
        fake_grid(clients), [Clip(1.0), CentralDP(2.0, 5, rounds=3)], initial=arrays(size=3)
    )
    assert watch.records[1].rejected == {
        "privacy-epsilon-too-large": 1,
        "privacy-placement-not-accepted": 1,
    }
    assert watch.records[1].accepted == 3


def test_a_client_with_its_own_minimum_trains_where_it_is_met(fake_grid, trained):
    mod = privacy_mod(MinimumPolicy(epsilon=2.0))
    clients = {n: with_mods(trained(1.0), n, mod, qsfl_mod) for n in range(1, 4)}
    _, watch, _ = run(
        fake_grid(clients), [Clip(1.0), CentralDP(8.0, 5, rounds=4)], initial=arrays(size=3)
    )
    assert watch.records[1].accepted == 3


def test_no_protection_is_refused_as_such(inside_run):
    mod = privacy_mod(MinimumPolicy(epsilon=2.0))
    message = Message(RecordDict({"arrays": arrays(size=2)}), 1, "train")
    message.metadata.__dict__["_message_id"] = "m"
    reply = with_mods(lambda m: pytest.fail("the app was called"), 1, mod, qsfl_mod)(message)
    assert reply.content.config_records["qsfl"]["refused"] == "privacy-no-protection"
    assert not isinstance(next(iter(reply.content.values())), MetricRecord)


def test_metrics_of_private_records_stay_on_the_device(fake_grid, trained):
    """An app of one's own may report its loss; it depends on records without any noise."""
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=2.0, sampling_rate=0.1, steps=3)

    def told(message):
        reply = trained(0.1)(message)
        metrics = {**privacy.told(), "num-examples": 7, "train-loss": 0.123}
        reply.content["metrics"] = MetricRecord(metrics)
        return reply

    grid = fake_grid({n: with_mods(told, n, qsfl_mod) for n in (1, 2)})
    seen = []
    pull = grid.pull_messages

    def watched(ids):
        replies = pull(ids)
        seen.extend(m.content["metrics"] for m in replies)
        return replies

    grid.pull_messages = watched
    strategy = StableFedAvg(
        fraction_evaluate=0.0, min_available_nodes=2, stages=[RecordDP(privacy)]
    )
    strategy.start(grid, arrays(size=50), 1, timeout=5)
    assert [set(m) for m in seen] == [{"num-examples", *privacy.told()}] * 2


@pytest.mark.parametrize("stage", [LocalDP(1.0, 1.0), RecordDP(RecordPrivacy(
    clip_norm=1.0, noise_multiplier=2.0, sampling_rate=0.1, steps=3))])  # fmt: skip
def test_evaluation_on_private_records_is_refused(stage):
    with pytest.raises(CompositionError, match="without the noise of"):
        StableFedAvg(fraction_evaluate=0.5, stages=[stage])


COUNTED = {"w": np.zeros(8), "seen": np.array([3, 4]), "flags": np.array([True, False])}


def counting(step, counter, flag):
    """A client whose counters tell about its data."""

    def client(message):
        record = message.content["arrays"]
        changed = {
            "w": Array(record["w"].numpy() + step),
            "seen": Array(np.array([counter, counter + 1])),
            "flags": Array(np.array([flag, flag])),
        }
        told = {"num-examples": 10, "dp-clip-norm": 1.0, "dp-noise-multiplier": 2.0}
        told |= {"dp-sampling-rate": 1.0, "dp-steps": 1}
        content = {"arrays": ArrayRecord(changed), "metrics": MetricRecord(told)}
        return Message(RecordDict(content), reply_to=message)

    return client


NOISY = {
    "central": lambda: [Clip(1.0), CentralDP(50.0, 5)],
    "local": lambda: [LocalDP(1.0, 50.0)],
    "record": lambda: [
        RecordDP(RecordPrivacy(clip_norm=1.0, noise_multiplier=2.0, sampling_rate=1.0, steps=1))
    ],
}


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(NOISY)),
    st.lists(st.tuples(st.integers(-(2**40), 2**40), st.booleans()), min_size=5, max_size=5),
)
def test_no_released_number_changes_without_noise(fake_grid, placement, secrets):
    """Counters and flags of a model would tell what clients hold, however much noise there is."""
    clients = {
        n: with_mods(counting(0.1, counter, flag), n, qsfl_mod)
        for n, (counter, flag) in enumerate(secrets, 1)
    }
    grid, sent = fake_grid(clients), []
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [sent.append(m) or m for m in pull(ids)]
    start = ArrayRecord({k: Array(v) for k, v in COUNTED.items()})
    _, _, strategy = run(grid, NOISY[placement](), initial=start)
    for name in ("seen", "flags"):
        assert strategy.outcome.arrays[name].tolist() == COUNTED[name].tolist()
        if placement != "central":  # nor does it leave the device
            told = [m.content["arrays"][name].numpy().tolist() for m in sent]
            assert told == [COUNTED[name].tolist()] * 5


def test_noise_in_two_strategies_follows_the_clip_norm_of_each():
    noise = CentralDP(1.0, 1.0, seed=1)
    chains = [StableFedAvg(stages=[Clip(norm), noise]).chain for norm in (10.0, 0.1)]
    layout, told = Layout.of({"w": np.zeros(4)}), []
    for chain in chains:
        context = RoundContext(1, layout, Vector.dense(np.zeros(4)))
        _, _, measured = chain.on_vector(np.zeros(4), chain.init(layout, {}), context)
        told.append(measured["central_dp"])
    assert [t["sensitivity"] for t in told] == [10.0, 0.1]
    assert told[0]["noise_std"] == pytest.approx(100 * told[1]["noise_std"], rel=1e-3)


def test_an_account_in_two_strategies_is_one_for_each(fake_grid):
    privacy = RecordPrivacy.within(8.0, 1e-5, 2, clip_norm=1.0, sampling_rate=0.1, steps=5)
    stage = RecordDP(privacy, PrivacyBudget(epsilon=8.0), rounds=2)
    spent = []
    for _ in range(2):
        clients = {n: with_mods(private(privacy), n, qsfl_mod) for n in (1, 2)}
        _, watch, _ = run(fake_grid(clients), [stage], rounds=2, initial=arrays(size=4))
        spent.append([record.epsilon for record in watch.records[1:]])
    assert spent[0] == spent[1]
    assert len(spent[0]) == 2


@pytest.mark.parametrize(
    ("rounds", "epsilon", "rate"), [(3, 8.0, 0.1), (10, 8.0, 0.02), (20, 1.0, 1.0)]
)
def test_a_run_that_is_planned_for_its_budget_gets_to_its_end(fake_grid, rounds, epsilon, rate):
    privacy = RecordPrivacy.within(
        epsilon, 1e-5, rounds, clip_norm=1.0, sampling_rate=rate, steps=5
    )
    clients = {n: with_mods(private(privacy), n, qsfl_mod) for n in (1, 2)}
    stage = RecordDP(privacy, PrivacyBudget(epsilon=epsilon), rounds=rounds)
    _, watch, _ = run(fake_grid(clients), [stage], rounds=rounds, initial=arrays(size=4))
    assert watch.ended == []
    assert watch.records[-1].round == rounds
    assert 0.999 * epsilon < watch.records[-1].epsilon <= epsilon


def private(privacy):
    """A client that says that it trained as required."""

    def client(message):
        w = Array(message.content["arrays"]["w"].numpy() + 0.1)
        told = MetricRecord({"num-examples": 10, **privacy.told()})
        content = {"arrays": ArrayRecord({"w": w}), "metrics": told}
        return Message(RecordDict(content), reply_to=message)

    return client
