"""The mod and the bridge, without a network: apps are called with real messages."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import legacy_mod, qsfl_mod
from qsfl_flower.errors import DataError, QSFLError, RejectedUpdate
from qsfl_flower.node.steps import STEPS
from qsfl_flower.stages import Clip
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.wire import (
    DETAIL_KEY,
    FORM_KEY,
    PLAN_KEY,
    QSFL_RECORD,
    REFUSED_KEY,
    Plan,
    PlanItem,
    from_record,
    to_record,
)
from qsfl_flower.wire import arrays as wire_arrays

MODEL = {"w": np.zeros((2, 3), np.float32), "steps": np.array(4)}


class AddOne(NumPyClient):
    """Adds one to every float array, in place, as many clients do."""

    def fit(self, parameters, config):
        for p in parameters:
            if p.dtype.kind == "f":
                p += 1
        return parameters, 5, {"train-loss": 0.25, "note": "text", "flag": True}

    def evaluate(self, parameters, config):
        return float(sum(p.sum() for p in parameters)), 7, {"accuracy": 0.5}


def context(partition=3):
    return Context(1, 99, {"partition-id": partition, "num-partitions": 9}, RecordDict(), {})


def instruction(kind="train", plan=None):
    content = RecordDict({"arrays": to_record(MODEL), "config": ConfigRecord({"server-round": 1})})
    if plan is not None:
        content[QSFL_RECORD] = ConfigRecord({PLAN_KEY: plan.encode()})
    return Message(content, 5, kind)


CLIP = Plan((PlanItem("clip", {"clip_norm": 1.0, "per_layer": False}),))


@pytest.fixture(params=["bridge", "message", "legacy"])
def app(request, inside_run):
    """The same client as the three kinds of app."""
    if request.param == "bridge":
        return numpy_client_app(lambda context: AddOne())
    if request.param == "legacy":
        return ClientApp(
            client_fn=lambda context: AddOne().to_client(), mods=[qsfl_mod, legacy_mod]
        )
    app = ClientApp(mods=[qsfl_mod])

    @app.train()
    def train(message, context):
        arrays = [a.numpy() for a in message.content["arrays"].values()]
        new, n, metrics = AddOne().fit(arrays, {})
        record = ArrayRecord(
            {k: Array(v) for k, v in zip(message.content["arrays"], new, strict=True)}
        )
        told = MetricRecord({"num-examples": n, "train-loss": metrics["train-loss"]})
        return Message(RecordDict({"arrays": record, "metrics": told}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        arrays = [a.numpy() for a in message.content["arrays"].values()]
        loss, n, metrics = AddOne().evaluate(arrays, {})
        told = MetricRecord({"num-examples": n, "loss": loss, **metrics})
        return Message(RecordDict({"metrics": told}), reply_to=message)

    return app


def test_without_a_plan_the_app_answers_with_parameters(app):
    reply = app(instruction(), context())
    arrays = from_record(reply.content["arrays"])
    assert list(arrays) == ["w", "steps"]
    np.testing.assert_array_equal(arrays["w"], np.ones((2, 3)))
    assert dict(reply.content["metrics"]) == {"num-examples": 5, "train-loss": 0.25}
    assert dict(reply.content[QSFL_RECORD]) == {"client": "3"}


def test_with_a_plan_the_reply_is_a_clipped_difference(app):
    """Six steps of 1 have norm sqrt(6); clipped to 1, each is 1/sqrt(6)."""
    message = instruction(plan=CLIP)
    reply = app(message, context())
    arrays = from_record(reply.content["arrays"])
    np.testing.assert_allclose(arrays["w"], np.full((2, 3), 6**-0.5), rtol=1e-6)
    assert arrays["w"].dtype == np.float32
    assert arrays["steps"] == 4
    assert reply.content[QSFL_RECORD][FORM_KEY] == "delta"
    assert QSFL_RECORD in message.content, "the instruction itself is left as it was"


def test_evaluation_passes_through(app):
    reply = app(instruction("evaluate"), context())
    assert dict(reply.content["metrics"]) == {"num-examples": 7, "loss": 4.0, "accuracy": 0.5}


def test_steps_of_training_are_refused_for_evaluation(app):
    reply = app(instruction("evaluate", plan=CLIP), context())
    assert list(reply.content) == [QSFL_RECORD]
    assert reply.content[QSFL_RECORD][REFUSED_KEY] == "policy-plan"


def test_the_app_does_not_see_the_suites_record(inside_run):
    seen = []
    app = ClientApp(mods=[qsfl_mod])

    @app.train()
    def train(message, context):
        seen.append(sorted(message.content))
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    app(instruction(plan=CLIP), context())
    assert seen == [["arrays", "config"]]


def test_an_unknown_step_is_refused_before_training(inside_run):
    trained = []

    class Watch(AddOne):
        def fit(self, parameters, config):
            trained.append(1)
            return super().fit(parameters, config)

    app = numpy_client_app(lambda context: Watch())
    reply = app(instruction(plan=Plan((PlanItem("teleport"),))), context())
    told = reply.content.config_records[QSFL_RECORD]
    assert told[REFUSED_KEY] == "policy-unknown-step"
    assert "asks for step 'teleport', which this client" in told[DETAIL_KEY]
    assert trained == []


def test_both_halves_of_clip_agree(fake_grid, inside_run):
    """Clipping on the device and again on the server equals clipping on the server alone."""
    results = []
    for mods in ([qsfl_mod], []):
        app = numpy_client_app(lambda context: AddOne(), mods=mods)
        grid = fake_grid({n: lambda m, n=n, app=app: app(m, context(n)) for n in (1, 2)})
        strategy = StableFedAvg(fraction_evaluate=0.0, stages=[Clip(0.5)])
        result = strategy.start(grid, to_record(MODEL), num_rounds=2, timeout=2)
        results.append(from_record(result.arrays)["w"])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    assert results[0][0, 0] == pytest.approx(2 * 0.5 / 6**0.5)


def test_unmodified_legacy_app_with_the_servers_codec(fake_grid, inside_run):
    app = ClientApp(client_fn=lambda context: AddOne().to_client())
    grid = fake_grid({n: lambda m, n=n: app(m, context(n)) for n in (1, 2)})
    strategy = StableFedAvg(client_api="legacy")
    result = strategy.start(grid, to_record(MODEL), num_rounds=2, timeout=2)
    np.testing.assert_array_equal(from_record(result.arrays)["w"], np.full((2, 3), 2.0))
    assert result.train_metrics_clientapp[2]["train-loss"] == 0.25
    assert result.evaluate_metrics_clientapp[2]["accuracy"] == 0.5


def test_a_client_that_returns_too_few_arrays_is_told_so(inside_run):
    class Short(AddOne):
        def fit(self, parameters, config):
            return parameters[:1], 1, {}

    with pytest.raises(QSFLError, match="fit returned 1 arrays; the model has 2"):
        numpy_client_app(lambda context: Short())(instruction(), context())
    legacy = ClientApp(client_fn=lambda c: Short().to_client(), mods=[legacy_mod])
    with pytest.raises(RejectedUpdate, match="the reply has 1 arrays, the model has 2"):
        legacy(instruction(), context())


MASKED = PlanItem("masked_sum", {
    "round": 1, "terms": "", "clients": 6, "bound": 4.0, "min_clients": 4, "max_examples": 9,
    "metrics": [], "weighted_by": "num-examples",
})  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "quoted"),
    [
        ([], True),
        ([PlanItem("clip", {"clip_norm": 1.0})], True),
        ([MASKED], False),
        ([PlanItem("local_dp", {"clip_norm": 1.0, "noise_multiplier": 1.0})], False),
    ],
)
@pytest.mark.parametrize("error", [ValueError, DataError])
def test_what_a_failing_app_says_stays_on_a_device_that_hides_its_update(
    inside_run, steps, quoted, error
):
    """Flower sends the text of an exception to the server."""
    client = ClientApp(mods=[qsfl_mod])

    @client.train()
    def train(message, context):
        raise error("row 17 of patient 7919 has no label")

    with pytest.raises((QSFLError, ValueError)) as caught:
        client(instruction(plan=Plan(tuple(steps))), context())
    assert ("7919" in str(caught.value)) is quoted
    assert quoted or error.__name__ in str(caught.value)


def test_a_step_that_fails_says_nothing_of_the_update(inside_run, monkeypatch):
    client = ClientApp(mods=[qsfl_mod])

    @client.train()
    def train(message, context):
        return Message(RecordDict({"arrays": message.content["arrays"],
                                   "metrics": MetricRecord({"num-examples": 7919})}),
                       reply_to=message)  # fmt: skip

    monkeypatch.setitem(STEPS, "clip", lambda update, *told: int(f"{update.metrics}"))
    plan = Plan((PlanItem("clip", {"clip_norm": 1.0}), MASKED))
    with pytest.raises(QSFLError, match="ValueError on the device") as caught:
        client(instruction(plan=plan), context())
    assert "7919" not in str(caught.value)


def test_what_a_step_replaces_is_never_written_as_bytes(app, request, monkeypatch):
    """The app's whole model stays arrays until the steps are done, where the suite returns it."""
    written = []
    dump = wire_arrays.dump_npy
    monkeypatch.setattr(wire_arrays, "dump_npy", lambda a: written.append(a) or dump(a))
    for number, plan in enumerate((None, CLIP)):
        message = instruction(plan=plan)
        written.clear()
        reply = app(message, context(number))
        sent = from_record(reply.content["arrays"])
        assert all(type(a) is Array for a in reply.content["arrays"].values())
        if request.node.callspec.params["app"] == "bridge":
            assert len(written) == len(sent)


def test_a_mod_in_between_reads_the_apps_model_as_usual(inside_run):
    def double(message, context, call_next):
        reply = call_next(message, context)
        ((key, record),) = reply.content.array_records.items()
        doubled = {n: Array(np.asarray(2 * a.numpy())) for n, a in record.items()}
        reply.content[key] = ArrayRecord(doubled)
        return reply

    app = numpy_client_app(lambda context: AddOne(), mods=[qsfl_mod, double])
    reply = app(instruction(plan=Plan((PlanItem("clip", {"clip_norm": 1e9}),))), context())
    plain = numpy_client_app(lambda context: AddOne())
    whole = from_record(plain(instruction(), context()).content["arrays"])
    for name, delta in from_record(reply.content["arrays"]).items():
        if delta.dtype.kind == "f":
            np.testing.assert_allclose(delta, 2 * whole[name] - MODEL[name], rtol=1e-6)
