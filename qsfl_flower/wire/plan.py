"""The plan: what a strategy asks the mod of each client to do with its update.

A plan travels in the instruction of every round, so the two ends cannot disagree about a
parameter. It is data, read strictly: an unknown step or a malformed field is an error on the
client, which then refuses to train instead of sending something weaker than was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from qsfl_flower.errors import QSFLError


class ClientPhase(IntEnum):
    """Where among the steps of a client a stage's half stands."""

    CORRECT = 10
    SPARSIFY = 20
    CLIP = 30
    NOISE = 40
    ENCODE = 50


PLAN_VERSION = 2
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class PlanItem:
    """One step of the client's side.

    Parameters
    ----------
    name : str
        Name of the mechanism, the same on both ends (``"clip"``).
    parameters : Mapping[str, Any]
        Its parameters as JSON values.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The steps of the client's side, in the order in which they are applied."""

    items: tuple[PlanItem, ...] = ()

    def encode(self) -> str:
        """Return the plan as canonical JSON (sorted keys, no spaces)."""
        body = {
            "version": PLAN_VERSION,
            "steps": [{"name": i.name, "parameters": dict(i.parameters)} for i in self.items],
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def decode(cls, text: object) -> Plan:
        """Read a plan strictly.

        Raises
        ------
        QSFLError
            If the text is not a plan of this version.
        """
        if not isinstance(text, str) or len(text) > _MAX_BYTES:
            raise QSFLError(f"plan: expected a JSON text of at most {_MAX_BYTES} characters")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise QSFLError("plan: not valid JSON") from error
        if not isinstance(body, dict) or set(body) != {"version", "steps"}:
            raise QSFLError("plan: expected exactly the fields 'version' and 'steps'")
        if body["version"] != PLAN_VERSION:
            raise QSFLError(
                f"plan: version {body['version']!r} is not supported; this client reads version "
                f"{PLAN_VERSION}: install the same release of qsfl-flower on both ends"
            )
        if not isinstance(body["steps"], list):
            raise QSFLError("plan: 'steps' must be a list")
        return cls(tuple(_decode_step(step) for step in body["steps"]))


def _decode_step(step: object) -> PlanItem:
    if not isinstance(step, dict) or set(step) != {"name", "parameters"}:
        raise QSFLError("plan: every step has exactly the fields 'name' and 'parameters'")
    name, parameters = step["name"], step["parameters"]
    if not isinstance(name, str) or not isinstance(parameters, dict):
        raise QSFLError("plan: a step's 'name' is a text and its 'parameters' a mapping")
    return PlanItem(name, parameters)
