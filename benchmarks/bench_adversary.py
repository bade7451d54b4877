"""Play every coalition of docs/claims.md and say whether the claim holds."""

from __future__ import annotations

import pytest

from benchmarks.runner import Row

NAME = "adversary"
DESCRIPTION = "the claims of docs/claims.md: coalition, what it does, whether the claim holds"


class _Outcomes:
    """A plugin that counts how the tests of each function ended."""

    def __init__(self) -> None:
        self.passed: dict[str, int] = {}
        self.failed: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a finished test, and failures of its set-up."""
        name = report.nodeid.partition("[")[0]
        if report.failed:
            self.failed[name] = self.failed.get(name, 0) + 1
        elif report.when == "call" and report.passed:
            self.passed[name] = self.passed.get(name, 0) + 1


def run(quick: bool) -> list[Row]:
    """Run the tests of all claims in this process; quick leaves out the slow ones."""
    from tests.adversary.claims import CLAIMS, is_slow

    claims = [claim for claim in CLAIMS if not (quick and is_slow(claim.test))]
    seen = _Outcomes()
    marked = "not slow" if quick else "slow or not slow"
    pytest.main(["-q", "--no-header", "-m", marked, *{c.test for c in claims}], plugins=[seen])
    return [
        {
            "coalition": claim.coalition,
            "does": claim.doing,
            "at most": claim.at_most,
            "cases": seen.passed.get(claim.test, 0),
            "holds": (good := claim.test in seen.passed and claim.test not in seen.failed),
            "ok": good,
        }
        for claim in claims
    ]
