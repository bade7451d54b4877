"""Signed messages of a round: the server's instruction and the clients' replies to it.

The server signs one instruction per round, the same bytes for every client; a client signs each of
its replies. Both sign a digest of the content, not the content, and a reply names the instruction
that it answers by its digest. So a reply is bound to one run, round, model version, node and
client, and to the very bytes of the request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from qsfl_flower.crypto.errors import Reason, Rejected
from qsfl_flower.crypto.identity import PublicIdentity
from qsfl_flower.crypto.messages import Instruction, Reply
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.roster import MAX_CLOCK_SKEW, Roster
from qsfl_flower.crypto.statement import SigningKey, Statement, sign_statement

Content = TypeVar("Content", Instruction, Reply)


@dataclass(frozen=True)
class Authentic(Generic[Content]):
    """A message that was verified: only the functions of this module make one.

    Parameters
    ----------
    content : Instruction or Reply
        What was signed.
    signer : PublicIdentity
        Who signed it, from the roster.
    digest : bytes
        SHA-256 of the signed message.
    """

    content: Content
    signer: PublicIdentity
    digest: bytes


def sign_instruction(instruction: Instruction, server: str, key: SigningKey) -> bytes:
    """Return the instruction signed by the server: one signature for all clients."""
    return sign_statement("instruction", server, key, instruction.encode())


def sign_reply(reply: Reply, client: str, key: SigningKey) -> bytes:
    """Return the reply signed by the client."""
    return sign_statement("reply", client, key, reply.encode())


def message_digest(message: bytes) -> bytes:
    """Return the digest by which a signed message is referred to."""
    return hashlib.sha256(message).digest()


def verify_instruction(
    message: bytes,
    content: bytes,
    *,
    run: int,
    roster: Roster,
    now: int,
    seen: ReplayCache,
) -> tuple[Authentic[Instruction], ReplayCache]:
    """Return the server's instruction if a client may act on it, and what was seen so far.

    Parameters
    ----------
    message : bytes
        What `sign_instruction` returned.
    content : bytes
        `content_digest` of the content that came with it.
    run : int
        The run that the client takes part in.
    roster : Roster
        The client's own copy, checked against the authority.
    now : int
        Unix time, seconds.
    seen : ReplayCache
        The client's memory, to be kept between the messages of one run.

    Raises
    ------
    Rejected
        With the reason of the first check that fails: form, signer, key, signature, content
        (``bad-signature``), run, time (``expired``, ``not-yet-valid``), round, replay.
    """
    statement, signer = roster.verify(message, "instruction", "server", now)
    instruction = Instruction.decode(statement.body)
    _same_content(instruction.content, content, statement)
    if instruction.run != run:
        raise Rejected(
            Reason.WRONG_RUN, f"instruction is for run {instruction.run}, this is run {run}"
        )
    if now > instruction.expires_at:
        raise Rejected(
            Reason.EXPIRED, f"instruction ended {now - instruction.expires_at} s before it came"
        )
    if now + MAX_CLOCK_SKEW < instruction.issued_at:
        raise Rejected(
            Reason.NOT_YET_VALID,
            f"instruction is dated {instruction.issued_at - now} s in the future, at most "
            f"{MAX_CLOCK_SKEW} allowed: check the clocks",
        )
    seen = seen.admit(instruction.round, signer.name, 0, instruction.nonce)
    return Authentic(instruction, signer, message_digest(message)), seen


def verify_reply(
    message: bytes,
    content: bytes,
    *,
    node: int,
    outstanding: Mapping[bytes, Instruction],
    roster: Roster,
    now: int,
    seen: ReplayCache,
) -> tuple[Authentic[Reply], ReplayCache]:
    """Return a client's reply if it may count, and what was accepted so far.

    Parameters
    ----------
    message : bytes
        What `sign_reply` returned.
    content : bytes
        `content_digest` of the content that came with it.
    node : int
        Node that was asked.
    outstanding : mapping from bytes to Instruction
        The instructions whose replies still count, by `message_digest`; at least one.
    roster : Roster
        Who belongs to the federation.
    now : int
        Unix time, seconds.
    seen : ReplayCache
        What was accepted so far in this run.

    Raises
    ------
    Rejected
        With the reason of the first check that fails: form, signer, key, signature, content
        (``bad-signature``), node, run, round, instruction (``replay``), replay.
    """
    statement, signer = roster.verify(message, "reply", "client", now)
    reply = Reply.decode(statement.body)
    _same_content(reply.content, content, statement)
    if reply.node != node:
        raise Rejected(
            Reason.WRONG_NODE,
            f"reply of {signer.name} names node {reply.node}, node {node} was asked",
        )
    asked = outstanding.get(reply.instruction)
    if asked is None:
        raise _not_outstanding(reply, signer.name, outstanding)
    told = (reply.run, reply.round, reply.model_version)
    if told != (asked.run, asked.round, asked.model_version):
        raise Rejected(
            Reason.MALFORMED,
            f"reply of {signer.name} contradicts the instruction that it answers: run, round and "
            f"model version are {told}",
        )
    seen = seen.admit(reply.round, signer.name, node, reply.nonce)
    return Authentic(reply, signer, message_digest(message)), seen


def _same_content(signed: bytes, received: bytes, statement: Statement) -> None:
    if signed != received:
        raise Rejected(
            Reason.BAD_SIGNATURE,
            f"{statement.kind} of {statement.signer}: the content is not the one that was signed",
        )


def _not_outstanding(
    reply: Reply, client: str, outstanding: Mapping[bytes, Instruction]
) -> Rejected:
    runs = {instruction.run for instruction in outstanding.values()}
    rounds = {instruction.round for instruction in outstanding.values()}
    if reply.run not in runs:
        return Rejected(
            Reason.WRONG_RUN, f"reply of {client} is for run {reply.run}, this is run {_list(runs)}"
        )
    if reply.round not in rounds:
        return Rejected(
            Reason.STALE_ROUND,
            f"reply of {client} is for round {reply.round}, collected now: {_list(rounds)}",
        )
    return Rejected(
        Reason.REPLAY,
        f"reply of {client} answers an instruction of round {reply.round} that is not outstanding",
    )


def _list(numbers: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers)) or "none"
