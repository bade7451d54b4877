from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import threading

import pytest

from qsfl_flower.crypto import session as module
from qsfl_flower.crypto.errors import DecryptionFailed, Malformed, Rejected
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.session import FRAME_OVERHEAD, Session
from qsfl_flower.crypto.suite import DEFAULT_SUITE
from qsfl_flower.errors import CryptoError

CLIENT = Session(
    role="client",
    run=7,
    node=11,
    client="alice",
    server="hub",
    suite=DEFAULT_SUITE,
    root=Secret(bytes(range(32))),
    expires_at=10_000,
    idle_limit=100,
    last_used=1_000,
)
SERVER = dataclasses.replace(CLIENT, role="server")
STORAGE = Secret(b"k" * 32)


def key_and_nonce(frame: bytes) -> bytes:
    """What decides AES-GCM's key and nonce within one direction and purpose."""
    return frame[1:21]


def test_both_directions() -> None:
    frame = CLIENT.sealer("update").seal(b"up", 3)
    assert len(frame) == 2 + FRAME_OVERHEAD
    assert SERVER.open(frame, 3, "update") == b"up"
    assert CLIENT.open(SERVER.sealer("model").seal(b"down", 3), 3, "model") == b"down"
    assert CLIENT.session_id == SERVER.session_id


def test_a_frame_opens_only_at_the_other_end_in_its_round_and_for_its_purpose() -> None:
    frame = CLIENT.sealer("update").seal(b"up", 3)
    attempts = [
        (CLIENT, 3, "update"),  # reflected to its sender
        (SERVER, 4, "update"),
        (SERVER, 3, "model"),
        (dataclasses.replace(SERVER, run=8), 3, "update"),
        (dataclasses.replace(SERVER, client="bob"), 3, "update"),
        (dataclasses.replace(SERVER, server="other"), 3, "update"),
        (dataclasses.replace(SERVER, root=Secret(bytes(32))), 3, "update"),
    ]
    for end, round_, purpose in attempts:
        with pytest.raises(DecryptionFailed, match="was altered or belongs"):
            end.open(frame, round_, purpose)


def test_every_flip_and_truncation_ends_in_our_error() -> None:
    frame = CLIENT.sealer("update").seal(b"up", 3)
    for at in range(len(frame)):
        altered = bytearray(frame)
        altered[at] ^= 1 << (at % 8)
        with pytest.raises(CryptoError):
            SERVER.open(altered, 3, "update")
        with pytest.raises(CryptoError):
            SERVER.open(frame[:at], 3, "update")


def test_nonces_count_up_and_restoring_never_repeats_one() -> None:
    sealer = CLIENT.sealer("update")
    seen = [key_and_nonce(sealer.seal(b"x", 1)) for _ in range(5)]
    assert [int.from_bytes(item[16:]) for item in seen] == [0, 1, 2, 3, 4]
    saved = CLIENT.save(STORAGE)
    for _ in range(5):  # five processes that all restore the same state
        again = Session.restore(saved, STORAGE).sealer("update")
        seen += [key_and_nonce(again.seal(b"x", 1)) for _ in range(5)]
    seen += [key_and_nonce(CLIENT.sealer("update").seal(b"x", 1)) for _ in range(5)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("quota", ["MESSAGES_PER_KEY", "BYTES_PER_KEY"])
def test_the_key_changes_before_its_quota_is_used_up(
    quota: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, quota, 3)
    sealer = CLIENT.sealer("update")
    frames = [sealer.seal(b"x", 1) for _ in range(8)]
    assert [int.from_bytes(key_and_nonce(frame)[16:]) for frame in frames] == [0, 1, 2] * 2 + [0, 1]
    assert len({frame[1:17] for frame in frames}) == 3
    assert all(SERVER.open(frame, 1, "update") == b"x" for frame in frames)


def test_threads_share_a_sealer_without_repeating() -> None:
    sealer = CLIENT.sealer("update")
    seen: list[bytes] = []

    def work() -> None:
        seen.extend(key_and_nonce(sealer.seal(b"x", 1)) for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 800


def test_a_forked_process_uses_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer = CLIENT.sealer("update")
    before = sealer.seal(b"x", 1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    after = sealer.seal(b"x", 1)
    assert before[1:17] != after[1:17]


def test_a_sealer_cannot_be_duplicated() -> None:
    sealer = CLIENT.sealer("update")
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(CryptoError, match="nonces would repeat"):
            duplicate(sealer)
    with pytest.raises(CryptoError):
        pickle.dumps(CLIENT)


def test_expiry_after_the_lifetime_and_after_inactivity() -> None:
    assert CLIENT.used(1_100).last_used == 1_100
    assert CLIENT.used(900).last_used == 1_000  # a clock that was set back
    for now in (1_101, 10_001):
        with pytest.raises(Rejected, match="a new handshake is due") as caught:
            CLIENT.used(now)
        assert caught.value.reason == "expired"
    with pytest.raises(Rejected):
        dataclasses.replace(CLIENT, last_used=10_000).used(10_001)


def test_save_and_restore() -> None:
    for end in (CLIENT, SERVER):
        saved = end.save(STORAGE)
        assert Session.restore(saved, STORAGE) == end
        assert end.root.reveal() not in saved
        assert saved != end.save(STORAGE)
    with pytest.raises(DecryptionFailed, match="another key"):
        Session.restore(saved, Secret(b"z" * 32))


def test_a_damaged_saved_session_ends_in_our_error() -> None:
    saved = CLIENT.save(STORAGE)
    for at in range(len(saved)):
        altered = bytearray(saved)
        altered[at] ^= 1
        with pytest.raises(CryptoError):
            Session.restore(bytes(altered), STORAGE)
        with pytest.raises(CryptoError):
            Session.restore(saved[:at], STORAGE)


def test_a_payload_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAYLOAD", 3)
    with pytest.raises(CryptoError, match="at most 3 per frame"):
        CLIENT.sealer("update").seal(b"four", 1)


def test_a_frame_without_its_tag_is_malformed() -> None:
    frame = CLIENT.sealer("update").seal(b"", 1)
    for size in range(len(frame)):
        with pytest.raises(Malformed):
            SERVER.open(frame[:size], 1, "update")


def test_a_saved_session_has_one_of_two_roles() -> None:
    odd = dataclasses.replace(CLIENT, role="observer")
    with pytest.raises(Malformed, match="role 'observer'"):
        Session.restore(odd.save(STORAGE), STORAGE)
