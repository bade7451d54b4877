"""An app with a training loop of its own, by Opacus, under `RecordDP`."""

from __future__ import annotations

import warnings

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from opacus import PrivacyEngine
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from qsfl_flower.clients import qsfl_mod
from qsfl_flower.clients.opacus import record_privacy, unwrapped
from qsfl_flower.clients.privacy import privacy_mod
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.privacy.server import RecordDP
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.strategies import RunObserver, StableFedAvg
from qsfl_flower.testing import LocalGrid

REQUIRED = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.5, sampling_rate=0.25, steps=4)
DATA = TensorDataset(torch.randn(40, 6), torch.randint(0, 3, (40,)))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def private(engine, noise=1.5, clip=1.0, **options):
    model = nn.Linear(6, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return engine.make_private(
            module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(DATA, batch_size=10), noise_multiplier=noise,
            max_grad_norm=clip, **options,
        )  # fmt: skip


def steps(model, optimizer, loader):
    for x, y in loader:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_what_opacus_did_is_read_from_its_engine():
    engine = PrivacyEngine()
    model, optimizer, loader = private(engine)
    steps(model, optimizer, loader)
    assert record_privacy(engine, optimizer, loader) == REQUIRED
    assert list(unwrapped(model).state_dict()) == ["weight", "bias"]
    assert unwrapped(unwrapped(model)) is unwrapped(model)
    before = list(engine.accountant.history)
    optimizer.noise_multiplier = 1.0
    steps(model, optimizer, loader)
    assert record_privacy(engine, optimizer, loader).steps == 8
    assert record_privacy(engine, optimizer, loader).noise_multiplier == 1.0
    second = record_privacy(engine, optimizer, loader, before=before)
    assert (second.steps, second.noise_multiplier) == (4, 1.0)
    with pytest.raises(ConfigError, match="no step"):
        record_privacy(engine, optimizer, loader, before=list(engine.accountant.history))


def test_clip_norms_by_layer_count_together():
    engine = PrivacyEngine()
    model, optimizer, loader = private(engine, clip=[3.0, 4.0], clipping="per_layer")
    steps(model, optimizer, loader)
    assert record_privacy(engine, optimizer, loader).clip_norm == pytest.approx(5.0)


def test_what_has_no_fixed_bound_or_no_coin_is_refused():
    engine = PrivacyEngine()
    model, optimizer, loader = private(engine, poisson_sampling=False)
    steps(model, optimizer, loader)
    with pytest.raises(ConfigError, match="poisson_sampling=True"):
        record_privacy(engine, optimizer, loader)
    _, _, coins = private(engine)
    with pytest.raises(ConfigError, match="SGD is not known"):
        record_privacy(engine, torch.optim.SGD(model.parameters(), lr=0.1), coins)


class Watch(RunObserver):
    def __init__(self):
        self.records = []

    def on_round(self, record, clients):
        self.records.append(record)


@pytest.mark.parametrize(
    ("noise", "limit", "accepted"), [(1.5, 50, 2), (1.0, 50, 0), (1.5, 0.1, 0)]
)
def test_the_mod_enforces_what_was_required_and_the_nodes_policy(noise, limit, accepted):
    trained = []
    app = ClientApp(mods=[privacy_mod(MinimumPolicy(epsilon=limit)), qsfl_mod])

    @app.train()
    def train(message, context):
        engine = PrivacyEngine()
        model, optimizer, loader = private(engine, noise)
        unwrapped(model).load_state_dict(message.content["arrays"].to_torch_state_dict())
        steps(model, optimizer, loader)
        trained.append(1)
        told = {"num-examples": 40, "loss": 1.0, **record_privacy(engine, optimizer, loader).told()}
        content = {
            "arrays": ArrayRecord(unwrapped(model).state_dict()),
            "metrics": MetricRecord(told),
        }
        return Message(RecordDict(content), reply_to=message)

    watch = Watch()
    strategy = StableFedAvg(
        stages=[RecordDP(REQUIRED)], fraction_evaluate=0.0, min_available_nodes=2, observer=watch
    )
    start = ArrayRecord(nn.Linear(6, 3).state_dict())
    try:
        strategy.start(LocalGrid(app, 2), start, num_rounds=1, timeout=60)
    except Exception:
        assert not accepted
    assert bool(trained) == (limit == 50)  # the policy refuses before training
    assert sum(record.accepted for record in watch.records) == accepted
    if accepted:
        expected = epsilon_of_events([REQUIRED.event(21)], 1e-5)
        assert watch.records[1].epsilon == pytest.approx(expected, rel=1e-3)
