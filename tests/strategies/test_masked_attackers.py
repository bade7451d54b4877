"""Pairwise-mask sums against a server that lies, clients that lie, and states that are set back."""

import copy
import random
import secrets
from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import RejectedUpdate, TooFewReplies
from qsfl_flower.mechanisms.authentication import server as authentication
from qsfl_flower.mechanisms.masked_sum import server as stage
from qsfl_flower.node import steps
from qsfl_flower.secure.pairwise import client as protocol
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.wire.content import instruction_digest
from qsfl_flower.wire.keys import MASKED_SUM

from .masked import NAMES, NOW, Device, refusal, run_federation, task_of

STATE = "qsfl-masked-sum"


@pytest.fixture(scope="module")
def keys():
    return create_federation(NAMES, now=NOW)


@pytest.fixture
def roster(keys):
    return open_roster(keys.roster, keys.authority)


@pytest.fixture
def federation(fake_grid, keys, roster):
    return partial(run_federation, fake_grid, keys, roster)


def masked_vectors(devices):
    """Return how often the devices sent a masked vector."""
    return {
        device.context.node_id: sum(
            "masked" in reply.content.array_records for reply in device.replies
        )
        for device in devices.values()
    }


# A server that asks clients for different things.


class OneOther(StableFedAvg):
    """Signs another model for everybody but node 102, as an attacker with the server's key does."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.engine.address = partial(self._two, self.engine.address)

    def _two(self, address, assignment, nodes):
        real = assignment.content
        arrays = {k: Array(a.numpy() + np.float32(1)) for k, a in real["arrays"].items()}
        false = RecordDict({**real, "arrays": ArrayRecord(arrays)})
        OneOther.digests = [instruction_digest(c, "train") for c in (real, false)]
        messages = []
        for content, among in ((real, [102]), (false, [n for n in nodes if n != 102])):
            part = type(assignment)(
                assignment.exchange, content, assignment.model, assignment.context
            )
            messages += address(part, among)
        return messages


class OneOtherAction(OneOther):
    """Asks everybody but node 102 for an action of the app that trains nothing."""

    def _two(self, address, assignment, nodes):
        OneOther.digests = [
            instruction_digest(assignment.content, asked) for asked in ("train", "train.dryrun")
        ]
        messages = []
        for asked, among in (("train", [102]), ("train.dryrun", [n for n in nodes if n != 102])):
            exchange = replace(assignment.exchange, kind=asked)
            messages += address(replace(assignment, exchange=exchange), among)
        return messages


def dry(message, context):
    """Answer with the model that came, as an action does that measures time and memory."""
    del context
    content = RecordDict({**message.content, "metrics": MetricRecord({"num-examples": 100})})
    return Message(content, reply_to=message)


@pytest.mark.parametrize("lies", [OneOther, OneOtherAction])
def test_a_server_that_asks_one_client_for_something_else_gets_no_masked_vector(
    federation, keys, roster, monkeypatch, lies
):
    """Its own code takes any digest; the neighbours see that theirs differ and mask nothing."""
    honest = stage.server.read_deal

    def gullible(terms, place, data, instruction, *rest):
        for digest in OneOther.digests:
            try:
                return honest(terms, place, data, digest, *rest)
            except RejectedUpdate as error:
                refused = error
        raise refused

    monkeypatch.setattr(stage.server, "read_deal", gullible)
    monkeypatch.setattr(authentication, "_lane", lambda node, exchange: (node, exchange.inside))
    attacks = watch(sent := [])
    devices = {100 + n: Device(str(n), keys.clients[str(n)], roster, attacks[n]) for n in attacks}
    for device in devices.values():
        device.app.train("dryrun")(dry)
    with pytest.raises(TooFewReplies, match="policy-terms"):
        federation(rounds=1, strategy=lies, devices=devices)
    assert sorted(sent) == [(100 + n, "refused") for n in range(6)]


def watch(sent):
    """Note what the devices answer to the mask task."""

    def attack(message, answer):
        reply = answer(message)
        if task_of(message) == "mask":
            masked = "masked" in reply.content.array_records
            sent.append((message.metadata.dst_node_id, "masked" if masked else "refused"))
        return reply

    return dict.fromkeys(range(6), attack)


def test_a_client_that_vouches_for_another_instruction_is_left_out(federation, monkeypatch):
    """An attacker cannot stop the honest server's round with a digest of its own."""
    honest = protocol.deal

    def deal(terms, instruction, credentials, policy, now):
        if credentials.identity.name == "3":
            instruction = bytes(32)
        return honest(terms, instruction, credentials, policy, now)

    monkeypatch.setattr("qsfl_flower.mechanisms.masked_sum.client.deal", deal)
    run = federation(rounds=2)
    assert [r.skipped for r in run.rounds] == [None, None]
    assert [r.accepted for r in run.rounds] == [5, 5]
    assert [r.rejected for r in run.rounds] == [{"other-instruction": 1}] * 2


# A server that asks twice.


def repeat(federation, first, without=105):
    """Ask the devices of a finished run for its first round again, all but one."""
    devices = {n: d for n, d in first.devices.items() if n != without}
    return federation(rounds=1, devices=devices)


def test_a_round_that_is_run_again_without_one_client_gets_nothing(federation):
    """The difference of the two sums would be the update of the one that is missing."""
    first = federation(rounds=1)
    assert first.rounds[0].skipped is None
    with pytest.raises(TooFewReplies, match=r"policy-second-answer|client-error"):
        repeat(federation, first)
    assert set(masked_vectors(first.devices).values()) == {1}


@pytest.mark.parametrize("durable", [True, False])
def test_a_set_back_state_masks_again_only_without_a_durable_folder(federation, tmp_path, durable):
    """Without it a node promises nothing that outlives its state, as docs/secagg.md says."""
    config = {"qsfl-state": str(tmp_path)} if durable else {}
    before = {}

    def remember(message, answer):
        device = answer.__self__
        if task_of(message) == "train":
            before[device.context.node_id] = copy.deepcopy(device.context.state)
        return answer(message)

    first = federation(rounds=1, config=config, attacks=dict.fromkeys(range(6), remember))
    for node, device in first.devices.items():
        device.context.state = before[node]
        device.attack = None
    if durable:
        with pytest.raises(TooFewReplies):
            repeat(federation, first)
        assert set(masked_vectors(first.devices).values()) == {1}
    else:
        repeat(federation, first)
        sent = masked_vectors(first.devices)
        assert sent.pop(105) == 1
        assert set(sent.values()) == {2}
        device = first.devices[100]
        masked = [r.content["masked"] for r in device.replies if "masked" in r.content]
        one, two = (m["masked"].numpy().astype(np.int64) for m in masked)
        assert len(set((one - two).tolist())) == one.size, "fresh masks: nothing cancels"


def test_secrets_mask_no_other_vector_than_their_own(federation):
    """Values of two states do not fit together: one mask over two vectors would show both."""
    kept = {}

    def mix(message, answer):
        device = answer.__self__
        state = device.context.state
        if task_of(message) == "mask":
            if kept:
                state[STATE] = ConfigRecord({**state[STATE], "vector": kept["vector"]})
            kept.update(state[STATE])
        return answer(message)

    run = federation(rounds=2, attacks={2: mix})
    assert [r.accepted for r in run.rounds] == [6, 5]
    assert run.rounds[1].rejected == {"client-error": 1}


def test_shares_are_dealt_anew_once_in_a_round(federation, keys, roster):
    """A first round deals in a step of its own; the same step again is refused."""
    told = []

    def attack(message, answer):
        reply = answer(message)
        if task_of(message) == "deal":
            record = dict(message.content.config_records[MASKED_SUM])
            told.append(refusal(message, record, answer.__self__, keys, roster))
        return reply

    run = federation(rounds=2, attacks={4: attack})
    assert told == ["policy-second-answer"]
    assert [r.accepted for r in run.rounds] == [6, 6]


# Clients that lie.


def patched(name, value):
    """Take the honest step with one function of the protocol replaced."""

    def lie(honest, *given):
        with mock.patch.object(protocol, name, value):
            return honest(*given)

    return lie


def fail(honest, *given):
    raise RuntimeError("gone")


def unequal(seed, threshold, points, randomness=None, honest=protocol.split_seed):
    return {point: honest(seed, threshold, points)[point] for point in points}


def wrong_for(victims, honest=protocol.commit_dealt):
    def commit(owner, holder, *dealt):
        return bytes(48) if holder in victims else honest(owner, holder, *dealt)

    return commit


def complain(about):
    def lie(honest, *given):
        told = {"refused": "bad-packet", "detail": "it lies", "about": list(about)}
        return RecordDict({MASKED_SUM: ConfigRecord(told)})

    return lie


def accuse(about):
    def lie(honest, *given):
        return RecordDict({MASKED_SUM: ConfigRecord({"bad": list(about)})})

    return lie


def unusable_for(victims, honest=protocol.seal):
    """Deal packets that these clients cannot open."""

    def seal(key, plain, binding):
        return honest(key, plain[1:] if binding.receiver in victims else plain, binding)

    return patched("seal", seal)


def garbled(field, change):
    def lie(honest, *given):
        content = honest(*given)
        record = content.config_records[MASKED_SUM]
        record[field] = change(record[field])
        return content

    return lie


def random_key(*given):
    return Secret(secrets.token_bytes(32))


def swapped_shares(honest, *given):
    """Release the other share of everybody."""

    def decode(data, real=protocol.Client.decode):
        client = real(data)
        held = {
            p: protocol.Holding(h.lock, h.pair_share, h.self_share)
            for p, h in client.holdings.items()
        }
        return protocol.replace(client, holdings=held)

    with mock.patch("qsfl_flower.mechanisms.masked_sum.client.Client.decode", decode):
        return honest(*given)


LIES = {
    "edge keys, then gone": {"deal": patched("edge_key", random_key), "mask": fail},
    "all packets": {"deal": patched("commit_dealt", wrong_for(range(9)))},
    "some packets": {"deal": patched("commit_dealt", wrong_for({0, 3}))},
    "shares": {"deal": patched("split_seed", unequal)},
    "lock keys": {"deal": patched("Client.lock_key", random_key)},
    "complaints about all": {"mask": complain(NAMES)},
    "a complaint about one": {"mask": complain(["1"])},
    "complaints, early or late": {"check": accuse(NAMES), "mask": complain(["1"])},
    "gone before masking": {"check": fail, "mask": complain(["1"])},
    "no release": {"release": fail},
    "lockers": {"mask": garbled("lockers", lambda data: bytes(len(data)))},
    "gone after dealing": {"mask": fail},
    "openers": {"release": patched("opener", random_key)},
    "swapped shares": {"release": swapped_shares},
    "garbled release": {"release": garbled("release", lambda data: data[:-40] + bytes(40))},
    "malformed release": {"release": garbled("release", lambda data: data[:-1])},
}


def tell_lies(monkeypatch, liars):
    """Let clients take some steps of theirs by other code than the suite's."""

    def install(registry, name, task):
        honest = registry[name]

        def step(*given):
            lies = liars.get(given[-1].context.node_config["partition-id"], {})
            return lies[task](honest, *given) if task in lies else honest(*given)

        monkeypatch.setitem(registry, name, step)

    install(steps.STEPS, MASKED_SUM, "deal")
    for task in ("deal", "check", "mask", "release"):
        install(steps.TASKS, f"{MASKED_SUM}.{task}", task)


def check_the_honest(run, liars, cost):
    """Nobody honest is excluded, and all liars together cost so many rounds at most."""
    assert sum(r.skipped is not None for r in run.rounds) <= cost
    state = run.strategy.states[MASKED_SUM]
    assert set(state["excluded"]) <= {str(n) for n in liars}
    assert all(set(pair) & {str(n) for n in liars} for pair in state["apart"])
    for n in set(range(6)) - set(liars):
        missed = [
            rows[str(n)].status
            for rows, r in zip(run.rows, run.rounds, strict=True)
            if r.skipped is None and rows[str(n)].status != "accepted"
        ]
        assert missed in ([], ["bad-packet"])


QUICK = ("edge keys, then gone", "some packets", "swapped shares")


@pytest.mark.parametrize(
    "lie", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in LIES]
)
def test_one_liar_costs_one_round_and_nobody_honest_is_excluded(federation, monkeypatch, lie):
    tell_lies(monkeypatch, {3: LIES[lie]})
    run = federation(rounds=2)
    check_the_honest(run, {3}, cost=1)


@pytest.mark.parametrize(
    "lies",
    [
        ("lockers", "gone after dealing"),
        pytest.param(("edge keys, then gone", "complaints about all"), marks=pytest.mark.slow),
        pytest.param(("openers", "lock keys"), marks=pytest.mark.slow),
        pytest.param(("swapped shares", "some packets"), marks=pytest.mark.slow),
        pytest.param(("malformed release", "garbled release"), marks=pytest.mark.slow),
    ],
)
def test_two_liars_cost_two_rounds(federation, monkeypatch, lies):
    tell_lies(monkeypatch, {3: LIES[lies[0]], 5: LIES[lies[1]]})
    run = federation(rounds=3)
    check_the_honest(run, {3, 5}, cost=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_two_liars_that_change_their_ways(federation, monkeypatch, seed):
    """Every round another lie, drawn at random; the bound of docs/secagg.md holds for any.

    Who has dealt other edge keys than its own masks nothing: that would be garbage, which the bound
    is not about.
    """
    draw, false_keys = random.Random(seed), {}

    def any_of(task):
        lies = [lie[task] for lie in LIES.values() if task in lie]

        def step(honest, *given):
            some = draw.sample(NAMES, draw.randrange(4))
            about = [unusable_for(some)] if task == "deal" else [accuse(some)]
            about = [complain(some)] if task == "mask" else about
            way = draw.choice([*lies, *about, fail, lambda honest, *given: honest(*given)])
            liar = given[-1].context.node_config["partition-id"]
            if task == "deal":
                false_keys[liar] = way is LIES["edge keys, then gone"]["deal"]
            return (fail if task == "mask" and false_keys.get(liar) else way)(honest, *given)

        return step

    lies = {task: any_of(task) for task in ("deal", "check", "mask", "release")}
    tell_lies(monkeypatch, {3: lies, 5: lies})
    patient = partial(StableFedAvg, max_failed_rounds=6)
    check_the_honest(federation(rounds=6, strategy=patient), {3, 5}, cost=3)


def by_round(*ways):
    """Take in each round the lies of that round."""
    now = [0]

    def take(task):
        def step(honest, *given):
            if len(given) == 3:  # the step of the training, which knows the round
                now[0] = given[1]["round"] - 1
            return ways[now[0]].get(task, lambda honest, *given: honest(*given))(honest, *given)

        return step

    return {task: take(task) for task in ("deal", "check", "mask", "release")}


def test_liars_do_not_push_honest_clients_out_by_packets_that_these_cannot_use(
    federation, monkeypatch
):
    """Each packet uses up one edge, and with the other liar's silence four clients are too few."""
    five = [{"deal": unusable_for({"0", "1"})}, {"deal": unusable_for({"2"})}, {}]
    three = [{}, {}, {"deal": unusable_for({"0"})}]
    silent = {"mask": fail}
    tell_lies(
        monkeypatch, {3: by_round(*({**lies, **silent} for lies in three)), 5: by_round(*five)}
    )
    run = federation(rounds=3)
    assert [r.skipped is None for r in run.rounds] == [False, True, True]
    check_the_honest(run, {3, 5}, cost=1)


def test_a_liar_of_few_edges_is_not_unmasked_by_the_grace_of_another(federation, monkeypatch):
    """Two complaints leave it three neighbours, and one of them releases nothing."""
    complaints = by_round({"mask": complain(["0", "1"])}, {}, {})
    tell_lies(monkeypatch, {3: LIES["no release"], 5: complaints})
    run = federation(rounds=3)
    assert [r.skipped is None for r in run.rounds] == [True, False, True]
    assert run.rounds[1].skipped.startswith("recovery-failed")
    assert run.rounds[2].rejected == {"apart": 1}
    check_the_honest(run, {3, 5}, cost=1)


@pytest.mark.slow
def test_a_client_of_the_release_before_is_left_out_of_a_check_by_name(federation, monkeypatch):
    tell_lies(monkeypatch, {3: LIES["a complaint about one"]})

    def older(message, answer):
        known = {name: do for name, do in steps.TASKS.items() if not name.endswith(".check")}
        with mock.patch.dict(steps.TASKS, known, clear=True):
            return answer(message)

    run = federation(rounds=2, attacks={4: older})
    assert [r.accepted for r in run.rounds] == [5, 4]
    assert run.rounds[1].rejected == {"policy-unknown-step": 1, "bad-packet": 1}


def test_an_honest_client_is_not_blamed_for_a_wrong_edge_key(federation, monkeypatch):
    """The opener's proof: the pair key does not give the edge key that the dealer committed to."""
    tell_lies(monkeypatch, {3: LIES["edge keys, then gone"]})
    run = federation(rounds=2)
    assert run.rounds[0].skipped.startswith("wrong-edge-key: 3 dealt")
    assert run.strategy.states[MASKED_SUM]["excluded"] == {"3": "wrong-edge-key"}
    assert run.rounds[1].accepted == 5


def test_a_dealer_of_packets_that_nobody_can_use_shares_no_edge_again(federation, monkeypatch):
    """Five complaints prove nothing, and keep it away from all five."""
    tell_lies(monkeypatch, {3: LIES["all packets"]})
    run = federation(rounds=2)
    assert run.rounds[0].skipped.startswith("too-few-clients")
    assert run.rounds[0].rejected == {"bad-packet": 5}
    state = run.strategy.states[MASKED_SUM]
    assert state["excluded"] == {}
    assert state["apart"] == [sorted(["3", n]) for n in NAMES if n != "3"]
    assert run.rounds[1].rejected == {"apart": 1}
    assert run.rounds[1].accepted == 5


def test_a_pair_without_proof_shares_no_edge_again(federation, monkeypatch):
    tell_lies(monkeypatch, {3: LIES["a complaint about one"]})
    run = federation(rounds=2)
    assert run.strategy.states[MASKED_SUM]["apart"] == [["1", "3"]]
    assert [r.accepted for r in run.rounds] == [5, 5]
    assert [r.rejected for r in run.rounds] == [{"bad-packet": 1}] * 2
