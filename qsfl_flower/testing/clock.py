"""Time that passes only when somebody waits."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch


class VirtualTime:
    """Stands for the module `time`: who sleeps moves it on, and nobody really waits.

    Parameters
    ----------
    start : float
        Unix time at which it begins, seconds.

    Examples
    --------
    >>> clock = VirtualTime(start=0.0)
    >>> clock.sleep(90.0)
    >>> clock.time()
    90.0
    """

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self.start, self.now = start, 0.0

    def monotonic(self) -> float:
        """Return the virtual seconds since the beginning."""
        return self.now

    def time(self) -> float:
        """Return the virtual Unix time."""
        return self.start + self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass, be it the least that a float can show: who waits must come to an end."""
        if seconds > 0:
            self.now = max(self.now + seconds, math.nextafter(self.now, math.inf))

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @contextmanager
    def for_strategies(self) -> Iterator[None]:
        """Let the strategies of this suite live by this time while the block runs."""
        with ExitStack() as stack:
            for name, module in list(sys.modules.items()):
                lives_by_it = name.startswith(
                    ("qsfl_flower.strategies", "qsfl_flower.rounds")
                ) and isinstance(module, ModuleType)
                if lives_by_it and getattr(module, "time", None) is time:
                    stack.enter_context(patch.object(module, "time", self))
            yield
