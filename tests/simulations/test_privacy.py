from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.clients.models import get_arrays
from qsfl_flower.clients.privacy import policy_mod
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.privacy.server import CentralDP, DistributedDP, LocalDP, RecordDP
from qsfl_flower.numerics import Layout
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import Event
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.explanation import explain
from qsfl_flower.rounds.facts import Topic
from qsfl_flower.simulations.app import mods_of
from qsfl_flower.simulations.build import client_of, owners_of
from qsfl_flower.simulations.config import experiment_from_dict, load_experiment
from qsfl_flower.simulations.materials import model_of
from qsfl_flower.simulations.stages import stages_of

CLIP = {"stage": "clip", "clip_norm": 1.0}
CENTRAL = {"stage": "central_dp", "epsilon": 1.0}
SECURE = [
    {"stage": "authenticate"},
    {
        "stage": "secure_sum", "clip_norm": 20.0, "weighted": False, "metrics": [],
        "min_clients": 4,
    },
]  # fmt: skip
SHARES = {"stage": "distributed_dp", "epsilon": 1.0}
RECORDS = {"clip_norm": 1.0, "sampling_rate": 0.1, "count": 1000}


def experiment(*stages, **sections):
    strategy = {"name": "fedavg", "stages": list(stages), **sections.pop("strategy", {})}
    return experiment_from_dict({"rounds": 50, "strategy": strategy, **sections})


def test_noise_is_calibrated_for_all_rounds_and_the_real_sampling():
    clients = {"count": 20, "fraction_train": 0.2}
    exp = experiment(CLIP, CENTRAL, clients=clients)
    stage = next(s for s in stages_of(exp) if isinstance(s, CentralDP))
    assert stage.denominator == 4
    assert stage.poisson_rate == 0.2
    spent = epsilon_of_events([Event(stage.schedule.at(1), 0.2, 50)], 1e-5)
    assert 0.95 < spent <= 1.0


def test_without_poisson_no_amplification_is_claimed():
    clients = {"count": 20, "fraction_train": 0.2}
    exp = experiment(CLIP, {**CENTRAL, "poisson": False}, clients=clients)
    stage = next(s for s in stages_of(exp) if isinstance(s, CentralDP))
    assert stage.poisson_rate is None
    assert epsilon_of_events([Event(stage.schedule.at(1), 1.0, 50)], 1e-5) <= 1.0


def test_clients_train_privately_where_the_strategy_requires_it():
    exp = experiment(RECORD)
    stage = next(s for s in stages_of(exp) if isinstance(s, RecordDP))
    client = client_of(exp, owners_of(exp), 0)
    told = client.fit(client.get_parameters({}), {})[2]
    assert stage.privacy.weaker(told) is None
    assert epsilon_of_events([stage.privacy.event(1000, 50)], 1e-5) <= 2.0


def squares(outputs, labels):
    """A loss of its own: it learns nothing from the labels."""
    return outputs.square().mean()


OWN = {"loss": f"{__name__}:squares", "at_once": 7}
RECORD = {"stage": "record_dp", "epsilon": 2.0, "clip_norm": 1.0, "sampling_rate": 0.1}


@pytest.mark.parametrize(
    "stages",
    [
        [{**RECORD, **OWN, "steps": 1}],
        [*SECURE, {**SHARES, "records": {**RECORDS, **OWN}}],
    ],
)
def test_the_loss_and_the_physical_batch_are_the_files(stages, monkeypatch):
    seen = []

    def watched(outputs, labels):
        seen.append(len(labels))
        return outputs.square().mean()

    monkeypatch.setattr(f"{__name__}.squares", watched)
    exp = experiment(*stages)
    client = client_of(exp, owners_of(exp), 0)
    seen.clear()
    start = client.get_parameters({})
    moved, *_ = client.fit(start, {})
    assert 0 < max(seen) <= 7
    assert any(not np.array_equal(a, b) for a, b in zip(start, moved, strict=True))


def test_copies_of_a_record_are_augmented(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "qsfl_flower.clients.dpsgd.augmented",
        lambda pictures, generator: seen.append(len(pictures)) or pictures,
    )
    exp = experiment(
        {**RECORD, "copies": 3, "sampling_rate": 1.0, "steps": 1}, clients={"augment": True}
    )
    client = client_of(exp, owners_of(exp), 0)
    _, examples, _ = client.fit(client.get_parameters({}), {})
    assert seen == [3 * examples]


@pytest.mark.parametrize("records", [None, RECORDS])
def test_noise_in_shares_is_calibrated_and_has_room(records):
    exp = experiment(*SECURE, {**SHARES, "records": records})
    stages = stages_of(exp)
    Chain(stages)  # finds the bound of the secure sum large enough
    stage = next(s for s in stages if isinstance(s, DistributedDP))
    rate = 1.0 if records is None else 0.1
    assert stage.denominator == (10 if records is None else 100)
    assert 0.95 < epsilon_of_events([Event(stage.noise_multiplier, rate, 50)], 1e-5) <= 1.0
    client = client_of(exp, owners_of(exp), 0)
    told = client.fit(client.get_parameters({}), {})[2]
    assert ("dp-sum-norm" in told) == (records is not None)


def test_local_noise_covers_replacing_an_update():
    exp = experiment({"stage": "local_dp", "epsilon": 4.0, "clip_norm": 1.0})
    stage = next(s for s in stages_of(exp) if isinstance(s, LocalDP))
    assert epsilon_of_events([Event(stage.noise_multiplier, 1.0, 50)], 1e-5) <= 4.0


def test_clients_with_a_minimum_get_the_mod_inside_authentication():
    exp = experiment(clients={"count": 3, "minimum_privacy": {"epsilon": 1.0}})
    mods = [type(mod) for mod in mods_of(exp, owners_of(exp))]
    assert mods.count(policy_mod) == 1


@pytest.mark.parametrize(
    ("stages", "sections", "why"),
    [
        ([CENTRAL], {}, "add stage clip"),
        ([{"stage": "adaptive_clip", "initial": 1.0}], {}, "only central_dp pays"),
        ([RECORD], {"personalization": {"method": "maml"}}, "changes the gradients of all"),
        (
            [{**RECORD, "steps": 1}],
            {"personalization": {"method": "fedrep", "head": ["3."]}},
            "set steps to 2 or more",
        ),
        ([{**RECORD, "copies": 2}], {}, "copies: 2 equal copies of a record"),
        ([{**RECORD, "copies": 0}], {"clients": {"augment": True}}, "copies: must be"),
        ([{**RECORD, "at_once": 0}], {}, "at_once: must be"),
        ([{**RECORD, "loss": "huber"}], {}, "loss: must be package.module:function or null"),
        ([SHARES], {}, "add stage secure_sum or masked_sum"),
        (
            [*SECURE, {**SHARES, "records": RECORDS}],
            {"personalization": {"method": "fedper", "head": ["3."]}},
            "by sums without noise",
        ),
        (
            [*SECURE, {**SHARES, "records": RECORDS}],
            {"strategy": {"name": "scaffold"}},
            "before any noise is added",
        ),
        ([CLIP, {**CENTRAL, "epsilon": 0}], {}, "epsilon"),
        ([CLIP, {**CENTRAL, "delta": 1}], {}, "delta"),
        ([CLIP, {**CENTRAL, "sigma": 1}], {}, "sigma"),
    ],
)
def test_experiments_without_a_guarantee_are_refused(stages, sections, why):
    with pytest.raises(ConfigError, match=why):
        experiment(*stages, **sections)


@pytest.mark.parametrize("name", ["dp_central", "dp_record", "dp_distributed", "quickstart"])
def test_shipped_experiments_use_their_budget_and_no_more(name):
    """Noise that is larger than needed costs accuracy for nothing."""
    exp = load_experiment(name)
    layout = Layout.of(get_arrays(model_of(exp)))
    (told,) = explain(Chain(stages_of(exp)), layout, exp.rounds, 1).sentences[Topic.PRIVACY]
    epsilon = float(told[1 : told.index(",")])
    (limit,) = {spec.epsilon for spec in exp.strategy.stages if hasattr(spec, "epsilon")}
    assert 0.98 * limit < epsilon <= limit
