"""Finding and reading files, and what the messages say when that fails."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import files, load_experiment, shipped_configs

SHIPPED = ", ".join(shipped_configs())


def message(path: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("experimint.yaml", "no such file; did you mean 'experiment.yaml'?"),
        ("./experimint.yaml", "no such file; did you mean 'experiment.yaml'?"),
        ("quickstart.yaml", "no such file; did you mean 'quickstart'?"),
        ("completely-different.yaml", "no such file"),
        ("nowhere/x.yaml", "no such folder 'nowhere'"),
        ("configs/quickstart.yaml", "no such folder 'configs'; did you mean 'quickstart'?"),
        ("experiment", None),
        ("", "is a folder, not a file; it holds experiment.yaml, loop.yaml"),
        (".", "is a folder, not a file; it holds experiment.yaml, loop.yaml"),
        ("empty/", "is a folder, not a file; it holds no YAML files"),
        ("zzz", f"no such configuration; shipped: {SHIPPED}"),
        (
            "quikstart",
            f"no such configuration; did you mean 'quickstart'? shipped: {SHIPPED}",
        ),
        ("a\0b", "no such file"),
        ("x" * 300 + ".yaml", "cannot be read: File name too long"),
        ("experiment.yaml/x.yaml", None),
        ("loop.yaml", None),
    ],
)
def test_no_file(path, expected, write, here):
    write(experiment="rounds: 3\n")
    (here / "empty").mkdir()
    (here / "loop.yaml").symlink_to("loop.yaml")
    if path == "experiment":
        assert load_experiment(path).rounds == 3
        return
    text = message(path)
    assert "\n" not in text
    if expected is not None:
        assert text == f"{files.display(Path(path))}: {expected}"


def test_broken_files(here):
    (here / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (here / "utf16.yaml").write_text("rounds: 3\n", encoding="utf-16")
    (here / "large.yaml").write_text("# " + "x" * (1 << 18))
    os.mkfifo(here / "pipe.yaml")
    assert message("latin.yaml") == "latin.yaml: is not UTF-8 text: byte 0xe9 at offset 9"
    assert message("utf16.yaml") == "utf16.yaml: is not UTF-8 text: byte 0xff at offset 0"
    assert message("large.yaml") == (
        "large.yaml: is larger than 262144 bytes; a configuration is not"
    )
    assert message("pipe.yaml") == "pipe.yaml: is not a regular file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.yaml")
        assert message("socket.yaml") == "socket.yaml: is not a regular file"


def test_file_without_permission(write, monkeypatch):
    write(case="rounds: 3\n")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert message("case.yaml") == "case.yaml: cannot be read: Permission denied"


def test_byte_order_mark_and_windows_lines(here):
    (here / "case.yaml").write_bytes(b"\xef\xbb\xbfrounds: 3\r\nname: x\r\n")
    experiment = load_experiment("case.yaml")
    assert (experiment.rounds, experiment.name) == (3, "x")


def test_bare_names(write):
    """A file of that very name, then NAME.yaml here, then the shipped one."""
    assert load_experiment("quickstart").name == "quickstart"
    write(quickstart="name: mine\n")
    assert load_experiment("quickstart").name == "mine"
    Path("quickstart").write_text("name: bare\n")
    assert load_experiment("quickstart").name == "bare"


def test_paths_are_shown_from_the_working_folder(write, here, tmp_path_factory):
    write(case="rounds: 0\n")
    assert message(here / "case.yaml").startswith("case.yaml:1: rounds: ")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "case.yaml"
    elsewhere.write_text("rounds: 0\n")
    assert message(elsewhere).startswith(f"{elsewhere}:1: rounds: ")


def test_working_folder_that_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    case = tmp_path / "case.yaml"
    case.write_text("rounds: 0\n")
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert message(case).startswith(f"{case}:1: rounds: ")


@pytest.mark.parametrize("inside", [True, False])
def test_shipped_configurations_are_found_in_a_wheel_or_beside_the_package(
    inside, tmp_path, monkeypatch
):
    package = tmp_path / "qsfl_flower"
    folder = (package if inside else tmp_path) / "configs"
    folder.mkdir(parents=True)
    (folder / "quickstart.yaml").write_text("rounds: 3\n")
    monkeypatch.setattr(files, "_PACKAGE", package)
    assert shipped_configs() == {"quickstart": folder / "quickstart.yaml"}


def test_no_shipped_configurations(tmp_path, monkeypatch, here):
    monkeypatch.setattr(files, "_PACKAGE", tmp_path / "qsfl_flower")
    assert shipped_configs() == {}
    assert message("quickstart") == "quickstart: no such configuration"
