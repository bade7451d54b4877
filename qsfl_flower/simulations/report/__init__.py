"""The report of a run and the comparison of several: pictures and one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_report(folder: Path) -> Path:
    """Write ``plots/*.png`` and ``report.html`` into a run folder; return the page's path."""
    raise NotImplementedError


def compare(folders: Sequence[Path]) -> tuple[str, list[dict[str, Any]]]:
    """Compare runs: a text table, and one row of values a run."""
    raise NotImplementedError


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs; return its path."""
    raise NotImplementedError
