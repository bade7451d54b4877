"""Every kind of stage with a probe of its own: both halves, over real messages and the real mod."""

import time
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.errors import CompositionError, RejectedUpdate, TooFewReplies
from qsfl_flower.node import steps
from qsfl_flower.numerics import Vector
from qsfl_flower.rounds.admission import check_encoding
from qsfl_flower.rounds.context import task_content
from qsfl_flower.rounds.update import Rejection
from qsfl_flower.stages import (
    ClientPhase,
    Clip,
    CohortStage,
    Combined,
    CombineStage,
    DecodeStage,
    Phase,
    Update,
)
from qsfl_flower.strategies import RunObserver, StableFedAvg
from qsfl_flower.wire import PAYLOAD_RECORD, Form, PlanItem, from_record, records_of

SECRET = 1e6


class Half(DecodeStage):
    """Sends the first `kept` coordinates in half the bytes; the others are public zeros."""

    name = encoding = "half"

    def __init__(self, kept):
        self.kept = kept

    def client_steps(self, state, context):
        return [(ClientPhase.ENCODE, PlanItem("half", {"kept": self.kept}))]

    def decode(self, payload, context):
        (values,) = from_record(payload).values()
        if values.shape != (self.kept,):
            raise RejectedUpdate("malformed", "wrong length")
        whole = np.zeros(context.layout.size)
        whole[: self.kept] = values
        return Vector.dense(whole)


def half_step(update, parameters, context):
    values = update.vector[: parameters["kept"]].astype(np.float16)
    payload = ArrayRecord({"half": Array(values)})
    return replace(update, payload=payload, encoding="half")


class Secret(CombineStage):
    """Sums hidden updates that two tasks beside training reveal together."""

    name = "secret"
    hides = True

    def __init__(self, restricted=False):
        self.restricted = restricted

    def init(self, layout):
        return {"rounds": 0, "prepared": 0}

    def prepare(self, state, context):
        asked = {s.node_id: task_content("probe.hello") for s in context.senders}
        assert all(isinstance(a, tuple) for a in context.ask(asked).values())
        return {**state, "prepared": state["prepared"] + 1}

    def client_steps(self, state, context):
        return [(ClientPhase.ENCODE, PlanItem("secret", {"prepared": state["prepared"]}))]

    def read(self, sender, content, context):
        check_encoding(content, "secret")
        assert PAYLOAD_RECORD in records_of(content, ArrayRecord)
        assert not content.metric_records
        return Update(sender, 0.0, Vector(()), Form.ENCODED, sealed=b"?")

    def combine(self, cohort, state, context):
        assert all(u.vector.size == 0 for u in cohort.updates)
        state = {**state, "rounds": state["rounds"] + 1}
        if state["rounds"] == 2:
            return Combined(cohort, None, state, skipped="the probe gave up")
        asked = {
            u.sender.node_id: task_content("probe.reveal", record=ConfigRecord({"of": 1}))
            for u in cohort.updates
        }
        answers = context.ask(asked)
        updates = [answers[u.sender.node_id] for u in cohort.updates]
        vectors = [from_record(c["vector"])["v"] for _, c in updates]
        updates = tuple(
            replace(u, weight=1 / len(vectors), status="accepted" if i else "first")
            for i, u in enumerate(cohort.updates)
        )
        cohort = replace(cohort, updates=updates)
        step = np.mean(vectors, axis=0)
        return Combined(cohort, step, state, {"n": 2.0}, metrics={"train-loss": 0.5})


def secret_step(update, parameters, context):
    context.context.state["probe"] = ArrayRecord({"v": Array(update.vector)})
    payload = ArrayRecord({"sealed": Array(np.zeros(3))})
    return replace(update, payload=payload, encoding="secret", hidden=True)


def reveal_task(context):
    assert context.content["record"]["of"] == 1
    return RecordDict({"vector": context.context.state["probe"]})


def hello_task(context):
    return RecordDict({"hello": ConfigRecord({"hello": True})})


class Looks(CohortStage):
    name = "looks"
    phase = Phase.DETECT

    def apply(self, cohort, state, context):
        return cohort, state, {"looked": 1.0}


@pytest.fixture(autouse=True)
def halves(monkeypatch):
    monkeypatch.setitem(steps.STEPS, "half", half_step)
    monkeypatch.setitem(steps.STEPS, "secret", secret_step)
    monkeypatch.setitem(steps.TASKS, "probe.reveal", reveal_task)
    monkeypatch.setitem(steps.TASKS, "probe.hello", hello_task)


def modded(client, node):
    """Put the real mod in front of a scripted client with a memory of its own."""
    context = Context(1, node, {"partition-id": node}, RecordDict(), {})
    return lambda message: qsfl_mod(message, context, lambda m, c: client(m))


class Rounds(RunObserver):
    def __init__(self):
        self.records, self.rows = [], []

    def on_round(self, record, clients):
        self.records.append(record)
        self.rows.append(clients)


def run(grid, stages, rounds=1):
    seen = Rounds()
    strategy = StableFedAvg(fraction_evaluate=0.0, min_train_nodes=1, stages=stages, observer=seen)
    model = ArrayRecord(
        {"w": Array(np.zeros(4, np.float32)), "steps": Array(np.array(7)), "b": Array(np.ones(2))}
    )
    return strategy.start(grid, model, num_rounds=rounds, timeout=1.0), seen, strategy


def test_an_encoded_reply_is_decoded_and_carried_arrays_travel_beside_it(fake_grid, trained):
    grid = fake_grid({n: modded(trained(float(n)), n) for n in (1, 3)})
    result, seen, _ = run(grid, [Half(kept=3), Clip(clip_norm=100.0), Looks()])
    assert result.arrays["w"].numpy().tolist() == [2, 2, 2, 0]
    assert result.arrays["b"].numpy().tolist() == [1, 1]
    assert result.arrays["steps"].numpy() == 7
    assert seen.records[-1].stages["looks"] == {"looked": 1.0}


def test_plain_and_foreign_forms_are_rejected_where_an_encoding_was_asked(fake_grid, trained):
    def other(message):
        reply = modded(trained(1.0), 3)(message)
        reply.content["qsfl"]["encoding"] = "other"
        return reply

    grid = fake_grid({1: trained(1.0), 2: modded(trained(4.0), 2), 3: other})
    result, seen, _ = run(grid, [Half(kept=4)])
    assert result.arrays["w"].numpy().tolist() == [4] * 4
    assert seen.records[-1].rejected == {"not-encoded": 2}


def test_an_unasked_encoding_is_malformed(fake_grid, trained):
    def eager(message):
        reply = trained(1.0)(message)
        reply.content["qsfl"] = ConfigRecord({"form": "encoded", "encoding": "half"})
        return reply

    grid = fake_grid({1: eager, 2: trained(2.0)})
    _, seen, _ = run(grid, [])
    assert seen.records[-1].rejected == {"malformed": 1}


def test_hidden_updates_are_combined_by_asking_inside_the_round(fake_grid, trained):
    grid = fake_grid(
        {n: modded(trained(float(n), metrics={"train-loss": SECRET}), n) for n in (2, 4)}
    )
    result, seen, strategy = run(grid, [Secret(), Clip(clip_norm=1e9)])
    assert result.arrays["w"].numpy().tolist() == [3] * 4
    assert result.arrays["steps"].numpy() == 7
    assert [r.status for r in seen.rows[-1]] == ["first", "accepted"]
    assert seen.records[-1].train_loss == 0.5
    assert seen.records[-1].stages["secret"] == {"n": 2.0}
    assert strategy.states["secret"]["prepared"] == 1


def test_an_exchange_inside_the_round_counts_as_traffic(fake_grid, trained):
    grid = fake_grid({n: modded(trained(float(n)), n) for n in (2, 4)})
    _, _, strategy = run(grid, [Secret()])
    assert strategy.engine.traffic.up > 2 * 6 * 8
    assert strategy.engine.traffic.down > 0


def test_a_combination_that_gives_up_keeps_its_state_and_the_model(fake_grid, trained):
    grid = fake_grid({n: modded(trained(float(n)), n) for n in (2, 4)})
    result, seen, strategy = run(grid, [Secret()], rounds=2)
    assert seen.records[-1].skipped == "the probe gave up"
    assert result.arrays["w"].numpy().tolist() == [3] * 4
    assert strategy.states["secret"]["rounds"] == 2


def test_a_client_without_the_mod_is_not_let_into_a_hidden_round(fake_grid, trained):
    def careless(message):
        """Answers tasks, but ignores the plan and sends its model in the clear."""
        if "task" in message.content["qsfl"]:
            return modded(trained(9.0), 1)(message)
        return trained(9.0)(message)

    grid = fake_grid({1: careless, 2: modded(trained(2.0), 2), 3: modded(trained(4.0), 3)})
    result, seen, _ = run(grid, [Secret()])
    assert seen.records[-1].rejected == {"not-encoded": 1}
    assert result.arrays["w"].numpy().tolist() == [3] * 4


def test_what_must_look_is_refused_where_updates_are_hidden():
    with pytest.raises(CompositionError, match="looks has to look at single updates, which secret"):
        StableFedAvg(stages=[Secret(), Looks()])
    with pytest.raises(CompositionError, match="train_metrics_aggr_fn"):
        StableFedAvg(stages=[Secret()], train_metrics_aggr_fn=lambda contents, key: None)
    with pytest.raises(CompositionError, match="legacy"):
        StableFedAvg(stages=[Secret()], client_api="legacy")


def test_two_of_a_kind_are_refused():
    class Other(Secret):
        name = "other"

    with pytest.raises(CompositionError, match="other and secret both combine the updates"):
        StableFedAvg(stages=[Secret(), Other()])


def test_the_plan_is_in_the_order_of_the_clients_phases(fake_grid, trained):
    class Late(Half):
        """Its phase on the server comes before clip's, its client's half after it."""

    strategy = StableFedAvg(stages=[Clip(clip_norm=1.0), Late(kept=2)])
    grid = fake_grid({1: trained(1.0), 2: trained(1.0)})
    model = ArrayRecord({"w": Array(np.zeros(4, np.float32))})
    strategy.configure_train(1, model, ConfigRecord(), grid)
    plan = strategy.chain.plan(strategy.states, strategy.engine.opened["train"].assignment.context)
    assert [item.name for item in plan.items] == ["clip", "half"]


def test_a_stages_own_check_decides():
    class Lonely(Looks):
        name = "lonely"

        def check(self, stages):
            if len(stages) > 2:
                raise CompositionError("lonely wants to be alone")

    StableFedAvg(stages=[Lonely()])
    with pytest.raises(CompositionError, match="wants to be alone"):
        StableFedAvg(stages=[Lonely(), Looks()])


def test_unknown_tasks_are_refused(fake_grid, trained):
    class Curious(Secret):
        name = "curious"

        def prepare(self, state, context):
            asked = {s.node_id: task_content("no-such-task") for s in context.senders}
            self.answers = context.ask(asked)
            return state

        def combine(self, cohort, state, context):
            return Combined(cohort, None, state, skipped="nothing to see")

    def careful(client, node):
        def answer(message):
            from flwr.app import Error, Message

            try:
                return modded(client, node)(message)
            except Exception as error:
                return Message(Error(2, str(error)), reply_to=message)

        return answer

    stage = Curious()
    grid = fake_grid({n: careful(trained(float(n)), n) for n in (2, 4)})
    with pytest.raises(TooFewReplies, match="nothing to see"):
        run(grid, [stage])
    assert all(isinstance(a, Rejection) for a in stage.answers.values())
    assert all("task 'no-such-task'" in a.detail for a in stage.answers.values())


def test_the_time_of_every_stage_is_told_round_by_round(fake_grid, trained):
    class Slow(Looks):
        def apply(self, cohort, state, context):
            time.sleep(0.02)
            return super().apply(cohort, state, context)

    grid = fake_grid({1: trained(2.0), 2: trained(4.0)})
    _, seen, _ = run(grid, [Slow()], rounds=2)
    told = [record.stage_seconds for record in seen.records if record.round]
    assert len(told) == 2
    assert all(seconds["looks"] >= 0.02 for seconds in told)
    assert all(seconds["validate"] > 0 for seconds in told)
