from __future__ import annotations

import hashlib
import struct
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.crypto.digest import Item, content_digest
from qsfl_flower.crypto.errors import Malformed

items = st.lists(
    st.builds(
        Item,
        kind=st.sampled_from(["array", "metric"]),
        name=st.text(max_size=3),
        dtype=st.sampled_from(["float32", "int64"]),
        shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
        data=st.binary(max_size=8),
    ),
    max_size=4,
    unique_by=lambda item: (item.kind, item.name),
)


def test_value_by_hand() -> None:
    data = np.array([[1.5, 2.5]], dtype="<f4")
    text = b"qsfl-flower/1/content"
    for field in (b"array", b"w", b"float32"):
        text += struct.pack(">I", len(field)) + field
    text += b"\x02" + struct.pack(">QQQ", 1, 2, 8) + data.tobytes() + struct.pack(">Q", 1)
    found = content_digest([Item("array", "w", "float32", (1, 2), data)])
    assert found == hashlib.sha256(text).digest()


@given(items, items)
@settings(deadline=None)
def test_different_contents_have_different_digests(one: list[Item], other: list[Item]) -> None:
    assert (content_digest(one) == content_digest(other)) == (one == other)


def test_order_and_every_field_count() -> None:
    first = Item("array", "a", "float32", (1,), b"1234")
    second = Item("array", "b", "float32", (1,), b"5678")
    base = content_digest([first, second])
    assert content_digest([second, first]) != base
    for change in (
        {"kind": "metric"},
        {"name": "c"},
        {"dtype": "int32"},
        {"shape": (1, 1)},
        {"data": b"1235"},
    ):
        assert content_digest([first._replace(**change), second]) != base  # type: ignore[arg-type]
    # moving a byte from one item to the next changes the digest
    moved = [first._replace(data=b"12345"), second._replace(data=b"678")]
    assert content_digest(moved) != base


def test_two_items_of_one_name_are_malformed() -> None:
    item = Item("array", "w", "float32", (), b"")
    with pytest.raises(Malformed, match="two array items named 'w'"):
        content_digest([item, item])
    assert content_digest([item, item._replace(kind="metric")])


def test_arrays_are_hashed_where_they_are() -> None:
    arrays = [np.ones(500_000) for _ in range(4)]  # 16 MB

    def stream() -> Iterator[Item]:
        for index, array in enumerate(arrays):
            yield Item("array", str(index), "float64", array.shape, array)

    tracemalloc.start()
    content_digest(stream())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
