"""docs/tutorial.md, command by command in a shell, as a newcomer would type it.

Starts Flower's local SuperLink and four runs, so it is marked slow (three minutes). Installing is
what whoever runs the tests has done.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines()]


def test_the_recipe_in_the_readme_is_that_of_the_scikit_learn_app():
    """Up to the numbers, which are the user's to decide."""

    def new(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if re.match(r"[+-](?![+-])", line)]
        return sorted(re.sub(r"\d[\d.]*", "0", line) for line in lines)

    (recipe,) = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    diff = ROOT / "tests" / "apps" / "quickstart_sklearn" / "chain.diff"
    assert new(recipe) == new(diff.read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial(flower, tmp_path):
    place, home = tmp_path / "repository", tmp_path / "person"
    home.mkdir()
    app = place / "tests" / "apps" / "quickstart_torch"
    shutil.copytree(
        ROOT / app.relative_to(place), app, ignore=shutil.ignore_patterns("__pycache__")
    )
    typed = [c for c in commands() if not c.startswith("pip install")]
    assert len(typed) == 12
    shown = flower.shell("\n".join(["set -e", *typed]), cwd=place, HOME=home)
    accuracies = re.findall(r"^final accuracy (0\.\d+)$", shown, re.MULTILINE)
    assert len(accuracies) == 3, shown
    assert float(accuracies[0]) > 0.85
    assert float(accuracies[1]) > 0.85
    for line in ("Stages: authenticate -> validate -> shared_mask -> secure_krum", "summed 5"):
        assert line in PAGE
        assert line in shown
    assert re.search(r"\[ROUND 1\] .* 4 of 8 clients, .*1 x client-error", shown), shown
    assert "client-7" in shown
