from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.detection.core import Reputation, Standing
from qsfl_flower.mechanisms.detection.core.reputation import LONGEST


def after(flags: str, reputation: Reputation) -> list[Standing]:
    """Standings after rounds written as x (flagged, score 1) and . (not)."""
    found, standing = [], Standing()
    for server_round, flag in enumerate(flags, 1):
        standing = reputation.step(standing, 1.0, flag == "x", server_round)
        found.append(standing)
    return found


def test_three_flags_in_a_row_lead_to_quarantine_and_two_do_not():
    reputation = Reputation(rounds=5)
    two, three = after("xxx", reputation)[1:]
    assert two.until == 0
    assert three.until == 3 + 5
    assert not three.quarantined(9)


def test_a_rare_flag_is_forgotten():
    """One false alarm in twelve rounds, for ever, never adds up to quarantine."""
    assert all(s.until == 0 for s in after("x..........." * 50, Reputation()))


def test_suspicion_decays_by_the_given_factor():
    first, *_, last = after("x" + "." * 10, Reputation(decay=0.95))
    assert last.suspicion == pytest.approx(first.suspicion * 0.95**10)
    assert last.reputation == 1 - last.suspicion


def test_a_client_that_behaves_returns_for_good():
    reputation = Reputation(rounds=5, probation=3)
    standings = after("xxx" + "." * 12, reputation)
    assert [s.quarantined(r + 1) for r, s in enumerate(standings, 1)][2:8] == [True] * 5 + [False]
    assert standings[7].heard(9)
    assert standings[8].probation == 3
    assert standings[-1].probation == 0
    assert standings[-1].until < 15


def test_a_relapse_costs_twice_as_much_up_to_a_limit():
    reputation = Reputation(rounds=2, probation=2)
    lengths, standing = [], Standing()
    for server_round in range(1, 100):
        before = standing.until
        standing = reputation.step(standing, 1.0, True, server_round)
        if standing.until != before:
            lengths.append(standing.until - server_round)
    assert lengths[:4] == [2, 4, 8, 8]
    assert max(lengths) == 2 * LONGEST


@given(flags=st.lists(st.booleans(), max_size=80), scores=st.floats(0.5, 1))
def test_nobody_is_shut_out_for_longer_than_the_longest_quarantine(flags, scores):
    reputation, standing, away = Reputation(rounds=3), Standing(), 0
    for server_round, flagged in enumerate(flags, 1):
        away = away + 1 if standing.quarantined(server_round) else 0
        assert away <= 3 * LONGEST
        standing = reputation.step(standing, scores, flagged, server_round)
        assert 0 <= standing.suspicion <= 1


@pytest.mark.parametrize(
    "wrong", [{"decay": 1.0}, {"threshold": 0.0}, {"rounds": 0}, {"probation": -1}]
)
def test_values_out_of_range_are_told(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Reputation(**wrong)
