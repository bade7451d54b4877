"""Arrays on the wire: views, not copies, and no trust."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.wire import content_bytes, from_record, to_record


def test_round_trip_keeps_order_types_and_values():
    arrays = {
        "z": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(7),
        "empty": np.zeros((0, 3), np.float16),
        "mask": np.array([True, False]),
    }
    back = from_record(to_record(arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 0, 3)])
def test_writing_gives_the_bytes_of_numpy_s_own_format(dtype, shape):
    size = int(np.prod(shape))
    array = np.arange(size).reshape(shape).astype(dtype)
    for one in (array, np.asarray(array, order="F"), np.repeat(array[None], 2, 0)[1]):
        ours, theirs = to_record({"w": one})["w"], Array(np.ascontiguousarray(one).reshape(shape))
        assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
        assert ours.data == theirs.data


def test_reading_copies_nothing_and_cannot_be_written_to():
    record = to_record({"w": np.zeros(1000)})
    view = from_record(record)["w"]
    assert not view.flags.writeable
    assert np.shares_memory(view, np.frombuffer(record["w"].data, np.uint8))


def test_the_name_of_the_bad_array_is_told():
    record = ArrayRecord({"w": Array("float32", (3,), "pickle", b"...")})
    with pytest.raises(RejectedUpdate, match="array 'w' is serialized as 'pickle'"):
        from_record(record)
    record = ArrayRecord({"w": Array("float32", (3,), "numpy.ndarray", b"...")})
    with pytest.raises(RejectedUpdate, match="malformed: array 'w'"):
        from_record(record)


def test_payload_size():
    """An array's bytes, 8 per number, the letters of texts and of keys: 100 + (1 + 8) + (2 + 3)."""
    array = Array("uint8", (1,), "numpy.ndarray", b"x" * 100)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": array}),
            "metrics": MetricRecord({"n": 3}),
            "config": ConfigRecord({"ab": "xyz"}),
        }
    )
    assert content_bytes(content) == 114
    assert content_bytes(RecordDict()) == 0
