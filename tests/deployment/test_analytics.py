"""The apps of docs/analytics.md against real SuperNodes, each with a table of its own; slow."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from .test_supernodes import APP, Deployment, Run, qsfl

PARTIES = ("alice", "bob", "carol")

CLIENT = """\
from qsfl_flower.clients import analytics_app, auth_mod
from qsfl_flower.privacy.policy import MinimumPolicy

app = analytics_app(MinimumPolicy(epsilon=4.0), columns=["age", "city"], mods=[auth_mod()])
"""

SERVER = """\
import json
from pathlib import Path

from flwr.serverapp import ServerApp

from qsfl_flower.mechanisms.analytics.options import HeavyHitters, Mean
from qsfl_flower.strategies import FederatedAnalytics, PrivacyBudget
from qsfl_flower.strategies.analytics import Guarantee, Inquiry

app = ServerApp()


@app.main()
def main(grid, context):
    budget = PrivacyBudget(epsilon=4.0, delta=1e-6)
    guarantee = Guarantee(budget, "record", most_rows=500, clients=3, fewest=3, masks=True)
    questions = (
        Mean(column="age", low=0, high=100),
        HeavyHitters(column="city", max_length=2, letters="abc"),
    )
    inquiry = Inquiry(questions, guarantee, level=0.999999999)
    strategy = FederatedAnalytics(inquiry, credentials=str(context.run_config["qsfl-keys"]))
    found = strategy.ask(grid, 120.0)
    output = Path(str(context.run_config["output"]))
    (output / "result.json").write_text(json.dumps(found.to_dict()))
"""


class WithTables(Deployment):
    """Names a table in the configuration of each node."""

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        place = f'qsfl-table="{self.folder / name / "table.csv"}" partition-id='
        return super()._start(name, *(part.replace("partition-id=", place) for part in command))


@pytest.mark.slow
def test_three_supernodes_answer_from_tables_that_none_of_them_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interval of this level misses once in 1e9 runs."""
    app = tmp_path / "app"
    shutil.copytree(APP, app)
    (app / "client_app.py").write_text(CLIENT)
    (app / "server_app.py").write_text(SERVER)
    monkeypatch.chdir(tmp_path)
    qsfl("authority")
    qsfl("client hub --server")
    for party in PARTIES:
        qsfl(f"client {party}")
    qsfl("roster " + " ".join(f"--add {party}.request" for party in ("hub", *PARTIES)))
    ages = np.random.default_rng(0).integers(20, 80, (3, 400))
    for party in ("hub", *PARTIES):
        (tmp_path / party).mkdir()
        for name in ("authority.pub", "roster.qsfl", f"{party}.key"):
            shutil.copy(name, tmp_path / party)
    for party, own in zip(PARTIES, ages.tolist(), strict=True):
        lines = [f"{age},{'ab' if age < 60 else 'ca'}" for age in own]
        (tmp_path / party / "table.csv").write_text("\n".join(["age,city", *lines]))
    deployment = WithTables(tmp_path)
    try:
        deployment.superlink()
        for number, party in enumerate(PARTIES):
            deployment.supernode(party, number)
        run = Run(deployment, app, tmp_path / "output", "min-nodes=3")
        run.wait(240)
    finally:
        deployment.close()
    rows, mean, words = run.result["answers"]
    assert rows["rows"]["low"] <= ages.size <= rows["rows"]["high"]
    assert mean["mean"]["low"] <= ages.mean() <= mean["mean"]["high"]
    assert {word["text"] for word in words["words"]} >= {"ab", "ca"}
    assert run.result["epsilon"] <= 4.0
    assert run.result["cohorts"] == [3, 3]
