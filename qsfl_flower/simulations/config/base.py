"""What all sections of an experiment share: strictness, and how contradictions are told."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A frozen mapping of keys: unknown keys, converted types, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# A path or an address: anything that a file system can take, so no control characters.
PlaceText = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
    ),
]


_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
MODULE = rf"{_WORD}(\.{_WORD})*"
IMPORT_PATH = rf"{MODULE}:{_WORD}"


class Values(dict[str, Any]):
    """Options by name; can be hashed, as everything in an experiment."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


OptionValues = Annotated[
    dict[str, JsonValue],
    AfterValidator(Values),
    Field(json_schema_extra={"x-allowed": "a mapping of options to values"}),
]
"""What is handed to something that plugins can add."""


def options_of(key: str, what: str) -> Any:
    """Return the field with the options of what another key of its section names."""
    return Field(
        default={},
        validate_default=True,
        description=f"Options of {what}, by name; which there are depends on {key}.",
        json_schema_extra={"x-options-of": key},
    )


@dataclass(frozen=True)
class Contradiction:
    """Values that are fine alone and impossible together.

    Parameters
    ----------
    keys : tuple of str
        Dotted key paths involved; the error points at the first one that somebody wrote.
    text : str
        What clashes and what to change.
    """

    keys: tuple[str, ...]
    text: str


def refuse(contradictions: Iterable[Contradiction]) -> None:
    """Fail a pydantic validator with all contradictions at once; none is fine.

    Raises
    ------
    pydantic_core.PydanticCustomError
        Of type ``"contradiction"``, with the contradictions in its context.
    """
    found = tuple(contradictions)
    if found:
        text = "; ".join(f"{' and '.join(one.keys)}: {one.text}" for one in found)
        raise PydanticCustomError("contradiction", "{text}", {"text": text, "found": found})
