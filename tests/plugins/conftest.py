"""Distributions of third parties, put on the path as an installer leaves them."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install(tmp_path):
    """Copy the packages of a folder with a pyproject.toml beside a dist-info of their own."""

    def into_site(folder: Path) -> Path:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        site = tmp_path / "site"
        for package in folder.glob("*/__init__.py"):
            shutil.copytree(package.parent, site / package.parent.name)
        name, version = project["name"].replace("-", "_"), project["version"]
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
        (info / "METADATA").write_text(about)
        groups = [
            f"[{group}]\n" + "\n".join(f"{key} = {value}" for key, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups))
        return site

    return into_site


@pytest.fixture
def python(tmp_path):
    """Run Python with a further folder on the path."""

    def run(site, *arguments, text=True):
        path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "300"},
            capture_output=True,
            text=text,
            check=False,
        )

    return run


@pytest.fixture
def qsfl(python):
    """Run the qsfl command with a further folder on the path."""
    return lambda site, *arguments: python(site, "-m", "qsfl_flower.simulations.cli", *arguments)
