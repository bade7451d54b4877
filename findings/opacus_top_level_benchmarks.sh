#!/usr/bin/env bash
# The wheel of opacus 1.6.0 installs three top-level packages: `opacus`, `benchmarks` and `examples`, the last two with its own
# scripts. A project that keeps a folder `benchmarks/` or `examples/` beside its tests, as many do, imports its
# own in `python -m benchmarks` (the current folder comes first) and Opacus' under `pytest` (only the
# site-packages are on the path, and an editable install comes after them). The error that one sees is
# "No module named 'benchmarks.<own file>'", on machines where Opacus is installed and nowhere else.
#
# Seen with Python 3.11, opacus 1.6.0:
#   top level: benchmarks examples opacus
#   an own `benchmarks` behind site-packages is imported from: opacus
# Cure: put the root in front of site-packages (pytest: `pythonpath = ["."]`).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip install --quiet --disable-pip-version-check --no-deps --target "$work/site" opacus==1.6.0
mkdir -p "$work/own/benchmarks" && touch "$work/own/benchmarks/__init__.py"
printf 'WHO = "own"\n' > "$work/own/benchmarks/speed.py"
cd "$work"

WORK=$work python3 -I - <<'PY'
import importlib
import os
import sys
from pathlib import Path

work = Path(os.environ["WORK"])
names = sorted(p.name for p in (work / "site").iterdir() if (p / "__init__.py").exists())
print("top level:", *names)
sys.path[:0] = [str(work / "site"), str(work / "own")]
package = importlib.import_module("benchmarks")
where = "opacus" if (work / "site") in Path(package.__file__).parents else "the project"
print("an own `benchmarks` behind site-packages is imported from:", where)
sys.exit(names != ["benchmarks", "examples", "opacus"] or where != "opacus")
PY
