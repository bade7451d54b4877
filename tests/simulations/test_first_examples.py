"""Of each reason why updates are not used, a person sees one example, once."""

from __future__ import annotations

from types import SimpleNamespace

from flwr.app import Error

from qsfl_flower.rounds.admission import Asked, outcome_of
from qsfl_flower.simulations.examples import FirstExamples
from qsfl_flower.simulations.progress import describe
from qsfl_flower.simulations.runs import find_run
from qsfl_flower.strategies import RoundRecord


def row(client, status, detail=None):
    return SimpleNamespace(client=client, status=status, detail=detail)


def record(server_round, **unused):
    return SimpleNamespace(
        round=server_round, unused={k.replace("_", "-"): v for k, v in unused.items()}
    )


def test_an_example_names_error_client_and_line_and_is_told_once(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("noise\nround 1: client-error from client 3: ValueError: a batch of 5\nmore\n")
    examples = FirstExamples(log)
    clients = [row("2", "accepted"), row("3", "client-error", "ValueError: a batch of 5")]
    told = examples.of(record(1, client_error=5, not_selected=2), clients)
    assert told == [
        "5 x client-error: ValueError: a batch of 5 (first of client 3; log line 2)",
        "2 x not-selected",
    ]
    assert examples.of(record(2, client_error=4), clients) == ["4 x client-error"]
    line = describe(RoundRecord(round=1, selected=9), 2, told)
    assert line.endswith("not used: " + ", ".join(told))


def test_without_a_log_the_line_is_left_out(tmp_path):
    examples = FirstExamples(tmp_path / "log.txt")
    told = examples.of(record(1, no_reply=1), [row("7", "no-reply", "no reply")])
    assert told == ["1 x no-reply: no reply (first of client 7)"]


def test_the_kind_of_a_clients_error_survives_flowers_layers():
    raw = (
        "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::actor()\n"
        "flwr.clientapp.client_app.ClientAppException: \n"
        "Exception ValueError occurred. Message: a batch of 5'>"
    )
    reply = SimpleNamespace(has_error=lambda: True, error=Error(2, raw))
    _, rejection = outcome_of(Asked({"m": 1}, {1: 0}), 1, reply)
    assert rejection.detail == "ValueError: a batch of 5"


def test_the_last_run_has_a_short_name(tmp_path):
    for name in ("20250101-a", "20250102-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("{}")
        (tmp_path / name / "metrics.jsonl").write_text("")
    assert find_run("last", tmp_path) == find_run("latest", tmp_path)
    assert find_run("20250101", tmp_path).name == "20250101-a"
