"""A server that departs from the protocol of committee sums, over real messages and real mods."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict

from qsfl_flower.asynchrony import Device, Polynomial, VirtualClock
from qsfl_flower.errors import TooFewReplies
from qsfl_flower.mechanisms.authentication import server as authentication
from qsfl_flower.mechanisms.secure_sum import attempt as secure_round
from qsfl_flower.mechanisms.secure_sum import session as exchanges
from qsfl_flower.node.memory import STATE_FOLDER
from qsfl_flower.node.steps import StepContext
from qsfl_flower.rounds.engine import Engine
from qsfl_flower.secure.dealing import deal
from qsfl_flower.stages import Committee, SecureKrum, SecureSum
from qsfl_flower.strategies import BufferedAsync, StableFedAvg
from qsfl_flower.wire import QSFL_RECORD, to_record
from qsfl_flower.wire.keys import (
    HELLO_TASK,
    PLAN_KEY,
    RELEASE_TASK,
    SEALED_TYPE,
    SHARES,
    TAKE_TASK,
)

from .conftest import MODEL, NOW, Add, Recorder, refusal_of, task_of, update_of

VICTIM, HELPER = 5, 7


def stage_of(kind=SecureSum, *more, **options):
    committee = options.pop("committee", Committee(5, 3))
    return kind(4.0, *more, committee, clock=lambda: NOW, **options)


def run(grid, strategy, rounds=1, timeout=0.2):
    try:
        return strategy.start(grid, to_record(MODEL), num_rounds=rounds, timeout=timeout)
    except TooFewReplies:
        return None


def honest(federation, stage, **options):
    seen = Recorder()
    options = {"fraction_evaluate": 0.0, "max_failed_rounds": 9, "observer": seen, **options}
    return StableFedAvg(stages=[federation.gate, stage], **options), seen


class TwoModels(StableFedAvg):
    """Signs another model for all but one client."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.engine.address = partial(self._two, self.engine.address)

    def _two(self, address, assignment, nodes):
        messages = address(assignment, nodes)
        dead = RecordDict({**assignment.content, "arrays": to_record(
            {k: np.full_like(a.numpy(), 0) - 1 for k, a in assignment.content["arrays"].items()}
        )})  # fmt: skip
        others = {m.metadata.dst_node_id: dead for m in messages}
        others[100 + VICTIM] = assignment.content
        contents, self.engine.states = self.chain.instruct(others, self.states, assignment.exchange)
        return [Message(c, node, "train") for node, c in contents.items()]


class TwoActions(StableFedAvg):
    """Asks all but one client for an action of the app that trains nothing, on the same content."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.engine.address = partial(self._two, self.engine.address)

    def _two(self, address, assignment, nodes):
        messages = []
        for m in address(assignment, nodes):
            node, action = m.metadata.dst_node_id, "train.dryrun"
            asked = "train" if node == 100 + VICTIM else action
            told, self.engine.states = self.chain.instruct(
                {node: assignment.content}, self.states, replace(assignment.exchange, kind=asked)
            )
            messages.append(Message(told[node], node, asked))
        return messages


def dry(message, context):
    """Answer with the model that came, as an action does that measures time and memory."""
    del context
    content = RecordDict({**message.content, "metrics": MetricRecord({"num-examples": 9})})
    return Message(content, reply_to=message)


def blind_to_instructions(statement, terms, roster, now):
    """Read a header as a server that does not look at what the client was asked."""
    return replace(real_header(statement, terms, roster, now), instruction=looked_for)


real_header, looked_for = secure_round.read_header, bytes(32)


@pytest.mark.parametrize("lies", [TwoModels, TwoActions])
def test_members_open_no_sum_of_updates_of_different_instructions(federation, lies):
    """The honest sum would be the victim's update: the others train on a dead model, or nothing."""
    grid, devices = federation(8)
    for device in devices.values():
        device.app.train("dryrun")(dry)
    seen = Recorder()
    lying = lies(stages=[federation.gate, stage_of()], fraction_evaluate=0.0, observer=seen)

    class Anything(dict):
        def get(self, key, default=None):
            return looked_for

    lying.engine.instructions = Anything()
    with (
        patch.object(secure_round, "read_header", blind_to_instructions),
        patch.object(Engine, "_remember_instruction", lambda *_: None),
        patch.object(authentication, "_lane", lambda node, exchange: (node, exchange.inside)),
    ):
        assert run(grid, lying) is None
    assert len([m for m in grid.pushed if task_of(m) == TAKE_TASK]) == 5
    assert not [m for m in grid.pushed if task_of(m) == RELEASE_TASK]
    assert "0 of 5 committee members answered" in seen.rounds[-1].skipped


class OtherStart(TwoModels):
    """Lies in the first round alone."""

    def _two(self, address, assignment, nodes):
        if assignment.exchange.server_round > 1:
            return address(assignment, nodes)
        return super()._two(address, assignment, nodes)


def test_local_arrays_carry_no_other_model_past_the_digest(federation):
    """The first sum is refused; what devices keep of it must not decide about the second one."""
    grid, _ = federation(8)
    seen, given, fit = Recorder(), [], Add.fit

    def watched(self, parameters, config):
        given.append(np.array(parameters[2]))
        return fit(self, parameters, config)

    options = {"fraction_evaluate": 0.0, "observer": seen, "max_failed_rounds": 9}
    lying = OtherStart(roles={"b": "local"}, stages=[federation.gate, stage_of()], **options)
    with patch.object(Add, "fit", watched):
        run(grid, lying, rounds=3)
    assert sorted(map(tuple, given[:8])) == [(-1.0, -1.0)] * 7 + [(0.0, 0.0)]
    own = [b for b in given[8:16] if b.any()]  # the victim's, which began with the honest model
    assert len(own) == 1
    assert np.abs(own[0]).max() < 1
    assert seen.rounds[-2].accepted == 8
    assert all(b.any() and np.abs(b).max() < 1 for b in given[16:])


class OtherWeights(TwoModels):
    """In the first round all but one client train on weights at which nothing is learned."""

    def _two(self, address, assignment, nodes):
        messages = address(assignment, nodes)
        if assignment.exchange.server_round > 1:
            return messages
        dead = {k: a.numpy() - (k == "w") for k, a in assignment.content["arrays"].items()}
        others = dict.fromkeys(nodes, RecordDict({**assignment.content, "arrays": to_record(dead)}))
        others[100 + VICTIM] = assignment.content
        contents, self.engine.states = self.chain.instruct(others, self.states, assignment.exchange)
        return [Message(c, node, "train") for node, c in contents.items()]


def learn_where_the_gate_is_open(self, parameters, config):
    """Train as a network does whose local scale closes on a bad model: then nothing is learned."""
    w, n, b = parameters
    gate = b + 1 if w.max() < 0 else b
    step = np.where(gate[0] == 0, self.update[:6].reshape(2, 3), 0).astype(w.dtype)
    return [w + step, n, gate], self.examples, {"train-loss": 1.0}


@pytest.mark.parametrize("kept_state", [True, False])
def test_nothing_that_earlier_training_left_behind_decides_what_a_hidden_sum_shows(
    federation, tmp_path, kept_state
):
    """The first sum is refused; after it the honest one of all clients is the victim's update."""
    policy = tmp_path / "policy.toml"
    policy.write_text(f"hidden_only = true\nkept_state = {kept_state}\n".lower())
    grid, devices = federation(8, examples=lambda n: 100)
    for device in devices.values():
        device.context.node_config["qsfl-policy"] = str(policy)
    seen = Recorder()
    options = {"fraction_evaluate": 0.0, "observer": seen, "max_failed_rounds": 9}
    lying = OtherWeights(roles={"b": "local"}, stages=[federation.gate, stage_of()], **options)
    with patch.object(Add, "fit", learn_where_the_gate_is_open):
        result = run(grid, lying, rounds=2)
    if kept_state:
        assert seen.rounds[-1].accepted == 8
        model = 8 * result.arrays["w"].numpy().reshape(-1)
        np.testing.assert_allclose(model, update_of(VICTIM)[:6], atol=1e-3)
    else:
        assert [r.rejected for r in seen.rounds[1:]] == [{"policy-kept-state": 8}] * 2


def test_a_client_that_claims_another_instruction_stops_no_round(federation):
    lie = property(lambda self: b"another instruction of 32 bytes."[:32].ljust(32))

    def attack(message, answer):
        with patch.object(StepContext, "instruction", lie):
            return answer(message)

    grid, _ = federation(8, {7: attack})
    strategy, seen = honest(federation, stage_of())
    assert run(grid, strategy) is not None
    assert seen.rounds[-1].rejected == {"other-instruction": 1}
    assert seen.rows[-1]["7"].status == "other-instruction"
    assert "give its node the server's release" in seen.rows[-1]["7"].detail
    assert seen.rounds[-1].accepted == 7


def test_a_member_answers_one_question_and_the_same_one_again(federation):
    """Fresh shares of a colluding client would open one more distance to each update."""
    grid, _ = federation(8)
    told, real = [], exchanges.Session.take

    def take(self, updates, size):
        told.append(real(self, updates, size))
        told.append(real(self, updates, size))
        for other in (updates[1:], updates[:-1], updates[::-1]):
            told.append(real(self, other, size))
        lost = set(self.lost.values())
        self.lost.clear()
        assert all("policy-second-answer" in why for why in lost)
        return told[0]

    strategy, seen = honest(federation, stage_of(SecureKrum, 1))
    with patch.object(exchanges.Session, "take", take):
        assert run(grid, strategy) is not None
    assert [len(answers) for answers in told] == [5, 5, 0, 0, 0]
    for member, first in told[0].items():
        assert np.array_equal(told[1][member].distances, first.distances)
    assert seen.rounds[-1].accepted == 5


def test_fresh_shares_of_a_helping_client_open_one_equation_about_each_update(federation, keys):
    """The distances to ten more vectors of its choice would be each update, to 5e-7."""
    grid, _ = federation(8)
    opened, real = [], exchanges.Session.take
    roster, signing = federation.credentials.roster, keys.clients[str(HELPER)].keys[0].signing

    def probe(self, values):
        asked = self.context.instructions[self.terms.round]
        to = [roster.encryption_key(name, NOW) for name in self.terms.members]
        own = [0] * self.terms.extras
        made = deal(values, own, self.terms, str(HELPER), signing, to, asked)
        payloads = tuple(Array("uint8", (len(s),), SEALED_TYPE, bytes(s)) for s in made.sealed)
        return exchanges.Sealed(made.header, payloads)

    def take(self, updates, size):
        told, width = None, size - self.terms.extras
        at = [update.sender.name for update in updates].index(str(HELPER))
        for values in np.vstack([np.zeros(width), np.eye(width)]):
            mine = [*updates]
            mine[at] = replace(updates[at], sealed=probe(self, values))
            found = real(self, mine, size)
            told = told or found
            if len(found) >= 2 * self.terms.threshold - 1:
                opened.append(values)
        assert all("policy-second-answer" in why for why in self.lost.values())
        self.lost.clear()
        return told

    strategy, seen = honest(federation, stage_of(SecureKrum, 1))
    with patch.object(exchanges.Session, "take", take):
        assert run(grid, strategy) is not None
    assert seen.rounds[-1].skipped is None
    # One distance to each update, from the client's first vector: one equation.
    assert len(opened) == 1
    assert not opened[0].any()


@pytest.mark.parametrize("durable", [False, True])
def test_no_member_forgets_what_it_has_taken(federation, durable, tmp_path):
    """An empty take, one under other terms, a restart: the shares of round 1 are summed once."""
    grid, devices = federation(8)
    if durable:
        for node, device in devices.items():
            device.context.node_config[STATE_FOLDER] = str(tmp_path / str(node))
    terms_of, real, kept = SecureSum._terms, exchanges.Session.take, {}

    def terms(self, members, seats, count, weights):
        return terms_of(self, members, seats, count, (1, 1, 1, 1))

    def take(self, updates, size):
        now = self.terms
        if now.round == 1:
            kept.update(updates=updates, size=size, terms=now)
            return real(self, updates, size)
        wipe = exchanges.Session(replace(now, weights=(1,)), self.nodes, self.context)
        assert real(wipe, [], 0) == {}
        assert all("policy-cohort" in why for why in wipe.lost.values())
        if durable:  # a new process of every SuperNode
            for device in devices.values():
                device.context.state = RecordDict()
        again = exchanges.Session(replace(kept["terms"], round=now.round), self.nodes, self.context)
        answers = real(again, kept["updates"][:-1], kept["size"])
        assert len(answers) == 5
        for answer in answers.values():
            assert set(answer.check.complaints) == {"already-taken"}
        raise secure_round.Abandoned("enough")

    strategy, seen = honest(federation, stage_of())
    with (
        patch.object(SecureSum, "_terms", terms),
        patch.object(exchanges.Session, "take", take),
    ):
        run(grid, strategy, rounds=2)
    assert seen.rounds[1].accepted == 8
    assert seen.rounds[2].skipped == "enough"


def test_with_a_durable_folder_a_restarted_member_keeps_its_seat(federation, tmp_path):
    def restart(message, answer):
        if task_of(message) == "train":
            devices[101].context.state = RecordDict()
        return answer(message)

    def seats_of(folder):
        grid, made = federation(7, {1: restart})
        devices.update(made)
        if folder:
            devices[101].context.node_config[STATE_FOLDER] = str(tmp_path / "state")
        strategy, seen = honest(federation, stage_of())
        run(grid, strategy, rounds=3)
        return [r.stages["secure_sum"].get("member 1") for r in seen.rounds[1:]]

    devices = {}
    assert seats_of(folder=True) == [1.0, 1.0, 1.0]
    # Without one it has lost its seat: what was dealt to it before is lost for this round.
    assert 0.0 in seats_of(folder=False)


def test_openings_that_a_node_does_not_allow_are_refused_by_client_and_member(federation, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('openings = ["sum"]\n')
    grid, devices = federation(7)
    for node in (100, 101, 106):
        devices[node].context.node_config["qsfl-policy"] = str(policy)
    strategy, seen = honest(federation, stage_of(enforce_norm=True, committee=Committee(6, 3)))
    assert run(grid, strategy) is None
    assert seen.rounds[-1].rejected == {"policy-openings": 3}
    takes = [m for m in grid.pushed if task_of(m) == TAKE_TASK]
    assert len(takes) == 6
    # Two of the six members refuse as well, and five are needed.
    told = "4 of 6 committee members answered, 5 are needed; first 0 did not: policy-openings: "
    assert told in seen.rounds[-1].skipped


def test_a_client_of_the_release_before_is_refused_by_name_before_it_trains(federation):
    """Its steps and tasks have other names; so do ours for a server of that release."""
    grid, devices = federation(7)
    strategy, _ = honest(federation, stage_of())
    run(grid, strategy)
    asked = next(m for m in grid.pushed if task_of(m) == "train")
    plan = json.loads(asked.content[QSFL_RECORD][PLAN_KEY])
    for step in plan["steps"]:
        step["name"] = step["name"].replace(SHARES, "shares")
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    for told in ({PLAN_KEY: text}, {"task": "committee.take"}, {"task": "qsfl.hello"}):
        kept = {k: v for k, v in asked.content.items() if k not in ("qsfl-auth", QSFL_RECORD)}
        content = RecordDict({**kept, QSFL_RECORD: ConfigRecord(told)})
        exchange = replace(strategy.engine.opened["train"].assignment.exchange, server_round=2)
        contents, strategy.engine.states = strategy.chain.instruct(
            {106: content}, strategy.states, exchange
        )
        reply = devices[106](Message(contents[106], 106, "train"))
        assert refusal_of(reply).startswith("policy-unknown-step")
        assert "install the strategy's release" in refusal_of(reply)


# --- weights ------------------------------------------------------------------------------------


def test_weights_of_few_clients_are_dropped_by_name_and_refused_by_default(federation, tmp_path):
    """A buffer of fresh and stale updates, with weights that differ."""

    def start(allows):
        policy.write_text(allows)
        grid, devices = federation(8, pull=0.3)
        for device in devices.values():
            device.context.node_config["qsfl-policy"] = str(policy)
        seen = Recorder()
        seconds = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.5]
        strategy = BufferedAsync(
            fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=8, seed=5,
            clock=VirtualClock([Device(s) for s in seconds], patience=1.0), observer=seen,
            stages=[federation.gate, stage_of()], max_failed_rounds=9, buffer_size=7,
            max_staleness=3, staleness_weight=Polynomial(),
        )  # fmt: skip
        run(grid, strategy, rounds=6, timeout=100.0)
        return seen

    policy = tmp_path / "policy.toml"
    for allows, reason in (("window = 4", "policy-weights"), ("weights = true", "policy-window")):
        refused = [row for rows in start(allows).rows for row in rows.values()]
        assert {row.status for row in refused} == {reason}
        assert "in its policy" in refused[0].detail
    seen = start("weights = true\nwindow = 4")
    reasons = {status for rows in seen.rows for status in (r.status for r in rows.values())}
    assert reasons == {"accepted", "few-of-its-weight"}
    assert sum(r.skipped is None for r in seen.rounds[1:]) >= 5


# --- the committee cannot be filled -------------------------------------------------------------


def test_a_missing_node_ends_no_run_at_once(federation):
    """Nobody trains in vain, the reason is named in every round, and the run ends in a sentence."""

    def gone(message, answer):
        return None

    grid, _ = federation(5, {4: gone})
    strategy, seen = honest(federation, stage_of(), max_failed_rounds=3)
    with pytest.raises(
        TooFewReplies, match=r"4 of 5 committee members could be appointed \(client"
    ):
        strategy.start(grid, to_record(MODEL), num_rounds=5, timeout=0.2)
    assert len(seen.rounds) == 4
    assert all("no-reply" in r.skipped for r in seen.rounds[1:])
    assert {task_of(m) for m in grid.pushed} == {HELLO_TASK}


def test_errors_of_the_committee_are_told_once_in_full(federation):
    def broken(message, answer):
        return Message(Error(2, "KeyError: no camera"), reply_to=message)

    grid, _ = federation(5, {3: broken, 4: broken})
    strategy, _ = honest(federation, stage_of(), max_failed_rounds=1)
    told = (
        r"3 of 5 committee members could be appointed \(client 103: client-error: KeyError: "
        r"no camera, client 104: client-error\)"
    )
    with pytest.raises(TooFewReplies, match=told):
        strategy.start(grid, to_record(MODEL), num_rounds=5, timeout=0.2)


def test_a_node_that_comes_back_is_appointed(federation):
    away = iter([True])

    def back(message, answer):
        return None if next(away, False) else answer(message)

    grid, _ = federation(5, {4: back})
    strategy, seen = honest(federation, stage_of())
    assert run(grid, strategy, rounds=2) is not None
    assert [r.skipped is None for r in seen.rounds] == [True, False, True]


def test_one_missing_node_of_six_is_replaced(federation):
    grid, _ = federation(6, {2: lambda message, answer: None})
    strategy, seen = honest(federation, stage_of())
    assert run(grid, strategy, rounds=2) is not None
    assert seen.rounds[-1].accepted == 5
