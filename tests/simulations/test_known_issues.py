"""The page of what is refused says what the code refuses."""

from __future__ import annotations

import pytest

from tests.simulations.known_issues import CAPABILITIES, MARK, PAGE, page, pairs, refusal


def test_the_page_is_what_the_tables_of_refusals_say():
    text = PAGE.read_text(encoding="utf-8")
    assert MARK + text.partition(MARK)[2] == page(), "run: python -m tests.simulations.known_issues"


@pytest.mark.parametrize("name", CAPABILITIES)
def test_every_capability_stands_alone(name):
    assert refusal(CAPABILITIES[name]) is None


def test_every_refusal_of_a_pair_says_what_to_do():
    for pair, why in pairs().items():
        assert "; " in why, pair
