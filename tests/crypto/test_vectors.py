"""Our formats against the committed vectors of their version: good ones are accepted for ever, bad
ones are refused for the reason that they state. The reference implementations here share no code
with the package."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from qsfl_flower.crypto.binding import Binding
from qsfl_flower.crypto.envelope import message_digest, verify_instruction, verify_reply
from qsfl_flower.crypto.errors import DecryptionFailed, Reason, Rejected
from qsfl_flower.crypto.hybrid import HybridKey, HybridPublicKey, combine, derive
from qsfl_flower.crypto.identity import AuthorityKey
from qsfl_flower.crypto.messages import Instruction
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.roster import Roster, Seen, open_roster
from qsfl_flower.crypto.sealing import open_sealed
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.session import Session
from qsfl_flower.crypto.statement import Statement, VerifyKey
from qsfl_flower.crypto.suite import DEFAULT_SUITE
from qsfl_flower.errors import CryptoError

FOLDER = Path(__file__).parents[1] / "vectors"
NOW, RUN, NODE = 1_800_000_000, 77, 1001
MODEL, UPDATE = b"m" * 32, b"u" * 32
NOT_BYTES = {"reason", "seen_serial", "seen_round", "now", "twice", "serial"}


def load(scheme: str, name: str) -> dict[str, Any]:
    found = json.loads((FOLDER / scheme / "v1" / f"{name}.json").read_text())
    return {k: v if k in NOT_BYTES else base64.b64decode(v) for k, v in found.items()}


def names(scheme: str) -> list[str]:
    found = sorted(path.stem for path in (FOLDER / scheme / "v1").glob("*.json"))
    return [name for name in found if name != "context"]


def outcome(check: Any, *args: Any) -> str | None:
    try:
        check(*args)
    except Rejected as rejected:
        return rejected.reason
    except DecryptionFailed:
        return "decryption"
    return None


AUTHORITY = AuthorityKey(
    "authority", VerifyKey("ml-dsa-65", load("roster", "context")["authority"])
)


def roster() -> Roster:
    return open_roster(load("roster", "context")["roster"], AUTHORITY)


def check_roster(case: dict[str, Any]) -> None:
    seen = Seen(case["seen_serial"], case["seen_digest"]) if "seen_serial" in case else None
    opened = open_roster(case["message"], AUTHORITY, seen=seen)
    assert opened.serial == case["serial"]
    assert [entry.identity.name for entry in opened.entries] == ["alice"]


def check_instruction(case: dict[str, Any]) -> None:
    seen = ReplayCache()
    if "seen_round" in case:
        seen = seen.admit(case["seen_round"], "hub", 0, bytes(16))
    now = case.get("now", NOW)
    verify_instruction(case["message"], MODEL, run=RUN, roster=roster(), now=now, seen=seen)


def check_reply(case: dict[str, Any]) -> None:
    asked = load("reply", "context")["asked"]
    instruction = Instruction.decode(Statement.read(asked, "instruction").body)
    seen = ReplayCache()
    for _ in range(2 if case.get("twice") else 1):
        _, seen = verify_reply(
            case["message"],
            UPDATE,
            node=NODE,
            outstanding={message_digest(asked): instruction},
            roster=roster(),
            now=NOW,
            seen=seen,
        )


def check_sealed(case: dict[str, Any]) -> None:
    keys = load("sealed", "context")
    public = HybridPublicKey("ml-kem-768", keys["x25519_public"], keys["kem_public"])
    key = HybridKey(public, Secret(keys["x25519"]), Secret(keys["kem"]))
    binding = Binding(RUN, 5, "alice", "carol", "shares")
    assert open_sealed([key], case["message"], binding) == case["payload"]


def check_frame(case: dict[str, Any]) -> None:
    root = Secret(case["root"])
    session = Session("server", RUN, NODE, "alice", "hub", DEFAULT_SUITE, root, NOW + 9, 9, NOW)
    assert session.open(case["message"], 5, "update") == case["payload"]


CHECKS = {
    "roster": check_roster,
    "instruction": check_instruction,
    "reply": check_reply,
    "sealed": check_sealed,
    "frame": check_frame,
}
CASES = [(scheme, name) for scheme in CHECKS for name in names(scheme)]


@pytest.mark.parametrize(("scheme", "name"), CASES)
def test_vector(scheme: str, name: str) -> None:
    case = load(scheme, name)
    assert (case["reason"] is None) == (name == "good")
    assert outcome(CHECKS[scheme], case) == case["reason"]


def test_every_reason_has_a_bad_vector() -> None:
    reasons = {load(scheme, name)["reason"] for scheme, name in CASES}
    assert reasons == {None, "decryption", *(reason.value for reason in Reason)}


# Reference implementations


def field(data: bytes, size: str = ">I") -> bytes:
    return struct.pack(size, len(data)) + data


def expand(key: bytes, info: bytes) -> bytes:
    """HKDF-Expand to one block (RFC 5869)."""
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()


def test_key_derivation_by_hand() -> None:
    case = load("derivation", "good")
    kem = b"ml-kem-768"
    recipient = field(kem, ">B") + case["x25519_public"] + field(case["kem_public"])
    transcript = b"qsfl-flower/1/" + field(b"hybrid", ">B") + recipient
    transcript += field(case["ciphertext"]) + field(case["context"])
    salt = hashlib.sha256(transcript).digest()
    secrets = field(case["classical"]) + field(case["post_quantum"])
    root = hmac.new(salt, secrets, hashlib.sha256).digest()
    derived = expand(root, b"qsfl-flower/1/" + field(b"frame") + field(b"client"))
    name = b"qsfl-flower/1/" + field(b"encryption", ">B") + field(kem, ">B")
    name += field(case["x25519_public"] + case["kem_public"])
    assert (root, derived) == (case["root"], case["derived"])
    assert hashlib.sha256(name).digest()[:16] == case["key_id"]
    # and the package agrees
    public = HybridPublicKey("ml-kem-768", case["x25519_public"], case["kem_public"])
    made = combine(
        Secret(case["classical"]),
        Secret(case["post_quantum"]),
        public,
        case["ciphertext"],
        case["context"],
    )
    assert made.reveal() == root
    assert derive(made, b"frame", b"client").reveal() == derived
    assert public.key_id == case["key_id"]


def test_reply_by_hand_with_the_other_provider() -> None:
    ml_dsa = pytest.importorskip("pqcrypto.sign").ml_dsa_65
    message = load("reply", "good")["message"]
    signature = message[-3309:]
    signed, length = message[: -3309 - 4], message[-3309 - 4 : -3309]
    assert length == struct.pack(">I", 3309)
    entry = next(item for item in roster().entries if item.identity.name == "alice")
    ml_dsa.verify(entry.identity.signing.public, signed, signature, b"qsfl-flower/1/reply")
    head = b"QSIGN\x01" + field(b"reply", ">B") + field(b"alice", ">B")
    assert signed.startswith(head)
    asked = load("reply", "context")["asked"]
    body = b"QREPL\x01" + struct.pack(">QQQQ", RUN, 5, 5, NODE)
    body += hashlib.sha256(asked).digest() + UPDATE
    rest = signed[len(head) + 16 :]
    assert rest.startswith(field(b"ml-dsa-65", ">B") + struct.pack(">I", len(body) + 20) + body)
    assert rest.endswith(struct.pack(">I", 0))  # no handshake


def test_frame_by_hand() -> None:
    aead = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead")
    case = load("frame", "good")
    message = case["message"]
    version, salt, number = message[0], message[1:17], message[17:21]
    label = b"qsfl-flower/1/"
    parts = (b"frame", b"client", b"update", salt)
    key = expand(case["root"], label + b"".join(field(part) for part in parts))
    data = label + field(b"binding", ">B") + struct.pack(">QQ", RUN, 5)
    data += b"".join(field(part, ">B") for part in (b"alice", b"hub", b"update"))
    plain = aead.AESGCM(key).decrypt(bytes(8) + number, message[21:], data)
    assert (version, number, plain) == (1, bytes(4), case["payload"])


def test_errors_of_the_crypto_layer_are_one_family() -> None:
    assert issubclass(Rejected, CryptoError)
    assert issubclass(DecryptionFailed, CryptoError)
