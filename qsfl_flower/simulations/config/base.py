"""What all sections of an experiment share: strictness, and how contradictions are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
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
IMPORT_PATH = rf"{_WORD}(\.{_WORD})*:{_WORD}"


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
