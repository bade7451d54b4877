"""All readers of outside bytes: the one list for the tests and for `tools/fuzz`."""

from __future__ import annotations

from functools import cache

from .decoder import Decoder
from .files import files
from .messages import formats, signed_and_sealed


@cache
def decoders() -> dict[str, Decoder]:
    """Return the readers by name; making their examples takes keys and a second."""
    return {d.name: d for d in (*formats(), *signed_and_sealed(), *files())}
