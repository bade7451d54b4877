"""While a simulation runs, nobody without its token reaches Ray, and nobody from another machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qsfl_flower.simulations.ray_access import close_ray, explain_ray

LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


class TestEnvironment:
    def test_a_fresh_token_and_the_loopback_interface(self) -> None:
        one: dict[str, str] = {}
        two: dict[str, str] = {}
        close_ray(one)
        close_ray(two)
        assert one["RAY_AUTH_MODE"] == "token"
        assert len(one["RAY_AUTH_TOKEN"]) == 64
        assert one["RAY_AUTH_TOKEN"] != two["RAY_AUTH_TOKEN"]
        assert one["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        again = dict(one)
        close_ray(again)
        assert again == one, "Ray may be running: its token stays"

    @pytest.mark.parametrize(
        "own",
        [
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "mine"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"},
            {"RAY_AUTH_MODE": "disabled"},
            {"RAY_ADDRESS": "10.0.0.1:6379"},
        ],
    )
    def test_what_the_user_has_set_stays(self, own: dict[str, str]) -> None:
        environment = dict(own)
        close_ray(environment)
        assert {k: environment[k] for k in own} == own
        assert "RAY_AUTH_TOKEN" not in environment or own.get("RAY_AUTH_TOKEN") == "mine"

    def test_it_is_explained(self) -> None:
        assert "random token" in explain_ray({})
        assert "no token" in explain_ray({"RAY_AUTH_MODE": "disabled"})
        assert "cluster" in explain_ray({"RAY_ADDRESS": "10.0.0.1:6379"})


def descendants(root: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = {root}, {root}
    while new := {p for p, parent in parents.items() if parent in new} - found:
        found |= new
    return sorted(found)


def listening(pids: list[int]) -> list[tuple[str, int]]:
    """Addresses (as in /proc/net) and ports on which some processes listen."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes |= set(re.findall(r"^socket:\[(\d+)\]$", os.readlink(fd)))
            except OSError:
                continue
    lines = [
        line
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().split("\n")[1:]
    ]
    fields = [line.split() for line in lines if line]
    ours = [f[1].split(":") for f in fields if f[3] == "0A" and f[9] in inodes]
    return [(address, int(port, 16)) for address, port in ours]


def call(port: int, token: str | None) -> str:
    """Ask Ray's global control store for a key, and return the status."""
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary("/ray.rpc.InternalKVGcsService/InternalKVGet")
        try:
            ask(b"", timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nobody_without_the_token_reaches_a_simulation(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qsfl_flower.simulations.cli", "run", "plain"]
    process = subprocess.Popen(
        [*command, "--set", "rounds=200"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        next(line for line in process.stdout if "round   1/200" in line)
        pids = descendants(process.pid)
        sockets = listening(pids)
        assert len(sockets) >= 4, "Ray's control store, node manager, object manager, workers"
        assert {address for address, _ in sockets} <= set(LOOPBACK)
        environment = b"".join(Path(f"/proc/{p}/environ").read_bytes() for p in pids[1:])
        (token,) = set(re.findall(rb"RAY_AUTH_TOKEN=([0-9a-f]{64})", environment))
        outside = {port: call(port, None) for _, port in sockets}
        wrong = {port: call(port, "0" * 64) for _, port in sockets}
        inside = {port: call(port, token.decode()) for _, port in sockets}
        refused = {"UNAUTHENTICATED", "UNAVAILABLE"}  # the latter where no gRPC is spoken
        assert set(outside.values()) <= refused
        assert set(wrong.values()) <= refused
        assert "UNAUTHENTICATED" in outside.values()
        assert any(status not in refused for status in inside.values())
        commands = b"".join(Path(f"/proc/{p}/cmdline").read_bytes() for p in pids)
        assert token not in commands
        session = re.search(rb"(/[^\0]*/ray/session_[^/\0]*)", commands)
        assert session is not None
        logs = [*tmp_path.rglob("*"), *(Path(os.fsdecode(session[1])) / "logs").rglob("*")]
        assert not [p for p in logs if p.is_file() and token in p.read_bytes()]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
