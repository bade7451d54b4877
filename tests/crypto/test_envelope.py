"""The attack suite: every message is real encoded bytes, every attack ends in a named reason."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.crypto.envelope import (
    message_digest,
    sign_instruction,
    sign_reply,
    verify_instruction,
)
from qsfl_flower.crypto.errors import Malformed, Rejected
from qsfl_flower.crypto.identity import create_authority
from qsfl_flower.crypto.messages import Instruction, Reply
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.roster import Roster, open_roster, sign_roster
from qsfl_flower.crypto.statement import SigningKey, sign_statement
from qsfl_flower.crypto.suite import Suite

if TYPE_CHECKING:
    from tests.crypto.conftest import World

NOW = 1_800_000_000
RUN, NODE = 77, 1001
MODEL, UPDATE = b"m" * 32, b"u" * 32


def reason_of_reply(world: World, message: bytes, *args: object, **more: object) -> str:
    with pytest.raises(Rejected) as caught:
        world.check_reply(message, *args, **more)  # type: ignore[arg-type]
    return caught.value.reason


def reason_of_instruction(world: World, message: bytes, **more: object) -> str:
    with pytest.raises(Rejected) as caught:
        world.check_instruction(message, **more)  # type: ignore[arg-type]
    return caught.value.reason


def with_entry(world: World, name: str, **changes: object) -> World:
    entries = tuple(
        dataclasses.replace(entry, **changes) if entry.identity.name == name else entry  # type: ignore[arg-type]
        for entry in world.roster.entries
    )
    return dataclasses.replace(world, roster=dataclasses.replace(world.roster, entries=entries))


def test_a_round(world: World) -> None:
    asked, instruction = world.ask()
    received, seen = world.check_instruction(asked)
    assert received.content == instruction
    assert received.signer.name == "hub"
    assert received.digest == message_digest(asked)
    cache = ReplayCache()
    for name in ("alice", "bob", "carol"):
        message = world.answer(asked, instruction, name, node=NODE)
        reply, cache = world.check_reply(message, {message_digest(asked): instruction}, cache)
        assert reply.signer.name == name
        assert reply.content.content == UPDATE
    assert cache.count == 3
    assert seen.count == 1


def test_bytes_added_to_a_message_stay_below_6_kb(world: World) -> None:
    from qsfl_flower.crypto.handshake import accept_offer, make_offer
    from qsfl_flower.crypto.messages import fresh_nonce

    offer = make_offer(Suite())
    asked, instruction = world.ask(offer=offer.encode())
    received, _ = world.check_instruction(asked)
    alice = world.federation.clients["alice"].public()
    acceptance, _ = accept_offer(received, alice, node=NODE, nonce=fresh_nonce(), now=NOW)
    message = world.answer(asked, instruction, acceptance=acceptance)
    assert len(asked) < 5_000
    assert len(message) < 5_000
    assert len(world.answer(asked, instruction)) < 3_700


# Attacks on replies


def test_replay_within_a_round(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    message = world.answer(asked, instruction)
    _, cache = world.check_reply(message, outstanding)
    assert reason_of_reply(world, message, outstanding, cache) == "replay"


def test_replay_in_a_later_round(world: World) -> None:
    asked, instruction = world.ask(5)
    message = world.answer(asked, instruction)
    later, next_instruction = world.ask(6)
    outstanding = {message_digest(later): next_instruction}
    assert reason_of_reply(world, message, outstanding) == "stale-round"


def test_replay_in_a_round_that_is_repeated_after_a_restart(world: World) -> None:
    asked, instruction = world.ask(5)
    message = world.answer(asked, instruction)
    again, same_round = world.ask(5)  # the same round, asked anew: another nonce
    assert reason_of_reply(world, message, {message_digest(again): same_round}) == "replay"


def test_replay_in_another_run(world: World) -> None:
    asked, instruction = world.ask(run=76)
    message = world.answer(asked, instruction)
    now, current = world.ask()
    assert reason_of_reply(world, message, {message_digest(now): current}) == "wrong-run"
    assert reason_of_instruction(world, asked) == "wrong-run"


@pytest.mark.parametrize("change", [{"run": 78}, {"round": 6}, {"model_version": 6}])
def test_a_reply_that_contradicts_what_it_answers(world: World, change: dict[str, int]) -> None:
    asked, instruction = world.ask()
    message = world.answer(asked, instruction, **change)
    outstanding = {message_digest(asked): instruction}
    assert reason_of_reply(world, message, outstanding) == "malformed"


def test_changed_content(world: World) -> None:
    asked, instruction = world.ask()
    message = world.answer(asked, instruction)
    outstanding = {message_digest(asked): instruction}
    assert reason_of_reply(world, message, outstanding, content=b"x" * 32) == "bad-signature"


def test_swapped_sender(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    # bob signs as alice: with the id of his own key, or claiming hers
    honest = world.answer(asked, instruction, "alice", signer="bob")
    assert reason_of_reply(world, honest, outstanding) == "wrong-key"
    alice, bob = (world.federation.clients[name].keys[0].signing for name in ("alice", "bob"))
    claimed = sign_reply(
        Reply(RUN, 5, 5, NODE, message_digest(asked), UPDATE),
        "alice",
        SigningKey(alice.public, bob.secret),
    )
    assert reason_of_reply(world, claimed, outstanding) == "bad-signature"
    # the name is swapped in alice's own message
    own = world.answer(asked, instruction, "alice")
    swapped = own.replace(b"\x05alice", b"\x05carol", 1)
    assert reason_of_reply(world, swapped, outstanding) == "wrong-key"


def test_a_reply_from_another_node(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    message = world.answer(asked, instruction, node=NODE)
    # alice's reply relayed by another node; and alice answering for a node that is not hers
    assert reason_of_reply(world, message, outstanding, node=NODE + 1) == "wrong-node"


def test_two_nodes_with_one_identity(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    _, cache = world.check_reply(world.answer(asked, instruction, node=1), outstanding, node=1)
    second = world.answer(asked, instruction, node=2)
    assert reason_of_reply(world, second, outstanding, cache, node=2) == "wrong-node"


def test_unknown_revoked_expired_and_early_clients(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    message = world.answer(asked, instruction)
    stranger = world.answer(asked, instruction, "dave", signer="alice")
    assert reason_of_reply(world, stranger, outstanding) == "unknown"
    for change, expected in (
        ({"revoked": True}, "revoked"),
        ({"not_before": NOW - 9, "not_after": NOW - 1}, "expired"),
        ({"not_before": NOW + 301}, "not-yet-valid"),
    ):
        altered = with_entry(world, "alice", **change)
        assert reason_of_reply(altered, message, outstanding) == expected
        altered.check_reply(world.answer(asked, instruction, "bob"), outstanding)


def test_a_server_cannot_impersonate_a_client(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    reply = Reply(RUN, 5, 5, NODE, message_digest(asked), UPDATE)
    key = world.federation.server.keys[0].signing
    for name in ("hub", "alice"):
        assert reason_of_reply(world, sign_reply(reply, name, key), outstanding) == "wrong-key"


def test_a_server_cannot_enrol_or_replace_anybody(world: World) -> None:
    federation = world.federation
    forged = dataclasses.replace(world.roster, serial=9, entries=world.roster.entries[:1])
    for key in (federation.server.keys[0].signing, SigningKey.generate("ml-dsa-65")):
        forger = dataclasses.replace(create_authority("authority"), signing=key)
        with pytest.raises(Rejected):
            open_roster(sign_roster(forged, forger), federation.authority)


def test_downgraded_algorithm(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    reply = Reply(RUN, 5, 5, NODE, message_digest(asked), UPDATE)
    weak = SigningKey.generate("ml-dsa-44")
    alice = world.federation.clients["alice"].keys[0].signing.public
    # alice's key id over a weaker scheme
    disguised = dataclasses.replace(weak, public=dataclasses.replace(weak.public))
    message = sign_reply(reply, "alice", disguised)
    forged = message.replace(weak.public.key_id, alice.key_id, 1)
    assert reason_of_reply(world, forged, outstanding) == "downgraded-algorithm"
    # a roster entry whose suite the verifier does not accept
    strict = dataclasses.replace(
        world,
        roster=dataclasses.replace(world.roster, accepted=(Suite("ml-kem-1024", "ml-dsa-87"),)),
    )
    message = world.answer(asked, instruction)
    assert reason_of_reply(strict, message, outstanding) == "downgraded-algorithm"
    assert reason_of_instruction(strict, asked) == "downgraded-algorithm"


def test_a_statement_of_another_kind_is_no_reply(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    assert reason_of_reply(world, asked, outstanding) == "malformed"
    assert reason_of_instruction(world, world.answer(asked, instruction)) == "malformed"
    key = world.federation.clients["alice"].keys[0].signing
    body = Reply(RUN, 5, 5, NODE, message_digest(asked), UPDATE).encode()
    for kind in ("instruction", "enrolment", "rotation"):
        other = sign_statement(kind, "alice", key, body)
        assert reason_of_reply(world, other, outstanding) == "malformed"
        renamed = other.replace(bytes([len(kind)]) + kind.encode(), b"\x05reply", 1)
        assert reason_of_reply(world, renamed, outstanding) == "bad-signature"


def test_no_instruction_outstanding(world: World) -> None:
    asked, instruction = world.ask()
    assert reason_of_reply(world, world.answer(asked, instruction), {}) == "wrong-run"


# Attacks on instructions


def test_a_client_obeys_only_its_server_and_only_once(world: World) -> None:
    asked, instruction = world.ask(5)
    _, seen = world.check_instruction(asked)
    assert reason_of_instruction(world, asked, seen=seen) == "replay"
    _, seen = world.check_instruction(world.ask(5, purpose="evaluate")[0], seen)
    _, seen = world.check_instruction(world.ask(6)[0], seen)
    assert reason_of_instruction(world, world.ask(5)[0], seen=seen) == "stale-round"
    # another client gives orders, under its own name and under the server's
    alice = world.federation.clients["alice"].keys[0].signing
    for name in ("alice", "hub"):
        forged = sign_instruction(instruction, name, alice)
        assert reason_of_instruction(world, forged) == "wrong-key"


def test_an_instruction_belongs_to_its_content_and_time(world: World) -> None:
    asked, _ = world.ask()
    with pytest.raises(Rejected) as caught:
        verify_instruction(
            asked, b"x" * 32, run=RUN, roster=world.roster, now=NOW, seen=ReplayCache()
        )
    assert caught.value.reason == "bad-signature"
    assert reason_of_instruction(world, asked, now=NOW + 3601) == "expired"
    assert reason_of_instruction(world, asked, now=NOW - 301) == "not-yet-valid"
    world.check_instruction(asked, now=NOW - 300)  # clocks may differ a little


# Bytes


def test_every_flip_and_truncation_of_a_reply_is_rejected(world: World) -> None:
    asked, instruction = world.ask()
    outstanding = {message_digest(asked): instruction}
    message = world.answer(asked, instruction)
    world.check_reply(message, outstanding)
    for at in range(len(message)):
        altered = bytearray(message)
        altered[at] ^= 1 << (at % 8)
        reason_of_reply(world, bytes(altered), outstanding)
    for size in range(len(message)):
        assert reason_of_reply(world, message[:size], outstanding) == "malformed"
    assert reason_of_reply(world, message + b"\0", outstanding) == "malformed"


def test_every_flip_and_truncation_of_an_instruction_is_rejected(world: World) -> None:
    asked, _ = world.ask()
    for at in range(len(asked)):
        altered = bytearray(asked)
        altered[at] ^= 1 << (at % 8)
        reason_of_instruction(world, bytes(altered))
        assert reason_of_instruction(world, asked[:at]) == "malformed"


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_random_damage_ends_in_our_error(world: World, data: st.DataObject) -> None:
    asked, instruction = world.ask()
    message = bytearray(world.answer(asked, instruction))
    start = data.draw(st.integers(0, len(message) - 1))
    stop = data.draw(st.integers(start, min(len(message), start + 40)))
    insert = data.draw(st.binary(max_size=40))
    altered = bytes(message[:start]) + insert + bytes(message[stop:])
    if altered != bytes(message):
        reason_of_reply(world, altered, {message_digest(asked): instruction})


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_an_enrolled_client_that_signs_rubbish_is_rejected_too(
    world: World, data: st.DataObject
) -> None:
    asked, instruction = world.ask()
    body = bytearray(Reply(RUN, 5, 5, NODE, message_digest(asked), UPDATE).encode())
    at = data.draw(st.integers(0, len(body) - 21))  # all but the nonce, which is free
    body[at : at + data.draw(st.integers(1, 20))] = data.draw(st.binary(max_size=20))
    key = world.federation.clients["alice"].keys[0].signing
    message = sign_statement("reply", "alice", key, bytes(body))
    try:
        reply, _ = world.check_reply(message, {message_digest(asked): instruction})
    except Rejected:
        return
    assert reply.content.encode() == bytes(body)  # nothing but a well-formed reply gets in
    assert (reply.content.run, reply.content.node) == (RUN, NODE)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_rubbish_is_malformed(rubbish: bytes) -> None:
    for decode in (Instruction.decode, Reply.decode):
        with pytest.raises(Malformed):
            decode(rubbish)


@given(
    numbers=st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=5),
    blob=st.binary(max_size=100),
    fixed=st.binary(min_size=32, max_size=32),
)
@settings(deadline=None)
def test_bodies_round_trip(numbers: list[int], blob: bytes, fixed: bytes) -> None:
    run, round_, version, issued, expires = numbers
    instruction = Instruction(run, round_, version, "train", fixed, issued, expires, blob)
    assert Instruction.decode(instruction.encode()) == instruction
    reply = Reply(run, round_, version, issued, fixed, fixed[::-1], blob)
    assert Reply.decode(reply.encode()) == reply
    assert Reply(run, round_, version, issued, fixed, fixed).nonce != reply.nonce


def test_a_roster_is_needed(world: World) -> None:
    asked, instruction = world.ask()
    empty = dataclasses.replace(world, roster=Roster(1, NOW, NOW + 9, ()))
    outstanding = {message_digest(asked): instruction}
    assert reason_of_reply(empty, world.answer(asked, instruction), outstanding) == "unknown"
    stale = dataclasses.replace(world, roster=dataclasses.replace(world.roster, not_after=NOW - 1))
    assert reason_of_reply(stale, world.answer(asked, instruction), outstanding) == "expired"
