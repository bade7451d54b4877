from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qsfl_flower.errors import ConfigError, CryptoError
from qsfl_flower.secure.sizes import least_quorum
from qsfl_flower.secure.terms import Terms

from .conftest import BASE


def test_they_survive_the_wire_and_every_field_counts():
    again = Terms.decode(json.loads(BASE.encode()))
    assert again == BASE
    assert again.digest == BASE.digest
    changes = {
        "run": 8,
        "round": 4,
        "members": tuple("abcde"),
        "seats": tuple("fghij"),
        "threshold": 2,
        "quorum": 5,
        "min_clients": 3,
        "max_clients": 11,
        "bits": 23,
        "bound": 5.0,
        "clip_norm": 3.0,
        "weights": (2, 1),
        "extras": 1,
        "distances": True,
        "norms": True,
    }
    others = [replace(BASE, **{name: value}).digest for name, value in changes.items()]
    assert len({BASE.digest, *others}) == len(others) + 1
    assert set(changes) == set(json.loads(BASE.encode()))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"threshold": 1}, "threshold 1"),
        ({"threshold": 6, "quorum": 6}, "threshold 6"),
        ({"quorum": 2}, "quorum 2"),
        ({"quorum": 3}, "a server with 2 of them .* take at least 4"),
        ({"quorum": 6}, "quorum 6"),
        ({"min_clients": 1}, "min_clients 1"),
        ({"min_clients": 13}, "max_clients"),
        ({"weights": ()}, "weights"),
        ({"weights": (1, 0)}, "weights"),
        ({"weights": (65,)}, "weights"),
        ({"weights": (1, 2)}, "the first must be the largest"),
        ({"seats": ("a",)}, "seats of 1 members, there are 5"),
        ({"seats": ("a", "b", "c", "d", "")}, "seats"),
        ({"clip_norm": 0.0}, "clip norm"),
        ({"clip_norm": 5.0}, "clip norm"),
        ({"extras": -1}, "further"),
        ({"max_clients": 10**12}, "2.18"),
        ({"bits": 52, "bound": 50.0}, "the field has 61"),
        ({"members": ("a", "b", "c", "a", "d")}, "twice"),
        ({"members": tuple("abcd"), "seats": tuple("abcd"), "distances": True}, "at least 5"),
    ],
)
def test_contradictions(wrong, says):
    with pytest.raises(ConfigError, match=says):
        replace(BASE, **wrong)


def test_names_are_identifiers():
    with pytest.raises(CryptoError):
        replace(BASE, members=("a b", "c", "d"), seats=("a", "b", "c"))


def test_room_for_squared_distances():
    terms = replace(BASE, distances=True, bound=40.0, clip_norm=40.0)
    terms.check_size(1_000_000)
    with pytest.raises(ConfigError, match="the field has 61"):
        replace(terms, bound=45.3, clip_norm=45.3).check_size(1_000_000)
    # Without distances there is nothing to wrap.
    replace(BASE, bound=45.3, clip_norm=45.3).check_size(1_000_000)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": "24"},
        {"bits": True},
        {"members": "abc"},
        {"members": [1, 2]},
        {"weights": [True]},
        {"more": 1},
    ],
)
def test_foreign_fields_are_refused(change):
    with pytest.raises(ConfigError, match="terms of secure aggregation"):
        Terms.decode({**json.loads(BASE.encode()), **change})


def test_two_questions_never_open_however_the_members_are_divided():
    """t - 1 of them answer both; every honest one answers one of the two."""
    for m in range(2, 17):
        for t in range(2, m + 1):
            honest, least = m - (t - 1), least_quorum(m, t)
            assert t <= least <= m
            best = max(min(k, honest - k) for k in range(honest + 1)) + t - 1
            assert best < least
            # One fewer would allow it, but for what the threshold itself asks.
            assert best == least - 1 or least == t


@pytest.mark.parametrize(
    ("members", "threshold", "quorum"), [(3, 2, 3), (5, 2, 4), (5, 3, 4), (7, 3, 5), (7, 4, 6)]
)
def test_a_quorum_by_which_two_sums_could_open_is_refused_by_name(members, threshold, quorum):
    """Two disjoint halves of the honest members, each with the t - 1 that help the server."""
    names = tuple("abcdefg"[:members])
    room = {"members": names, "seats": names, "threshold": threshold}
    assert replace(BASE, **room, quorum=quorum).quorum == quorum == least_quorum(members, threshold)
    with pytest.raises(ConfigError, match=f"two different sums; take at least {quorum}"):
        replace(BASE, **room, quorum=quorum - 1)
