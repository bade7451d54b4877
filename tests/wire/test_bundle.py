"""Bundles of messages: the same record travels once, and nothing else than a bundle is read."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.wire.bundle import BUNDLE_RECORD, is_bundle, pack, unpack


def test_round_trip_with_shared_records_and_errors():
    shared, own = ConfigRecord({"a": 1}), MetricRecord({"b": 2.0})
    parts = {
        7: RecordDict({"config": shared, "own": own}),
        2: RecordDict({"config": shared}),
        9: Error(5, "gone"),
        4: RecordDict(),
    }
    bundle = pack(parts)
    assert len(bundle) == 3
    back = unpack(bundle)
    assert list(back) == [7, 2, 9, 4]
    assert back[7]["config"] == back[2]["config"] == shared
    assert back[7]["own"] == own
    assert (back[9].code, back[9].reason) == (5, "gone")
    assert len(back[4]) == 0


def test_only_bundles_are_bundles():
    assert is_bundle(pack({}))
    assert not is_bundle(RecordDict({"config": ConfigRecord({})}))


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "null",
        '{"x": {}}',
        '{"-1": {}}',
        '{"01": {}}',
        '{"\u0661": {}}',
        '{"' + "9" * 5000 + '": {}}',
        "[" * 100_000,
        '{"1": ' * 100_000,
        '{"1": ' + "9" * 5000 + "}",
    ],
)
def test_anything_else_is_malformed(index):
    content = RecordDict({BUNDLE_RECORD: ConfigRecord({"index": index})})
    with pytest.raises(RejectedUpdate, match="malformed: bundle"):
        unpack(content)


@pytest.mark.parametrize(
    "part",
    [
        '{"a": "7"}',
        "3",
        "[2]",
        '["x", "y"]',
        '[Infinity, "y"]',
        '[NaN, "y"]',
        '[2, "y", 3]',
        "[2, 3]",
        '[-1, "y"]',
        '[1e400, "y"]',
        '[123456789012345678901234567890, "y"]',
        '{"a": "qsfl-bundle"}',
        '{"a": ["0"]}',
        '{"a": {}}',
        "null",
    ],
)
def test_a_part_that_makes_no_sense_is_an_error_of_its_own(part):
    index = f'{{"1": {part}, "2": {{"config": "0"}}}}'
    good = ConfigRecord({"a": 1})
    content = RecordDict({BUNDLE_RECORD: ConfigRecord({"index": index}), "0": good})
    back = unpack(content)
    assert "malformed" in back[1].reason
    assert back[2]["config"] == good


def test_writing_into_one_part_changes_no_other():
    array = Array(np.ones(2, np.float32))
    model, config = ArrayRecord({"w": array}), ConfigRecord({"l": [1, 2], "a": 1})
    parts = {n: RecordDict({"model": model, "config": config}) for n in (1, 2)}
    back = unpack(pack(parts))
    back[1]["model"]["w"].data = b""
    back[1]["model"]["v"] = array
    back[1]["config"]["a"] = 2
    back[1]["config"]["l"].append(3)
    assert list(back[2]["model"]) == ["w"]
    assert back[2]["model"]["w"].data == array.data
    assert back[2]["model"]["w"].data is array.data, "the bytes are not copied"
    assert back[2]["config"] == ConfigRecord({"l": [1, 2], "a": 1})
    assert config["l"] == [1, 2]


def test_a_content_without_index_is_malformed():
    with pytest.raises(RejectedUpdate, match="malformed"):
        unpack(RecordDict({BUNDLE_RECORD: ConfigRecord({})}))
