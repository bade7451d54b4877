from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qsfl_flower.errors import ConfigError, QSFLError, RejectedUpdate
from qsfl_flower.numerics.blocks import BLOCK
from qsfl_flower.numerics.layout import CastOverflow, Layout
from qsfl_flower.numerics.vector import Vector


def model() -> dict[str, np.ndarray]:
    return {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bn.count": np.array(7),
        "bn.scale": np.array(2.5, np.float16),
        "head": np.array([[1.0], [2.0]]),
        "mask": np.array([True, False]),
    }


models = st.dictionaries(
    st.text(max_size=5),
    hnp.arrays(
        dtype=st.sampled_from(["f2", "f4", "f8", "i8", "u1", "b1"]),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=5,
)


def test_floats_lie_in_the_vector_in_the_models_order():
    layout = Layout.of(model())
    assert layout.size == 6 + 1 + 2
    assert layout.slices == {
        "conv.weight": slice(0, 6),
        "bn.scale": slice(6, 7),
        "head": slice(7, 9),
    }
    assert layout.carried == ("bn.count", "mask")
    assert layout.dtypes == ("float32", "int64", "float16", "float64", "bool")


def test_views_share_the_vector():
    layout = Layout.of(model())
    vector = np.arange(9.0)
    views = layout.views(vector)
    views["head"][1, 0] = -1
    assert vector[8] == -1
    assert views["bn.scale"].shape == ()
    assert views["conv.weight"].shape == (2, 3)
    with pytest.raises(ConfigError, match="9 coordinates"):
        layout.views(np.zeros(10))


@given(models)
def test_unpacking_the_joined_floats_gives_the_model_back(arrays):
    layout = Layout.of(arrays)
    parts = [arrays[name].reshape(-1).astype(np.float64) for name in layout.slices]
    back = layout.unpack(
        np.concatenate([np.zeros(0), *parts]), {name: arrays[name] for name in layout.beside}
    )
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    layout.check(back)


def test_one_rounding_only():
    """Via float32, 1 + 2**-11 + 2**-40 would become a tie and go down to 1 in float16."""
    layout = Layout.of({"w": np.zeros(1, np.float16)})
    value = 1 + 2.0**-11 + 2.0**-40
    assert np.float16(np.float32(value)) == 1.0
    assert layout.unpack(np.array([value]), {})["w"][0] == np.float16(1 + 2.0**-10)


def test_a_step_is_added_to_its_base_before_the_rounding():
    """Half a last digit of 1 is a tie and goes down; three halves are a tie and go up."""
    layout = Layout.of({"a": np.zeros(2, np.float32), "b": np.zeros((), np.float32)})
    step = np.array([2.0**-24, 3 * 2.0**-24, -0.5])
    base = Vector([np.ones(2, np.float32), np.array([2.0], np.float32)])
    result = layout.unpack(step, {}, base)
    assert result["a"].tolist() == [1.0, 1 + 2 * 2.0**-23]  # ties to even, 3 halves to 2
    assert result["b"] == 1.5
    assert step.tolist() == [2.0**-24, 3 * 2.0**-24, -0.5]


def test_long_arrays_in_blocks():
    size = 3 * BLOCK + 5
    values, start = np.random.default_rng(0).standard_normal((2, size))
    model = {"a": np.zeros(100, np.float32), "b": np.zeros((size - 100, 1), np.float16)}
    result = Layout.of(model).unpack(values, {}, Vector.dense(start))
    np.testing.assert_array_equal(result["a"], (values + start)[:100].astype(np.float32))
    np.testing.assert_array_equal(result["b"][:, 0], (values + start)[100:].astype(np.float16))


def test_vectors_of_another_size_are_refused():
    layout = Layout.of(model())
    carried = {name: model()[name] for name in layout.carried}
    with pytest.raises(ConfigError, match="9 coordinates"):
        layout.unpack(np.zeros(8), carried)
    with pytest.raises(ConfigError, match="9 coordinates"):
        layout.unpack(np.zeros(9), carried, Vector.dense(np.zeros(10)))


@pytest.mark.parametrize(("dtype", "value"), [("float16", 65_520.0), ("float32", 1e39)])
def test_an_overflow_names_the_array(dtype, value):
    layout = Layout.of({"fine": np.zeros(1), "narrow": np.zeros(2, dtype)})
    with pytest.raises(CastOverflow, match=rf"array 'narrow' has a value beyond .* {dtype}"):
        layout.unpack(np.array([value, 0, -value]), {})
    assert issubclass(CastOverflow, QSFLError)


def test_an_overflow_in_float64_itself_is_named_as_well():
    layout = Layout.of({"w": np.zeros(1)})
    with pytest.raises(CastOverflow, match="'w'"):
        layout.unpack(np.array([1.7e308]), {}, Vector.dense(np.array([1.7e308])))


def test_largest_values_and_tiny_values_are_no_overflow():
    layout = Layout.of({"w": np.zeros(3, np.float32)})
    largest = float(np.finfo(np.float32).max)
    out = layout.unpack(np.array([largest, -largest, 1e-60]), {})["w"]
    np.testing.assert_array_equal(out, np.array([largest, -largest, 0], np.float32))


def test_unpack_wants_exactly_the_carried_arrays():
    layout = Layout.of(model())
    with pytest.raises(RejectedUpdate, match="missing-array"):
        layout.unpack(np.zeros(9), {"bn.count": np.array(1)})
    with pytest.raises(RejectedUpdate, match="wrong-dtype"):
        layout.unpack(np.zeros(9), {"bn.count": np.array(1.0), "mask": np.zeros(2, bool)})


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (lambda a: a.pop("head"), "missing-array", "'head'"),
        (lambda a: a.update(extra=np.zeros(1)), "unknown-array", "'extra'"),
        (lambda a: a.update(head=np.zeros((1, 2))), "wrong-shape", "(1, 2); the model has (2, 1)"),
        (lambda a: a.update(head=np.zeros(())), "wrong-shape", "()"),
        (lambda a: a.update(head=np.zeros((2, 1), np.float32)), "wrong-dtype", "float64"),
        (lambda a: a.update(mask=np.zeros(2, np.uint8)), "wrong-dtype", "uint8"),
        (lambda a: a.update({"bn.count": np.array([7])}), "wrong-shape", "(1,)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, reason, words):
    layout, arrays = Layout.of(model()), model()
    change(arrays)
    with pytest.raises(RejectedUpdate) as caught:
        layout.check(arrays)
    assert caught.value.reason == reason
    assert words in caught.value.detail


def test_order_does_not_matter_to_check():
    layout = Layout.of(model())
    layout.check(dict(reversed(model().items())))


def test_the_digest_tells_layouts_apart():
    layout = Layout.of(model())
    assert layout.digest == Layout.of(model()).digest
    assert len(layout.digest) == 64
    others = [
        Layout.of(dict(reversed(model().items()))),
        Layout.of({**model(), "head": np.zeros((1, 2))}),
        Layout.of({**model(), "head": np.zeros((2, 1), np.float32)}),
        Layout.of({("Head" if k == "head" else k): v for k, v in model().items()}),
        Layout.of({}),
    ]
    assert len({layout.digest, *(other.digest for other in others)}) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((("a",), ((1,),), ("complex64",)), "'a' is complex64; allowed are float16"),
        ((("a",), ((1,),), ("object",)), "object"),
        ((("a", "a"), ((1,), (1,)), ("bool", "bool")), "different names"),
        ((("a",), (), ("bool",)), "one shape"),
    ],
)
def test_what_is_not_a_model_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Layout(*arguments)


def test_byte_order_is_no_part_of_a_layout():
    assert Layout.of({"a": np.zeros(1, ">f4")}) == Layout.of({"a": np.zeros(1, "f4")})


ROLED = {
    "frozen": np.ones(3, np.float32),
    "w": np.arange(4, dtype=np.float32).reshape(2, 2),
    "again": np.arange(4, dtype=np.float32).reshape(2, 2),
    "mean": np.full(2, 0.5, np.float32),
    "steps": np.array(7),
}
ROLES = {"frozen": "frozen", "again": "tied:w", "mean": "buffer"}


def test_roles_say_what_lies_in_the_vector_and_what_is_sent():
    layout = Layout.of(ROLED, ROLES)
    assert layout.slices == {"w": slice(0, 4)}
    assert layout.carried == ("mean", "steps")
    assert layout.beside == ("mean", "steps", "frozen")
    assert layout.sent.names == ("w", "mean", "steps")
    beside = {name: ROLED[name] for name in layout.beside}
    arrays = layout.unpack(np.ones(4), beside, Vector.of(ROLED, layout))
    assert list(arrays) == list(ROLED)
    np.testing.assert_array_equal(arrays["w"], ROLED["w"] + 1)
    assert arrays["again"] is arrays["w"]
    layout.check({name: ROLED[name] for name in layout.sent.names})
    with pytest.raises(RejectedUpdate, match="missing-array"):
        layout.check({"w": ROLED["w"], "steps": ROLED["steps"]})
    with pytest.raises(RejectedUpdate, match="wrong-shape"):
        layout.check({**ROLED, "frozen": np.ones(4, np.float32)})


def test_what_is_told_leads_to_the_same_layout_or_to_an_error():
    layout = Layout.of(ROLED, ROLES)
    assert Layout.read(ROLED, layout.told) == layout
    assert Layout.of(ROLED).told == ""
    assert Layout.read(ROLED, None) == Layout.of(ROLED) != layout
    assert layout.digest != Layout.of(ROLED).digest
    other = {**ROLED, "steps": np.array([7])}
    for arrays, told in [(other, layout.told), (ROLED, ""), (ROLED, b"{}"), (ROLED, "[" * 99999)]:
        with pytest.raises(ConfigError, match="roles"):
            Layout.read(arrays, told)
