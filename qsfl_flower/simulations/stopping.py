"""How a run ends early: soon, whatever is under way, and with the truth about what is left of it.

``docker stop`` kills after ten seconds, and Ray alone may need longer to start or to end. So the
first SIGINT or SIGTERM only sets a time: what has not ended a few seconds later is left to itself,
and the process ends over it. Everything that matters is on disk by then.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_left: list[threading.Thread] = []


class Stop:
    """The wish that a run ends early, and since when it exists."""

    def __init__(self) -> None:
        self._at: float | None = None

    def ask(self) -> None:
        """Ask the run to end."""
        if self._at is None:
            self._at = time.monotonic()

    def asked(self) -> bool:
        """Return whether the run shall end."""
        return self._at is not None

    def left(self, seconds: float) -> float:
        """Return how much is left of so many seconds after the wish; infinity without one."""
        return math.inf if self._at is None else self._at + seconds - time.monotonic()


def in_time(
    work: Callable[[], object], more_time: Callable[[], bool], look: Callable[[], None]
) -> tuple[bool, BaseException | None]:
    """Do something in a thread of its own, for as long as there is time.

    Parameters
    ----------
    work : Callable[[], object]
        What is done. If there is no time left it goes on by itself, until the process ends.
    more_time : Callable[[], bool]
        Asked several times a second.
    look : Callable[[], None]
        Called as often, from the caller's thread.

    Returns
    -------
    tuple[bool, BaseException or None]
        Whether it has ended, and the error with which it did.
    """
    errors: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="qsfl", daemon=True)
    thread.start()
    while thread.is_alive() and more_time():
        look()
        thread.join(0.1)
    if thread.is_alive():
        _left.append(thread)
        return False, None
    return True, errors[0] if errors else None


def wait_for_the_last() -> None:
    """Wait for what an earlier run in this process has left behind."""
    while _left:
        _left.pop().join()


def something_left() -> bool:
    """Return whether a run in this process has left something behind that goes on."""
    return any(thread.is_alive() for thread in _left)


def end_process(code: int) -> None:
    """End the process now if something is left that would hold it up; return otherwise."""
    if not something_left():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def signals(stop: Stop) -> Iterator[Callable[[], None]]:
    """Turn the first SIGINT or SIGTERM into a wish to stop, the second into the end.

    Yields a function that takes the signals (again).
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if stop.asked():
            os._exit(128 + number)
        stop.ask()

    def listen() -> None:
        for number in before:
            signal.signal(number, ask)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    listen()
    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
