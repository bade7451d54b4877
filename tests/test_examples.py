"""The apps in `examples/`, in one process: what their pages promise, with the attackers in it."""

from __future__ import annotations

import importlib
import re
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.testing import LocalGrid, context_of

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENTS = 8


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    create_federation([f"client-{n}" for n in range(CLIENTS)], now=int(time.time())).save(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capsys, keys):
    """Run an example; return what it prints."""

    def start(name: str, **changes: object) -> str:
        monkeypatch.syspath_prepend(EXAMPLES / name)
        project = tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text())
        config = {**project["tool"]["flwr"]["app"]["config"], **changes}
        if "qsfl-keys" in config:
            config["qsfl-keys"] = str(keys)
        client_app, server_app = (
            importlib.import_module(f"{name}.{part}").app for part in ("client_app", "server_app")
        )
        grid = LocalGrid(client_app, CLIENTS)
        context = context_of(0, 0, 0)
        for each in (context, *grid.contexts):
            each.run_config.update(config)
        server_app(grid, context)
        return capsys.readouterr().out

    return start


def accuracy(shown: str) -> float:
    return float(re.findall(r"^final accuracy (\d\.\d+)$", shown, re.MULTILINE)[-1])


def test_secure_sum(run):
    assert accuracy(run("secure_sum")) > 0.9


def test_secure_sum_is_a_plain_app_and_five_lines(tmp_path):
    name = "secure_sum"
    diff = (EXAMPLES / name / "from_plain.diff").read_text()
    new = [line for line in diff.splitlines() if re.match(r"\+(?!\+)", line)]
    assert len(new) == 5
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for file in (EXAMPLES / name).rglob("*"):
        if file.suffix in (".py", ".toml"):
            place = tmp_path / file.relative_to(EXAMPLES / name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(file.read_bytes())
    subprocess.run(["git", "apply", "-R", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    files = [file for file in tmp_path.rglob("*") if file.suffix in (".py", ".toml")]
    assert not [file for file in files if "qsfl" in file.read_text()]


def test_record_privacy_spends_what_it_may(run):
    shown = run("record_privacy")
    spent = [float(e) for e in re.findall(r"epsilon (\d+\.\d+)", shown)]
    assert spent == sorted(spent)
    assert 3.9 < spent[-1] <= 4.0
    assert accuracy(shown) > 0.6


def test_nodes_refuse_less_privacy_than_they_insist_on(run):
    with pytest.raises(Exception, match="privacy-epsilon-too-large"):
        run("record_privacy", epsilon=8.0)


def test_two_attackers_are_never_selected(run):
    shown = run("authenticated_robust")
    rounds = re.findall(r"^round \d+: (.+)$", shown, re.MULTILINE)
    assert len(rounds) == 5
    assert not {"client-0", "client-1"} & set(", ".join(rounds).split(", "))
    assert accuracy(shown) > 0.9
