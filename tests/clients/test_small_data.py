"""Clients with few records: batch norm with a remainder of one, one record, none, no test data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import nn
from torch.nn import functional

from qsfl_flower.clients.batches import batch_end
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.device import DeviceClass, DeviceProfile, Reading, TraceMonitor
from qsfl_flower.clients.mobile import Device, MobileClient
from qsfl_flower.clients.personal import PersonalClient
from qsfl_flower.clients.scaffold import ScaffoldClient
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient, evaluate_model
from qsfl_flower.clients.training import After, LocalTraining
from qsfl_flower.errors import DataError
from qsfl_flower.personalization import METHODS, Personalization

PLAIN = Normalization((0.0,) * 6, (1.0,) * 6)
FINE = Reading(battery=0.9, charging=True, metered=False, in_use=False, online=True)


def normed() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def plain() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.ReLU(), nn.Linear(8, 2))


def data(count: int) -> Dataset:
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return Dataset("npz", x, y, x[:0], y[:0], (6,), 2, None, "here", PLAIN)


def clients(model: nn.Module, of: Dataset, **config: Any) -> dict[str, TrainingClient]:
    settings = TrainConfig(**{"batch_size": 8, "learning_rate": 0.1, **config})
    common: dict[str, Any] = {"seed": 3, "client_id": 0}
    profile = DeviceProfile(2000.0, 4, DeviceClass.HIGH)
    device = Device(profile, TraceMonitor(lambda _: FINE, 0.0, 1000.0))
    found: dict[str, TrainingClient] = {
        "plain": TrainingClient(model, of, settings, **common),
        "scaffold": ScaffoldClient(model, of, settings, state=RecordDict(), **common),
        "mobile": MobileClient(model, of, settings, device=device, **common),
    }
    for method in METHODS:
        how = Personalization(method=method, head=("3.",))
        found[method] = PersonalClient(
            model, of, settings, personalization=how, state=RecordDict(), **common
        )
    return found


def arrays_for(client: TrainingClient) -> list[np.ndarray]:
    given = client.get_parameters({})
    if not isinstance(client, ScaffoldClient):
        return given
    return [*given, *(np.zeros_like(a) for a in given if a.dtype.kind == "f")]


KINDS = list(clients(plain(), data(4)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [9, 17, 2, 3])
def test_a_last_batch_of_one_does_not_stop_batch_norm(kind: str, count: int) -> None:
    client = clients(normed(), data(count))[kind]
    given = arrays_for(client)
    sent, used, metrics = client.fit(given, {"server-round": 1})
    if kind in ("maml", "per-fedavg") and count < 4:
        assert used == 0  # one of the two parts has a single record
        return
    assert used == count
    assert metrics["skipped-batches"] == 0
    assert any(not np.array_equal(a, b) for a, b in zip(sent, given, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "factory"), [(0, plain), (0, normed), (1, plain), (1, normed)])
def test_a_client_with_at_most_one_record_replies(kind: str, count: int, factory: Any) -> None:
    client = clients(factory(), data(count))[kind]
    given = arrays_for(client)
    sent, used, _ = client.fit(given, {"server-round": 1})
    learns = count == 1 and factory is plain and kind not in ("maml", "per-fedavg")
    assert used == int(learns)
    assert learns != all(np.array_equal(a, b) for a, b in zip(sent, given, strict=True))
    assert client.evaluate(given, {})[:2] == (0.0, 0)


def test_the_remainder_joins_the_last_batch_and_nothing_else_changes() -> None:
    """Against torch's own loop over 8 and 9 of 17 records, in the order of the shuffle."""
    of, model = data(17), normed()
    TrainingClient(model, of, TrainConfig(batch_size=8, learning_rate=0.1), seed=0, client_id=0)
    training = LocalTraining(
        model, of.x_train, of.y_train, PLAIN, TrainConfig(batch_size=8, learning_rate=0.1), seed=5
    )
    sizes = []
    training.run(lambda t: (sizes.append(t.last_batch), After.GO_ON)[1])
    assert sizes == [8, 9]
    assert training.planned == 2
    order = torch.randperm(17, generator=torch.Generator().manual_seed(5))
    other = normed()
    step = torch.optim.SGD(other.parameters(), lr=0.1)
    x, y = torch.tensor(of.x_train), torch.tensor(of.y_train)
    for rows in (order[:8], order[8:]):
        step.zero_grad()
        functional.cross_entropy(other(x[rows]), y[rows]).backward()
        step.step()
    for ours, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 8])
def test_parts_of_a_batch_have_no_remainder_of_one_either(micro_batch: int) -> None:
    of = data(9)
    config = TrainConfig(batch_size=9)
    training = LocalTraining(
        normed(), of.x_train, of.y_train, PLAIN, config, seed=5, micro_batch=micro_batch
    )
    training.run()
    assert training.result().skipped_batches == int(micro_batch == 1)


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("count", range(1, 20))
def test_batches_cover_every_record_once_and_as_many_as_planned(
    count: int, size: int, least: int
) -> None:
    ends, at = [], 0
    while at < count:
        at = batch_end(at, size, count, least)
        ends.append(at)
    lengths = np.diff([0, *ends])
    assert lengths.sum() == count
    assert lengths[-1] >= min(least, count)
    of = data(count)
    model = normed() if least == 2 else plain()
    config = TrainConfig(batch_size=size)
    planned = LocalTraining(model, of.x_train, of.y_train, PLAIN, config, seed=0).planned
    assert planned == len(ends)


def test_other_errors_of_a_batch_of_one_are_not_hidden() -> None:
    class Wrong(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("a fault of the model")

    client = TrainingClient(Wrong(6, 2), data(1), TrainConfig(), seed=3, client_id=0)
    with pytest.raises(ValueError, match="a fault of the model"):
        client.fit(client.get_parameters({}), {})


def test_an_evaluation_on_nothing_says_so() -> None:
    empty = data(0)
    with pytest.raises(DataError, match="0 examples; at least 1"):
        evaluate_model(plain(), empty.x_train, empty.y_train, PLAIN)


class Auxiliary(nn.Module):
    """A model with a head that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head, self.auxiliary = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("maml", "first"),
        ("maml", "second"),
        ("per-fedavg", "second"),
        ("per-fedavg", "hessian-free"),
    ],
)
def test_meta_learning_leaves_alone_what_the_loss_does_not_use(method: str, order: str) -> None:
    model = Auxiliary()
    client = PersonalClient(
        model,
        data(20),
        TrainConfig(),
        seed=3,
        client_id=0,
        personalization=Personalization(method=method, order=order, inner_steps=1),
        state=RecordDict(),
    )
    given = client.get_parameters({})
    sent, used, _ = client.fit(given, {"server-round": 1})
    moved = {
        name: not np.array_equal(a, b)
        for name, a, b in zip(model.state_dict(), sent, given, strict=True)
    }
    assert used == 20
    assert moved == {name: not name.startswith("auxiliary") for name in moved}
