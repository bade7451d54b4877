"""Find the benchmarks, run them, print a table and write JSON.

A benchmark is a module ``benchmarks/bench_*.py`` with ``NAME``, ``DESCRIPTION`` and
``run(quick: bool) -> list[dict]``. A row with ``"ok": False`` missed its limit, and the command
then ends with exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import pkgutil
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

import benchmarks

Row = dict[str, Any]

PACKAGES = ("numpy", "scipy", "flwr", "torch", "cryptography", "pqcrypto", "qsfl-flower")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; none: list")
    parser.add_argument("--quick", action="store_true", help="small sizes, no limits on speed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    options = parser.parse_args(arguments)
    known = discover()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
    if not options.names:
        for name, module in known.items():
            print(f"{name:<14} {module.DESCRIPTION}")
        return 0
    report: dict[str, Any] = {"machine": machine_facts(), "quick": options.quick, "results": {}}
    width = None if Console().is_terminal else 160
    console = Console(width=width)
    console.print(", ".join(f"{key}: {value}" for key, value in report["machine"].items()))
    for name in options.names:
        began = time.perf_counter()
        rows = known[name].run(options.quick)
        report["results"][name] = rows
        console.print(as_table(f"{name} ({time.perf_counter() - began:.0f} s)", rows))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    good = all(row.get("ok", True) for rows in report["results"].values() for row in rows)
    return 0 if good else 1


def discover() -> dict[str, ModuleType]:
    """Import every benchmark, in the order of their names."""
    names = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    modules = [
        importlib.import_module(f"benchmarks.{name}") for name in names if name.startswith("bench_")
    ]
    return {module.NAME: module for module in sorted(modules, key=lambda module: module.NAME)}


def machine_facts() -> dict[str, Any]:
    """Return what a measured number depends on."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def as_table(title: str, rows: Sequence[Row]) -> Table:
    """Lay out rows with the columns of all of them."""
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        style = None if row.get("ok", True) else "bold red"
        table.add_row(*(_text(row.get(column)) for column in columns), style=style)
    return table


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
