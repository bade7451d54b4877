"""Plans are read strictly: anything else is an error of the suite, never a crash."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import QSFLError
from qsfl_flower.wire import Plan, PlanItem
from qsfl_flower.wire.keys import MASKED_SUM, SHARES

PLAN = Plan((PlanItem("clip", {"clip_norm": 1.5, "per_layer": False}), PlanItem("other")))


def test_round_trip_and_canonical_text():
    assert Plan.decode(PLAN.encode()) == PLAN
    assert PLAN.encode() == (
        '{"steps":[{"name":"clip","parameters":{"clip_norm":1.5,"per_layer":false}},'
        '{"name":"other","parameters":{}}],"version":1}'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a JSON text"),
        ("x" * 70_000, "at most 65536 characters"),
        ("{", "not valid JSON"),
        ("[" * 50_000, "not valid JSON"),
        ("[]", "exactly the fields"),
        ('{"version": 1}', "exactly the fields"),
        ('{"version": 3, "steps": []}', "version 3 is not supported"),
        ('{"version": true, "steps": []}', "version True is not supported"),
        ('{"version": 1, "steps": {}}', "must be a list"),
        ('{"version": 1, "steps": [1]}', "every step"),
        ('{"version": 1, "steps": [{"name": "clip"}]}', "every step"),
        ('{"version": 1, "steps": [{"name": 1, "parameters": {}}]}', "a step's 'name'"),
        ('{"version": 1, "steps": [{"name": "a", "parameters": []}]}', "a step's 'name'"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(QSFLError, match=message):
        Plan.decode(text)


def test_the_release_before_is_read_or_refused_by_name():
    """Version 1 is what 0.1.0 wrote; its secure sums did not name the instruction."""
    old = '{"steps":[{"name":"clip","parameters":{}},{"name":"%s","parameters":{}}],"version":1}'
    assert Plan.decode(old % "compress").items[1].name == "compress"
    for name in (SHARES, MASKED_SUM):
        with pytest.raises(QSFLError, match=f"version 1 of {name} is no longer carried out"):
            Plan.decode(old % name)
        assert '"version":2' in Plan((PlanItem(name),)).encode()


def test_steps_travel_under_the_names_that_the_release_before_knows():
    steps = ["record_dp", "shared_mask", "local_dp", "distributed_dp", "shared_mask_encode"]
    plan = Plan(tuple(map(PlanItem, steps)))
    text = plan.encode()
    told = [step["name"] for step in json.loads(text)["steps"]]
    assert told == ["record-dp", "shared-mask", "local-dp", "distributed-dp", "shared-mask-encode"]
    assert Plan.decode(text) == Plan.decode(text.replace("-", "_")) == plan


LEAVES = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(LEAVES, lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_no_json_value_crashes_the_reader(value):
    with contextlib.suppress(QSFLError):
        Plan.decode(json.dumps(value))


@given(st.integers(0, len(PLAN.encode()) - 1), st.characters())
def test_a_changed_character_gives_a_plan_or_an_error(position, character):
    text = PLAN.encode()
    with contextlib.suppress(QSFLError):
        Plan.decode(text[:position] + character + text[position + 1 :])
