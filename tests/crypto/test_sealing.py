from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.crypto import sealing
from qsfl_flower.crypto.binding import Binding
from qsfl_flower.crypto.errors import DecryptionFailed, Malformed, Rejected
from qsfl_flower.crypto.hybrid import HybridKey
from qsfl_flower.crypto.sealing import (
    open_into,
    open_sealed,
    seal,
    seal_into,
    sealing_overhead,
)
from qsfl_flower.errors import CryptoError

KEY = HybridKey.generate("ml-kem-768")
BINDING = Binding(run=7, round=3, sender="alice", receiver="member-1", purpose="shares")


@given(st.binary(max_size=200))
@settings(max_examples=30, deadline=None)
def test_round_trip(payload: bytes) -> None:
    sealed = seal(KEY.public, payload, BINDING)
    assert len(sealed) == len(payload) + sealing_overhead("ml-kem-768")
    assert open_sealed([KEY], sealed, BINDING) == payload


def test_megabytes_in_place() -> None:
    values = np.arange(250_000, dtype=np.uint64)
    overhead = sealing_overhead("ml-kem-768")
    buffer = bytearray(overhead + values.nbytes)
    payload = memoryview(buffer)[overhead - 16 : -16]
    payload[:] = values.tobytes()
    seal_into(buffer, KEY.public, payload, BINDING)
    assert open_sealed([KEY], buffer, BINDING) == values.tobytes()
    out = np.empty_like(values)
    open_into(out, [KEY], buffer, BINDING)
    assert np.array_equal(out, values)
    sealed = seal(KEY.public, values, BINDING)
    assert open_sealed([KEY], sealed, BINDING) == values.tobytes()


@pytest.mark.parametrize(
    "change",
    [{"run": 8}, {"round": 4}, {"sender": "bob"}, {"receiver": "member-2"}, {"purpose": "sums"}],
)
def test_opens_only_where_it_is_bound_to(change: dict[str, object]) -> None:
    sealed = seal(KEY.public, b"payload", BINDING)
    with pytest.raises(DecryptionFailed, match="bound to something else"):
        open_sealed([KEY], sealed, dataclasses.replace(BINDING, **change))  # type: ignore[arg-type]
    with pytest.raises(DecryptionFailed):
        open_into(bytearray(7), [KEY], sealed, dataclasses.replace(BINDING, **change))  # type: ignore[arg-type]


def test_every_flip_and_truncation_ends_in_our_error() -> None:
    sealed = seal(KEY.public, b"payload", BINDING)
    for at in range(len(sealed)):
        altered = bytearray(sealed)
        altered[at] ^= 1 << (at % 8)
        with pytest.raises(CryptoError):
            open_sealed([KEY], altered, BINDING)
    for size in range(len(sealed)):
        with pytest.raises(CryptoError):
            open_sealed([KEY], sealed[:size], BINDING)
    with pytest.raises(CryptoError):
        open_sealed([KEY], sealed + b"\0", BINDING)


def test_the_key_is_chosen_by_its_name() -> None:
    old = HybridKey.generate("ml-kem-768")
    sealed = seal(old.public, b"payload", BINDING)
    assert open_sealed([KEY, old], sealed, BINDING) == b"payload"
    with pytest.raises(Rejected, match="does not hold") as caught:
        open_sealed([KEY], sealed, BINDING)
    assert caught.value.reason == "wrong-key"


def test_another_kem_than_the_keys_is_a_downgrade() -> None:
    sealed = bytearray(seal(KEY.public, b"payload", BINDING))
    at = sealed.index(b"ml-kem-768")
    sealed[at : at + 10] = b"ml-kem-512"
    with pytest.raises(Rejected) as caught:
        open_sealed([KEY], sealed, BINDING)
    assert caught.value.reason == "downgraded-algorithm"


def test_a_sealed_payload_never_repeats() -> None:
    assert seal(KEY.public, b"payload", BINDING) != seal(KEY.public, b"payload", BINDING)


def test_misuse_is_named() -> None:
    with pytest.raises(CryptoError, match="must have"):
        seal_into(bytearray(5), KEY.public, b"payload", BINDING)
    with pytest.raises(CryptoError, match="output buffer has 5 bytes, must have 7"):
        open_into(bytearray(5), [KEY], seal(KEY.public, b"payload", BINDING), BINDING)
    with pytest.raises(CryptoError, match="contiguous"):
        seal(KEY.public, np.arange(8)[::2], BINDING)
    with pytest.raises(CryptoError, match="purpose"):
        dataclasses.replace(BINDING, purpose="a b")


def test_a_payload_over_the_limit_and_a_cut_tag_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sealed = seal(KEY.public, b"", BINDING)
    for size in (len(sealed) - 1, len(sealed) - 16):
        with pytest.raises(Malformed, match="the tag alone has 16"):
            open_sealed([KEY], sealed[:size], BINDING)
    monkeypatch.setattr(sealing, "MAX_PAYLOAD", 3)
    with pytest.raises(CryptoError, match="at most 3 can be sealed"):
        seal(KEY.public, b"four", BINDING)


def test_a_point_of_small_order_is_malformed() -> None:
    sealed = seal(KEY.public, b"payload", BINDING)
    start = sealed.index(b"ml-kem-768") + 10
    with pytest.raises(Malformed, match="small order"):
        open_sealed([KEY], sealed[:start] + bytes(32) + sealed[start + 32 :], BINDING)
