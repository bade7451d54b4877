"""Device selection: everybody takes part, and each policy does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.asynchrony import Draw, Latencies
from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.numerics import Vector
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Phase
from qsfl_flower.rounds.policies import Diverse, History, PowerOfChoice
from qsfl_flower.rounds.stages import VectorStage
from qsfl_flower.rounds.update import Rejection
from qsfl_flower.stages import Cohort, Sender, Update
from qsfl_flower.strategies import POLICIES, StableFedAvg
from qsfl_flower.wire import Form

NAMES = [name for name in POLICIES if name != "random"]
DEVICES = 1000


def sender(rank):
    return Sender(1000 + rank, rank, str(rank))


def update(rank, **metrics):
    named = {k.replace("_", "-"): v for k, v in metrics.items()}
    return Update(sender(rank), 1.0, Vector(()), Form.DELTA, metrics=named)


def labels(*shares):
    return {f"label_{i}": share for i, share in enumerate(shares)}


def rounds(policy, number, count=100, devices=DEVICES, answer=update, latencies=None):
    generator, history, chosen = np.random.default_rng(0), History(), []
    for turn in range(1, number + 1):
        picked = policy.pick(
            Draw(range(devices), count, latencies or Latencies(), generator), history
        )
        history = history.ask(turn, picked)
        answers = [answer(rank) for rank in picked]
        history = history.hear(
            Cohort(
                tuple(a for a in answers if isinstance(a, Update)),
                tuple(a for a in answers if isinstance(a, Rejection)),
            )
        )
        chosen.append(picked)
    return history, chosen


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_every_policy_chooses_different_devices_out_of_those_there(name, data):
    clients = data.draw(st.lists(st.integers(0, 500), min_size=1, max_size=60, unique=True))
    count = data.draw(st.integers(0, len(clients)))
    history = History().ask(1, data.draw(st.lists(st.sampled_from(clients))))
    history = history.hear(
        Cohort(
            tuple(update(c, train_loss=float(c), **labels(c % 2, 1)) for c in clients[::3]),
            tuple(Rejection(sender(c), "device-in-use", "") for c in clients[1::3]),
        )
    )
    draw = Draw(sorted(clients), count, Latencies(), np.random.default_rng(1))
    picked = POLICIES[name]().pick(draw, history)
    assert len(picked) == len(set(picked)) == count
    assert set(picked) <= set(clients)


@pytest.mark.parametrize("name", ["fair", "diverse"])
def test_a_thousand_devices_all_take_part_and_nearly_equally_often(name):
    history, _ = rounds(POLICIES[name](), 20, answer=lambda r: update(r, **labels(r % 10, 1)))
    asked = np.array([history.of(rank).asked for rank in range(DEVICES)])
    assert asked.sum() == 2000
    assert asked.min() >= 1
    if name == "fair":
        assert asked.std() / asked.mean() < 0.1
        assert set(asked) == {2}


def test_fair_spreads_by_at_most_one_at_any_time():
    for number in (1, 3, 7):
        history, _ = rounds(POLICIES["fair"](), number, count=13, devices=40)
        asked = [history.of(rank).asked for rank in range(40)]
        assert max(asked) - min(asked) <= 1


def test_fast_knows_everybody_once_and_then_asks_the_fastest():
    seconds = Latencies()
    for rank in range(40):
        seconds = seconds.observe(rank, 1.0 + rank)
    _, chosen = rounds(POLICIES["fast"](), 6, count=10, devices=40, latencies=seconds)
    assert sorted(rank for picked in chosen[:4] for rank in picked) == list(range(40))
    assert chosen[4] == chosen[5] == list(range(10))


def test_diverse_covers_labels_that_a_random_choice_misses():
    """Nine of ten devices have label 0 only; each of the others brings another one."""

    def shares(rank):
        return update(rank, **labels(*np.eye(5)[rank % 5 if rank % 10 == 0 or rank < 5 else 0]))

    history, _ = rounds(POLICIES["fair"](), 1, count=50, devices=50, answer=shares)
    picked = Diverse(pool=10).pick(
        Draw(range(50), 5, Latencies(), np.random.default_rng(0)), history
    )
    assert len({history.of(r).labels for r in picked}) == 5


def test_power_of_choice_prefers_losses_and_tries_the_unknown_first():
    history = History().hear(Cohort(tuple(update(r, train_loss=float(r)) for r in range(20))))
    everybody = PowerOfChoice(candidates=20)
    picked = everybody.pick(Draw(range(20), 3, Latencies(), np.random.default_rng(0)), history)
    assert picked == [19, 18, 17]
    picked = everybody.pick(Draw(range(22), 3, Latencies(), np.random.default_rng(0)), history)
    assert set(picked) == {20, 21, 19}


def test_available_leaves_refusing_devices_alone_but_comes_back():
    def answer(rank):
        return Rejection(sender(rank), "device-battery-low", "") if rank < 10 else update(rank)

    history, chosen = rounds(POLICIES["available"](), 40, count=5, devices=20, answer=answer)
    refusing = np.array([[rank < 10 for rank in picked] for picked in chosen]).sum(axis=1)
    assert refusing[20:].mean() < 0.5 < refusing[:3].mean()
    # With 31 rounds of rest at most, each is asked again and again.
    assert all(history.of(rank).asked >= 2 for rank in range(10))


def test_a_history_survives_a_checkpoint():
    history, _ = rounds(
        POLICIES["fair"](), 3, count=5, devices=8,
        answer=lambda r: update(r, train_loss=0.5, **labels(1, 3)),
    )  # fmt: skip
    assert History.from_dict(history.to_dict()) == history
    assert history.of(0).labels == (0.25, 0.75)


@pytest.mark.parametrize("made", [lambda: Diverse(0.5), lambda: PowerOfChoice(0)])
def test_parameters_are_checked(made):
    with pytest.raises(ConfigError):
        made()


class Noise(VectorStage):
    name = "noise"
    phase = Phase.PRIVATIZE
    declares = frozenset({Trait.PROTECTS_CLIENTS})

    def apply(self, vector, state, context):
        return vector, state, {}


@pytest.mark.parametrize("name", NAMES)
def test_policies_that_look_at_data_are_refused_under_privacy(name):
    policy = POLICIES[name]()
    if not policy.looks_at_data:
        StableFedAvg(stages=[Noise()], selection=policy)
        return
    with pytest.raises(CompositionError, match="noise counts without it"):
        StableFedAvg(stages=[Noise()], selection=policy)


def test_a_policy_beside_poisson_sampling_is_refused():
    class Drawing(Noise):
        poisson_rate = 0.5

    with pytest.raises(CompositionError, match="noise samples the clients itself"):
        StableFedAvg(stages=[Drawing()], selection=POLICIES["fair"]())


def test_a_strategy_asks_by_its_policy_and_remembers(fake_grid, trained):
    grid = fake_grid({n: trained(float(n)) for n in range(1, 9)})
    strategy = StableFedAvg(
        0.25, 0.0, min_train_nodes=1, selection=POLICIES["fair"](), seed=1, min_replies=1
    )
    model = ArrayRecord({"w": Array(np.zeros(4, np.float32))})
    model["b"] = Array(np.ones(2))
    model["steps"] = Array(np.array(7))
    strategy.start(grid, model, num_rounds=4, timeout=1.0)
    assert sorted(m.metadata.dst_node_id for m in grid.pushed) == list(range(1, 9))
    assert all(strategy.engine.sampling.history.of(r).asked == 1 for r in range(8))
