"""Both halves of authentication over real messages, and the attacks that they must stop."""

import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.client import NumPyClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower.asynchrony import Device as SimulatedDevice
from qsfl_flower.asynchrony import VirtualClock
from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.enrolment import revoke
from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.identity import create_identity
from qsfl_flower.crypto.roster import DAY, Entry, Roster
from qsfl_flower.crypto.suite import Suite
from qsfl_flower.errors import ConfigError, TooFewReplies
from qsfl_flower.mechanisms.authentication.client import auth_mod, credentials_from_node_config
from qsfl_flower.stages import Authenticate, Clip
from qsfl_flower.strategies import BufferedAsync, RunObserver, StableFedAvg
from qsfl_flower.wire import from_record, to_record
from qsfl_flower.wire.content import AUTH_RECORD
from qsfl_flower.wire.keys import INSTRUCTION_KEY, REPLY_KEY

NOW = 1_800_000_000
MODEL = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
NAMES = ("0", "1", "2")


class AddOne(NumPyClient):
    def fit(self, parameters, config):
        return [p + 1 for p in parameters], 5, {"train-loss": 0.5}

    def evaluate(self, parameters, config):
        return 1.0, 5, {}


class Device:
    """A client with its own keys and its own Flower state; `attack` changes what it sends."""

    def __init__(self, name, node, identity, roster, attack=None, now=NOW):
        self.now = now
        self.context = Context(1, node, {"partition-id": int(name)}, RecordDict(), {})
        credentials = Credentials(identity, roster)
        self.mods = [auth_mod(lambda context: credentials, lambda: self.now), qsfl_mod]
        self.app = numpy_client_app(lambda context: AddOne(), mods=self.mods)
        self.attack = attack
        self.replies = []

    def __call__(self, message):
        try:
            reply = self.app(message, self.context)
        except Exception as error:
            return Message(Error(2, str(error)), reply_to=message)
        self.replies.append(reply.content)
        if self.attack is not None:
            reply.content = self.attack(self, reply.content)
        return reply


class Recorder(RunObserver):
    def __init__(self):
        self.rounds, self.rows = [], []

    def on_round(self, record, clients):
        self.rounds.append(record)
        self.rows.append(clients)


@pytest.fixture(scope="module")
def keys():
    return create_federation(NAMES, now=NOW)


@pytest.fixture
def roster(keys):
    from qsfl_flower.crypto.roster import open_roster

    return open_roster(keys.roster, keys.authority, seen=None)


@pytest.fixture
def federation(fake_grid, keys, roster):
    """Run a federation of three devices, some of which attack."""

    def run(
        rounds=2, attacks=None, devices=None, encrypt=False, clock=lambda: NOW, run=1, **arguments
    ):
        attacks = attacks or {}
        devices = devices or {
            100 + int(n): Device(n, 100 + int(n), keys.clients[n], roster, attacks.get(n))
            for n in NAMES
        }
        grid = fake_grid(devices, run=run)
        recorder = Recorder()
        gate = Authenticate(
            Credentials(keys.server, arguments.pop("server_roster", roster)), encrypt, clock
        )
        kind = arguments.pop("kind", StableFedAvg)
        arguments["clock"] = arguments.pop("simulated", None)
        strategy = kind(stages=[gate, Clip(100.0)], observer=recorder, **arguments)
        result = strategy.start(grid, to_record(MODEL), num_rounds=rounds, timeout=2)
        return SimpleNamespace(
            result=result, rounds=recorder.rounds, rows=recorder.rows, grid=grid, devices=devices,
            strategy=strategy, gate=gate,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("encrypt", [False, True])
def test_enrolled_clients_train_and_keep_their_sessions(federation, encrypt):
    run = federation(rounds=3, encrypt=encrypt)
    np.testing.assert_array_equal(from_record(run.result.arrays)["w"], np.full((2, 3), 3.0))
    assert [r.rejected for r in run.rounds] == [{}] * 4
    handshakes = [r.stages["authenticate"]["handshakes"] for r in run.rounds[1:]]
    assert handshakes == [3, 0, 0], "one handshake each, then the session serves"
    assert [row.client for row in run.rows[-1]] == ["0", "1", "2"]
    assert run.result.evaluate_metrics_clientapp[3]["loss"] == 1.0


def test_what_is_sent_hides_the_update_when_encrypted(federation):
    """A recorder on the wire finds the update in the clear only without encryption."""
    step = np.full((2, 3), 1.0, np.float32).tobytes()

    def seen_on_wire(run):
        return any(
            step in array.data
            for device in run.devices.values()
            for content in device.replies
            for record in content.array_records.values()
            for array in record.values()
        )

    assert seen_on_wire(federation(encrypt=False))
    assert not seen_on_wire(federation(encrypt=True))


def tamper(device, content):
    (key,) = content.array_records
    arrays = {k: np.array(a) for k, a in from_record(content.array_records[key]).items()}
    arrays["w"] += 1
    return RecordDict({**content, key: to_record(arrays)})


def strip(device, content):
    return RecordDict({k: v for k, v in content.items() if k != AUTH_RECORD})


def replay(device, content):
    return device.replies[0]


def inflate_claim(device, content):
    content["metrics"]["num-examples"] = 10**6
    return content


def reorder(device, content):
    (key,) = content.array_records
    record = content.array_records[key]
    swapped = ArrayRecord({"b": record["b"], "w": record["w"]})
    return RecordDict({**content, key: swapped})


def garbage(device, content):
    return RecordDict({**content, AUTH_RECORD: ConfigRecord({REPLY_KEY: b"\x00" * 100})})


@pytest.mark.parametrize(
    ("attack", "reasons"),
    [
        (tamper, ["bad-signature", "bad-signature"]),
        (inflate_claim, ["bad-signature", "bad-signature"]),
        (reorder, ["bad-signature", "bad-signature"]),
        (strip, ["unsigned", "unsigned"]),
        (garbage, ["malformed", "malformed"]),
        (replay, [None, "stale-round"]),
    ],
)
def test_an_altered_or_repeated_reply_does_not_count(federation, attack, reasons):
    run = federation(attacks={"1": attack}, fraction_evaluate=0.0)
    expected = [{} if r is None else {r: 1} for r in reasons]
    assert [r.rejected for r in run.rounds[1:]] == expected
    np.testing.assert_array_equal(from_record(run.result.arrays)["w"], np.full((2, 3), 2.0))


def test_a_reply_in_the_clear_is_refused_when_encryption_was_asked_for(federation, keys, roster):
    """The client signs, but does not encrypt: a downgrade."""

    class Plain(Device):
        def __call__(self, message):
            from qsfl_flower.mechanisms.authentication import client as authentication

            before, authentication.frame_record = authentication.frame_record, lambda frame: plain
            plain = to_record(MODEL)
            try:
                return super().__call__(message)
            finally:
                authentication.frame_record = before

    devices = {100 + int(n): Device(n, 100 + int(n), keys.clients[n], roster) for n in "01"}
    devices[102] = Plain("2", 102, keys.clients["2"], roster)
    run = federation(devices=devices, encrypt=True, rounds=1, fraction_evaluate=0.0)
    assert run.rounds[-1].rejected == {"not-encrypted": 1}


def test_who_does_not_belong_does_not_count(federation, keys, roster):
    """Fresh keys under an enrolled name, an unknown name, somebody else's reply, a revoked key."""
    stolen = {}

    def keep(device, content):
        stolen["reply"] = content
        return content

    def pass_off(device, content):
        return stolen["reply"]

    cases = {
        "wrong-key": Device("2", 102, create_identity("2", now=NOW), Unchecked(roster)),
        "unknown": Device("2", 102, create_identity("mallory", now=NOW), Unchecked(roster)),
        "wrong-node": Device("2", 102, keys.clients["2"], roster, pass_off),
    }
    for reason, device in cases.items():
        devices = {
            100: Device("0", 100, keys.clients["0"], roster),
            101: Device("1", 101, keys.clients["1"], roster, keep),
            102: device,
        }
        run = federation(devices=devices, rounds=1, fraction_evaluate=0.0)
        assert run.rounds[-1].rejected == {reason: 1}


class Unchecked:
    """A roster that lets its owner sign with whatever keys it has, as an attacker would."""

    def __init__(self, roster):
        self._roster = roster

    def own_keys(self, identity, now):
        return identity.keys[0]

    def __getattr__(self, name):
        return getattr(self._roster, name)


def test_a_revoked_client_is_out_at_once(federation, keys, roster):
    run = federation(server_roster=revoke(roster, "1", now=NOW), rounds=1, fraction_evaluate=0.0)
    assert run.rounds[-1].rejected == {"revoked": 1}


def test_expired_keys_and_weak_algorithms_are_refused(federation, keys, roster, fake_grid):
    late = NOW + 31 * DAY
    entries = tuple(
        Entry(e.identity, e.not_before, NOW + 60 * DAY if e.identity.name != "1" else e.not_after)
        for e in roster.entries
    )
    longer = Roster(2, NOW, NOW + 60 * DAY, entries)
    devices = {
        100 + int(n): Device(
            n, 100 + int(n), keys.clients[n], Unchecked(longer) if n == "1" else longer,
            now=late,
        )
        for n in NAMES
    }  # fmt: skip
    run = federation(
        devices=devices, server_roster=longer, clock=lambda: late, rounds=1, fraction_evaluate=0.0
    )
    assert run.rounds[-1].rejected == {"expired": 1}

    weak = create_identity("1", now=NOW, suite=Suite(signature="ml-dsa-44"))
    entries = tuple(
        e if e.identity.name != "1" else Entry(weak.public(), e.not_before, e.not_after)
        for e in roster.entries
    )
    mixed = Roster(2, NOW, roster.not_after, entries)
    devices = {100 + int(n): Device(n, 100 + int(n), keys.clients[n], mixed) for n in "02"}
    devices[101] = Device("1", 101, weak, Unchecked(mixed))
    run = federation(devices=devices, server_roster=mixed, rounds=1, fraction_evaluate=0.0)
    assert run.rounds[-1].rejected == {"downgraded-algorithm": 1}


def test_two_nodes_with_one_identity_count_once(federation, keys, roster):
    devices = {
        100: Device("0", 100, keys.clients["0"], roster),
        101: Device("1", 101, keys.clients["1"], roster),
        102: Device("1", 102, keys.clients["1"], roster),
    }
    run = federation(devices=devices, rounds=1, fraction_evaluate=0.0)
    assert run.rounds[-1].rejected == {"wrong-node": 1}


def test_a_reply_of_another_run_is_refused(federation, keys, roster):
    other = federation(rounds=1, fraction_evaluate=0.0)
    old = other.devices[101].replies[0]
    devices = {100 + int(n): Device(n, 100 + int(n), keys.clients[n], roster) for n in NAMES}
    for device in devices.values():
        device.context.run_id = 7
    devices[101].attack = lambda device, content: old
    run = federation(devices=devices, rounds=1, run=7, fraction_evaluate=0.0)
    assert run.rounds[-1].rejected == {"wrong-run": 1}


def forge_instruction(content, change):
    """What an adversary between server and client may do to an instruction."""
    return change(RecordDict({**content}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: RecordDict({k: v for k, v in c.items() if k != AUTH_RECORD}), "not signed"),
        (lambda c: RecordDict({**c, "arrays": to_record({k: v + 9 for k, v in MODEL.items()})}),
         "content is not the one that was signed"),
        (lambda c: RecordDict({**c, "config": ConfigRecord({"lr": 9.0})}),
         "content is not the one that was signed"),
        (lambda c: RecordDict({**c, "more": ConfigRecord({})}),
         "content is not the one that was signed"),
        (lambda c: RecordDict({**c, AUTH_RECORD: ConfigRecord({INSTRUCTION_KEY: b"x"})}),
         "malformed"),
    ],
)  # fmt: skip
def test_a_client_does_not_obey_an_altered_instruction(federation, change, message):
    run = federation(rounds=1, fraction_evaluate=0.0)
    sent = run.grid.pushed[0]
    device = run.devices[sent.metadata.dst_node_id]
    device.context.state.clear()
    sent.content = forge_instruction(sent.content, change)
    answer = device(sent)
    assert answer.has_error()
    assert message in answer.error.reason


def test_a_client_obeys_an_instruction_once_in_its_run_and_in_time(federation, keys, roster):
    run = federation(rounds=1, fraction_evaluate=0.0)
    sent = run.grid.pushed[0]
    node = sent.metadata.dst_node_id
    device = run.devices[node]
    assert "accepted already" in device(sent).error.reason
    name = str(node - 100)
    late = Device(name, node, keys.clients[name], roster, now=NOW + 3600)
    assert "ended" in late(sent).error.reason
    elsewhere = Device(name, node, keys.clients[name], roster)
    elsewhere.context.run_id = 2
    assert "this is run 2" in elsewhere(sent).error.reason
    unspoiled = Device(name, node, keys.clients[name], roster)
    assert not unspoiled(sent).has_error()


def test_a_second_run_on_the_same_client_state_begins_anew(federation):
    """Flower keeps the client state over all runs of a series; rounds begin at 1 in each."""
    first = federation(rounds=2)
    for device in first.devices.values():
        device.context.run_id = 2
    second = federation(rounds=2, devices=first.devices, run=2)
    assert [r.accepted for r in second.rounds[1:]] == [3, 3]
    sent = first.grid.pushed[0]
    device = first.devices[sent.metadata.dst_node_id]
    device.context.run_id = 1
    assert "stale-round" in device(sent).error.reason, "the first run is not forgotten"


def test_a_folder_remembers_what_was_obeyed_when_the_process_forgets(
    federation, keys, roster, tmp_path
):
    """Whoever recorded an instruction sends it to a SuperNode that was restarted."""
    run = federation(rounds=1, fraction_evaluate=0.0)
    sent = run.grid.pushed[0]
    node = sent.metadata.dst_node_id
    name = str(node - 100)

    def restarted(**config):
        device = Device(name, node, keys.clients[name], roster)
        device.context.node_config.update(config)
        return device(sent)

    assert not restarted(**{"qsfl-state": str(tmp_path)}).has_error()
    again = restarted(**{"qsfl-state": str(tmp_path)})
    assert "accepted already" in again.error.reason
    assert not restarted().has_error()


def test_a_client_cannot_play_the_server(fake_grid, keys, roster):
    """Client 0 signs an instruction with its own, validly enrolled key."""
    from dataclasses import replace

    posing = replace(keys.clients["0"], role="server")
    strategy = StableFedAvg(
        stages=[Authenticate(Credentials(posing, Unchecked(roster)), clock=lambda: NOW)],
        fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1,
    )  # fmt: skip
    device = Device("1", 101, keys.clients["1"], roster)
    grid = fake_grid({101: device})
    grid.push_messages(strategy.configure_train(1, to_record(MODEL), ConfigRecord(), grid))
    (reply,) = grid.pull_messages(list(grid.ready))
    assert reply.has_error()
    assert "0 is a client" in reply.error.reason or "wrong-key" in reply.error.reason


def test_sessions_are_made_anew_when_either_side_forgets(federation, keys, roster):
    run = federation(rounds=1, fraction_evaluate=0.0, encrypt=True)

    def handshakes(strategy, server_round):
        arrays, config = to_record(MODEL), ConfigRecord()
        messages = list(strategy.configure_train(server_round, arrays, config, run.grid))
        run.grid.push_messages(messages)
        replies = run.grid.pull_messages([m.metadata.message_id for m in messages])
        strategy.aggregate_train(server_round, replies)
        assert strategy.outcome.cohort.rejections == ()
        assert strategy.outcome.measured["authenticate"]["sessions"] == 3
        return strategy.outcome.measured["authenticate"]["handshakes"]

    assert handshakes(run.strategy, 2) == 0
    later = NOW + 5 * 3600  # longer than a session may idle
    for device in run.devices.values():
        device.now = later
    run.gate._clock = lambda: later
    assert handshakes(run.strategy, 3) == 3
    assert handshakes(run.strategy, 4) == 0
    run.devices[101].context.state.clear()  # a restarted SuperNode
    assert handshakes(run.strategy, 5) == 1
    gate = Authenticate(Credentials(keys.server, roster), True, lambda: later)
    restarted = StableFedAvg(stages=[gate], fraction_evaluate=0.0)
    assert handshakes(restarted, 6) == 3
    assert handshakes(restarted, 7) == 0


def test_state_holds_no_secret_in_the_clear(federation, keys):
    run = federation(rounds=1, encrypt=True)
    gate = run.strategy.states["authenticate"]["gate"]
    device = run.devices[101]
    root = gate.sessions[101].root.reveal()
    state = b"".join(v for v in device.context.state["qsfl-auth-state"].values())
    assert root not in state
    assert keys.clients["1"].keys[0].storage.reveal() not in state
    assert root.hex() not in repr(run.strategy.states)
    assert "authenticate" not in run.strategy.chain.saved(run.strategy.states)


@pytest.fixture(scope="module")
def signed_round(keys):
    """One real reply and the gate that waits for it."""
    from flwr.supercore.task_identity import TaskIdentity

    from qsfl_flower.crypto.roster import open_roster
    from qsfl_flower.numerics import Layout
    from qsfl_flower.rounds.stages import Exchange

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    roster = open_roster(keys.roster, keys.authority, seen=None)
    gate = Authenticate(Credentials(keys.server, roster), clock=lambda: NOW)
    exchange = Exchange("train", 1, 1, 10.0)
    content = RecordDict({"arrays": to_record(MODEL), "config": ConfigRecord({"server-round": 1})})
    contents, state = gate.instruct({101: content}, gate.init(Layout.of(MODEL)), exchange)
    reply = Device("1", 101, keys.clients["1"], roster)(Message(contents[101], 101, "train"))
    return gate, exchange, state, reply.content


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_of_a_signed_message_gets_in(signed_round, data):
    from qsfl_flower.errors import RejectedUpdate
    from qsfl_flower.rounds.update import Sender

    gate, exchange, state, content = signed_round
    signed = bytearray(content[AUTH_RECORD][REPLY_KEY])
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(signed) - 1))
        signed[position] ^= data.draw(st.integers(1, 255))
    else:
        del signed[data.draw(st.integers(0, len(signed) - 1)) :]
    forged = RecordDict({**content, AUTH_RECORD: ConfigRecord({REPLY_KEY: bytes(signed)})})
    with pytest.raises(RejectedUpdate):
        gate.admit(Sender(101, 0, "1"), forged, state, exchange)
    gate.admit(Sender(101, 0, "1"), content, state, exchange)


def test_the_mod_travels_to_other_processes():
    """Ray sends apps by value, so that the mod may refer only to what can be sent."""
    import cloudpickle

    cloudpickle.dumps(auth_mod(lambda context: None))


def overlapping(federation, **arguments):
    """Three devices of different speed, a new model after every arrival."""
    clock = VirtualClock([SimulatedDevice(1.0), SimulatedDevice(2.3), SimulatedDevice(3.9)])
    options = {"kind": BufferedAsync, "buffer_size": 1, "deadline": 60.0, "rounds": 12}
    arguments["fraction_evaluate"] = 0.0
    return federation(**{**options, **arguments}, simulated=clock)


@pytest.mark.parametrize("encrypt", [False, True])
def test_replies_to_older_instructions_are_let_in_while_newer_ones_are_out(federation, encrypt):
    run = overlapping(federation, encrypt=encrypt)
    assert [r.rejected for r in run.rounds] == [{}] * 13
    rows = [row for rows in run.rows for row in rows]
    assert {row.client for row in rows} == {"0", "1", "2"}
    assert max(row.staleness for row in rows) >= 3
    assert len(run.strategy.states["authenticate"]["gate"].sessions) == 3


def test_what_arrived_for_the_next_buffer_counts_although_its_client_was_asked_to_evaluate(
    federation,
):
    """On the wall clock several answers are there at once, and the buffer holds one."""
    run = federation(kind=BufferedAsync, buffer_size=1, rounds=4, deadline=60.0)
    assert [r.rejected for r in run.rounds] == [{}] * 5
    assert max(row.staleness for rows in run.rows for row in rows) >= 1
    assert run.result.evaluate_metrics_clientapp[1]["loss"] == 1.0


def test_an_old_reply_is_not_let_in_again_while_exchanges_overlap(federation):
    """A device sends its first reply in answer to every later instruction."""
    run = overlapping(federation, attacks={"1": lambda device, content: device.replies[0]})
    statuses = [row.status for rows in run.rows for row in rows if row.node == "101"]
    assert statuses[0] == "accepted"
    assert set(statuses[1:]) == {"stale-round"}


def looks_for_keys(node_config, run_config=None):
    context = Context(1, 1, node_config, RecordDict(), run_config or {})
    return credentials_from_node_config(context).identity.name


def test_keys_are_found_by_the_nodes_configuration_or_in_simulations_by_the_partition(tmp_path):
    everybody, own = tmp_path / "all", tmp_path / "own"
    create_federation(["client-0", "client-1"], now=int(time.time())).save(everybody)
    shutil.copytree(everybody / "client-0", own)
    simulated = {"qsfl-keys": str(everybody)}
    assert looks_for_keys({"qsfl-keys": str(own), "partition-id": 1}) == "client-0"
    assert looks_for_keys({"partition-id": 1}, simulated) == "client-1"
    files = {"qsfl-key": "client-0.key", "qsfl-roster": "roster.qsfl"}
    named = {key: str(own / name) for key, name in files.items()}
    assert looks_for_keys({**named, "qsfl-authority": str(own / "authority.pub")}) == "client-0"
    # What the node says counts, whatever the run says: a run is started by somebody else.
    assert looks_for_keys({"qsfl-keys": str(own), "partition-id": 1}, simulated) == "client-0"
    with pytest.raises(ConfigError, match="qsfl-authority is None"):
        looks_for_keys({**named, "partition-id": 1}, simulated)
    with pytest.raises(KeyFileError, match="client-2"):
        looks_for_keys({"partition-id": 2}, simulated)
    with pytest.raises(ConfigError, match="qsfl-keys is missing"):
        looks_for_keys({"partition-id": 1})


@pytest.mark.parametrize("mods", [lambda mods: mods[::-1], lambda mods: mods[1:]])
def test_the_order_of_mods_is_named_at_the_first_message(federation, keys, roster, mods):
    """qsfl_mod before auth_mod, or without it: the server hears what to write instead."""
    devices = {100 + int(n): Device(n, 100 + int(n), keys.clients[n], roster) for n in NAMES}
    for device in devices.values():
        device.app = numpy_client_app(lambda context: AddOne(), mods=mods(device.mods))
    with pytest.raises(TooFewReplies, match=r"3 x client-error \(client 100: .*in this order\)"):
        federation(rounds=1, devices=devices)
