"""Arrays that are not plain floats: quantized weights, masks with infinity, scalars, empty ones."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from qsfl_flower.clients import qsfl_mod
from qsfl_flower.errors import ConfigError, QSFLError
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.roles import fit_roles
from qsfl_flower.stages import Clip, Committee, MaskedSum, Robust, SecureSum, ServerAdam
from qsfl_flower.strategies import RunObserver, StableFedAvg
from qsfl_flower.testing import LocalFederation, LocalGrid
from qsfl_flower.wire import from_record, to_record

MASK = np.triu(np.full((2, 2), -np.inf, np.float32), 1)
MODEL = {
    "w": np.zeros((2, 3), np.float32),
    "quantized": np.arange(4, dtype=np.int8),
    "half": np.full(2, 3.0, np.float16),
    "scalar": np.float32(1.0).reshape(()),
    "empty": np.zeros((0, 2), np.float32),
    "mask": MASK,
    "steps": np.array(7, np.int64),
    "on": np.array([True, False]),
}
SENT = ("w", "half", "scalar")


class Rows(RunObserver):
    def __init__(self):
        self.rows = []

    def on_round(self, record, clients):
        self.rows.append(clients)


def app(mods=(), bad: dict[int, str] | None = None) -> ClientApp:
    """Clients that add (number + 1) to every number, and NaN to one array of some of them."""
    made = ClientApp(mods=list(mods))

    @made.train()
    def train(message, context):
        number = int(context.node_config["partition-id"])
        arrays = from_record(message.content["arrays"])
        moved = {
            k: v if v.dtype.kind == "b" else (v + v.dtype.type(number + 1)).astype(v.dtype)
            for k, v in arrays.items()
        }
        if (name := (bad or {}).get(number)) is not None:
            moved[name] = np.full_like(moved[name], np.nan)
        content = {"arrays": to_record(moved), "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    return made


def run(*stages, model=MODEL, clients=3, **options):
    rows = Rows()
    made = options.pop("app", None) or app()
    strategy = StableFedAvg(stages=stages, fraction_evaluate=0.0, observer=rows, **options)
    result = strategy.start(LocalGrid(made, clients), to_record(model), 1, timeout=20.0)
    return from_record(result.arrays), rows.rows[-1]


@pytest.mark.parametrize(
    "stages",
    [[], [ServerAdam()], [Robust("median", 1)], [Clip(100.0)]],
    ids=["mean", "adam", "median", "clip"],
)
@pytest.mark.parametrize("mods", [[], [qsfl_mod]], ids=["plain", "mod"])
def test_odd_arrays_keep_their_meaning(stages, mods, caplog):
    arrays, rows = run(*stages, app=app(mods))
    assert [row.status for row in rows] == ["accepted"] * 3
    assert arrays["quantized"].tolist() == [0, 1, 2, 3]
    assert arrays["quantized"].dtype == np.int8
    np.testing.assert_array_equal(np.isinf(arrays["mask"]), np.isinf(MASK))
    assert arrays["empty"].shape == (0, 2)
    assert arrays["scalar"].shape == ()
    assert arrays["on"].tolist() == [True, False]
    assert arrays["steps"] == 9
    if not stages:
        for name in SENT:
            np.testing.assert_allclose(arrays[name], MODEL[name] + 2)
    assert "the first is 'quantized': taken for quantized weights" in caplog.text


def test_declared_integers_of_8_bits_are_averaged(caplog):
    arrays, _ = run(roles={"quantized": "buffer", "mask": "buffer"})
    assert arrays["quantized"].tolist() == [2, 3, 4, 5]
    assert "roles:" not in caplog.text


def test_a_hidden_sum_leaves_masks_and_quantized_weights_alone():
    federation = LocalFederation(clients=4)
    stages = [federation.authenticate(), SecureSum(1.0, Committee(3, 2))]
    layout, _ = fit_roles(None, MODEL, StableFedAvg(stages=stages, fraction_evaluate=0.0).chain)
    assert layout.frozen == ("quantized", "mask")
    assert list(layout.slices) == ["w", "half", "scalar", "empty"]


def test_infinity_cannot_be_declared_to_be_trained():
    with pytest.raises(ConfigError, match=r"array 'mask' holds infinity.*declare it 'buffer'"):
        run(roles={"w": "trained"})


def test_a_complex_array_is_refused_by_name():
    arrays = ArrayRecord({"phase": Array(np.zeros(2, np.complex64))})
    with pytest.raises(QSFLError, match="array 'phase': dtype 'complex64'"):
        StableFedAvg().start(LocalGrid(app(), 2), arrays, 1, timeout=5.0)
    with pytest.raises(ConfigError, match="array 'phase' is complex64; allowed are"):
        Layout.of({"phase": np.zeros(2, np.complex64)})


@pytest.mark.parametrize(
    "stages", [[], [Robust("median", 1)], [Robust("multi_krum", 0)], [Clip(9.0)]]
)
@pytest.mark.parametrize("name", SENT)
def test_a_reply_that_is_not_finite_names_the_array(stages, name):
    _, rows = run(*stages, app=app(bad={1: name}), clients=5)
    (row,) = [row for row in rows if row.status == "not-finite"]
    assert row.detail == f"array {name!r} holds NaN or infinity"


@pytest.mark.parametrize("name", SENT)
def test_a_client_names_the_array_that_it_cannot_hide(name):
    _, rows = run(Clip(9.0), app=app([qsfl_mod], bad={1: name}), clients=5)
    (row,) = [row for row in rows if row.status == "client-error"]
    assert row.detail == f"not-finite: array {name!r} holds NaN or infinity"


def test_a_client_that_hides_its_update_says_the_same_of_every_array():
    """The server makes up the model: which array overflows would tell it many bits of records."""
    said = []
    for name in ("w", "mean"):
        bad = app(bad={1: name})
        federation = LocalFederation(clients=4)
        federation._train = lambda n, m, bad=bad, f=federation: bad(m, f.contexts[n])
        view = federation.watch()
        masked = MaskedSum(federation.credentials, bound=9.0, clock=federation.grid_time)
        strategy = StableFedAvg(
            stages=[federation.authenticate(), Clip(9.0), masked],
            fraction_evaluate=0.0,
            roles={"mean": "buffer"},
        )
        model = to_record({k: MODEL[k] for k in SENT} | {"mean": np.zeros(2, np.float32)})
        with federation.grid.time.for_strategies():
            strategy.start(federation.grid, model, 1, timeout=20.0)
        said += [m.error.reason.split(": ", 1)[1] for m in view.up if m.has_error()]
    assert len(said) == 2
    assert len(set(said)) == 1


@pytest.mark.parametrize("model", [{}, {"0": np.frombuffer(b"trees", np.uint8)}])
def test_boosted_trees_are_refused_before_the_first_round(fake_grid, model):
    with pytest.raises(ConfigError, match=r"no floating-point array .*FedXgb"):
        StableFedAvg().start(fake_grid({0: None}), to_record(model))
