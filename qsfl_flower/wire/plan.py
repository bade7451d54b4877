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
from qsfl_flower.wire.keys import MASKED_SUM, ON_THE_WIRE, SHARES


class ClientPhase(IntEnum):
    """Where among the steps of a client a stage's half stands."""

    MEASURE = 5
    CORRECT = 10
    SPARSIFY = 20
    CLIP = 30
    NOISE = 40
    ENCODE = 50


PLAN_VERSION = 2
"""Version 2 came with secure sums whose shares name the instruction; all else reads as before."""

_SINCE_2 = frozenset({SHARES, MASKED_SUM})
_READ = {told: name for name, told in ON_THE_WIRE.items()}
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
        """Return the plan as canonical JSON (sorted keys, no spaces).

        Its version is the lowest that can say it, so that clients of the release before read what
        has not changed, and refuse what has before they train.
        """
        body = {
            "version": 2 if _SINCE_2.intersection(i.name for i in self.items) else 1,
            "steps": [
                {"name": ON_THE_WIRE.get(i.name, i.name), "parameters": dict(i.parameters)}
                for i in self.items
            ],
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
        version = body["version"]
        if type(version) is not int or not 1 <= version <= PLAN_VERSION:
            raise QSFLError(
                f"plan: version {version!r:.20} is not supported; this client reads versions 1 to "
                f"{PLAN_VERSION}: install the same release of qsfl-flower on both ends"
            )
        if not isinstance(body["steps"], list):
            raise QSFLError("plan: 'steps' must be a list")
        items = tuple(_decode_step(step) for step in body["steps"])
        if version < 2 and (old := _SINCE_2.intersection(i.name for i in items)):
            raise QSFLError(
                f"plan: version 1 of {', '.join(sorted(old))} is no longer carried out: nothing in "
                "it shows whether all clients train the same model; update the server to this "
                "release of qsfl-flower"
            )
        return cls(items)


def _decode_step(step: object) -> PlanItem:
    if not isinstance(step, dict) or set(step) != {"name", "parameters"}:
        raise QSFLError("plan: every step has exactly the fields 'name' and 'parameters'")
    name, parameters = step["name"], step["parameters"]
    if not isinstance(name, str) or not isinstance(parameters, dict):
        raise QSFLError("plan: a step's 'name' is a text and its 'parameters' a mapping")
    return PlanItem(_READ.get(name, name), parameters)
