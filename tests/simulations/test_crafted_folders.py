"""Crafted run folders: an error of ours, in little time and memory, and clean text."""

import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qsfl_flower.errors import RunError
from qsfl_flower.simulations import runs
from qsfl_flower.simulations.cli import app
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.folder import RunFolder, check_room
from qsfl_flower.simulations.report import write_report
from qsfl_flower.simulations.runs import Run, list_runs
from qsfl_flower.strategies import RoundRecord

HOSTILE = "\x1b]0;OWNED\x07\x1b[31m\u202e[/nope]\n<script>"


def crafted(root: Path, name: str = "run", **files: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    texts = {"config.yaml": "name: trial\n", "summary.json": '{"status": "finished"}', **files}
    for key, text in texts.items():
        (folder / key).write_text(text)
    return folder


def qsfl(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def bomb(levels: int) -> str:
    lines = ["x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for level in range(levels):
        lines.append(f"x{level + 1}: &x{level + 1} [{', '.join([f'*x{level}'] * 9)}]")
    return "name: trial\n" + "\n".join(lines) + "\n"


def test_a_small_configuration_cannot_become_gigabytes(tmp_path):
    """Nine lines of aliases stand for 9^10 values."""
    one = crafted(tmp_path, "one", **{"config.yaml": bomb(9)})
    two = crafted(tmp_path, "two")
    tracemalloc.start()
    try:
        done = qsfl("compare", one, two, "--out", tmp_path / "c.html")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.exit_code == 1
    assert peak < 2e8
    with pytest.raises(RunError, match="what an alias repeats counts too"):
        _ = Run.open(one).config


def test_nothing_in_a_folder_reaches_the_terminal_or_the_page_as_it_is(tmp_path):
    summary = json.dumps({"status": HOSTILE, "name": HOSTILE, "error": HOSTILE})
    row = {"round": 1, "rejected": {HOSTILE: 3}, "skipped": HOSTILE, "alarm": HOSTILE}
    client = {"round": 1, "client": HOSTILE, "status": HOSTILE, "detail": HOSTILE}
    event = {"time": HOSTILE, "kind": HOSTILE, "message": HOSTILE}
    name = "evil\x1b[31m[red]"
    folder = crafted(
        tmp_path,
        name,
        **{
            "config.yaml": "name: trial # \u202e\n",
            "summary.json": summary,
            "metrics.jsonl": json.dumps(row) + "\n",
            "clients.jsonl": json.dumps(client) + "\n",
            "events.jsonl": json.dumps(event) + "\n",
        },
    )
    outputs = [qsfl("list", "--folder", tmp_path), qsfl("report", folder)]
    outputs.append(qsfl("compare", folder, folder, "--out", tmp_path / "c.html"))
    outputs.append(qsfl("report", "nothing", "--folder", tmp_path))
    page = (folder / "report.html").read_text()
    assert [done.exit_code for done in outputs] == [0, 0, 0, 1]
    for text in (*(done.output for done in outputs), page):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
    assert "<script>" not in page
    assert "[red]" in outputs[0].output, "markup is text"


@pytest.mark.parametrize("status", ["[/nope]", "[red]", 5, None, [], {"a": 1}, "x" * 10**6])
def test_any_status_is_listed(tmp_path, status):
    crafted(tmp_path, **{"summary.json": json.dumps({"status": status})})
    done = qsfl("list", "--folder", tmp_path)
    assert done.exit_code == 0
    assert len(done.output) < 1000


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("metrics.jsonl", '{"round": "x"}\n', "round is 'x'"),
        ("metrics.jsonl", '{"round": 1e3}\n', "round is '1000.0'"),
        ("metrics.jsonl", '{"round": ' + "9" * 4000 + "}\n", "round is '999"),
        ("metrics.jsonl", '{"round": 1, "a": "' + "x" * (1 << 20) + '"}\n', "more than 1048576"),
        ("metrics.jsonl", ('{"round": 1, "a": [' + "[]," * 900 + "[]]}\n") * 60, "values"),
        ("summary.json", "[" * 40_000, "cannot be parsed"),
        ("summary.json", '{"a": "' + "x" * (1 << 20) + '"}', "more than 1048576 bytes"),
        ("config.yaml", "name: x\nz: !!python/object/apply:os.system ['true']\n", "tags are not"),
        ("config.yaml", "a: &a [*a]\n", "nested deeper"),
        ("config.yaml", "a: " + "9" * 6000 + "\n", "cannot be read as int"),
        ("config.yaml", "a" * (1 << 19), "more than 262144 bytes"),
    ],
)
def test_what_is_no_record_of_a_run_is_named(tmp_path, monkeypatch, name, text, why):
    monkeypatch.setattr(runs, "_MOST_VALUES", 50_000)
    run = Run.open(crafted(tmp_path, **{name: text}))
    with pytest.raises(RunError, match=why):
        _ = run.config, run.summary, run.metrics
    write_report(run.folder)  # says in the page what is missing


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "clients.jsonl"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    folder = crafted(tmp_path)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    run = Run.open(folder)
    with pytest.raises(RunError, match="not a regular file"):
        _ = run.summary, run.metrics, list(run.clients())
    assert list_runs(tmp_path)[0].status in ("damaged", "finished")


@pytest.mark.parametrize("line", ['{"round": "x"}', '{"round": null}', "[1]", "5", '{"round": 1}'])
def test_a_journal_that_cannot_be_gone_on_with_is_refused(tmp_path, line):
    folder = crafted(tmp_path, **{"metrics.jsonl": line + "\n"})
    run = RunFolder(folder, experiment_from_dict({"name": "demo"}), [])
    with pytest.raises(RunError, match="cannot be gone on with"):
        run.rewind(1)


def test_nothing_is_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    experiment = experiment_from_dict({"name": "demo"})
    folder = crafted(tmp_path)
    for name in (".probe", "report.html.part", "report.html", "config.yaml.tmp", "log.txt"):
        (folder / name).symlink_to(victim)
    for name in ("metrics.jsonl", "events.jsonl"):
        (folder / name).symlink_to(victim)
    check_room(folder, experiment, 1)
    write_report(folder)
    with pytest.raises(OSError, match="symbolic link"):
        RunFolder(folder, experiment, []).add_round(RoundRecord(1), ())
    assert victim.read_text() == "precious"
    assert not (folder / "report.html").is_symlink()


def test_a_model_from_a_run_folder_is_not_imported_to_look_at_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bait.py").write_text("raise SystemExit('imported')\n")
    config = "name: trial\nmodel: {name: 'bait:make'}\n"
    folder = crafted(tmp_path, "run", **{"config.yaml": config})
    for command in (["report", folder], ["compare", folder, folder], ["list"]):
        out = ["--out", tmp_path / "c.html"] if command[0] == "compare" else []
        assert qsfl(*command, *out, "--folder", tmp_path).exit_code == 0
    assert (folder / "report.html").exists()
    assert "bait" not in sys.modules
