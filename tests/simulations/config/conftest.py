"""A scratch folder as the working folder, and strategies that draw experiments."""

from __future__ import annotations

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder, so that messages name files as ``case.yaml``."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(here):
    """Write files into the working folder: ``write(case="rounds: 3")`` makes case.yaml."""

    def _write(**texts: str) -> None:
        for name, text in texts.items():
            (here / f"{name}.yaml").write_text(text, encoding="utf-8")

    return _write


@pytest.fixture(scope="module")
def here_once(tmp_path_factory):
    """Path of one file that all examples of a property share."""
    return tmp_path_factory.mktemp("fuzz") / "case.yaml"
