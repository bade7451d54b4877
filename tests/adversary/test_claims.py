"""The page of claims is made of the list, and the list of tests that exist."""

from __future__ import annotations

import pytest

from .claims import CLAIMS, PAGE, ROOT, is_slow, whole_page


def test_the_page_is_that_of_the_list():
    assert PAGE.read_text(encoding="utf-8") == whole_page(), "run python -m tests.adversary.claims"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.test.partition("::")[2])
def test_a_claim_has_a_test_and_a_page(claim):
    assert is_slow(claim.test) in (True, False)
    assert (ROOT / "docs" / claim.page).exists()


def test_no_claim_stands_twice():
    assert len({(c.coalition, c.doing) for c in CLAIMS}) == len(CLAIMS)
