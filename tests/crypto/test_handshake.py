from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.envelope import Authentic, message_digest
from qsfl_flower.crypto.errors import Rejected
from qsfl_flower.crypto.handshake import (
    Lifetime,
    Offer,
    accept_offer,
    complete,
    make_offer,
    make_ticket,
    ticket_fits,
)
from qsfl_flower.crypto.hybrid import HybridKey
from qsfl_flower.crypto.messages import Instruction, Reply, fresh_nonce
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.session import Session
from qsfl_flower.crypto.suite import DEFAULT_SUITE

if TYPE_CHECKING:
    from tests.crypto.conftest import World

NOW = 1_800_000_000
NODE = 1001
OFFER = make_offer(DEFAULT_SUITE)


@dataclasses.dataclass
class Exchange:
    """One instruction with an offer, and a client's verified reply that accepts it."""

    asked: bytes
    instruction: Instruction
    reply: Authentic[Reply]
    client: Session


def exchange(world: World, name: str = "alice", offer: Offer = OFFER, round: int = 5) -> Exchange:
    asked, instruction = world.ask(round, offer=offer.encode())
    received, _ = world.check_instruction(asked)
    nonce = fresh_nonce()
    party = world.federation.clients[name].public()
    acceptance, session = accept_offer(received, party, node=NODE, nonce=nonce, now=NOW)
    message = world.answer(asked, instruction, name, nonce=nonce, acceptance=acceptance)
    reply, _ = world.check_reply(message, {message_digest(asked): instruction})
    return Exchange(asked, instruction, reply, session)


def finish(world: World, done: Exchange, offer: Offer = OFFER) -> Session:
    return complete(offer, done.reply, world.federation.server.public(), now=NOW)


def test_both_ends_get_the_same_session(world: World) -> None:
    done = exchange(world)
    server = finish(world, done)
    assert server == dataclasses.replace(done.client, role="server")
    assert (server.client, server.server, server.node, server.run) == ("alice", "hub", NODE, 77)
    # the client can encrypt in the very reply that accepts the offer
    frame = done.client.sealer("update").seal(b"update", 5)
    assert server.open(frame, 5, "update") == b"update"


def test_the_ticket_proves_the_server_to_the_client(world: World) -> None:
    done = exchange(world)
    server = finish(world, done)
    following, _ = world.ask(6, offer=make_offer(DEFAULT_SUITE).encode())
    ticket = make_ticket(server, message_digest(following))
    assert len(ticket) == 48
    assert ticket_fits(done.client, ticket, message_digest(following))
    assert not ticket_fits(done.client, ticket, message_digest(done.asked))  # replayed
    assert not ticket_fits(done.client, b"", message_digest(following))
    assert not ticket_fits(done.client, ticket[:-1] + b"\0", message_digest(following))
    assert not ticket_fits(done.client, "ticket", message_digest(following))  # type: ignore[arg-type]
    other = finish(world, exchange(world, "bob"))
    assert not ticket_fits(done.client, make_ticket(other, message_digest(following)), b"")


def test_the_whole_conversation_as_bytes_over_a_restart_of_either_side(world: World) -> None:
    """Three rounds; the client restarts after the first, the server after the second."""
    server_state: dict[str, Session] = {}
    client_state: bytes | None = None
    storage = world.federation.clients["alice"].keys[0].storage
    cache, seen, handshakes = ReplayCache(window=2), ReplayCache(), []
    for round_ in (5, 6, 7, 8):
        if round_ == 6:
            client_state, seen = None, ReplayCache()  # the client lost its state
        if round_ == 7:
            server_state = {}  # the server lost its sessions
        # server -> client
        offer = make_offer(DEFAULT_SUITE)
        asked, instruction = world.ask(round_, offer=offer.encode())
        digest = message_digest(asked)
        ticket = make_ticket(server_state["alice"], digest) if "alice" in server_state else b""
        # client: a process that lives for this message
        received, seen = world.check_instruction(asked, ReplayCache.decode(seen.encode()))
        session = Session.restore(client_state, storage) if client_state else None
        nonce, acceptance = fresh_nonce(), b""
        if session is None or not ticket_fits(session, ticket, received.digest):
            handshakes.append(round_)
            alice = world.federation.clients["alice"].public()
            acceptance, session = accept_offer(received, alice, node=NODE, nonce=nonce, now=NOW)
        session = session.used(NOW)
        frame = session.sealer("update").seal(b"update", round_)
        client_state = session.save(storage)
        message = world.answer(asked, instruction, nonce=nonce, acceptance=acceptance)
        # server
        reply, cache = world.check_reply(message, {digest: instruction}, cache)
        if reply.content.acceptance:
            hub = world.federation.server.public()
            server_state["alice"] = complete(offer, reply, hub, now=NOW)
        assert server_state["alice"].open(frame, round_, "update") == b"update"
    assert handshakes == [5, 6, 7]


def test_sessions_differ_from_each_other(world: World) -> None:
    roots = {
        exchange(world, name, make_offer(DEFAULT_SUITE)).client.session_id
        for name in ("alice", "bob", "alice")
    }
    assert len(roots) == 3
    assert exchange(world).client.session_id != exchange(world).client.session_id


@pytest.mark.parametrize("field", ["run", "node", "instruction", "nonce"])
def test_ends_that_differ_in_anything_have_no_session(world: World, field: str) -> None:
    done = exchange(world)
    value = getattr(done.reply.content, field)
    other = value + 1 if isinstance(value, int) else bytes(len(value))
    content = dataclasses.replace(done.reply.content, **{field: other})
    altered = dataclasses.replace(done.reply, content=content)
    with pytest.raises(Rejected) as caught:
        complete(OFFER, altered, world.federation.server.public(), now=NOW)
    assert caught.value.reason == "wrong-key"


def test_identities_are_bound(world: World) -> None:
    done = exchange(world)
    hub = world.federation.server.public()
    bob = world.federation.clients["bob"].public()
    with pytest.raises(Rejected) as caught:  # alice's acceptance presented as bob's
        complete(OFFER, dataclasses.replace(done.reply, signer=bob), hub, now=NOW)
    assert caught.value.reason == "wrong-key"
    with pytest.raises(Rejected) as caught:  # another server, another key of the same server
        complete(OFFER, done.reply, dataclasses.replace(hub, name="hub2"), now=NOW)
    assert caught.value.reason == "wrong-key"
    rotated = world.federation.server.rotated(NOW).public()
    with pytest.raises(Rejected):
        complete(OFFER, done.reply, rotated, now=NOW)


def test_an_acceptance_of_another_offer_fails(world: World) -> None:
    done = exchange(world)
    with pytest.raises(Rejected) as caught:
        finish(world, done, make_offer(DEFAULT_SUITE))
    assert caught.value.reason == "wrong-key"


def test_a_downgraded_offer_or_acceptance_is_refused(world: World) -> None:
    weak = Offer(HybridKey.generate("ml-kem-512"))
    with pytest.raises(Rejected, match="offers ml-kem-512, the roster says ml-kem-768") as caught:
        exchange(world, offer=weak)
    assert caught.value.reason == "downgraded-algorithm"
    done = exchange(world)
    with pytest.raises(Rejected) as caught:
        finish(world, done, weak)
    assert caught.value.reason == "downgraded-algorithm"


def test_every_flip_and_truncation_of_offer_and_acceptance_is_rejected(world: World) -> None:
    done = exchange(world)
    hub = world.federation.server.public()
    acceptance = done.reply.content.acceptance

    def completed(data: bytes) -> None:
        content = dataclasses.replace(done.reply.content, acceptance=data)
        complete(OFFER, dataclasses.replace(done.reply, content=content), hub, now=NOW)

    completed(acceptance)
    for at in range(len(acceptance)):
        altered = bytearray(acceptance)
        altered[at] ^= 1 << (at % 8)
        with pytest.raises(Rejected):
            completed(bytes(altered))
        with pytest.raises(Rejected):
            completed(acceptance[:at])
    offer = OFFER.encode()
    asked, _ = world.ask(offer=offer)
    received, _ = world.check_instruction(asked)
    alice = world.federation.clients["alice"].public()
    for size in range(0, len(offer), 13):
        content = dataclasses.replace(received.content, offer=offer[:size])
        damaged = dataclasses.replace(received, content=content)
        with pytest.raises(Rejected):
            accept_offer(damaged, alice, node=NODE, nonce=bytes(16), now=NOW)


def test_long_term_keys_do_not_open_recorded_traffic(world: World) -> None:
    done = exchange(world)
    # everything that was sent and every long-term secret, but not the offer's forgotten keys
    server_keys = world.federation.server.keys[0].encryption
    pretender = Offer(dataclasses.replace(server_keys))
    with pytest.raises(Rejected):
        finish(world, done, pretender)


@pytest.mark.parametrize("known", ["x25519", "kem_key"])
def test_one_broken_half_of_the_offer_does_not_give_the_session(world: World, known: str) -> None:
    done = exchange(world)
    other = make_offer(DEFAULT_SUITE).key
    guess = {"x25519": other.x25519, "kem_key": other.kem_key, known: getattr(OFFER.key, known)}
    attacker = Offer(dataclasses.replace(OFFER.key, **guess))
    with pytest.raises(Rejected):
        finish(world, done, attacker)


def test_lifetime(world: World) -> None:
    done = exchange(world)
    hub = world.federation.server.public()
    session = complete(OFFER, done.reply, hub, now=NOW, lifetime=Lifetime(total=100, idle=10))
    assert session.used(NOW + 10).used(NOW + 20).last_used == NOW + 20
    with pytest.raises(Rejected):
        session.used(NOW + 11)


def test_an_offer_may_use_any_kem_of_the_servers_suite(world: World) -> None:
    suite = dataclasses.replace(DEFAULT_SUITE, kem="hqc-128")
    offer = make_offer(suite)
    hub = dataclasses.replace(
        world.federation.server.public(), encryption=HybridKey.generate("hqc-128").public
    )
    received = Authentic(world.ask(offer=offer.encode())[1], hub, bytes(32))
    alice = world.federation.clients["alice"].public()
    acceptance, client = accept_offer(received, alice, node=NODE, nonce=bytes(16), now=NOW)
    content = Reply(77, 5, 5, NODE, bytes(32), bytes(32), acceptance, bytes(16))
    server = complete(offer, Authentic(content, alice, bytes(32)), hub, now=NOW)
    assert server.root == client.root
    assert isinstance(server.root, Secret)


@pytest.mark.parametrize("change", ["short", "small order"])
def test_an_unusable_acceptance_is_malformed(world: World, change: str) -> None:
    done = exchange(world)
    reader = Reader(done.reply.content.acceptance, "acceptance")
    magic, kem = reader.fixed(6), reader.identifier("KEM name")
    ciphertext, proof = reader.blob(5_000), reader.fixed(32)
    bad = ciphertext[:-1] if change == "short" else bytes(32) + ciphertext[32:]
    acceptance = Writer(magic).text(kem).blob(bad).fixed(proof, 32).done()
    content = dataclasses.replace(done.reply.content, acceptance=acceptance)
    reply = dataclasses.replace(done.reply, content=content)
    with pytest.raises(Rejected, match="the acceptance of alice") as caught:
        finish(world, dataclasses.replace(done, reply=reply))
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize("change", [{"x25519": bytes(32)}, {"kem_key": b"\xff" * 1184}])
def test_an_unusable_offer_is_malformed(world: World, change: dict[str, bytes]) -> None:
    public = dataclasses.replace(OFFER.key.public, **change)
    bad = Offer(dataclasses.replace(OFFER.key, public=public))
    with pytest.raises(Rejected, match="the offer of hub") as caught:
        exchange(world, offer=bad)
    assert caught.value.reason == "malformed"
