"""SCAFFOLD: both halves over the fake grid; drift goes away where FedAvg keeps it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp.typing import Mod

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.models import get_arrays, set_arrays
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.personal import STATE as PERSONAL
from qsfl_flower.clients.personal import PersonalClient
from qsfl_flower.clients.scaffold import STATE, ScaffoldClient, next_control
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.personalization import Personalization
from qsfl_flower.stages import (
    Authenticate,
    Committee,
    Compress,
    RoundContext,
    SecureSum,
    ServerMomentum,
    Stage,
)
from qsfl_flower.strategies import RunObserver, ScaffoldFedAvg, StableFedAvg
from qsfl_flower.strategies.scaffold import ControlVariates, with_controls
from qsfl_flower.wire import from_record, to_record

torch.set_num_threads(1)
CONFIG = TrainConfig(epochs=10, batch_size=20, learning_rate=0.5)


def data(shift: float) -> Dataset:
    """20 examples in one batch; labels of the two clients disagree where their data overlap."""
    rng = np.random.default_rng(int(10 * shift) % 97)
    x = (rng.normal(size=(20, 2)) + shift).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=20) > shift).astype(np.int64)
    scale = Normalization((0.0, 0.0), (1.0, 1.0))
    return Dataset("npz", x, y, x, y, (2,), 2, None, "here", scale)


DEVICES = [data(-1.0), data(2.0)]


def linear(shape: Any, classes: int) -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return linear((2,), 2)


def slope(arrays: dict[str, np.ndarray]) -> float:
    """Norm of the gradient of the mean loss over all examples of both clients."""
    net = model()
    set_arrays(net, arrays)
    x = torch.tensor(np.concatenate([d.x_train for d in DEVICES]))
    y = torch.tensor(np.concatenate([d.y_train for d in DEVICES]))
    torch.nn.functional.cross_entropy(net(x), y).backward()
    return float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())


class Traffic(RunObserver):
    up = down = 0

    def on_round(self, record: Any, clients: Any) -> None:
        self.up, self.down = record.bytes_up, record.bytes_down


def federate(
    fake_grid: Any,
    scaffold: bool,
    rounds: int,
    clients: int = 2,
    stages: Sequence[Stage] = (),
    mods_of: Callable[[int], list[Mod]] = lambda _: [qsfl_mod],
    how: Personalization | None = None,
    states: dict[int, RecordDict] | None = None,
) -> tuple[dict[str, np.ndarray], Traffic]:
    states = {} if states is None else states
    contexts = {
        n: Context(1, n, {"partition-id": n}, states.setdefault(n, RecordDict()), {})
        for n in range(1, clients + 1)
    }

    def client(context: Context) -> TrainingClient:
        device = DEVICES[(context.node_id - 1) % 2]
        kept = {"seed": 0, "client_id": context.node_id, "state": context.state}
        if scaffold:
            return ScaffoldClient(model(), device, CONFIG, personalization=how, **kept)
        if how is not None:
            return PersonalClient(model(), device, CONFIG, personalization=how, **kept)
        return TrainingClient(model(), device, CONFIG, seed=0, client_id=context.node_id)

    apps = {n: numpy_client_app(client, mods_of(n)) for n in contexts}
    grid = fake_grid({n: lambda m, n=n: apps[n](m, contexts[n]) for n in contexts})
    seen = Traffic()
    kind = ScaffoldFedAvg if scaffold else StableFedAvg
    strategy = kind(fraction_evaluate=0.0, observer=seen, stages=stages)
    result = strategy.start(grid, to_record(get_arrays(model())), num_rounds=rounds, timeout=1.0)
    return from_record(result.arrays), seen


def test_drift_goes_away_and_the_bytes_double(fake_grid: Any) -> None:
    plain, one = federate(fake_grid, False, 30)
    corrected, two = federate(fake_grid, True, 30)
    assert set(corrected) == set(plain)
    # FedAvg stands still where the sum of its clients' pseudo-gradients is zero, which is not
    # where the gradient is; SCAFFOLD's only fixed point is the optimum.
    assert slope(plain) > 0.01
    assert slope(corrected) < slope(plain) / 50
    weights = sum(a.nbytes for a in get_arrays(model()).values())
    assert two.down - one.down >= 2 * weights
    assert two.up - one.up >= 2 * weights


def common_slope(arrays: dict[str, np.ndarray], states: dict[int, RecordDict]) -> float:
    """Norm of the gradient of what is common, where each client has its own bias."""
    total = np.zeros((2, 2), np.float32)
    for device, state in zip(DEVICES, states.values(), strict=True):
        net = model()
        set_arrays(net, {**arrays, **from_record(state[PERSONAL])})
        loss = torch.nn.functional.cross_entropy
        loss(net(torch.tensor(device.x_train)), torch.tensor(device.y_train)).backward()
        total += net.weight.grad.numpy() / 2
    return float(np.linalg.norm(total))


def test_drift_of_what_is_common_goes_away_where_layers_stay(fake_grid: Any) -> None:
    """The bias stays on each device and has no control variate; it fits the common weights."""
    how, plain, corrected = Personalization(method="fedper", head=("bias",)), {}, {}
    drifted, _ = federate(fake_grid, False, 15, how=how, states=plain)
    common, _ = federate(fake_grid, True, 15, how=how, states=corrected)
    assert common_slope(drifted, plain) > 0.05
    assert common_slope(common, corrected) < common_slope(drifted, plain) / 20
    for state in corrected.values():
        controls = from_record(state[STATE])
        assert not controls["bias"].any()
        assert controls["weight"].any()
    assert np.array_equal(common["bias"], get_arrays(model())["bias"])


def test_one_common_step_behind_own_layers_has_no_drift_to_correct(fake_grid: Any) -> None:
    """FedRep takes one step of the common layers here, so that all corrections cancel."""
    how = Personalization(method="fedrep", head=("bias",))
    plain, _ = federate(fake_grid, False, 3, how=how)
    corrected, _ = federate(fake_grid, True, 3, how=how)
    np.testing.assert_allclose(corrected["weight"], plain["weight"], atol=1e-6)


def test_dittos_own_model_leaves_the_common_one_as_it_is(fake_grid: Any) -> None:
    """With an own model beside it, the common one is bit for bit that of SCAFFOLD alone."""
    alone, _ = federate(fake_grid, True, 3)
    states: dict[int, RecordDict] = {}
    beside, _ = federate(fake_grid, True, 3, how=Personalization(method="ditto"), states=states)
    assert all(np.array_equal(alone[name], beside[name]) for name in alone)
    own = [from_record(state[PERSONAL])["weight"] for state in states.values()]
    assert not np.array_equal(*own)


@pytest.mark.parametrize(
    ("method", "why"),
    [("maml", "meta-gradients"), ("per-fedavg", "meta-gradients"), ("reptile", "take out of them")],
)
def test_methods_without_plain_common_steps_are_refused(method: Any, why: str) -> None:
    how, config = Personalization(method=method), TrainConfig()
    kept = {"seed": 0, "client_id": 1, "state": RecordDict()}
    with pytest.raises(ConfigError, match=why):
        ScaffoldClient(model(), DEVICES[0], config, personalization=how, **kept)


def test_through_a_compressed_channel_the_drift_goes_away_too(fake_grid: Any) -> None:
    """What is not sent of a control variate stays on the client and is sent later.

    FedAvg stands still above 0.01, see the test before; fewer coordinates take more rounds.
    """
    compressed, _ = federate(fake_grid, True, 40, stages=[Compress(Scheme(ratio=0.75))])
    assert slope(compressed) < 0.01 / 50


def test_secure_sums_hide_both_halves_and_give_the_same_model(fake_grid: Any) -> None:
    keys = create_federation((str(n) for n in range(1, 7)), now=int(time.time()))
    roster = open_roster(keys.roster, keys.authority)
    of = {n: Credentials(keys.clients[str(n)], roster) for n in range(1, 7)}
    gate = Authenticate(Credentials(keys.server, roster))
    secure, _ = federate(
        fake_grid,
        True,
        5,
        clients=6,
        stages=[gate, SecureSum(64.0, Committee())],
        mods_of=lambda n: [auth_mod(lambda _: of[n]), qsfl_mod],
    )
    plain, _ = federate(fake_grid, True, 5, clients=6)
    for name, array in plain.items():  # fixed point of 2^-24
        np.testing.assert_allclose(secure[name], array, atol=1e-5, err_msg=name)


def test_the_fixed_point_on_quadratics_is_the_optimum_and_that_of_fedavg_is_not() -> None:
    r"""f_i(x) = a_i / 2 (x - b_i)^2, K steps of size h.

    FedAvg ends at the mean of b_i weighted by 1 - (1 - h a_i)^K; the optimum weighs by a_i. The
    error of SCAFFOLD shrinks geometrically.
    """
    a, b, h, steps = np.array([1.0, 4.0]), np.array([0.0, 1.0]), 0.1, 10
    optimum = (a * b).sum() / a.sum()
    pull = 1 - (1 - h * a) ** steps
    drifted = (pull * b).sum() / pull.sum()

    def run(corrected: bool, rounds: int) -> float:
        x, c, own = 0.0, 0.0, np.zeros(2)
        for _ in range(rounds):
            y = np.full(2, x)
            for _ in range(steps):
                y = y - h * (a * (y - b) + corrected * (c - own))
            new = next_control(own, np.full(2, c), np.full(2, x), y, h * steps)
            x, c, own = float(y.mean()), c + float((new - own).mean()), new
        return x

    assert run(False, 200) == pytest.approx(drifted, abs=1e-12)
    assert abs(drifted - optimum) > 0.1
    assert run(True, 200) == pytest.approx(optimum, abs=1e-9)


def test_one_step_of_one_client_is_plain_training() -> None:
    config = TrainConfig(batch_size=20, learning_rate=0.5)
    names = list(get_arrays(model()))
    sent = list(with_controls(get_arrays(model())).values())
    state = RecordDict()
    of = ScaffoldClient(model(), DEVICES[0], config, seed=0, client_id=1, state=state)
    new, count, _ = of.fit(sent, {})
    plain, *_ = TrainingClient(model(), DEVICES[0], config, seed=0, client_id=1).fit(sent[:2], {})
    assert all(np.array_equal(a, b) for a, b in zip(new[:2], plain, strict=True))
    assert count == 20
    for name, c, x, y in zip(names, new[2:], sent[:2], plain, strict=True):
        np.testing.assert_allclose(c, (x - y) / 0.5, rtol=1e-5, err_msg=name)
    assert of.evaluate(new, {})[1] == 20


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="momentum"):
        ScaffoldClient(
            model(), DEVICES[0], TrainConfig(momentum=0.9), seed=0, client_id=1, state=RecordDict()
        )
    of = ScaffoldClient(model(), DEVICES[0], TrainConfig(), seed=0, client_id=1, state=RecordDict())
    with pytest.raises(ConfigError, match="ScaffoldFedAvg"):
        of.fit(list(get_arrays(model()).values()), {})
    with pytest.raises(CompositionError, match="control variates"):
        ScaffoldFedAvg(stages=[ServerMomentum()])
    with pytest.raises(ConfigError, match="participation"):
        ScaffoldFedAvg(participation=0)


def test_only_control_variates_move_by_the_share_of_clients() -> None:
    layout = Layout.of(with_controls(get_arrays(model())))
    # Both halves are one vector: one norm bounds them, one sum hides them.
    assert layout.size == 2 * Layout.of(get_arrays(model())).size
    context = RoundContext(1, layout, Vector.dense(np.zeros(layout.size)))
    step, *_ = ControlVariates(0.25).apply(np.ones(layout.size), {}, context)
    for name, view in layout.views(step).items():
        assert np.all(view == (0.25 if name.startswith("control/") else 1.0))
