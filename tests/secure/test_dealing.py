"""Headers of shares against the committed vectors of their format."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from qsfl_flower.crypto.errors import Rejected
from qsfl_flower.crypto.identity import AuthorityKey
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.crypto.statement import VerifyKey
from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.secure.dealing import read_header
from qsfl_flower.secure.terms import Terms

FOLDER = Path(__file__).parents[1] / "vectors" / "shares" / "v2"
NOW = 1_800_000_000
CASES = [*sorted(path.stem for path in FOLDER.glob("*_*.json")), "good"]


def load(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_good_headers_are_read_and_bad_ones_refused_for_their_reason(name):
    context, case = load("context"), load(name)
    authority = AuthorityKey(
        "authority", VerifyKey("ml-dsa-65", base64.b64decode(context["authority"]))
    )
    roster = open_roster(base64.b64decode(context["roster"]), authority, seen=None)
    terms = Terms.decode(json.loads(context["terms"]))
    message = base64.b64decode(case["message"])
    if case["reason"] is None:
        header = read_header(message, terms, roster, NOW)
        assert (header.client, header.instruction, header.size) == ("alice", b"m" * 32, 7)
        assert header.round == (4 if name == "good_round_before" else 5)
        return
    with pytest.raises((Rejected, RejectedUpdate)) as refused:
        read_header(message, terms, roster, NOW)
    assert refused.value.reason == case["reason"]


def test_every_case_is_there():
    assert len(CASES) == 8
