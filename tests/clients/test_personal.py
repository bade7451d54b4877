"""Personal clients: each method does what it says, and what is personal stays on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.common import Message

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.models import build_model
from qsfl_flower.clients.personal import STATE, PersonalClient
from qsfl_flower.clients.session import Session
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.errors import ConfigError
from qsfl_flower.personalization import METHODS, Personalization
from qsfl_flower.stages import Clip
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.wire import from_record, to_record

HEAD = ("3.",)  # the last layer of the mlp
ROUND = {"server-round": 2}


def data(seed: int = 0, count: int = 40, flip: bool = False) -> Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    y = ((x[:, 0] > 0) ^ flip).astype(np.int64)
    half = count // 2
    scale = Normalization((0.0,) * 6, (1.0,) * 6)
    return Dataset("npz", x[:half], y[:half], x[half:], y[half:], (6,), 2, None, "here", scale)


def build(
    state: RecordDict | None = None, examples: Dataset | None = None, client_id: int = 0, **how: Any
) -> PersonalClient:
    return PersonalClient(
        build_model("mlp", (6,), 2, 1, {"hidden": 8}),
        examples or data(),
        TrainConfig(batch_size=10, learning_rate=0.1, epochs=2),
        seed=3,
        client_id=client_id,
        personalization=Personalization(**{"head": HEAD, "inner_rate": 0.2, **how}),
        state=RecordDict() if state is None else state,
    )


NAMES = list(build()._model.state_dict())
START = build().get_parameters({})


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_sends_an_update_and_repeats_itself(method: str) -> None:
    arrays, count, metrics = build(method=method).fit(START, ROUND)
    assert count == 20
    assert not equal(arrays, START)
    assert equal(build(method=method).fit(START, ROUND)[0], arrays)
    assert metrics["train-loss"] > 0


@pytest.mark.parametrize("method", ["fine-tune", "reptile", "ditto"])
def test_the_common_part_of_these_methods_is_ordinary_training(method: str) -> None:
    of = build()
    plain = TrainingClient(of._model, of._data, of._config, seed=3, client_id=0)
    expected = plain.fit(START, ROUND)[0]
    assert equal(build(method=method).fit(START, ROUND)[0], expected)


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_a_local_head_never_leaves_and_comes_back(method: str) -> None:
    state = RecordDict()
    arrays, *_ = build(state, method=method).fit(START, ROUND)
    for name, sent, old in zip(NAMES, arrays, START, strict=True):
        assert (sent.tobytes() == old.tobytes()) == name.startswith(HEAD)
    kept = from_record(state[STATE])
    assert set(kept) == {n for n in NAMES if n.startswith(HEAD)}
    assert any(not np.array_equal(kept[n], START[NAMES.index(n)]) for n in kept)
    of = build(state, method=method)
    foreign = [a + 5 if n.startswith(HEAD) else a for n, a in zip(NAMES, arrays, strict=True)]
    assert of.evaluate_personal(foreign) == of.evaluate_personal(arrays)


def test_fedrep_trains_the_head_before_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first phase the body is still what was sent: only the second one moves it."""
    of = build(method="fedrep")
    seen = []
    original = Session.run

    def spy(*args: Any) -> Any:
        result = original(*args)
        seen.append({k: v.clone() for k, v in of._model.state_dict().items()})
        return result

    monkeypatch.setattr(Session, "run", spy)
    of.fit(START, ROUND)
    first, second = seen
    for name, old in zip(NAMES, START, strict=True):
        body = not name.startswith(HEAD)
        assert np.array_equal(first[name].numpy(), old) == body
        assert torch.equal(first[name], second[name]) != body


def test_ditto_keeps_a_model_near_the_common_one() -> None:
    def distance(proximal: float) -> float:
        state = RecordDict()
        for turn in (1, 2, 3):
            build(state, method="ditto", proximal=proximal).fit(START, {"server-round": turn})
        own = from_record(state[STATE]).values()
        return sum(float(((a - b) ** 2).sum()) for a, b in zip(own, START, strict=True))

    assert distance(5.0) < 0.5 * distance(0.0)


@pytest.mark.parametrize(
    "how",
    [
        {"method": "maml"},
        {"method": "maml", "order": "first"},
        {"method": "per-fedavg", "meta_steps": 3, "order": "first"},
        {"method": "per-fedavg", "meta_steps": 3, "order": "hessian-free", "inner_steps": 1},
    ],
)
def test_meta_steps_lower_the_loss_after_adaptation(how: dict[str, Any]) -> None:
    arrays = START
    for turn in range(1, 31):
        arrays, *_ = build(meta_rate=0.3, **how).fit(arrays, {"server-round": turn})
    before, _ = build(**how).evaluate_personal(START)
    after, _ = build(**how).evaluate_personal(arrays)
    assert after < before


def test_held_out_examples_are_never_learned_from() -> None:
    """A client whose held-out labels are nonsense does exactly the same."""
    for method in METHODS:
        honest, twisted = data(), data()
        object.__setattr__(twisted, "y_test", 1 - twisted.y_test)
        ours = build(method=method, examples=honest)
        theirs = build(method=method, examples=twisted)
        assert equal(ours.fit(START, ROUND)[0], theirs.fit(START, ROUND)[0])
        a, b = ours.personalize(START), theirs.personalize(START)
        assert equal(
            [v.numpy() for v in a.state_dict().values()],
            [v.numpy() for v in b.state_dict().values()],
        )


def test_adaptation_helps_a_client_that_disagrees() -> None:
    common = START
    for turn in range(1, 9):
        common, *_ = build().fit(common, {"server-round": turn})
    other = build(examples=data(5, 80, flip=True), inner_steps=40, inner_rate=0.5)
    _, count, metrics = other.evaluate(common, {})
    assert count == 40
    assert metrics["gain"] == pytest.approx(metrics["personal-accuracy"] - metrics["accuracy"])
    assert metrics["gain"] > 0.4


def test_a_missing_head_is_named() -> None:
    with pytest.raises(ConfigError, match="no parameter of the model begins with nose"):
        build(method="fedper", head=("nose",))


@pytest.mark.parametrize("method", ["maml", "fedrep"])
def test_personal_updates_pass_through_the_chain_and_the_state_stays_home(
    fake_grid: Any, method: str
) -> None:
    contexts = {n: Context(1, n, {"partition-id": n}, RecordDict(), {}) for n in (1, 2)}
    app = numpy_client_app(
        lambda c: build(c.state, data(int(c.node_id)), int(c.node_id), method=method)
    )
    replies: list[Message] = []

    def client(message: Message, node: int) -> Message:
        replies.append(app(message, contexts[node]))
        return replies[-1]

    grid = fake_grid({n: lambda m, n=n: client(m, n) for n in contexts})
    strategy = StableFedAvg(fraction_evaluate=0.0, stages=[Clip(clip_norm=0.01)])
    model = to_record(dict(zip(NAMES, START, strict=True)))
    result = strategy.start(grid, model, num_rounds=2, timeout=1.0)
    moved = from_record(result.arrays)
    for name, old in zip(NAMES, START, strict=True):
        stays = method == "fedrep" and name.startswith(HEAD)
        assert np.array_equal(moved[name], old) == stays
    norm = sum(float(((moved[n] - o) ** 2).sum()) for n, o in zip(NAMES, START, strict=True)) ** 0.5
    assert 0 < norm <= 0.02001
    if method == "fedrep":
        head = [a.tobytes() for a in from_record(contexts[1].state[STATE]).values()]
        sent = b"".join(
            array.data for r in replies for rec in r.content.array_records.values()
            for array in rec.values()
        )  # fmt: skip
        assert not any(h in sent for h in head)
