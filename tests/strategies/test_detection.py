"""The stage: what becomes of flagged updates, what is told, and what is remembered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qsfl_flower.mechanisms.detection.core import Detection, Reputation
from qsfl_flower.numerics import Layout, Vector, measure
from qsfl_flower.rounds.context import RoundContext
from qsfl_flower.rounds.record import client_rows
from qsfl_flower.rounds.update import Cohort, Sender, Update
from qsfl_flower.stages import Detect
from qsfl_flower.wire import Form

LAYOUT = Layout(("w", "b"), ((30, 20), (40,)), ("float32", "float32"))
FAST = Detection("robust-z", reputation=Reputation(rounds=3))
CLIENTS = 20


def cohort(server_round: int, attackers: int = 4, names=None) -> Cohort:
    common = np.random.default_rng(0).normal(size=LAYOUT.size)
    x = common + np.random.default_rng([server_round, 1]).normal(size=(CLIENTS, LAYOUT.size))
    x[:attackers] *= -10
    names = names or [f"c{i}" for i in range(CLIENTS)]
    return Cohort(
        tuple(
            Update(
                Sender(100 + i, i, names[i]),
                10.0,
                Vector.dense(row),
                Form.DELTA,
                measure=measure(Vector.dense(row)),
                bytes_up=7,
            )
            for i, row in enumerate(x)
        )
    )


def context(server_round: int) -> RoundContext:
    model = Vector.dense(np.full(LAYOUT.size, float(server_round)))
    return RoundContext(server_round, LAYOUT, model)


def rounds(stage: Detect, count: int, **more):
    state, found = stage.init(LAYOUT), []
    for server_round in range(1, count + 1):
        judged, state, measured = stage.apply(
            cohort(server_round, **more), state, context(server_round)
        )
        found.append((judged, measured))
    return found, state


def test_flagged_updates_are_rejected_with_a_reason_and_then_quarantined():
    found, _ = rounds(Detect(FAST), 4)
    (first, told), *_, (last, told_last) = found
    rejected = {r.sender.name: r for r in first.rejections}
    assert {f"c{i}" for i in range(4)} <= set(rejected)
    assert len(rejected) <= 6
    assert rejected["c0"].reason == "flagged"
    assert "norm" in rejected["c0"].detail
    assert rejected["c0"].bytes_up == 7
    assert told["flagged"] == len(rejected)
    assert {r.reason for r in last.rejections if r.sender.rank < 4} == {"quarantined"}
    assert told_last["quarantined"] >= 4
    assert told_last["highest_anomaly"] > 0.5


def test_an_attacker_counts_once_after_its_quarantine_and_the_reason_says_so():
    """Flagged in rounds 1 to 3, away in 4 to 6, heard in 7, away for twice as long."""
    found, _ = rounds(Detect(FAST), 13)
    heard = [
        (at, update)
        for at, (judged, _) in enumerate(found, start=1)
        for update in judged.updates
        if update.sender.name == "c0"
    ]
    assert [at for at, _ in heard] == [7]
    update = heard[0][1]
    usual = [u.scale * u.measured().norm for u in found[6][0].updates if u.sender.rank >= 4]
    assert update.scale * update.measured().norm <= 1.001 * np.median(usual)
    assert "counts at its hearing" in update.opinion.flag


def test_without_quarantine_flags_are_told_and_nothing_else_happens():
    (judged, _), *_ = rounds(Detect(FAST, quarantine=False), 1)[0]
    assert not judged.rejections
    assert all(np.all(u.scale == 1.0) for u in judged.updates)
    rows = client_rows(1, judged)
    assert all(row.flag for row in rows[:4])
    assert {row.status for row in rows} == {"accepted"}
    assert all(0 <= row.anomaly <= 1 and 0 <= row.reputation <= 1 for row in rows)


def test_rejected_clients_keep_score_and_reputation_in_the_rows():
    judged, _ = rounds(Detect(FAST), 2)[0][-1]
    row = client_rows(2, judged)[0]
    assert row.status == "flagged"
    assert row.anomaly > 0.5
    assert row.reputation < 0.6
    assert row.flag


def test_the_state_is_arrays_and_json_values():
    _, state = rounds(Detect(FAST), 2)
    assert {type(v) for v in state.values()} == {list, np.ndarray}
    assert all(isinstance(name, str) for name in state["clients"])
    assert state["model"].dtype == np.float32


def test_an_empty_round_changes_no_standing():
    stage = Detect(FAST)
    _, state = rounds(stage, 2)
    judged, after, _ = stage.apply(Cohort(), state, context(3))
    assert not judged.updates
    assert np.array_equal(after["standings"], state["standings"])


def test_a_liar_cannot_ruin_the_reputation_of_another_by_taking_its_name():
    names = ["c9"] * 4 + [f"c{i}" for i in range(4, CLIENTS)]
    judged, _ = rounds(Detect(FAST), 4, names=names)[0][-1]
    assert any(u.sender.rank == 9 for u in judged.updates)
    assert {r.sender.rank for r in judged.rejections} >= {0, 1, 2, 3}


def test_updates_on_a_shared_support_are_judged_among_themselves():
    stage = Detect(FAST)
    part = Cohort(
        tuple(
            Update(
                u.sender, 1.0, Vector.dense(u.vector.pieces[0][:50]), Form.DELTA, measure=u.measure
            )
            for u in cohort(1).updates
        )
    )
    judged, _, _ = stage.apply(part, stage.init(LAYOUT), context(1))
    assert {r.sender.rank for r in judged.rejections} >= {0, 1, 2, 3}


def test_a_quarantine_outlasts_a_new_node_where_names_are_proven():
    """From round 5 on the attackers answer from nodes that have just registered."""

    def moved(server_round, proven):
        def sender(rank):
            new = rank + CLIENTS if rank < 4 and server_round >= 5 else rank
            name = f"c{rank}"
            return Sender(100 + new, new, name, identity=name if proven else None)

        made = cohort(server_round)
        updates = tuple(replace(u, sender=sender(u.sender.rank)) for u in made.updates)
        return replace(made, updates=updates)

    for proven in (True, False):
        stage = Detect(FAST)
        state = stage.init(LAYOUT)
        for server_round in range(1, 6):
            judged, state, _ = stage.apply(
                moved(server_round, proven), state, context(server_round)
            )
        reasons = {r.reason for r in judged.rejections if r.sender.name in ("c0", "c1", "c2", "c3")}
        assert reasons == ({"quarantined"} if proven else {"flagged"})
