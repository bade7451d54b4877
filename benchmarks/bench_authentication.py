"""What authentication costs: server time per client, bytes per message, wall time of a run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from benchmarks.replies import make_model, to_arrays
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.context import Exchange
from qsfl_flower.stages import Authenticate, Sender
from qsfl_flower.wire import content_bytes

NAME = "authentication"
DESCRIPTION = "server time per client, bytes per message, and wall time with and without it"

MAX_MS = 10.0
MAX_BYTES = 6000
MAX_SLOWDOWN = 0.15

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per measured cost."""
    rows = []
    for encrypt in (False, True):
        rows += _messages(10, 100_000 if quick else 1_000_000, encrypt, 3 if quick else 9)
    if not quick and "QSFL_DATA_DIR" in os.environ:
        rows += _whole_runs("mnist", ["rounds=4"])
    rows += _whole_runs("plain", ["rounds=2" if quick else "rounds=12"])
    return rows


def _messages(clients: int, size: int, encrypt: bool, repetitions: int) -> list[Row]:
    model = make_model(size)
    now = int(time.time())
    keys = create_federation((str(n) for n in range(clients)), now=now)
    roster = open_roster(keys.roster, keys.authority, seen=None)
    gate = Authenticate(Credentials(keys.server, roster), encrypt)
    state = gate.init(Layout.of(model))
    content = RecordDict({"arrays": to_arrays(model), "config": ConfigRecord({"lr": 0.1})})
    contexts = [Context(1, n, {"partition-id": n}, RecordDict(), {}) for n in range(clients)]
    answer = RecordDict({"arrays": to_arrays(model), "metrics": MetricRecord({"num-examples": 10})})

    def app(message: Message, context: Context) -> Message:
        del context
        arrays = ArrayRecord(dict(answer["arrays"]))
        return Message(RecordDict({**answer, "arrays": arrays}), reply_to=message)

    server, client, down, up = [], [], 0, 0
    for server_round in range(1, repetitions + 1):
        exchange = Exchange("train", server_round, 1, 600.0)
        start = time.perf_counter()
        contents, state = gate.instruct(dict.fromkeys(range(clients), content), state, exchange)
        asked = time.perf_counter() - start
        replies = []
        for n in range(clients):
            credentials = Credentials(keys.clients[str(n)], roster)
            mod = auth_mod(lambda context, c=credentials: c)
            message = Message(contents[n], n, "train")
            start = time.perf_counter()
            replies.append(mod(message, contexts[n], app))
            client.append(time.perf_counter() - start)
        start = time.perf_counter()
        for n, reply in enumerate(replies):
            _, _, state = gate.admit(Sender(n, n, ""), reply.content, state, exchange)
        server.append((asked + time.perf_counter() - start) / clients)
        down = max(down, content_bytes(contents[0]) - content_bytes(content))
        up = max(up, content_bytes(replies[0].content) - content_bytes(answer))
    label = f"{size:,} parameters, {'signed and encrypted' if encrypt else 'signed'}"
    per_client = 1e3 * statistics.median(server)
    return [
        _row(
            label,
            "server ms per client and round",
            round(per_client, 2),
            f"< {MAX_MS:g}",
            per_client < MAX_MS,
        ),
        _row(label, "client ms per round", round(1e3 * statistics.median(client), 2), None, True),
        _row(label, "bytes added to an instruction", down, f"<= {MAX_BYTES}", down <= MAX_BYTES),
        _row(label, "bytes added to a reply", up, f"<= {MAX_BYTES}", up <= MAX_BYTES),
    ]


def _whole_runs(config: str, overrides: list[str]) -> list[Row]:
    """Compare runs without and with authentication, in turn; the rounds after the first count."""
    stages = "[{stage: validate}, {stage: clip, clip_norm: 5}]"
    gated = "[{stage: authenticate, encrypt: true}, {stage: validate}, {stage: clip, clip_norm: 5}]"
    times: dict[str, list[float]] = {stages: [], gated: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            for chosen, measured in times.items():
                command = [
                    sys.executable,
                    "-m",
                    "qsfl_flower.simulations.cli",
                    "run",
                    config,
                    "--json",
                ]
                for item in (*overrides, f"strategy.stages={chosen}", f"output.folder={folder}"):
                    command += ["--set", item]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                path = Path(json.loads(done.stdout.splitlines()[-1])["run"], "metrics.jsonl")
                rounds = [json.loads(line) for line in path.read_text().splitlines()]
                measured += [r["time_s"] for r in rounds[2:]]
    plain, with_it = (statistics.median(t) for t in times.values())
    slowdown = with_it / plain - 1
    return [
        _row(
            " ".join([config, *overrides]),
            f"wall time of a round: {plain:.2f} s, authenticated and encrypted {with_it:.2f} s",
            f"{slowdown:+.1%}",
            f"< {MAX_SLOWDOWN:.0%}" if config == "mnist" else None,
            config != "mnist" or slowdown < MAX_SLOWDOWN,
        )
    ]


def _row(what: str, cost: str, value: object, limit: str | None, good: bool) -> Row:
    return {"case": what, "cost": cost, "value": value, "limit": limit, "ok": good}
