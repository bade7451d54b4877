from __future__ import annotations

import pickle

import pytest

from qsfl_flower.crypto.errors import Malformed, Reason, Rejected
from qsfl_flower.errors import CryptoError, RejectedUpdate


def test_a_rejection_is_both_a_crypto_error_and_a_rejected_update() -> None:
    rejected = Rejected(Reason.REPLAY, "seen before")
    assert isinstance(rejected, CryptoError)
    assert isinstance(rejected, RejectedUpdate)
    assert (rejected.reason, rejected.detail) == ("replay", "seen before")
    assert str(rejected) == "replay: seen before"


@pytest.mark.parametrize("error", [Rejected(Reason.WRONG_RUN, "text"), Malformed("text")])
def test_rejections_cross_processes(error: Rejected) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, Rejected)
    assert (again.reason, again.detail, str(again)) == (error.reason, error.detail, str(error))


def test_reasons_are_the_documented_ones() -> None:
    assert {reason.value for reason in Reason} >= {
        "unknown", "revoked", "expired", "bad-signature", "replay", "wrong-run", "stale-round",
        "malformed", "wrong-key", "downgraded-algorithm",
    }  # fmt: skip
