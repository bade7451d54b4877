"""Writes the test vectors of our own formats: ``python tests/vectors/generate.py``.

Signatures and ciphertexts are randomized, so every run writes other bytes. The committed files stay
as they are for as long as their format version does; a new version gets a new folder.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

from qsfl_flower.crypto.binding import Binding
from qsfl_flower.crypto.codec import Writer
from qsfl_flower.crypto.envelope import message_digest, sign_instruction, sign_reply
from qsfl_flower.crypto.handshake import make_offer
from qsfl_flower.crypto.hybrid import HybridKey, HybridPublicKey, combine, derive
from qsfl_flower.crypto.identity import Authority, create_authority, create_identity
from qsfl_flower.crypto.messages import Instruction, Reply
from qsfl_flower.crypto.roster import DAY, Entry, Roster, sign_roster
from qsfl_flower.crypto.sealing import seal
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.session import Session
from qsfl_flower.crypto.statement import SigningKey, sign_statement
from qsfl_flower.crypto.suite import DEFAULT_SUITE, Suite
from qsfl_flower.secure.dealing import KIND, Header
from qsfl_flower.secure.terms import Terms

FOLDER = Path(__file__).parent
NOW, RUN, NODE = 1_800_000_000, 77, 1001
MODEL, UPDATE = b"m" * 32, b"u" * 32

AUTHORITY = create_authority("authority")
PARTIES = {
    name: create_identity(name, now=NOW, role="server" if name == "hub" else "client")
    for name in ("alice", "hub", "mallory", "old", "future")
}
FEEBLE = create_identity("feeble", now=NOW, suite=Suite("ml-kem-512", "ml-dsa-44"))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write(scheme: str, name: str, version: int = 1, **content: Any) -> None:
    path = FOLDER / scheme / f"v{version}" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = {
        key: b64(value) if isinstance(value, bytes) else value for key, value in content.items()
    }
    path.write_text(json.dumps(shown, indent=1) + "\n")


def roster() -> Roster:
    validity: dict[str, dict[str, Any]] = {
        "mallory": {"revoked": True},
        "old": {"not_before": NOW - 9 * DAY, "not_after": NOW - DAY},
        "future": {"not_before": NOW + 9 * DAY},
    }
    entries = [
        Entry(
            **{
                "identity": party.public(),
                "not_before": NOW,
                "not_after": NOW + 365 * DAY,
                **validity.get(name, {}),
            }
        )
        for name, party in (*PARTIES.items(), ("feeble", FEEBLE))
    ]
    entries.sort(key=lambda entry: (entry.identity.name, entry.key_id))
    return Roster(7, NOW, NOW + 365 * DAY, tuple(entries))


def write_rosters() -> None:
    good = roster()
    small = dataclasses.replace(good, entries=good.entries[:1])
    signed, body = sign_roster(small, AUTHORITY), small.encode()
    write(
        "roster",
        "context",
        authority=AUTHORITY.public.key.public,
        roster=sign_roster(good, AUTHORITY),
    )
    write("roster", "good", message=signed, reason=None, serial=7)
    newer = dataclasses.replace(small, serial=8).seen
    write("roster", "bad_rolled_back", message=signed, reason="rolled-back",
          seen_serial=newer.serial, seen_digest=newer.digest)  # fmt: skip
    other = dataclasses.replace(small, issued_at=NOW + 1).seen
    write("roster", "bad_equivocation", message=signed, reason="rolled-back",
          seen_serial=other.serial, seen_digest=other.digest)  # fmt: skip
    impostor = Authority("authority", SigningKey.generate("ml-dsa-65"))
    write("roster", "bad_impostor", message=sign_roster(small, impostor), reason="wrong-key")
    claimed = Authority("authority", SigningKey(AUTHORITY.signing.public, impostor.signing.secret))
    write("roster", "bad_signature", message=sign_roster(small, claimed), reason="bad-signature")
    for name, bad in (
        ("trailing", body + b"\0"),
        ("truncated", body[:-1]),
        ("version", b"QROST\2" + body[6:]),
    ):
        message = sign_statement("roster", "authority", AUTHORITY.signing, bad)
        write("roster", f"bad_{name}", message=message, reason="malformed")


def write_messages() -> None:
    offer = make_offer(DEFAULT_SUITE).encode()
    hub = PARTIES["hub"].keys[0].signing
    instruction = Instruction(RUN, 5, 5, "train", MODEL, NOW, NOW + 3600, offer)
    asked = sign_instruction(instruction, "hub", hub)

    def ask(reason: str | None, name: str, message: bytes, **context: int) -> None:
        write("instruction", name, message=message, reason=reason, **context)

    def changed(**fields: Any) -> bytes:
        return sign_instruction(dataclasses.replace(instruction, **fields), "hub", hub)

    ask(None, "good", asked)
    ask("wrong-run", "bad_run", changed(run=RUN + 1))
    ask("expired", "bad_expired", asked, now=NOW + 3601)
    ask("not-yet-valid", "bad_early", changed(issued_at=NOW + 301))
    ask("bad-signature", "bad_content", changed(content=UPDATE))
    ask("stale-round", "bad_round", asked, seen_round=6)
    alice = PARTIES["alice"].keys[0].signing
    ask("wrong-key", "bad_role", sign_instruction(instruction, "alice", alice))
    ask("malformed", "bad_kind", sign_statement("reply", "hub", hub, instruction.encode()))
    long = sign_statement("instruction", "hub", hub, instruction.encode() + b"\0")
    ask("malformed", "bad_trailing", long)

    reply = Reply(RUN, 5, 5, NODE, message_digest(asked), UPDATE)

    def answer(reason: str | None, name: str, message: bytes, **context: Any) -> None:
        write("reply", name, message=message, reason=reason, **context)

    def by(name: str, key: SigningKey | None = None, **fields: Any) -> bytes:
        key = key or PARTIES[name].keys[0].signing
        return sign_reply(dataclasses.replace(reply, **fields), name, key)

    good = by("alice")
    answer(None, "good", good)
    answer("replay", "bad_replay", good, twice=True)
    answer("replay", "bad_instruction", by("alice", instruction=bytes(32)))
    answer("stale-round", "bad_round", by("alice", instruction=bytes(32), round=4))
    answer("wrong-run", "bad_run", by("alice", instruction=bytes(32), run=RUN + 1))
    answer("wrong-node", "bad_node", by("alice", node=NODE + 1))
    answer("malformed", "bad_version", by("alice", model_version=4))
    answer("bad-signature", "bad_content", by("alice", content=MODEL))
    answer("bad-signature", "bad_flip", good[:-1] + bytes([good[-1] ^ 1]))
    answer("unknown", "bad_unknown", by("nobody", alice))
    answer("revoked", "bad_revoked", by("mallory"))
    answer("expired", "bad_expired", by("old"))
    answer("not-yet-valid", "bad_early", by("future"))
    answer("wrong-key", "bad_key", by("alice", PARTIES["old"].keys[0].signing))
    answer("wrong-key", "bad_role", by("hub"))
    answer("downgraded-algorithm", "bad_suite", by("feeble", FEEBLE.keys[0].signing))
    weak = SigningKey.generate("ml-dsa-44")
    disguised = by("alice", weak).replace(weak.public.key_id, alice.public.key_id, 1)
    answer("downgraded-algorithm", "bad_algorithm", disguised)
    answer("malformed", "bad_truncated", good[:100])
    answer("malformed", "bad_trailing", good + b"\0")
    write("reply", "context", asked=asked)


def write_ciphertexts() -> None:
    key, binding = HybridKey.generate("ml-kem-768"), Binding(RUN, 5, "alice", "carol", "shares")
    sealed = seal(key.public, b"payload", binding)
    write("sealed", "context", x25519_public=key.public.x25519, kem_public=key.public.kem_key,
          x25519=key.x25519.reveal(), kem=key.kem_key.reveal())  # fmt: skip
    write("sealed", "good", message=sealed, reason=None, payload=b"payload")
    write("sealed", "bad_tag", message=sealed[:-1] + bytes([sealed[-1] ^ 1]), reason="decryption")
    elsewhere = seal(key.public, b"payload", dataclasses.replace(binding, round=6))
    write("sealed", "bad_round", message=elsewhere, reason="decryption")
    other = HybridKey.generate("ml-kem-768")
    write("sealed", "bad_key", message=seal(other.public, b"payload", binding), reason="wrong-key")
    write("sealed", "bad_truncated", message=sealed[:40], reason="malformed")

    root = bytes(range(32))
    session = Session(
        "client", RUN, NODE, "alice", "hub", DEFAULT_SUITE, Secret(root), NOW + 9, 9, NOW
    )
    frame = session.sealer("update").seal(b"payload", 5)
    write("frame", "good", message=frame, reason=None, root=root, payload=b"payload")
    write("frame", "bad_direction", message=dataclasses.replace(session, role="server")
          .sealer("update").seal(b"payload", 5), reason="decryption", root=root)  # fmt: skip
    write("frame", "bad_version", message=b"\2" + frame[1:], reason="malformed", root=root)


def write_shares() -> None:
    """Headers of shares for a committee; version 1 had no instruction and no mark of a format."""
    terms = Terms(
        run=RUN, round=5, members=("m1", "m2", "m3"), seats=("s1", "s2", "s3"), threshold=2,
        quorum=3, min_clients=3, max_clients=9, bits=24, bound=4.0, clip_norm=4.0, weights=(1, 1),
    )  # fmt: skip
    other = dataclasses.replace(terms, min_clients=4)
    good = Header(
        "alice", terms.digest, 5, MODEL, 7, (UPDATE,) * 3, (UPDATE,) * len(terms.zero_sets.sets)
    )

    def header(name: str, reason: str | None, body: bytes, by: str = "alice") -> None:
        message = sign_statement(KIND, by, PARTIES[by].keys[0].signing, body)
        write("shares", name, 2, message=message, reason=reason)

    changed = dataclasses.replace
    write("shares", "context", 2, authority=AUTHORITY.public.key.public,
          roster=sign_roster(roster(), AUTHORITY), terms=terms.encode())  # fmt: skip
    header("good", None, good.encode())
    before = changed(good, round=4, terms=terms.of_round(4).digest)
    header("good_round_before", None, before.encode())
    header("bad_terms", "other-terms", changed(good, terms=other.digest).encode())
    header("bad_round", "future-round", changed(good, round=6).encode())
    header("bad_role", "wrong-key", good.encode(), "hub")
    header("bad_truncated", "malformed", good.encode()[:-1])
    header("bad_trailing", "malformed", good.encode() + b"\0")
    old = Writer().fixed(terms.digest, 32).uint(5, 8).uint(7, 8).done()
    header("bad_version", "malformed", old + UPDATE * (3 + len(good.commitments)))


def write_derivation() -> None:
    classical, post_quantum = bytes(range(32)), bytes(range(32, 64))
    public = HybridPublicKey("ml-kem-768", b"x" * 32, b"k" * 1184)
    ciphertext, context = b"c" * 1120, b"context"
    root = combine(Secret(classical), Secret(post_quantum), public, ciphertext, context)
    write(
        "derivation", "good",
        classical=classical, post_quantum=post_quantum, x25519_public=public.x25519,
        kem_public=public.kem_key, ciphertext=ciphertext, context=context,
        root=root.reveal(), derived=derive(root, b"frame", b"client").reveal(),
        key_id=public.key_id,
    )  # fmt: skip


if __name__ == "__main__":
    write_rosters()
    write_messages()
    write_ciphertexts()
    write_shares()
    write_derivation()
