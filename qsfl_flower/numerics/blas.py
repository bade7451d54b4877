"""Matrix products whose bits do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

from threadpoolctl import ThreadpoolController

_lock = Lock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the matrix products of this process on the thread that asks for them.

    Callers run their own threads over fixed ranges of coordinates inside, which is as fast, and the
    last bits no longer depend on how BLAS cuts a product. The setting is global, so one caller at
    a time is let in.
    """
    with _lock, _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # type: ignore[no-untyped-call]
