"""Post-quantum authentication: what each provider and each message costs, on one core."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from qsfl_flower.crypto.algorithms import find_kem, find_signature, kem_names, signature_names
from qsfl_flower.crypto.binding import Binding
from qsfl_flower.crypto.digest import Item, content_digest
from qsfl_flower.crypto.envelope import (
    message_digest,
    sign_instruction,
    sign_reply,
    verify_instruction,
    verify_reply,
)
from qsfl_flower.crypto.federation import Federation, create_federation
from qsfl_flower.crypto.handshake import accept_offer, complete, make_offer
from qsfl_flower.crypto.messages import Instruction, Reply, fresh_nonce
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.crypto.sealing import open_sealed, seal, seal_into
from qsfl_flower.crypto.suite import DEFAULT_SUITE

NAME = "crypto"
DESCRIPTION = "post-quantum providers, signed replies, sealed payloads, bytes per message"

MIN_VERIFIES_PER_S = 2_000
MAX_ADDED_BYTES = 6_000
MAX_SERVER_MS = 10.0  # per client and round, at one million parameters
NOW, RUN, NODE = 1_800_000_000, 1, 1
QUICK_ALGORITHMS = ("ml-kem-768", "ml-dsa-65")

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per measurement; CPU time of this process, best of several repetitions.

    With `quick`, speed has no limits; bytes always have.
    """
    return [*_providers(quick), *_messages(quick), *_payloads(quick)]


def _row(what: str, value: float, unit: str, provider: str = "") -> Row:
    return {"measurement": what, "provider": provider, "value": round(value, 4), "unit": unit}


def _limited(row: Row, limit: str, ok: bool) -> Row:
    return {**row, "limit": limit, "ok": ok}


def _seconds(work: Callable[[], object], quick: bool) -> float:
    """Return the CPU seconds of one call: the best of five batches of at least 20 ms each."""
    best, budget = float("inf"), 0.005 if quick else 0.02
    for _ in range(3 if quick else 5):
        calls, start = 0, time.process_time()
        while (spent := time.process_time() - start) < budget or calls == 0:
            work()
            calls += 1
        best = min(best, spent / calls)
    return best


def _providers(quick: bool) -> list[Row]:
    rows = []
    for name, providers in kem_names().items():
        if quick and name not in QUICK_ALGORITHMS:
            continue
        for provider in providers:
            kem = find_kem(name, provider)
            public, secret = kem.keygen()
            sent = kem.encapsulate(public)
            steps: dict[str, Callable[[], object]] = {
                "keygen": kem.keygen,
                "encapsulate": lambda k=kem, p=public: k.encapsulate(p),
                "decapsulate": lambda k=kem, s=secret, c=sent.ciphertext: k.decapsulate(s, c),
            }
            for step, work in steps.items():
                rows.append(_row(f"{name} {step}", 1e3 * _seconds(work, quick), "ms", provider))
    for name, providers in signature_names().items():
        if name.startswith("slh-dsa") and (quick or not name.endswith("128f")):
            continue
        if quick and name not in QUICK_ALGORITHMS:
            continue
        for provider in providers:
            scheme = find_signature(name, provider)
            public, secret = scheme.keygen()
            signed = scheme.sign(secret, b"message")
            steps = {
                "keygen": scheme.keygen,
                "sign": lambda k=scheme, s=secret: k.sign(s, b"message"),
                "verify": lambda k=scheme, p=public, s=signed: k.verify(p, b"message", s),
            }
            for step, work in steps.items():
                rows.append(_row(f"{name} {step}", 1e3 * _seconds(work, quick), "ms", provider))
    return rows


def _messages(quick: bool) -> list[Row]:
    number = 100 if quick else 1_000
    federation = create_federation([f"client-{i}" for i in range(number)], now=NOW)
    roster = open_roster(federation.roster, federation.authority)
    content = content_digest([Item("array", "w", "float32", (1,), bytes(4))])
    offer = make_offer(DEFAULT_SUITE)
    instruction = Instruction(RUN, 1, 1, "train", content, NOW, NOW + 60, offer.encode())
    server = federation.server
    asked = sign_instruction(instruction, server.name, server.keys[0].signing)
    outstanding = {message_digest(asked): instruction}
    received, _ = verify_instruction(
        asked, content, run=RUN, roster=roster, now=NOW, seen=ReplayCache()
    )
    replies = [_reply(federation, name, asked, content) for name in federation.clients]

    def verify_all() -> None:
        cache = ReplayCache()
        for message in replies:
            _, cache = verify_reply(
                message,
                content,
                node=NODE,
                outstanding=outstanding,
                roster=roster,
                now=NOW,
                seen=cache,
            )

    alice = federation.clients["client-0"].public()
    nonce = fresh_nonce()
    acceptance, _ = accept_offer(received, alice, node=NODE, nonce=nonce, now=NOW)
    first = _reply(federation, "client-0", asked, content, acceptance, nonce)
    reply, _ = verify_reply(
        first,
        content,
        node=NODE,
        outstanding=outstanding,
        roster=roster,
        now=NOW,
        seen=ReplayCache(),
    )
    per_second = number / _seconds(verify_all, quick)
    verify_instruction_s = _seconds(
        lambda: verify_instruction(
            asked, content, run=RUN, roster=roster, now=NOW, seen=ReplayCache()
        ),
        quick,
    )
    rows = [
        _limited(
            _row("replies verified (without hashing)", per_second, "1/s"),
            f">= {MIN_VERIFIES_PER_S}",
            quick or per_second >= MIN_VERIFIES_PER_S,
        ),
        _row(
            "sign a reply",
            1e3 * _seconds(lambda: _reply(federation, "client-0", asked, content), quick),
            "ms",
        ),
        _row("verify an instruction", 1e3 * verify_instruction_s, "ms"),
        _row(
            "handshake, client",
            1e3
            * _seconds(
                lambda: accept_offer(received, alice, node=NODE, nonce=nonce, now=NOW), quick
            ),
            "ms",
        ),
        _row(
            "handshake, server",
            1e3 * _seconds(lambda: complete(offer, reply, server.public(), now=NOW), quick),
            "ms",
        ),
    ]
    for what, message in (
        ("instruction with an offer", asked),
        ("reply with a handshake", first),
        ("reply in a session", replies[0]),
    ):
        size = len(message)
        row = _row(what, size, "bytes")
        rows.append(_limited(row, f"<= {MAX_ADDED_BYTES}", size <= MAX_ADDED_BYTES))
    return rows


def _reply(
    federation: Federation,
    name: str,
    asked: bytes,
    content: bytes,
    acceptance: bytes = b"",
    nonce: bytes | None = None,
) -> bytes:
    fields = Reply(
        RUN, 1, 1, NODE, message_digest(asked), content, acceptance, nonce or fresh_nonce()
    )
    return sign_reply(fields, name, federation.clients[name].keys[0].signing)


def _payloads(quick: bool) -> list[Row]:
    parameters = 100_000 if quick else 1_000_000
    values = np.frombuffer(os.urandom(8 * parameters), dtype=np.float64)
    model = values[: parameters // 2]  # the bytes of `parameters` float32 values
    member = create_federation(["member"], now=NOW).clients["member"]
    binding = Binding(RUN, 1, "client", "member", "shares")
    key = member.keys[0].encryption
    sealed = seal(key.public, values, binding)
    buffer = bytearray(len(sealed))
    megabytes = values.nbytes / 1e6
    seal_s = _seconds(lambda: seal(key.public, values, binding), quick)
    into_s = _seconds(lambda: seal_into(buffer, key.public, values, binding), quick)
    open_s = _seconds(lambda: open_sealed([key], sealed, binding), quick)
    item = Item("array", "w", "float32", (parameters,), model)
    hash_s = _seconds(lambda: content_digest([item]), quick)
    # What the server does for one client: hash one million float32 values, verify, decide.
    hash_ms = 1e3 * hash_s * (1_000_000 / parameters)
    return [
        _row(f"seal {megabytes:.1f} MB", megabytes / seal_s, "MB/s"),
        _row(f"seal {megabytes:.1f} MB into a buffer", megabytes / into_s, "MB/s"),
        _row(f"open {megabytes:.1f} MB", megabytes / open_s, "MB/s"),
        _limited(
            _row("hash one million parameters", hash_ms, "ms"),
            f"< {MAX_SERVER_MS:g} with verification",
            quick or hash_ms < MAX_SERVER_MS - 1e3 / MIN_VERIFIES_PER_S,
        ),
    ]
