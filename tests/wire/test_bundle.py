"""Bundles of messages: the same record travels once, and nothing else than a bundle is read."""

import pytest
from flwr.app import ConfigRecord, Error, MetricRecord, RecordDict

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
    assert back[7]["config"] is back[2]["config"] is shared
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
        '{"1": {"a": "7"}}',
        '{"1": 3}',
        '{"1": [2]}',
        '{"1": ["x", "y"]}',
        '{"1": {"a": "qsfl-bundle"}}',
        '{"1": {"a": ["0"]}}',
        "[" * 100_000,
    ],
)
def test_anything_else_is_malformed(index):
    content = RecordDict({BUNDLE_RECORD: ConfigRecord({"index": index})})
    with pytest.raises(RejectedUpdate, match="malformed: bundle"):
        unpack(content)


def test_a_content_without_index_is_malformed():
    with pytest.raises(RejectedUpdate, match="malformed"):
        unpack(RecordDict({BUNDLE_RECORD: ConfigRecord({})}))
