"""The app of docs/authentication.md with `SecAggFedAvg`, against real SuperNodes; marked slow.

Every message starts a process, so whatever a client keeps between the steps of a sum goes through
its SuperNode's memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from .test_supernodes import APP, Deployment, Run, qsfl

PARTIES = ("alice", "bob", "carol")


@pytest.mark.slow
def test_three_supernodes_sum_what_none_of_them_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They add 1, 2 and 3 with equal weights; two rounds make 4 of 0."""
    app = tmp_path / "app"
    shutil.copytree(APP, app)
    server = app / "server_app.py"
    server.write_text(
        server.read_text()
        .replace("AuthenticatedFedAvg", "SecAggFedAvg")
        .replace('encrypt=bool(config["encrypt"])', "clip_norm=20.0")
    )
    monkeypatch.chdir(tmp_path)
    qsfl("authority")
    qsfl("client hub --server")
    for party in PARTIES:
        qsfl(f"client {party}")
    qsfl("roster " + " ".join(f"--add {party}.request" for party in ("hub", *PARTIES)))
    for party in ("hub", *PARTIES):
        (tmp_path / party).mkdir()
        for name in ("authority.pub", "roster.qsfl", f"{party}.key"):
            shutil.copy(name, tmp_path / party)
    deployment = Deployment(tmp_path)
    try:
        deployment.superlink()
        for number, party in enumerate(PARTIES):
            deployment.supernode(party, number)
        run = Run(deployment, app, tmp_path / "output", "min-nodes=3 num-server-rounds=2")
        run.wait(240)
    finally:
        deployment.close()
    assert [entry["rejected"] for entry in run.rounds] == [{}, {}]
    for array in run.result["arrays"].values():
        np.testing.assert_allclose(array, 4.0, rtol=1e-5)
