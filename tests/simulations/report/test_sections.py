from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower.simulations.report import figures
from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.outcome import outcome
from qsfl_flower.simulations.report.section import Section
from qsfl_flower.simulations.report.sections import SECTIONS
from qsfl_flower.simulations.report.sections.attack import attack
from qsfl_flower.simulations.report.sections.clients import clients
from qsfl_flower.simulations.report.sections.committee import committee
from qsfl_flower.simulations.report.sections.curves import curves
from qsfl_flower.simulations.report.sections.events import events
from qsfl_flower.simulations.report.sections.headline import headline
from qsfl_flower.simulations.report.sections.partition import partition
from qsfl_flower.simulations.report.sections.selection import selection
from qsfl_flower.simulations.report.sections.setup import configuration, environment
from qsfl_flower.simulations.report.sections.stages import stages
from qsfl_flower.simulations.runs import Run

Writer = Callable[..., Run]


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path) -> Writer:
    """Give a function that writes a run folder from records."""

    def write(config: str = "name: trial\n", **files: Any) -> Run:
        (tmp_path / "config.yaml").write_text(config)
        for name, content in files.items():
            if isinstance(content, list):
                text = "".join(json.dumps(record) + "\n" for record in content)
                (tmp_path / f"{name}.jsonl").write_text(text)
            else:
                (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return Run.open(tmp_path)

    return write


def words(section: Section | None) -> str:
    """What a reader sees, without pictures."""
    assert section is not None
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", section.html())).split())


def alts(section: Section | None) -> list[str]:
    assert section is not None
    return [plot.alt for plot in section.plots]


class TestHeadline:
    def test_a_finished_run(self, run: Writer) -> None:
        metrics = [
            {"round": 0, "eval_accuracy": 0.1, "eval_loss": 2.3},
            {"round": 1, "eval_accuracy": 0.95, "eval_loss": 0.4, "selected": 10},
            {"round": 2, "eval_accuracy": 0.9, "eval_loss": 0.5, "selected": 10},
        ]
        summary = {"status": "finished", "seconds": 84, "bytes_up": 2_000_000, "bytes_down": 4000}
        text = words(headline(run(metrics=metrics, summary=summary)))
        assert "finished The run finished after 2 rounds." in text
        assert "Accuracy 90.0 % server's test set; best 95.0 % (round 1)" in text
        assert "Loss 0.5 server's test set" in text
        assert "Rounds 2 10 clients asked in each" in text
        assert "Wall time 84.0 s 42.0 s a round" in text
        assert "Sent to clients 4 kB" in text
        assert "Sent by clients 2 MB" in text
        assert "Every update that was asked for was used." in text
        assert "Privacy" not in text

    def test_what_went_wrong_in_plain_words(self, run: Writer) -> None:
        metrics = [
            {"round": 1, "selected": 4, "rejected": {"not-finite": 1, "odd": 1}},
            {"round": 2, "selected": 5, "rejected": {"not-finite": 2}, "skipped": "2 of 5 replies"},
            {"round": 3, "selected": 5, "rejected": {}, "alarm": "norm 1e9", "epsilon": 0.5},
        ]
        text = words(headline(run(metrics=metrics)))
        assert "4 of 14 updates were not used: 3 held NaN or infinite numbers not-finite" in text
        assert "1 were rejected as 'odd' odd" in text
        assert "1 round left the model unchanged: round 2: 2 of 5 replies" in text
        assert "1 round raised an alarm: round 3: norm 1e9" in text
        assert "ε = 0.5" in text
        assert "4 to 5 clients asked in each" in text

    @pytest.mark.parametrize(
        ("summary", "expected"),
        [
            (None, "unfinished There is no summary after 1 round: the run is not over, or it"),
            ({"status": "failed", "error": "Disk full"}, "failed after 1 round: Disk full ."),
            ({"status": "failed", "error": None}, "failed after 1 round: no error was recorded ."),
            ({"status": "interrupted"}, "interrupted after 1 round. It continues with qsfl run"),
        ],
    )
    def test_other_ends(self, summary: Any, expected: str, run: Writer) -> None:
        files = {} if summary is None else {"summary": summary}
        text = words(headline(run(metrics=[{"round": 1}], **files)))
        assert re.sub(r" (?=\.)", "", expected) in re.sub(r" (?=\.)", "", text)

    def test_resumptions_are_counted_and_damaged_events_do_not_matter(self, run: Writer) -> None:
        opened = run(events=[{"kind": "resumed"}, {"kind": "x"}, {"kind": "resumed"}])
        assert "It was resumed 2 times." in words(headline(opened))
        (opened.folder / "events.jsonl").write_text("{\n{}\n")
        assert "resumed" not in words(headline(Run.open(opened.folder)))

    def test_without_server_side_evaluation_the_clients_count(self, run: Writer) -> None:
        metrics = [{"round": 1, "client_eval_accuracy": 0.5, "client_eval_loss": 1.5}]
        text = words(headline(run(metrics=metrics)))
        assert "Accuracy 50.0 % clients' own test data Loss 1.5 clients' own test data" in text

    def test_says_whose_accuracy_it_is_where_layers_stay_on_the_devices(self, run: Writer) -> None:
        metrics = [{"round": 1, "eval_accuracy": 0.1, "client_eval_accuracy": 0.9}]
        text = words(headline(run("model: {local: [BatchNorm1d]}\n", metrics=metrics)))
        whose = "common model, local layers at their first values; server's test set"
        assert f"Accuracy 10.0 % {whose} Clients' accuracy 90.0 % own test data" in text

    def test_a_loss_that_diverged_is_not_hidden_by_an_older_one(self, run: Writer) -> None:
        metrics = [
            {"round": 1, "eval_accuracy": 0.5, "eval_loss": 1.5},
            {"round": 2, "eval_accuracy": 0.1, "eval_loss": None},
        ]
        text = words(headline(run(metrics=metrics, summary={"status": "finished", "loss": None})))
        assert "Loss – not a finite number" in text

    def test_evaluation_in_some_rounds_only(self, run: Writer) -> None:
        metrics = [{"round": 1, "eval_accuracy": 0.5, "eval_loss": 1.5}, {"round": 2}]
        found = outcome(run(metrics=metrics))
        assert (found.accuracy, found.loss, found.rounds) == (0.5, 1.5, 2)

    def test_what_was_run(self, run: Writer) -> None:
        config = (
            "rounds: 5\nmodel: {name: mlp}\ndata: {dataset: digits}\n"
            "strategy: {name: fedavg, stages: [{stage: clip}, {stage: validate}]}\n"
            "faults: [{client: 3}, {client: 3}, {client: 1}]\n"
        )
        text = words(headline(run(config)))
        assert (
            "Model mlp; data digits; strategy fedavg; stages clip, validate; 5 rounds planned; "
            "faults simulated at clients 1, 3" in text
        )
        assert "not readable" in words(headline(run("a: [")))


class TestCurves:
    def test_nothing_recorded(self, run: Writer) -> None:
        assert words(curves(run())) == "Training No round was recorded."

    def test_only_the_initial_evaluation_gives_a_table_and_no_picture(self, run: Writer) -> None:
        section = curves(run(metrics=[{"round": 0, "eval_accuracy": 0.1, "time_s": 1.0}]))
        assert alts(section) == []
        assert "10.0 %" in words(section)

    def test_what_the_pictures_show(self, run: Writer) -> None:
        timing = {"configure": 0.0, "clients": 1.5, "aggregate": 0.25, "evaluate": 0.0}
        base = {"bytes_down": 1000, "bytes_up": 500, "time_s": 2.0, "timing": timing}
        metrics = [
            {"round": 0, "eval_accuracy": 0.1, "eval_loss": 2.3, "time_s": 9.0},
            {"round": 1, "eval_accuracy": 0.5, "eval_loss": 1.3, "train_loss": 1.0, **base},
            {"round": 2, "eval_accuracy": 0.75, "eval_loss": 0.5, "train_loss": 0.25, **base},
        ]
        section = curves(run(metrics=metrics))
        assert [plot.name for plot in section.plots] == ["accuracy", "loss", "time", "bytes"]
        assert alts(section) == [
            "Accuracy over rounds 0 to 2: server's test set ends at 75.0 %.",
            "Loss over rounds 0 to 2: server's test set ends at 0.5; "
            "clients' training data ends at 0.25.",
            "Wall time of each round, on average 2.0 s: "
            "clients 75.0 %, aggregate 12.5 %, other 12.5 %.",
            "Bytes of each round: in all 2 kB to the clients and 1 kB from them.",
        ]
        assert "2 75.0 % 0.5 – 0.25 2.0 s 1 kB 500 B – 0" in words(section)

    @pytest.mark.parametrize("values", [[0, 0], [-1, 5], [1e-99, 1e99], [None, 3], [5, 5]])
    def test_any_range_can_be_drawn(self, values: list[Any], run: Writer) -> None:
        metrics = [
            {
                "round": index * 10**6,
                "eval_loss": value,
                "train_accuracy": value,
                "time_s": value,
                "bytes_up": value,
                "alarm": "a" if index else None,
                "skipped": "b",
            }
            for index, value in enumerate([*values, math.nan, math.inf])
        ]
        assert len(curves(run(metrics=metrics)).plots) == 4


class TestPartition:
    def test_how_uneven_it_is(self, run: Writer) -> None:
        held = [("0", [10, 0]), ("10", [3, 1]), ("9", [1, 1])]
        parts = [{"client": c, "num_train": sum(n), "label_counts": n} for c, n in held]
        section = partition(run(partition={"scheme": "shards", "clients": parts}))
        text = words(section)
        assert "3 clients share 16 training examples (shards partition)." in text
        assert "A client has 2 to 10 of them, the median is 4." in text
        # Shares of the most frequent class are 1, 3/4 and 1/2.
        assert "examples of 2 out of 2 classes; the most frequent one makes up 75.0 %" in text
        assert alts(section) == [
            "Training examples of 3 clients by class: 2 to 10 examples a client, 2 classes."
        ]

    @pytest.mark.parametrize("amount", [1, 30, 31, 2500])
    @pytest.mark.parametrize("classes", [0, 1, 2, 100])
    def test_few_and_many_clients_and_classes(self, amount: int, classes: int, run: Writer) -> None:
        parts = [
            {
                "client": str(i),
                "num_train": i,
                "label_counts": [(i + k) % 5 for k in range(classes)],
            }
            for i in range(amount)
        ]
        names = [f"${k}" for k in range(classes // 2)]
        section = partition(run(partition={"clients": parts, "class_names": names}))
        assert len(section.plots) == 1

    @pytest.mark.parametrize(
        "clients",
        [
            None,
            [],
            ["x"],
            [{}],
            [{"client": None, "num_train": "x", "label_counts": [None, "x", -1, math.inf]}],
            [{"label_counts": [1]}, {"label_counts": [1, 2, 3]}, {"label_counts": 5}],
        ],
    )
    def test_odd_files(self, clients: Any, run: Writer) -> None:
        assert words(partition(run(partition={"clients": clients})))


class TestClients:
    RECORDS = (
        {"round": 1, "client": "2", "status": "accepted", "weight": 0.5, "norm": 1.0, "seconds": 2},
        {"round": 1, "client": "10", "status": "accepted", "weight": 0.5, "train_loss": 0.75},
        {"round": 1, "client": "3", "status": "not-finite", "detail": "the 'fc' array holds NaN"},
        {"round": 2, "client": "2", "status": "accepted", "weight": 0.3, "norm": 3.0, "seconds": 4},
        {"round": 2, "client": "10", "status": "no-reply", "train_loss": None},
        {"round": 2, "client": "3", "status": "not-finite", "detail": "again", "num_examples": 900},
    )

    def test_who_was_rejected_and_why(self, run: Writer) -> None:
        metrics = [
            {"round": 1, "selected": 3, "rejected": {"not-finite": 1}},
            {"round": 2, "selected": 3, "rejected": {"not-finite": 1, "no-reply": 1}},
        ]
        held = [{"client": "3", "num_train": 100}]
        section = clients(
            run(clients=list(self.RECORDS), metrics=metrics, partition={"clients": held})
        )
        text = words(section)
        assert "3 clients took part, each asked in 2 rounds." in text
        assert "Nothing was ever accepted from client 3." in text
        assert (
            "2 held NaN or infinite numbers not-finite from client 3 "
            "for example round 1, client 3: the 'fc' array holds NaN" in text
        )
        assert "1 never came no-reply from client 10" in text
        # Conspicuous clients first, then natural order: client 2 before client 10.
        assert "3 not-finite × 2 2 0 2 100, says 900 – – – – 10 no-reply 2 1 1" in text
        assert "2 2 2 – – 40.0 % 2 3.0 s –" in text
        assert alts(section) == [
            "Updates of each round that were not used. In all: 2 not-finite, 1 no-reply."
        ]

    def test_no_records_no_section(self, run: Writer) -> None:
        assert clients(run()) is None

    def test_nothing_rejected_no_picture(self, run: Writer) -> None:
        section = clients(run(clients=[self.RECORDS[0]]))
        assert alts(section) == []
        assert "were not used" not in words(section)

    def test_many_reasons_share_a_picture(self, run: Writer) -> None:
        records = [{"round": 1, "client": str(i), "status": f"r{i}"} for i in range(9)]
        metrics = [{"round": 1, "selected": 9, "rejected": {f"r{i}": 1 for i in range(9)}}]
        assert len(clients(run(clients=records, metrics=metrics)).plots) == 1

    def test_long_tables_fold(self, run: Writer) -> None:
        records = [{"round": 1, "client": str(i), "status": "accepted"} for i in range(100)]
        assert "70 more rows" in words(clients(run(clients=records)))


class TestStages:
    def test_every_measurement_shows_up(self, run: Writer) -> None:
        metrics = [
            {"round": 1, "update_norm": 4.0, "stages": {"clip": {"share": 0.5}}, "capped": 0},
            {"round": 2, "update_norm": None, "stages": {"clip": {"share": 0.25}}, "capped": 2},
            {"round": 3, "update_norm": 1.0, "stages": "odd"},
        ]
        text = words(stages(run(metrics=metrics)))
        assert "update: norm 1 2.5 4 1" in text
        assert "clip: share 0.25 0.375 0.5 0.25" in text
        assert "weights: claims capped 2 2 2 2" in text

    def test_sparklines_of_any_course(self, run: Writer) -> None:
        courses = {
            "flat": [1.0] * 500,
            "long": [float(i) for i in range(500)],
            "huge": [(-1) ** i * 1.7e308 for i in range(500)],
        }
        metrics = [
            {"round": i, "stages": {"s": {name: c[i] for name, c in courses.items()}}}
            for i in range(500)
        ]
        section = stages(run(metrics=metrics))
        assert section is not None
        assert "constant" in words(section)
        points = re.findall(r'points="([^"]+)"', section.html())
        assert len(points) == 2
        for path in points:
            assert len(path.split()) <= 201
            for point in path.split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= 110
                assert 0 <= y <= 22

    def test_nothing_measured_no_section(self, run: Writer) -> None:
        assert stages(run(metrics=[{"round": 0}])) is None


class TestEvents:
    def test_times_kinds_and_details(self, run: Writer) -> None:
        listed = [
            {
                "time": "2025-11-22T10:06:59.123+01:00",
                "kind": "alarm",
                "message": "round 6: loss doubled",
                "round": 6,
                "factor": 2.5,
            },
            {"time": None, "message": "x"},
            {},
        ]
        text = words(events(run(events=listed))).replace("\u00a0", " ")
        assert "22 Nov 09:06:59 alarm round 6: loss doubled factor: 2.5" in text
        assert "None event x" in text

    def test_frequent_kinds_fold(self, run: Writer) -> None:
        listed = [{"kind": "rejected", "message": f"m{i}"} for i in range(11)]
        section = events(run(events=[*listed, {"kind": "resumed", "message": "hello"}]))
        assert section is not None
        html = section.html()
        assert html.index("hello") < html.index("<summary>rejected (11)</summary>")
        assert html.index("<summary>rejected") < html.index("m10")

    def test_no_events_no_section(self, run: Writer) -> None:
        assert events(run()) is None


def test_configuration_and_environment(run: Writer) -> None:
    record = {
        "packages": {"numpy": "2.0", "Flower": "1"},
        "python": "3.11",
        "cpus": 2,
        "git": {"revision": "abc", "dirty": True},
    }
    opened = run("name: <b>\n# comment\n", environment=record)
    assert "name: &lt;b&gt;\n# comment</pre>" in configuration(opened).html()
    text = words(environment(opened))
    assert "Git revision abc with uncommitted changes" in text
    assert "Platform –" in text
    assert "2 packages Packages Package Version Flower 1 numpy 2.0" in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
KEYS = [
    *("status", "detail", "weight", "norm", "train_loss", "seconds", "client", "num_examples"),
    *("time", "kind", "message", "skipped", "alarm", "stages", "timing", "rejected", "selected"),
    *("accepted", "eval_accuracy", "eval_loss", "update_norm", "capped", "bytes_up", "time_s"),
    *("bytes_down", "elapsed_s", "epsilon", "error", "rounds", "clients", "packages", "git"),
]
RECORD = st.dictionaries(st.sampled_from(KEYS), JSON)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_record_breaks_a_section(
    data: st.DataObject, run: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of the wrong type are left out or shown as they are; pictures are tested above."""
    monkeypatch.setattr(
        figures, "draw", lambda name, title, alt, *_, **__: Plot(name, alt, b"", (1, 1))
    )
    rounds = data.draw(st.lists(st.integers(0, 3), max_size=3))
    opened = run(
        metrics=[data.draw(RECORD) | {"round": number} for number in rounds],
        clients=data.draw(st.lists(RECORD, max_size=3)),
        events=data.draw(st.lists(RECORD, max_size=3)),
        partition=data.draw(RECORD),
        environment=data.draw(RECORD),
        summary=data.draw(RECORD),
    )
    for function in SECTIONS:
        section = function(opened)
        if section is not None:
            section.html().encode()


class TestCommittee:
    def test_members_survivors_dropped_clients_and_bytes(self, run: Writer) -> None:
        first = {"clients": 9.0, "summed": 5.0, "dropped": 1.0, "committee bytes": 2_500_000.0}
        metrics = [
            {"round": 0},
            {"round": 1, "stages": {"secure_krum": {**first, "member 3": 1.0, "member <b>": 0.0}}},
            {"round": 2, "stages": {"secure_krum": {"clients": 3.0, "member 4": -1.0}}},
        ]
        text = words(committee(run(metrics=metrics)))
        assert "1 5 4 1 3, <b> (vanished) 2.5 MB" in text
        assert "4 (lied)" in text
        assert "Members vanished or lied 2 times." in text
        assert "member" not in words(stages(run(metrics=metrics)))

    def test_runs_without_a_committee_say_nothing(self, run: Writer) -> None:
        assert committee(run(metrics=[{"round": 1, "stages": {"clip": {"x": 1.0}}}])) is None
        fine = [{"round": 1, "stages": {"secure_sum": {"summed": 5.0, "member 3": 1.0}}}]
        assert "Every member answered in every round." in words(committee(run(metrics=fine)))


def test_selection_shows_who_counted(run: Writer) -> None:
    """One client is never selected, one is rejected once; without a robust rule nothing is said."""
    records = [
        {"round": r, "client": str(c), "status": status, "score": 1.5 + c}
        for r in (1, 2, 3)
        for c, status in enumerate(
            ("accepted", "not-selected", "not-finite" if r == 2 else "accepted", "flagged")
        )
    ]
    section = selection(run(clients=records))
    assert section is not None
    page = str(section.html())
    assert "1 client of 4 counted in every round." in page
    assert "Never selected: clients 1, 3." in page
    assert [plot.name for plot in section.plots] == ["selection"]
    assert "in 3 cases an update was not selected" in section.plots[0].alt
    plain = [{"round": 1, "client": "0", "status": "accepted"}]
    assert selection(run(clients=plain)) is None


class TestAttack:
    def rows(self) -> list[dict[str, Any]]:
        """Two of four clients attack; one of their four updates gets a third of one mean."""
        used = {(1, "3"): 1 / 3}
        return [
            {
                "round": r,
                "client": c,
                "status": "accepted" if c in "01" or (r, c) in used else "not-selected",
                "weight": used.get((r, c), 1 / 3 if c in "01" else 0.0),
            }
            for r in (1, 2)
            for c in "0123"
        ]

    def test_says_how_much_came_through_and_what_a_mean_would_get(self, run: Writer) -> None:
        config = "attacks: [{attack: sign-flip, clients: [2, 3], scale: 5.0}]\n"
        section = attack(run(config, metrics=[{"round": 1}, {"round": 2}], clients=self.rows()))
        text = words(section)
        assert (
            "Clients 2, 3 attack by sign-flip. 1 of their 4 updates got into the model (25.0 %)"
            in text
        )
        assert "in a plain mean, 50.0 % of the weight would be theirs" in text
        # half of the weight goes one honest step ahead, the other half five steps back
        assert "its step would go the other way, 2 times as far as an honest one" in text
        assert alts(section) == [
            "Share of the model's step that attackers made: 16.7 % on average, "
            "50.0 % in a plain mean."
        ]

    @pytest.mark.parametrize("listed", ["", "attacks: []\n", "attacks: [{clients: x}]\n"])
    def test_is_left_out_without_attackers(self, run: Writer, listed: str) -> None:
        assert (
            attack(run("name: trial\n" + listed, metrics=[{"round": 1}], clients=self.rows()))
            is None
        )
