"""Asynchronous rounds with real SuperNodes: one is killed, one answers after its deadline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployment.test_supernodes import ROOT, Deployment, free_port

APP = ROOT / "tests" / "apps" / "asynchronous"
ROUNDS, BUFFER = 8, 2
DEADLINE, LATE_BY = 30.0, 60.0


class Nodes(Deployment):
    """A deployment without keys."""

    def node(self, partition: int) -> subprocess.Popen[bytes]:
        return self._start(
            f"node{partition}", "flower-supernode", "--insecure",
            "--superlink", f"127.0.0.1:{self.port}", "--port", free_port(),
            "--node-config", f"partition-id={partition} num-partitions=4",
        )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Four nodes; the second is killed after the first round, the fourth is late once."""
    made = Nodes(tmp_path_factory.mktemp("asynchronous"))
    output = made.folder / "output"
    output.mkdir()
    try:
        made.superlink()
        nodes = [made.node(partition) for partition in range(4)]
        told = made.flwr(
            "run", str(APP), "here", "--format", "json", "--run-config",
            f'output="{output}" deadline={DEADLINE} late-by={LATE_BY} num-server-rounds={ROUNDS}',
        )  # fmt: skip
        run_id = json.loads(told).get("run-id") or pytest.fail(told)
        made.until(lambda: len(_rounds(output)) >= 2, 120, "the first round")
        made.until((output / "worked-1").exists, 60, "the node to be killed at work")
        os.killpg(nodes[1].pid, signal.SIGKILL)

        def status() -> str:
            listed = made.flwr("list", "here", "--run-id", run_id, "--format", "json")
            return str(json.loads(listed)["runs"][0]["status"])

        made.until(lambda: status().startswith("finished"), 240, "the run")
        assert status() == "finished:completed", made.flwr("log", run_id, "here", "--show")
        yield {
            "rounds": _rounds(output)[1:],
            "model": json.loads((output / "result.json").read_text()),
            "worked": {p.name: len(p.read_text()) for p in output.glob("worked-*")},
        }
    finally:
        made.close()


def _rounds(output: Path) -> list[dict[str, Any]]:
    path = output / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_round_is_full_although_nodes_fail(run: dict[str, Any]) -> None:
    assert [entry["round"] for entry in run["rounds"]] == list(range(1, ROUNDS + 1))
    for entry in run["rounds"]:
        assert sum(status == "accepted" for _, status, *_ in entry["clients"]) == BUFFER


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_late_answer_was_given_up_and_never_counted(run: dict[str, Any]) -> None:
    """Each node adds 1 + its partition. The late one may be heard again after its late answer."""
    rows = [row for entry in run["rounds"] for row in entry["clients"]]
    lost = {node for node, status, *_ in rows if status in ("no-reply", "node-offline")}
    assert lost
    for _node, status, _, sent, arrived in rows:
        if status == "accepted":
            assert arrived - sent < DEADLINE
    spans = [(node, sent) for node, status, _, sent, _ in rows if status == "accepted"]
    assert len(spans) == len(set(spans)) == ROUNDS * BUFFER


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_model_is_the_sum_of_what_counted(run: dict[str, Any]) -> None:
    """Every step is a multiple of 1/2; all parameters move alike, by 1 to 4 an update."""
    (value,) = set(run["model"])
    assert (value * BUFFER) == int(value * BUFFER)
    assert ROUNDS <= value <= 4 * ROUNDS
