"""Further fields of the suite in an instruction, without changing the one that others share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, RecordDict

from qsfl_flower.wire.keys import QSFL_RECORD

Value = str | bytes | list[bytes]


def change_records(
    contents: Mapping[int, RecordDict], change: Callable[[RecordDict], RecordDict]
) -> dict[int, RecordDict]:
    """Apply `change` once to each different content, usually one for all nodes."""
    changed = {id(content): change(content) for content in contents.values()}
    return {node: changed[id(content)] for node, content in contents.items()}


def with_keys(content: RecordDict, fields: Mapping[str, Value]) -> RecordDict:
    """Return a content with more fields in the suite's own record."""
    asked = content.get(QSFL_RECORD)
    before = asked if isinstance(asked, ConfigRecord) else {}
    return RecordDict({**content, QSFL_RECORD: ConfigRecord({**before, **fields})})
