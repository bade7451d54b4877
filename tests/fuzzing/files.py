"""Readers of files: keys, rosters, checkpoints, run folders, budgets, policies, experiments."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict

from qsfl_flower.clients.checkpoints import ClientCheckpoint, ClientCheckpoints
from qsfl_flower.crypto import keyfile
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.rosterfile import accept_roster
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.node.memory import facts_of
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.ledger import Budget, Ledger
from qsfl_flower.rounds.charges import Charge, Charges, read_charges, write_charges
from qsfl_flower.rounds.checkpoint import CheckpointStore, Snapshot
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.runs import Run, list_runs

from .decoder import Decoder

NOW = 1_800_000_000
PASSPHRASE = Secret(b"open sesame")


def written(write: Callable[[Path], object], name: str = "file") -> bytes:
    """Return what ends up in the file `name` of a folder that `write` has filled."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def a_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Feed a reader of files."""

    def from_bytes(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            path.chmod(0o600)
            return read(path)

    return from_bytes


def two_files(first: str, second: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Feed a reader of a folder with two files; four bytes say where the first one ends."""

    def from_bytes(data: bytes) -> object:
        cut = 4 + int.from_bytes(data[:4], "big")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / first).write_bytes(data[4:cut])
            (Path(folder) / second).write_bytes(data[cut:])
            return read(Path(folder))

    return from_bytes


def joined(first: bytes, second: bytes) -> bytes:
    """Return an input for `two_files`."""
    return len(first).to_bytes(4, "big") + first + second


def server_checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        model, state = {"w": np.ones((2, 3)), "n": np.array(7)}, {"norm": 1.0, "m": np.ones(2)}
        path = CheckpointStore(Path(folder)).save(Snapshot(3, model, {"clip": state}, {"a": [1]}))
        return joined(path.read_bytes(), path.with_suffix(".safetensors").read_bytes())


def new_charges(path: Path) -> None:
    event = Event(1.0, 0.1, 3).to_dict()
    charge = Charge({"events": [event], "pending": event, "asked": {"a": 2}}, 1e-5)
    write_charges(path.parent, Charges(2, 3, "f", {"local_dp": charge}))


def client_checkpoint() -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        ClientCheckpoints(Path(folder)).save(
            ClientCheckpoint(3, "v", 5, {"w": np.ones(2)}, {"a": 1})
        )
        (path,) = (path for path in Path(folder).iterdir() if path.is_file())
        return path.name, path.read_bytes()


def run_of(folder: Path) -> object:
    """Read what `qsfl list`, `compare` and `report` read."""
    (folder / "config.yaml").write_text("data: {name: digits}\n")
    list_runs(folder.parent)
    run = Run.open(folder)
    return run.config, run.notes, run.status, run.summary, run.metrics, list(run.clients())


def run_config(path: Path) -> object:
    run = Run(path.parent)
    return list_runs(path.parent.parent), run.config


def budgets(path: Path) -> object:
    ledger = Ledger(path)
    try:
        return ledger.status("org/a"), ledger.paths(), ledger.history("org/a")
    finally:
        ledger.close()


def new_budgets(path: Path) -> None:
    ledger = Ledger(path)
    ledger.grant("org/a", Budget(4.0, 1e-5))
    ledger.close()


def facts(path: Path) -> object:
    with facts_of(Context(1, 1, {"qsfl-state": str(path.parent)}, RecordDict(), {})) as kept:
        kept["committee/1"] = b"x"
        return dict(kept)


def files() -> list[Decoder]:
    """All readers of files."""
    made = create_federation(("a",), now=NOW)
    one = made.clients["a"]
    plain = written(lambda path: keyfile.save_identity(path, one))
    public = written(lambda path: keyfile.save_authority_key(path, made.authority))
    seen = written(lambda path: accept_roster(made.roster, made.authority, path))
    name, checkpoint = client_checkpoint()
    config = b"extends: quickstart\nrounds: 3\nstrategy: {name: fedavg}\n"
    policy = b"least_cohort = 5\nhidden_only = true\n[privacy]\nepsilon = 2.0\n"
    metrics = b'{"round": 1, "elapsed_s": 0.5, "eval_accuracy": 0.5}\n'
    summary = b'{"status": "finished", "rounds": 1, "accuracy": 0.5, "seconds": 1.5}'
    return [
        Decoder("key file", (plain,), a_file("k", lambda p: keyfile.load_identity(p, PASSPHRASE))),
        Decoder("public key file", (public,), a_file("k", keyfile.load_authority_key)),
        Decoder("roster memory", (seen,),
                a_file("m", lambda p: accept_roster(made.roster, made.authority, p))),
        Decoder("server checkpoint", (server_checkpoint(),),
                two_files("round-000003.json", "round-000003.safetensors",
                          lambda folder: CheckpointStore(folder).latest())),
        Decoder("charges", (written(new_charges, "charges.json"),),
                a_file("charges.json", lambda p: read_charges(p.parent))),
        Decoder("client checkpoint", (checkpoint,),
                a_file(name, lambda p: ClientCheckpoints(p.parent).latest(3, 1))),
        Decoder("run folder", (joined(metrics, summary),),
                two_files("metrics.jsonl", "summary.json", run_of)),
        Decoder("run configuration", (b"data: {name: digits}\n",),
                a_file("config.yaml", run_config)),
        Decoder("experiment", (config,), a_file("x.yaml", load_experiment)),
        Decoder("node policy", (policy,), a_file("p.toml", NodePolicy.load)),
        Decoder("budgets", (written(new_budgets),), a_file("l.sqlite", budgets)),
        Decoder("node memory", (written(facts, "memory.sqlite"),),
                a_file("memory.sqlite", facts)),
    ]  # fmt: skip
