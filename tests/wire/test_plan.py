"""Plans are read strictly: anything else is an error of the suite, never a crash."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import QSFLError
from qsfl_flower.wire import Plan, PlanItem

PLAN = Plan((PlanItem("clip", {"clip_norm": 1.5, "per_layer": False}), PlanItem("other")))


def test_round_trip_and_canonical_text():
    assert Plan.decode(PLAN.encode()) == PLAN
    assert PLAN.encode() == (
        '{"steps":[{"name":"clip","parameters":{"clip_norm":1.5,"per_layer":false}},'
        '{"name":"other","parameters":{}}],"version":2}'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a JSON text"),
        ("x" * 70_000, "at most 65536 characters"),
        ("{", "not valid JSON"),
        ("[" * 50_000, "not valid JSON"),
        ("[]", "exactly the fields"),
        ('{"version": 2}', "exactly the fields"),
        ('{"version": 1, "steps": []}', "version 1 is not supported"),
        ('{"version": 2, "steps": {}}', "must be a list"),
        ('{"version": 2, "steps": [1]}', "every step"),
        ('{"version": 2, "steps": [{"name": "clip"}]}', "every step"),
        ('{"version": 2, "steps": [{"name": 1, "parameters": {}}]}', "a step's 'name'"),
        ('{"version": 2, "steps": [{"name": "a", "parameters": []}]}', "a step's 'name'"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(QSFLError, match=message):
        Plan.decode(text)


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
