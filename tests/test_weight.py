"""What an import loads: a ClientApp's process lives for one message."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch", "torchvision", "opacus", "sklearn", "pandas", "scipy.stats", "scipy.optimize",
    "scipy.sparse", "matplotlib", "sqlalchemy", "pydantic", "ray", "datasets", "flwr_datasets",
    "qsfl_flower.simulations",
}  # fmt: skip
DOORS = {
    "from qsfl_flower.clients import auth_mod, legacy_mod, policy_mod, privacy_mod, qsfl_mod": {
        "scipy",
        "qsfl_flower.strategies",
    },
    "from qsfl_flower.clients import NodePolicy, numpy_client_app, state_mod": {"scipy"},
    "from qsfl_flower.strategies import *": {"qsfl_flower.clients"},
    "from qsfl_flower.testing import *": set(),
}


@pytest.mark.parametrize(("door", "more"), DOORS.items())
def test_an_import_loads_nothing_heavy(door, more):
    forbidden = HEAVY | more
    code = f"import sys\n{door}\nprint(*sorted({forbidden!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_lines_of_code_are_counted_without_texts_blanks_and_imports(tmp_path):
    source = '''"""A docstring
over two lines."""

import os
from pathlib import (
    Path,
)

TEXT = """counts,
all three
lines"""


def f(x):  # a comment at code counts once
    """Another."""
    # a comment does not
    return (
        x
    )
'''
    (tmp_path / "a.py").write_text(source)
    code_lines = runpy.run_path(str(ROOT / "tools" / "weight"))["code_lines"]
    assert code_lines(tmp_path / "a.py") == 3 + 1 + 3


def test_every_dependency_has_a_use():
    """Ray runs Flower's simulations; nothing in the package has to name it."""
    names = {"pyyaml": "yaml", "scikit-learn": "sklearn", "ray": "flwr.simulation"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = [file.read_text() for file in (ROOT / "qsfl_flower").rglob("*.py")]
    for dependency in project["dependencies"]:
        package = re.match(r"[a-z-]+", dependency)[0]
        module = names.get(package, package.replace("-", "_"))
        use = re.compile(rf"^\s*(import|from) {re.escape(module)}\b", re.MULTILINE)
        assert any(use.search(text) for text in sources), package
