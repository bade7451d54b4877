"""The client's half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qsfl_flower.node.steps import ClientUpdate, StepContext
from qsfl_flower.wire import to_blobs
from sign_updates import SignOptions, encode


def sign_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Encode the update."""
    data = encode(update.vector, SignOptions.from_dict(parameters))
    return replace(update, payload=to_blobs({"signs": data}), encoding="sign")


STEPS = {"sign": sign_step}
