"""docs/authentication.md, carried out: a real SuperLink and real SuperNodes on this machine.

Each message starts a process, so the two runs take about a minute and a half; marked slow. What the
page says without them is compared with the app and the code.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qsfl_flower.crypto.errors import Reason
from qsfl_flower.simulations.keys_cli import keys_app

ROOT = Path(__file__).parents[2]
APP = ROOT / "tests" / "apps" / "authenticated"
BIN = Path(sys.executable).parent
PAGE = (ROOT / "docs" / "authentication.md").read_text()

# Whoever has a machine runs what he likes on it: this one signs with keys that nobody enrolled.
LAWLESS = """
from qsfl_flower.crypto.roster import Roster
Roster.own_keys = lambda self, identity, now: identity.keys[0]
"""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def commands(program: str) -> list[str]:
    lines = [line[2:] for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if line.startswith(program)]


def test_the_pages_snippets_are_the_app() -> None:
    app = "".join(path.read_text() for path in sorted(APP.glob("*.*")))
    pieces = [piece for block in blocks("python") for piece in block.strip("\n").split("\n\n")]
    assert len(pieces) == 5
    assert [p for p in pieces if re.sub(r"\n *# \.\.\..*", "", p) not in app] == []


def test_the_page_explains_every_reason() -> None:
    explained = {
        reason
        for line in PAGE.splitlines()
        if line.startswith("| `")
        for reason in re.findall(r"`([a-z-]+)`", line.split("|")[1])
    }
    assert {"unsigned", "not-encrypted", "no-session", "client-error", *Reason} == explained


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


class Deployment:
    """A SuperLink and SuperNodes, each with a Flower home of its own, and what they log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._started: list[subprocess.Popen[bytes]] = []

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            # The folder of a party comes first: what it puts there changes its own machine.
            "PYTHONPATH": f"{self.folder / name}{os.pathsep}{ROOT}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def superlink(self) -> None:
        self._start("superlink", "flower-superlink", "--insecure", "--port", self.port)
        self.until(self._reachable, 60, "the SuperLink")
        self.environment("operator")
        (self.folder / "homes" / "operator" / "config.toml").write_text(
            f'[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )

    def supernode(self, party: str, partition: int) -> subprocess.Popen[bytes]:
        """Start a SuperNode with the documented command, but on this machine."""
        (command,) = commands("flower-supernode")
        command = (
            command.replace("superlink.example:8000", f"127.0.0.1:{self.port}")
            .replace("--root-certificates ca.crt", f"--insecure --port {free_port()}")
            .replace("/etc/qsfl", str(self.folder / party))
            .replace("partition-id=0", f"partition-id={partition}")
        )
        return self._start(party, *shlex.split(command))

    def flwr(self, *command: str) -> str:
        done = subprocess.run(
            ["flwr", *command], cwd=self.folder, env=self.environment("operator"),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.fail(f"flwr {command[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def until(self, ready: Callable[[], object], seconds: float, what: str) -> None:
        """Look five times a second whether something is there."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                logs = (p.read_text(errors="replace")[-1500:] for p in self.folder.glob("*.log"))
                pytest.fail("\n".join([f"{what}: not within {seconds:g} s", *logs]))
            time.sleep(0.2)

    def close(self) -> None:
        for process in self._started:
            stop(process)
        # Whatever outlived its parent is known by its home.
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"FLWR_HOME={self.folder}/".encode() in environ.read_bytes():
                    os.kill(int(environ.parent.name), signal.SIGKILL)
            except OSError:
                continue

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(name),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def _reachable(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", int(self.port))) == 0


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process as an operator would, and wait for it."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def qsfl(command: str) -> None:
    result = CliRunner().invoke(keys_app, shlex.split(command.removeprefix("qsfl keys ")))
    assert result.exit_code == 0, result.output


@dataclass
class Run:
    """A run that was started, and what it leaves."""

    deployment: Deployment
    app: Path
    output: Path
    settings: str

    def __post_init__(self) -> None:
        self.output.mkdir()
        hub = self.deployment.folder / "hub"
        told = self.deployment.flwr(
            "run", str(self.app), "here", "--format", "json", "--run-config",
            f'qsfl-keys="{hub}" output="{self.output}" {self.settings}',
        )  # fmt: skip
        self.run_id = json.loads(told)["run-id"]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """What the app's `SecurityLog` wrote, without round 0."""
        path = self.output / "rounds.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines][1:]

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.output / "result.json").read_text()))

    @property
    def log(self) -> str:
        return self.deployment.flwr("log", self.run_id, "here", "--show")

    def wait(self, seconds: float = 120) -> None:
        def status() -> str:
            told = self.deployment.flwr("list", "here", "--run-id", self.run_id, "--format", "json")
            return str(json.loads(told)["runs"][0]["status"])

        self.deployment.until(lambda: status().startswith("finished"), seconds, "the run")
        assert status() == "finished:completed", self.log


def accepted(entry: dict[str, Any]) -> set[str]:
    return {name for name, status, _ in entry["clients"] if status == "accepted"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def office(deployment: Deployment) -> Iterator[Path]:
    """The authority's folder after the documented commands; every party has its own files.

    Mallory has the roster, which is public, and keys under bob's name that nobody enrolled.
    """
    folder = deployment.folder / "office"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands("qsfl keys"):
            qsfl(command)
        for party in ("hub", "alice", "bob", "mallory"):
            (deployment.folder / party).mkdir()
            for name in ("authority.pub", "roster.qsfl"):
                shutil.copy(folder / name, deployment.folder / party)
            if party != "mallory":
                shutil.move(folder / f"{party}.key", deployment.folder / party)
        qsfl(f"client bob --out {deployment.folder / 'mallory'}")
        (deployment.folder / "mallory" / "sitecustomize.py").write_text(LAWLESS)
        yield folder


@pytest.fixture(scope="module")
def first(deployment: Deployment, office: Path) -> Run:
    """Five encrypted rounds of alice, bob and mallory; bob's SuperNode is restarted after two."""
    deployment.superlink()
    deployment.supernode("alice", 0)
    bob = deployment.supernode("bob", 1)
    deployment.supernode("mallory", 2)
    run = Run(deployment, APP, deployment.folder / "first", "min-nodes=3 num-server-rounds=5")
    deployment.until(lambda: len(run.rounds) >= 2, 90, "two rounds")
    stop(bob)
    deployment.supernode("bob", 1)
    run.wait()
    return run


@pytest.mark.slow
def test_enrolled_clients_count_under_their_names(first: Run) -> None:
    """The reply of a client whose SuperNode is being restarted may be lost, and no other."""
    assert len(first.rounds) == 5
    for entry in first.rounds:
        missing = [status for name, status, _ in entry["clients"] if status != "accepted"]
        assert set(missing) <= {"wrong-key", "node-offline"}
        whole = entry["rejected"] == {"wrong-key": 1}
        assert accepted(entry) == ({"alice", "bob"} if whole else {"alice"})
        assert whole or entry["round"] in (3, 4)


@pytest.mark.slow
def test_the_model_has_the_accepted_updates_only(first: Run) -> None:
    """Alice adds 1, bob 2 and mallory 3, with equal weights. Encryption was asked for, so that an
    update in the clear would have been refused."""
    sums = sum(1.5 if "bob" in accepted(entry) else 1.0 for entry in first.rounds)
    assert first.result["arrays"] == {"weight": [[sums] * 3] * 2, "bias": [sums] * 2}


@pytest.mark.slow
def test_an_impostor_is_refused_in_every_round(first: Run) -> None:
    """It obeys the server, signs with its own key under bob's name, and the signature is good."""
    for entry in first.rounds:
        (detail,) = [detail for _, status, detail in entry["clients"] if status == "wrong-key"]
        assert re.fullmatch(r"key [0-9a-f]{32} does not belong to bob, says the roster", detail)


@pytest.mark.slow
def test_sessions_outlive_client_processes_and_are_made_anew_after_a_restart(first: Run) -> None:
    """Every message has a process of its own; the SuperNode's memory ends with the SuperNode."""
    handshakes = [entry["sessions"]["handshakes"] for entry in first.rounds]
    assert handshakes[:2] == [2, 0]
    assert sum(handshakes[2:]) == 1
    assert handshakes[-1] == 0


@pytest.fixture(scope="module")
def second(first: Run, deployment: Deployment, office: Path) -> Run:
    """After a rotation and a revocation: the client_fn app, in the clear, with an evaluation.

    Bob's machine has not got the new roster. Mallory's now runs the software as it is.
    """
    alice = deployment.folder / "alice"
    qsfl(f"rotate {alice / 'alice.key'} --roster {alice / 'roster.qsfl'}")
    qsfl(f"roster --add {alice / 'alice.request'}")
    qsfl("revoke bob")
    for party in ("hub", "alice"):
        shutil.copy(office / "roster.qsfl", deployment.folder / party)
    (deployment.folder / "mallory" / "sitecustomize.py").unlink()
    app = deployment.folder / "legacy"
    shutil.copytree(APP, app)
    project = app / "pyproject.toml"
    project.write_text(project.read_text().replace("client_app:app", "legacy_app:app"))
    settings = "min-nodes=3 num-server-rounds=1 fraction-evaluate=1.0 encrypt=false"
    run = Run(deployment, app, deployment.folder / "second", settings)
    run.wait()
    return run


@pytest.mark.slow
def test_rotated_keys_count_and_revoked_ones_do_not(second: Run) -> None:
    (entry,) = second.rounds
    assert accepted(entry) == {"alice"}
    assert entry["rejected"] == {"client-error": 1, "revoked": 1}
    assert entry["sessions"] == {"sessions": 1, "handshakes": 1}, "a session is for one run"
    assert second.result["arrays"] == {"weight": [[1.0] * 3] * 2, "bias": [1.0] * 2}
    assert second.result["evaluated"] == [{"loss": 8.0}]  # 8 parameters of 1, by alice alone


@pytest.mark.slow
def test_who_is_not_enrolled_does_not_even_train(second: Run) -> None:
    """The software as it is finds that it could not sign, so it refuses first; no reply is made."""
    (entry,) = second.rounds
    (detail,) = [detail for _, status, detail in entry["clients"] if status == "client-error"]
    assert re.fullmatch(r"wrong-key: key [0-9a-f]{32} does not belong to bob.*", detail)


@pytest.mark.slow
def test_the_log_shows_what_the_page_shows(first: Run, second: Run) -> None:
    log = first.log + second.log
    lines = [line for block in blocks("text") for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        pattern = re.sub(r"[0-9a-f]{32}", "[0-9a-f]{32}", re.escape(line))
        pattern = re.sub(r"node\\ [0-9]+", "node [0-9]+", pattern)
        assert re.search(re.sub(r"[0-9]{19}", "[0-9]+", pattern), log), f"{line}\nnot in\n{log}"
