from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.crypto.errors import Malformed, Rejected
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.errors import CryptoError


def nonce(number: int) -> bytes:
    return number.to_bytes(16, "big")


def reason(cache: ReplayCache, *message: object) -> str:
    with pytest.raises(Rejected) as caught:
        cache.admit(*message)  # type: ignore[arg-type]
    return caught.value.reason


def test_the_cache_is_a_value() -> None:
    empty = ReplayCache()
    one = empty.admit(5, "alice", 1, nonce(1))
    assert (empty.count, one.count) == (0, 1)
    assert empty.admit(5, "alice", 1, nonce(1)) == one
    assert reason(one, 5, "alice", 1, nonce(1)) == "replay"


def test_several_messages_of_one_party_and_round() -> None:
    cache = ReplayCache().admit(5, "alice", 1, nonce(1)).admit(5, "alice", 1, nonce(2))
    assert cache.admit(5, "bob", 2, nonce(1)).count == 3  # nonces are per party
    assert reason(cache, 5, "alice", 1, nonce(2)) == "replay"


def test_one_identity_on_two_nodes() -> None:
    cache = ReplayCache().admit(5, "alice", 1, nonce(1))
    assert reason(cache, 5, "alice", 2, nonce(2)) == "wrong-node"
    assert cache.admit(6, "alice", 2, nonce(2))  # restarted under another node id
    assert cache.admit(5, "bob", 1, nonce(3))  # several identities on one node


def test_window() -> None:
    strict = ReplayCache().admit(5, "alice", 1, nonce(1)).admit(6, "alice", 1, nonce(2))
    assert strict.count == 1
    assert reason(strict, 5, "alice", 1, nonce(3)) == "stale-round"
    wide = ReplayCache(window=3).admit(5, "alice", 1, nonce(1)).admit(7, "alice", 1, nonce(2))
    assert reason(wide, 5, "alice", 1, nonce(1)) == "replay"
    assert reason(wide, 4, "bob", 1, nonce(1)) == "stale-round"
    assert wide.admit(6, "bob", 1, nonce(1)).admit(8, "bob", 1, nonce(2)).count == 3


def test_a_full_cache_refuses_instead_of_forgetting() -> None:
    cache = ReplayCache(capacity=2).admit(1, "a", 1, nonce(1)).admit(1, "b", 1, nonce(1))
    assert reason(cache, 1, "c", 1, nonce(1)) == "replay"
    assert cache.admit(2, "c", 1, nonce(1)).count == 1  # the next round makes room


messages = st.lists(
    st.tuples(
        st.integers(1, 4), st.sampled_from(["a", "b", "c"]), st.integers(1, 2), st.integers(0, 5)
    ),
    max_size=30,
)


@given(messages, st.integers(1, 3))
@settings(deadline=None)
def test_nothing_is_ever_accepted_twice(sent: list[tuple[int, str, int, int]], window: int) -> None:
    cache, accepted = ReplayCache(window=window, capacity=10), set()
    for round_, name, node, number in sent:
        try:
            cache = cache.admit(round_, name, node, nonce(number))
        except Rejected:
            continue
        assert (round_, name, number) not in accepted
        accepted.add((round_, name, number))
        assert cache.count <= 10
        assert ReplayCache.decode(cache.encode()) == cache


def test_decoding_is_strict() -> None:
    cache = ReplayCache(window=2).admit(1, "a", 1, nonce(1)).admit(2, "b", 1, nonce(2))
    data = cache.encode()
    for size in range(len(data)):
        with pytest.raises(Malformed):
            ReplayCache.decode(data[:size])
    for at in range(len(data)):
        altered = bytearray(data)
        altered[at] ^= 0x80
        with contextlib.suppress(Malformed):
            assert ReplayCache.decode(bytes(altered)).encode() == bytes(altered)
    with pytest.raises(Malformed, match="trailing"):
        ReplayCache.decode(data + b"\0")
    with pytest.raises(CryptoError, match="at least 1"):
        ReplayCache(window=0)


def test_a_cache_without_window_or_capacity_is_malformed() -> None:
    data = ReplayCache().encode()
    for start, size in ((6, 4), (10, 8)):
        with pytest.raises(Malformed, match="is 0"):
            ReplayCache.decode(data[:start] + bytes(size) + data[start + size :])
