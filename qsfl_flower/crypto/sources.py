"""What comes from outside the program: secret random bytes, and the time of day.

The one place where either enters. No argument, configuration, environment variable or message
changes where they come from; `qsfl_flower.testing.fixed` replaces the two sources, under pytest
only. Every other random number is derived from these bytes or from a public seed.
"""

from __future__ import annotations

import os
import time


def random_bytes(count: int, use: str) -> bytes:
    """Return fresh bytes of the operating system's generator.

    Parameters
    ----------
    count : int
        How many, >= 0.
    use : str
        What they are for. Changes nothing; tests repeat the bytes of each use in turn.
    """
    return _source(count, use)


def random_below(bound: int, use: str) -> int:
    """Return a fresh integer, exactly uniform over 0..bound-1.

    Parameters
    ----------
    bound : int
        >= 1.
    use : str
        As for `random_bytes`.
    """
    bits = (bound - 1).bit_length()
    size = (bits + 7) // 8
    while True:
        value = int.from_bytes(random_bytes(size, use), "big") >> (8 * size - bits)
        if value < bound:
            return value


def unix_time() -> float:
    """Return the time of day as Unix time, seconds."""
    return _clock()


def _source(count: int, use: str) -> bytes:
    return os.urandom(count)


def _clock() -> float:
    return time.time()
