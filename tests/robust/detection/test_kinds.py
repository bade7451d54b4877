from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.mechanisms.detection.core import Detection, Memory, extract, inspect
from qsfl_flower.mechanisms.robust.core import Updates
from qsfl_flower.mechanisms.robust.core.attacks import View, build_attack


def findings_of(cohort, layout, attack, server_round=1, **settings):
    honest = cohort(20, seed=server_round)
    sent = honest.copy()
    made = build_attack(attack, **settings)
    for client in range(6):
        view = View(
            own=honest[client],
            known=honest[6:],
            clients=20,
            attackers=6,
            server_round=server_round,
            rng=np.random.default_rng([client, server_round]),
            first=None,
        )
        sent[client] = made.craft(view)
    names = [str(client) for client in range(20)]
    table = extract(Updates.of(sent), layout)
    return inspect(table, names, Memory.new(0), Detection(), 1)[0]


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        ("sign-flip", {}),
        ("sign-flip", {"scale": 3.0}),
        ("scaling", {"factor": 10.0}),
        ("gaussian", {}),
        ("zero", {}),
        ("sparse", {}),
    ],
)
@pytest.mark.parametrize("server_round", [1, 2, 3])
def test_a_plain_attack_is_called_by_its_name(cohort, layout, attack, settings, server_round):
    findings = findings_of(cohort, layout, attack, server_round, **settings)
    assert [f.kind for f in findings[:6]] == [attack] * 6
    assert f"looks like {attack}" in findings[0].why
    assert all(f.kind == "" for f in findings[6:] if not f.flagged)


def test_what_hides_is_given_no_name(cohort, layout):
    for attack in ("alie", "min-max"):
        assert {f.kind for f in findings_of(cohort, layout, attack)[:6]} <= {"", "scaling"}
