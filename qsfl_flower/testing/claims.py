"""Claims: what a coalition at its worst learns or changes at most, and the test that plays it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One sentence of the threat model as something that can fail.

    Parameters
    ----------
    coalition : str
        Who works together: ``"server"``, ``"server + 1 client"``.
    doing : str
        What it does.
    at_most : str
        What it learns or changes at most.
    test : str
        The test that plays it, ``tests/file.py::name``; with all its parameters.
    page : str
        Where the docs make the claim.

    Examples
    --------
    >>> claim = Claim(
    ...     coalition="server",
    ...     doing="asks twice",
    ...     at_most="one sum",
    ...     test="tests/secure/test_desk.py::test_one_answer",
    ...     page="docs/secure-aggregation.md",
    ... )
    >>> "| server | asks twice | one sum" in page([claim])
    True
    """

    coalition: str
    doing: str
    at_most: str
    test: str
    page: str


def page(claims: Iterable[Claim], slow: Sequence[str] = ()) -> str:
    """Return the table of claims for the docs, in the order of coalitions.

    Parameters
    ----------
    claims : iterable of Claim
        What is claimed.
    slow : sequence of str
        Tests that do not run with every change.

    Examples
    --------
    >>> page([]).splitlines()[0]
    '| coalition | does | learns or changes at most | test | result |'
    """
    titles = ("coalition", "does", "learns or changes at most", "test", "result")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for claim in sorted(claims, key=lambda one: (one.coalition, one.page, one.doing)):
        when = "holds, run by CI" if claim.test in slow else "holds, run with every change"
        where = claim.page.rpartition("/")[2]
        cells = (
            claim.coalition, claim.doing, f"{claim.at_most} ([{where}]({where}))",
            f"`{claim.test.removeprefix('tests/')}`", when,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
