"""The page of what is refused says what the code refuses."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from qsfl_flower.simulations.build import client_of, owners_of
from qsfl_flower.strategies.scaffold import with_controls
from tests.simulations.known_issues import (
    CAPABILITIES,
    MARK,
    PAGE,
    experiment,
    merged,
    page,
    pairs,
    refusal,
)

TRAINED = (
    "simulated devices", "meta-gradients", "reptile", "private layers", "ditto", "scaffold",
    "record privacy", "record privacy in shares",
)  # fmt: skip
"""What decides how a client trains."""


def test_the_page_is_what_the_tables_of_refusals_say():
    text = PAGE.read_text(encoding="utf-8")
    assert MARK + text.partition(MARK)[2] == page(), "run: python -m tests.simulations.known_issues"


@pytest.mark.parametrize("name", CAPABILITIES)
def test_every_capability_stands_alone(name):
    assert refusal(CAPABILITIES[name]) is None


def test_every_refusal_of_a_pair_says_what_to_do():
    for pair, why in pairs().items():
        assert "; " in why, pair


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_goes_together_trains(size, tmp_path):
    """Each choice of one, two or three of them is refused when it is read, or sends an update."""
    built = set()
    for chosen in combinations(TRAINED, size):
        settings = {}
        for name in chosen:
            settings = settings if settings is None else merged(settings, CAPABILITIES[name])
        if settings is None or refusal(settings):
            continue
        exp = experiment({**settings, "output": {"folder": str(tmp_path / "-".join(chosen))}})
        # Some phones of the fleet are in use at night too.
        for number in range(4):
            client = client_of(exp, owners_of(exp), number)
            state = client.model.state_dict()
            given = [np.array(a) for a in state.values()]
            if "scaffold" in chosen:
                given = list(with_controls(dict(zip(state, given, strict=True))).values())
            sent, count, told = client.fit(given, {"server-round": 1})
            if "refused" not in told:
                break
        assert count > 0, (chosen, told)
        assert any(not np.array_equal(a, b) for a, b in zip(sent, given, strict=True)), chosen
        built.add(chosen)
    assert len(built) == {1: 8, 2: 15, 3: 10}[size]
