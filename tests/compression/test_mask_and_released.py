from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.mechanisms.compression.core import Mask, encode_record
from qsfl_flower.mechanisms.compression.core.mask import pack_leading, unpack_leading
from qsfl_flower.mechanisms.compression.core.released import (
    KEPT_STEPS,
    Released,
    follow,
    model_digest,
)
from qsfl_flower.numerics import Layout, Vector

NOTHING = np.empty(0, np.int64)


@given(st.integers(1, 300), st.floats(0.01, 1), st.integers(0, 2**32))
def test_a_support_has_its_size_and_holds_what_leads(size, ratio, seed):
    mask = Mask("topk", ratio)
    step = np.random.default_rng(seed).standard_normal(size)
    leading = mask.leading(step)
    support = mask.support(leading, size, seed)
    assert support.size == mask.support(NOTHING, size, seed).size
    assert np.all(np.diff(support) > 0)
    assert set(leading) <= set(support)
    np.testing.assert_array_equal(unpack_leading(pack_leading(leading, size), size), leading)


def test_the_mask_cannot_get_stuck():
    """A step lies within its support; without the random half it would stay there for ever."""
    mask, seen, step = Mask("topk", 0.1), set(), None
    for server_round in range(250):
        support = mask.support(mask.leading(step), 200, server_round)
        seen |= set(support.tolist())
        step = np.zeros(200)
        step[support] = 1.0
    assert len(seen) == 200


def test_a_model_that_stood_still_leads_nowhere():
    assert Mask("topk", 0.1).leading(np.zeros(50)).size == 0
    assert Mask("topk", 0.1).leading(None).size == 0
    assert Mask("randomk", 0.1).leading(np.ones(50)).size == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"select": "all"}, "select is 'all'"),
        ({"ratio": 0}, "ratio is 0"),
        ({"values": "x"}, "'x'"),
    ],
)
def test_masks_without_sense_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Mask(**options)


@given(st.binary(max_size=30))
def test_hostile_lists_are_refused_by_name(data):
    try:
        outcome = unpack_leading(data, 100)
    except RejectedUpdate as error:
        outcome = error
    if isinstance(outcome, RejectedUpdate):
        assert outcome.reason == "bad-indices"
    else:
        assert np.all(np.diff(outcome) > 0)


def test_leading_more_than_the_mask_holds_is_refused():
    with pytest.raises(ConfigError, match="leading coordinates"):
        Mask("topk", 0.1).support(np.arange(20), 100, 0)


def test_the_way_between_models():
    released = Released().plus("a", b"1", "b").plus("b", b"2", "c")
    assert released.between("a", "c") == (b"1", b"2")
    assert released.between("b", "c") == (b"2",)
    assert released.between("c", "c") == ()
    assert released.between("c", "a") is None
    assert released.between("x", "c") is None
    assert released.between(None, "c") is None
    back = released.plus("b", b"3", "d")  # the model went back to b, and on from there
    assert back.between("a", "d") == (b"1", b"3")
    assert back.between("c", "d") is None
    assert released.plus("z", b"4", "y") == Released(("z", "y"), (b"4",))
    assert Released.of(released.to_state()) == released


def test_only_the_last_steps_are_kept():
    released = Released()
    for number in range(40):
        released = released.plus(str(number), bytes([number]), str(number + 1))
    assert len(released.steps) == KEPT_STEPS
    assert len(released.models) == KEPT_STEPS + 1
    assert released.between("24", "40") == tuple(bytes([n]) for n in range(24, 40))
    assert released.between("23", "40") is None


def test_following_steps_has_the_bits_of_the_server():
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal(50).astype(np.float32), "n": np.array(3)}
    layout, steps, expected = Layout.of(arrays), [], dict(arrays)
    for _ in range(3):
        indices = np.sort(rng.choice(50, 5, replace=False))
        record, _, sent = encode_record(rng.standard_normal(5), 50, indices, values_format="int8")
        steps.append(record)
        step = np.zeros(50)
        step[indices] = sent
        expected = layout.unpack(step, {"n": arrays["n"]}, Vector.of(expected, layout))
    np.testing.assert_array_equal(follow(arrays, layout, steps)["w"], expected["w"])
    digest = model_digest(Vector.of(expected, layout))
    expected["w"][7] = np.nextafter(expected["w"][7], np.float32(9))
    assert model_digest(Vector.of(expected, layout)) != digest
