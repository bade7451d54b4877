"""While a simulation runs, nobody reaches Ray without its token, or from another machine."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
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
                inodes |= set(re.findall(r"^socket:\[(\d+)\]$", str(fd.readlink())))
            except OSError:
                continue
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    lines = [line for table in tables for line in table.split("\n")[1:]]
    fields = [line.split() for line in lines if line]
    ours = [f[1].split(":") for f in fields if f[3] == "0A" and f[9] in inodes]
    return [(address, int(port, 16)) for address, port in ours]


SERVICES = (
    "InternalKVGcsService/InternalKVGet",
    "NodeManagerService/GetSystemConfig",
    "ObjectManagerService/FreeObjects",
    "CoreWorkerService/GetCoreWorkerStats",
)


def call(port: int, token: str | None) -> set[str]:
    """Ask a port of Ray for something in every way that Ray knows, and return what it says."""
    import grpc

    headers = {"authorization": f"Bearer {token}"} if token else {}
    said = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for service in SERVICES:
            try:
                channel.unary_unary(f"/ray.rpc.{service}")(
                    b"", timeout=5, metadata=[*headers.items()]
                )
                said.add("OK")
            except grpc.RpcError as error:
                said.add(error.code().name)
    if said == {"UNAVAILABLE"}:  # no gRPC is spoken here
        url = f"http://127.0.0.1:{port}/get_or_create_runtime_env"
        try:
            urllib.request.urlopen(urllib.request.Request(url, b"", headers), timeout=5)
        except urllib.error.HTTPError as error:
            return {"UNAUTHENTICATED" if error.code in (401, 403) else str(error.code)}
        except (OSError, http.client.HTTPException):
            return {"UNAVAILABLE"}
        return {"OK"}
    return said - {"UNIMPLEMENTED"}  # another service's port


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
        for answers in (outside, wrong):
            assert set().union(*answers.values()) <= {"UNAUTHENTICATED", "UNAVAILABLE"}, answers
            assert sum("UNAUTHENTICATED" in said for said in answers.values()) >= 4, answers
        assert not any("UNAUTHENTICATED" in said for said in inside.values()), inside
        commands = b"".join(Path(f"/proc/{p}/cmdline").read_bytes() for p in pids)
        assert token not in commands
        session = re.search(rb"(/[^\0]*/ray/session_[^/\0]*)", commands)
        assert session is not None
        logs = [*tmp_path.rglob("*"), *(Path(os.fsdecode(session[1])) / "logs").rglob("*")]
        assert not [p for p in logs if p.is_file() and token in p.read_bytes()]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
