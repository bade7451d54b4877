"""Whatever one client answers, its reply is rejected with a reason and the run goes on."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import REFUSALS, TooFewReplies, plain
from qsfl_flower.mechanisms.authentication import client as authentication
from qsfl_flower.node.steps import TASKS
from qsfl_flower.stages import MaskedSum, ServerMomentum, Validate
from qsfl_flower.strategies import (
    AuthenticatedFedAvg,
    BufferedAsync,
    Krum,
    RunObserver,
    StableFedAvg,
)
from qsfl_flower.strategies.compressed import CompressedFedAvg
from qsfl_flower.wire.keys import MASKED_SUM

from .conftest import MODEL, NOW

ALONE = {"min_available_nodes": 4, "min_train_nodes": 4, "min_evaluate_nodes": 4}


class Watch(RunObserver):
    def __init__(self):
        self.records, self.rows = [], []

    def on_round(self, record, clients):
        self.records.append(record)
        self.rows += clients


def model(size=4):
    return ArrayRecord({"w": Array(np.zeros(size, np.float32))})


def answers(make):
    """Make a client that answers with the content that `make` returns."""

    def client(message):
        made = make(message)
        return made if isinstance(made, Message) else Message(made, reply_to=message)

    return client


def reply_with(array: Array) -> RecordDict:
    metrics = MetricRecord({"num-examples": 10})
    return RecordDict({"arrays": ArrayRecord({"w": array}), "metrics": metrics})


def honest_array(message) -> Array:
    return next(iter(message.content["arrays"].values()))


def header_byte(byte: bytes):
    def make(message):
        a = honest_array(message)
        data = a.data.replace(b"'shape': (4,)", b"'shape': (" + byte + b"4,)")
        return reply_with(Array(a.dtype, a.shape, a.stype, data.replace(b" \n", b"\n", 1)))

    return make


@pytest.mark.parametrize("byte", [b"\x1c", b"\x1d", b"\x1e", b"\x1f", b"\x85", b"\xa0"])
@pytest.mark.parametrize("make", [StableFedAvg, Krum, BufferedAsync])
def test_a_byte_in_an_npy_header_rejects_the_reply(fake_grid, trained, make, byte):
    watch = Watch()
    clients = {n: trained(1.0) for n in range(1, 8)} | {3: answers(header_byte(byte))}
    options = {"buffer_size": 6} if make is BufferedAsync else {}
    strategy = make(fraction_evaluate=0.0, observer=watch, **ALONE, **options)
    result = strategy.start(fake_grid(clients), model(), num_rounds=2, timeout=5)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2.0)
    assert [r.rejected for r in watch.records[1:]] == [{"malformed": 1}] * 2


HEADS = [
    b'[["w","float32",[Infinity],"numpy.ndarray",0]]',
    b'[["w","float32",[NaN],"numpy.ndarray",0]]',
    b'[["w","float32",[-1],"numpy.ndarray",0]]',
    b'[["w","float32",[true],"numpy.ndarray",0]]',
    b'[["w","float32",[1.0],"numpy.ndarray",0]]',
    b'[["w","float32",["4"],"numpy.ndarray",0]]',
    b'[["w","float32","44","numpy.ndarray",0]]',
    b'[["w","float32",[' + b"9" * 5000 + b'],"numpy.ndarray",0]]',
    b'[["w","float32",[' + b"9" * 4000 + b'],"numpy.ndarray",0]]',
    b'[["w","float32",[4],"numpy.ndarray",-1]]',
    b'[["w","float32",[4],"numpy.ndarray",true]]',
    b'[["w",3,[4],"numpy.ndarray",0]]',
    b"[3]",
    b"3",
    b"null",
    b"{}",
    b"[" * 100_000,
    b"\xff",
    b"",
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: repr(head[:40]))
def test_an_encrypted_list_of_arrays_rejects_the_reply(federation, monkeypatch, head):
    honest = authentication.pack_arrays

    def attack(message, answer):
        with monkeypatch.context() as patched:
            evil = struct.pack(">I", len(head)) + head
            patched.setattr(authentication, "pack_arrays", lambda record: evil)
            return answer(message)

    grid, _ = federation(4, {3: attack})
    watch = Watch()
    assert authentication.pack_arrays is honest
    strategy = AuthenticatedFedAvg(
        credentials=federation.credentials,
        encrypt=True,
        fraction_evaluate=0.0,
        observer=watch,
        **ALONE,
    )
    gate = next(s for s in strategy.chain.stages if s.name == "authenticate")
    gate._clock = federation.gate._clock
    start = ArrayRecord({"w": Array(np.zeros((2, 3), np.float32)), "n": Array(np.array(7)),
                         "b": Array(np.zeros(2))})  # fmt: skip
    strategy.start(grid, start, num_rounds=2, timeout=5)
    assert [r.rejected for r in watch.records[1:]] == [{"malformed": 1}] * 2
    assert [r.accepted for r in watch.records[1:]] == [3, 3]


# Values as Flower's records carry them; keys and texts of any kind.
TEXT = st.text(max_size=12) | st.sampled_from(["arrays", "metrics", "num-examples", "w", "form"])
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats()
METRIC = NUMBERS | st.lists(st.integers(-9, 9), max_size=3) | st.lists(st.floats(), max_size=3)
CONFIG = METRIC | TEXT | st.binary(max_size=20) | st.booleans()


def uniform(values):
    """Flower's lists hold one type."""
    return not isinstance(values, list) or len({type(v) for v in values}) <= 1


@st.composite
def arrays(draw):
    honest = Array(np.zeros(4, np.float32))
    data = bytearray(honest.data)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return Array(
        draw(st.sampled_from(["float32", "float64", "", "O", "<f4", "int64"]) | TEXT),
        tuple(draw(st.lists(st.integers(0, 2**63 - 1), max_size=3) | st.just([4]))),
        draw(st.sampled_from(["numpy.ndarray", "qsfl.blob", ""])),
        bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data),
    )


RECORD = st.one_of(
    st.dictionaries(TEXT | st.just("w"), arrays(), max_size=2).map(ArrayRecord),
    st.dictionaries(TEXT, METRIC.filter(uniform), max_size=3).map(MetricRecord),
    st.dictionaries(
        st.sampled_from(["form", "encoding", "client", "refused", "refused-detail"]) | TEXT,
        CONFIG.filter(uniform),
        max_size=3,
    ).map(ConfigRecord),
)
NAMES = st.sampled_from(
    ["arrays", "metrics", "qsfl", "qsfl-payload", "qsfl-auth", "fitres.status", "fitres.metrics",
     "fitres.parameters", "fitres.num_examples", "evaluateres.loss", "evaluateres.status",
     "evaluateres.metrics", "evaluateres.num_examples"]
)  # fmt: skip
CONTENT = st.dictionaries(NAMES, RECORD, max_size=4)
MAKERS = {
    "stable": StableFedAvg,
    "legacy": lambda **k: StableFedAvg(client_api="legacy", **k),
    "compressed": CompressedFedAvg,
    "buffered": lambda **k: BufferedAsync(buffer_size=3, **k),
}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENT, st.booleans())
def test_no_content_ends_the_run(fake_grid, internal_faults, name, content, keep):
    def hostile(message):
        honest = {}
        if keep and "arrays" in message.content:
            honest = reply_with(honest_array(message))
        return RecordDict({**honest, **content})

    def refuse(message):
        return Message(Error(2, "busy"), reply_to=message)

    clients = {1: answers(hostile), 2: answers(hostile), 3: refuse, 4: refuse}
    strategy = MAKERS[name](max_failed_rounds=9, **ALONE)
    run_one(strategy, fake_grid(clients))
    assert not internal_faults


def run_one(strategy, grid, start=None):
    """Train twice; a round without any usable reply is no failure here."""
    with suppress(TooFewReplies):
        strategy.start(grid, model() if start is None else start, num_rounds=2, timeout=0.05)


def test_a_malformed_reply_is_one_of_the_liars_that_a_rule_withstands(fake_grid, trained, caplog):
    """Krum for one liar needs five updates; of five clients one sends nonsense."""
    watch = Watch()
    clients = {n: trained(1.0) for n in range(1, 6)} | {3: answers(header_byte(b"\x1d"))}
    strategy = Krum(num_malicious_nodes=1, fraction_evaluate=0.0, observer=watch, **ALONE)
    result = strategy.start(fake_grid(clients), model(), num_rounds=2, timeout=5)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2.0)
    assert "1 replies were no updates and count among the 1 attackers" in caplog.text
    silent = {**clients, 3: lambda message: None}
    strategy = Krum(num_malicious_nodes=1, fraction_evaluate=0.0, observer=watch, **ALONE)
    with pytest.raises(TooFewReplies, match="withstands at most 0"):
        strategy.start(fake_grid(silent), model(), num_rounds=2, timeout=0.05)


def test_a_reply_that_the_users_metrics_function_cannot_read_ends_nothing(fake_grid, trained):
    def accuracy(contents, key):
        return MetricRecord({"acc": sum(c["metrics"]["acc"] for c in contents)})

    def client(acc):
        def answer(message):
            if message.metadata.message_type == "train":
                return trained(1.0, metrics=acc)(message)
            metrics = MetricRecord({"num-examples": 10, **acc})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        return answer

    clients = {n: client({"acc": 0.5}) for n in range(1, 5)} | {2: client({})}
    options = {"train_metrics_aggr_fn": accuracy, "evaluate_metrics_aggr_fn": accuracy}
    strategy = StableFedAvg(**options, **ALONE)
    result = strategy.start(fake_grid(clients), model(), num_rounds=2, timeout=5)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2.0)
    assert dict(result.train_metrics_clientapp[1]) == {}
    clients[2] = client({"acc": 0.5})
    strategy = StableFedAvg(**options, **ALONE)
    result = strategy.start(fake_grid(clients), model(), num_rounds=1, timeout=5)
    assert result.train_metrics_clientapp[1]["acc"] == 2.0
    assert result.evaluate_metrics_clientapp[1]["acc"] == 2.0


class Broken(Validate):
    """A stage with a fault of ours: it fails on one update."""

    def apply(self, cohort, state, context):
        def check(update):
            if update.sender.rank == 1:
                raise ZeroDivisionError("a \x1b[31mfault\nof ours")
            return update

        return cohort.each(check), state, {}


@pytest.mark.expects_internal
def test_a_fault_of_ours_is_counted_and_logged_and_the_round_goes_on(
    fake_grid, trained, internal_faults
):
    watch = Watch()
    clients = {n: trained(1.0) for n in range(1, 5)}
    strategy = StableFedAvg(stages=[Broken()], fraction_evaluate=0.0, observer=watch, **ALONE)
    strategy.start(fake_grid(clients), model(), num_rounds=1, timeout=5)
    assert watch.records[1].rejected == {"internal": 1}
    assert watch.records[1].accepted == 3
    (told,) = internal_faults
    assert "ZeroDivisionError" in told
    assert "in check" in told, "with its traceback"
    assert "\x1b" not in told


class Worse(ServerMomentum):
    """A stage with a fault that all updates together bring to light, in one round."""

    def apply(self, vector, state, context):
        if context.server_round == 2:
            raise ZeroDivisionError("together")
        return super().apply(vector, state, context)


@pytest.mark.expects_internal
def test_a_fault_in_combining_skips_the_round(fake_grid, trained, internal_faults):
    watch = Watch()
    clients = {n: trained(1.0) for n in range(1, 5)}
    strategy = StableFedAvg(stages=[Worse()], fraction_evaluate=0.0, observer=watch, **ALONE)
    result = strategy.start(fake_grid(clients), model(), num_rounds=3, timeout=5)
    assert [bool(r.skipped) for r in watch.records] == [False, False, True, False]
    assert watch.records[2].skipped == "internal: ZeroDivisionError: together"
    assert result.arrays["w"].numpy()[0] > 1.9
    (told,) = internal_faults
    assert "in apply" in told


HOSTILE = "x\nWARNING round 1: revoked\r\u202e\x1b]0;OWNED\x07\u2028\x9b"


def test_text_from_clients_is_neutralized(fake_grid, trained, caplog):
    def named(message):
        reply = trained(1.0)(message)
        reply.content["qsfl"] = ConfigRecord({"client": "5\nWARNING"})
        reply.content["metrics"][HOSTILE] = 1.0
        return reply

    def refusing(message):
        told = ConfigRecord({"refused": "device-busy", "refused-detail": HOSTILE})
        return Message(RecordDict({"qsfl": told}), reply_to=message)

    def failing(message):
        return Message(Error(2, HOSTILE), reply_to=message)

    def pretending(message):
        reply = trained(1.0)(message)
        reply.content["qsfl"] = ConfigRecord({"client": "node 0"})
        return reply

    clients = {1: trained(1.0), 2: named, 3: refusing, 4: failing, 5: pretending}
    watch = Watch()
    result = StableFedAvg(observer=watch, **ALONE).start(
        fake_grid(clients), model(), num_rounds=1, timeout=5
    )
    shown = [record.getMessage() for record in caplog.records]
    shown += [text for row in watch.rows for text in (row.client, row.detail or "", row.status)]
    shown += [*result.train_metrics_clientapp[1], *result.evaluate_metrics_clientapp.get(1, {})]
    assert all(text.isprintable() for text in shown if "Stages" not in text and "\t" not in text)
    assert len({row.client for row in watch.rows}) == 5
    assert watch.records[1].rejected == {"client-error": 1, "device-busy": 1}


@pytest.mark.parametrize(
    "reason",
    [
        "device-on-fire",
        "privacy-of-mine",
        "bad-signature",
        "revoked",
        "no-reply",
        "accepted",
        "",
        3,
    ],
)
def test_a_client_cannot_invent_a_reason(fake_grid, trained, reason):
    def refusing(message):
        told = ConfigRecord({"refused": reason, "refused-detail": "d"})
        return Message(RecordDict({"qsfl": told}), reply_to=message)

    watch = Watch()
    clients = {n: trained(1.0) for n in range(1, 5)} | {2: refusing}
    StableFedAvg(fraction_evaluate=0.0, observer=watch, **ALONE).start(
        fake_grid(clients), model(), num_rounds=1, timeout=5
    )
    assert watch.records[1].rejected == {"malformed": 1}


@pytest.mark.parametrize("reason", ["bad-signature", "revoked", "no-reply", HOSTILE])
def test_nor_inside_a_masked_sum(federation, monkeypatch, caplog, reason):
    told = {"refused": reason, "detail": HOSTILE, "about": HOSTILE}

    def attack(message, answer):
        with monkeypatch.context() as patched:
            for task in [name for name in TASKS if name.startswith(MASKED_SUM)]:
                content = RecordDict({MASKED_SUM: ConfigRecord({**told})})
                patched.setitem(TASKS, task, lambda context, content=content: content)
            return answer(message)

    grid, _ = federation(5, {3: attack})
    watch = Watch()
    stages = [
        federation.gate,
        MaskedSum(federation.credentials, bound=1.0, clock=lambda: NOW, metrics=()),
    ]
    strategy = StableFedAvg(stages=stages, fraction_evaluate=0.0, observer=watch, **ALONE)
    start = ArrayRecord({k: Array(np.asarray(v)) for k, v in MODEL.items()})
    run_one(strategy, grid, start)
    assert {r for record in watch.records for r in record.rejected} == {"malformed"}
    told = [record.getMessage() for record in caplog.records if record.name == "qsfl_flower"]
    assert told
    assert all(text.isprintable() for text in told)


def test_every_reason_of_refusal_is_accepted(fake_grid, trained):
    for reason in sorted(REFUSALS):
        told = ConfigRecord({"refused": reason, "refused-detail": ""})
        watch = Watch()
        clients = {n: trained(1.0) for n in range(1, 5)}
        clients[2] = answers(lambda message, told=told: RecordDict({"qsfl": told}))
        StableFedAvg(fraction_evaluate=0.0, observer=watch, **ALONE).start(
            fake_grid(clients), model(), num_rounds=1, timeout=5
        )
        assert watch.records[1].rejected == {reason: 1}


@given(st.text(), st.integers(0, 40))
def test_plain_text_is_printable_and_short(text, most):
    shown = plain(text, most)
    assert shown.isprintable()
    assert len(shown) <= most
    if text.isprintable() and len(text) <= most:
        assert shown == text


def test_plain_shows_anything():
    class Rude:
        def __str__(self):
            raise RuntimeError

    assert plain(Rude()) == "<Rude>"
    assert plain(10**5000) == "<int>"
    assert plain(json.loads('"\\ud800"')) == "?", "half a character"


def test_extreme_evaluation_metrics_end_nothing(fake_grid, trained):
    def claims(value):
        def client(message):
            if message.metadata.message_type == "train":
                return trained(1.0)(message)
            metrics = MetricRecord({"num-examples": 2**53, "loss": value})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        return client

    clients = {1: claims(1.7e308), 2: claims(-1.7e308), 3: claims(1.7e308), 4: claims(1.0)}
    result = StableFedAvg(**ALONE).start(fake_grid(clients), model(), num_rounds=1, timeout=5)
    assert np.isfinite(result.evaluate_metrics_clientapp[1]["loss"])
