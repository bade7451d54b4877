"""A small federation whose keys are made once; everything signed is made anew by each test."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qsfl_flower.crypto.envelope import (
    Authentic,
    message_digest,
    sign_instruction,
    sign_reply,
    verify_instruction,
    verify_reply,
)
from qsfl_flower.crypto.federation import Federation, create_federation
from qsfl_flower.crypto.messages import Instruction, Reply
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.roster import Roster, open_roster

NOW = 1_800_000_000
RUN, NODE = 77, 1001
MODEL, UPDATE = b"m" * 32, b"u" * 32  # digests of what is sent down and up


@dataclass(frozen=True)
class World:
    """The federation and shorthands for the two signed messages of a round."""

    federation: Federation
    roster: Roster

    def ask(self, round: int = 5, **changes: object) -> tuple[bytes, Instruction]:
        fields: dict[str, object] = {
            "run": RUN,
            "round": round,
            "model_version": round,
            "purpose": "train",
            "content": MODEL,
            "issued_at": NOW,
            "expires_at": NOW + 3600,
        }
        instruction = Instruction(**{**fields, **changes})  # type: ignore[arg-type]
        server = self.federation.server
        return sign_instruction(instruction, server.name, server.keys[0].signing), instruction

    def answer(
        self,
        asked: bytes,
        instruction: Instruction,
        client: str = "alice",
        signer: str | None = None,
        **changes: object,
    ) -> bytes:
        fields: dict[str, object] = {
            "run": instruction.run,
            "round": instruction.round,
            "model_version": instruction.model_version,
            "node": NODE,
            "instruction": message_digest(asked),
            "content": UPDATE,
        }
        reply = Reply(**{**fields, **changes})  # type: ignore[arg-type]
        key = self.federation.clients[signer or client].keys[0].signing
        return sign_reply(reply, client, key)

    def check_instruction(
        self, message: bytes, seen: ReplayCache | None = None, now: int = NOW
    ) -> tuple[Authentic[Instruction], ReplayCache]:
        return verify_instruction(
            message, MODEL, run=RUN, roster=self.roster, now=now, seen=seen or ReplayCache()
        )

    def check_reply(
        self,
        message: bytes,
        outstanding: dict[bytes, Instruction],
        seen: ReplayCache | None = None,
        node: int = NODE,
        content: bytes = UPDATE,
        now: int = NOW,
    ) -> tuple[Authentic[Reply], ReplayCache]:
        return verify_reply(
            message,
            content,
            node=node,
            outstanding=outstanding,
            roster=self.roster,
            now=now,
            seen=seen or ReplayCache(),
        )


@pytest.fixture(scope="session")
def federation() -> Federation:
    return create_federation(["alice", "bob", "carol"], now=NOW, server="hub")


@pytest.fixture(scope="session")
def world(federation: Federation) -> World:
    return World(federation, open_roster(federation.roster, federation.authority))
