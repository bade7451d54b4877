"""Three apps that know nothing of the suite gain the chain by at most five lines each.

The slow tests run apps before and after their `chain.diff` by ``flwr run``, with the same eight
clients, and take about a minute and a half each. Training in the apps is seeded; which updates
Multi-Krum selects is determined by these, so that nothing is left to chance but the order in which
nodes register.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import DAY

APPS = Path(__file__).parent
CLIENTS = 8
STAGES = {
    "quickstart_torch": "authenticate -> validate -> shared_mask -> secure_krum",
    "quickstart_sklearn": "authenticate -> validate -> secure_krum",
    "legacy": "authenticate -> validate -> secure_krum",
}
ROUNDS = {"quickstart_torch": 8}
"""The chained app deals with half of the model in a round, so it gets more than three of them."""
POINTS = 0.05
"""How far below the plain app's accuracy the chained one may end."""

every_app = pytest.mark.parametrize("name", STAGES)


def chained(app: Path) -> Path:
    """Apply the app's own diff to it."""
    diff = (app / "chain.diff").read_text()
    subprocess.run(["git", "apply", "-p1", "-"], cwd=app, input=diff, text=True, check=True)
    return app


def copied(name: str, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(APPS / name, folder / name, ignore=ignored))


@pytest.fixture
def run(flower, tmp_path):
    """Run an app with the keys of eight clients; return its last accuracy and what it shows."""
    keys, neutral = tmp_path / "keys", tmp_path / "neutral"
    neutral.mkdir()
    parties = [f"client-{i}" for i in range(CLIENTS)]
    create_federation(parties, now=int(time.time()), valid_for=DAY).save(keys)

    def start(app: Path, rounds: int = 3) -> tuple[float, str]:
        secured = "qsfl-keys" in (app / "pyproject.toml").read_text()
        shown = flower(
            "run", app, "--stream",
            "--federation-config", f"num-supernodes={CLIENTS} client-resources-num-cpus=1",
            "--run-config", f"num-server-rounds={rounds}" + f' qsfl-keys="{keys}"' * secured,
            cwd=neutral,
        )  # fmt: skip
        found = re.findall(r"accuracy (\d\.\d{4})$", shown, re.MULTILINE)
        assert found, shown
        return float(found[-1]), shown

    return start


@every_app
def test_the_app_is_complete_and_knows_nothing_of_the_suite(name):
    files = [p for p in (APPS / name).rglob("*") if p.suffix in (".py", ".toml")]
    assert {"pyproject.toml", "client_app.py", "server_app.py"} <= {p.name for p in files}
    assert not [p for p in files if "qsfl" in p.read_text().lower()]


@every_app
def test_at_most_five_lines_are_new_or_changed(name):
    """A changed line is a ``-`` and a ``+`` line, a new one a ``+`` line; none is only removed."""
    lines = (APPS / name / "chain.diff").read_text().splitlines()
    new = [x for x in lines if x.startswith("+") and not x.startswith("+++ b/")]
    old = [x for x in lines if x.startswith("-") and not x.startswith("--- a/")]
    assert len(old) <= len(new) <= 5


@every_app
def test_the_diff_fits_the_app(name, tmp_path):
    app = chained(copied(name, tmp_path))
    for path in app.rglob("*.py"):
        compile(path.read_text(), path, "exec")
    assert "qsfl_flower" in "".join(p.read_text() for p in app.rglob("*.py"))


@every_app
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chained_app_is_about_as_good_and_every_stage_took_part(name, run, tmp_path):
    rounds = ROUNDS.get(name, 3)
    plain, _ = run(APPS / name, rounds)
    secured, shown = run(chained(copied(name, tmp_path)), rounds)
    print(f"{name}: {plain:.4f} as it was, {secured:.4f} with the chain")
    assert f"Stages: {STAGES[name]}\n" in shown
    for number in range(1, rounds + 1):
        (line,) = re.findall(rf"\[ROUND {number}\] (.*)", shown)
        (used, asked) = map(int, re.findall(r"\b(\d) of ([78]) clients", line)[0])
        left = sum(map(int, re.findall(r"(\d) x not-selected", line)))  # by the rule
        assert 7 <= used + left <= asked, line
    assert "model unchanged" not in shown
    opened = re.findall(r"secure_krum: clients (\d), summed (\d), dropped 0", shown)
    assert len(opened) == rounds
    assert all(int(summed) < int(clients) for clients, summed in opened), "nobody was left out"
    assert len(re.findall(r"authenticate: sessions [78]", shown)) == rounds
    assert plain > 0.85
    assert secured >= plain - POINTS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_liar_ruins_the_app_and_not_the_chained_one(run, tmp_path):
    """One client of eight turns its model round, and makes it ten times as large."""
    app = copied("quickstart_sklearn", tmp_path)
    client = app / "quickstart_sklearn" / "client_app.py"
    honest = "        model.fit(x, y)\n"
    assert honest in client.read_text()
    lie = '    if node["partition-id"] == 3:\n        model.coef_ *= -10\n'
    client.write_text(client.read_text().replace(honest, honest + lie))
    plain, _ = run(app)
    secured, _ = run(chained(app))
    print(f"with a liar: {plain:.4f} as it was, {secured:.4f} with the chain")
    assert plain < 0.5
    assert secured > 0.85
