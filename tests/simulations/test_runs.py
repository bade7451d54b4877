from __future__ import annotations

import json
import math
import os
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.runs import Run, find_run, list_runs, number


def make(root: Path, name: str, **files: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: trial\nseed: 1\n")
    for key, content in files.items():
        suffix = "jsonl" if key in {"metrics", "clients", "events"} else "json"
        (folder / f"{key}.{suffix}").write_text(content)
    return folder


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


class TestReading:
    def test_documents(self, tmp_path: Path) -> None:
        folder = make(
            tmp_path,
            "a",
            summary='{"status": "finished"}',
            environment='{"cpus": 2}',
            partition="{}",
        )
        run = Run.open(folder)
        assert run.name == "a"
        assert run.config == {"name": "trial", "seed": 1}
        assert run.config_text == "name: trial\nseed: 1\n"
        assert run.environment == {"cpus": 2}
        assert run.partition == {}
        assert run.status == "finished"

    def test_a_run_without_summary_is_unfinished(self, tmp_path: Path) -> None:
        run = Run.open(make(tmp_path, "a"))
        assert run.summary is None
        assert run.status == "unfinished"

    def test_absent_journals_are_empty_and_noted(self, tmp_path: Path) -> None:
        run = Run.open(make(tmp_path, "a"))
        assert run.metrics == run.events == ()
        assert list(run.clients()) == []
        assert [note.split()[0] for note in run.notes] == ["metrics.jsonl", "clients.jsonl"]

    def test_rounds_come_in_order_and_a_repeated_round_counts_once(self, tmp_path: Path) -> None:
        metrics = lines({"round": 0}, {"round": 2, "x": 1}, {"round": 1}, {"round": 2, "x": 2})
        run = Run.open(make(tmp_path, "a", metrics=metrics))
        assert run.metrics == ({"round": 0}, {"round": 1}, {"round": 2, "x": 2})

    def test_not_a_number_is_read(self, tmp_path: Path) -> None:
        run = Run.open(make(tmp_path, "a", metrics='{"round": 1, "eval_loss": NaN}\n'))
        assert math.isnan(run.metrics[0]["eval_loss"])


class TestDamage:
    @given(cut=st.integers(min_value=1, max_value=17))
    def test_a_cut_off_last_line_is_left_out_and_noted(
        self, cut: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        whole = lines({"round": 1}, {"round": 2, "x": 1})
        folder = make(tmp_path_factory.mktemp("runs"), "a", metrics=whole[:-cut], events="")
        (folder / "clients.jsonl").touch()
        run = Run.open(folder)
        # Without its newline only, the line is still whole.
        assert run.metrics[0] == {"round": 1}
        assert len(run.metrics) == (2 if cut == 1 else 1)
        assert len(run.notes) == (0 if cut == 1 else 1)
        assert all("metrics.jsonl is cut off" in note for note in run.notes)

    @pytest.mark.parametrize("bad", ["{", "[1]", "3", '{"round": 1}}', "\x00"])
    def test_a_damaged_line_is_named(self, bad: str, tmp_path: Path) -> None:
        content = lines({"round": 1}) + "\n" + bad + "\n" + lines({"round": 2})
        run = Run.open(make(tmp_path, "a", metrics=content, clients=content))
        for read in (lambda: run.metrics, lambda: list(run.clients())):
            with pytest.raises(
                RunError, match=r"(metrics|clients)\.jsonl, line 3: not a JSON object"
            ):
                read()

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        folder = make(tmp_path, "a")
        (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
        (folder / "environment.json").write_bytes(b"\xff\xfe\n")
        with pytest.raises(RunError, match=r"metrics\.jsonl, line 1"):
            _ = Run.open(folder).metrics
        with pytest.raises(RunError, match=r"environment\.json: cannot be read"):
            _ = Run.open(folder).environment

    @pytest.mark.parametrize("value", [None, -1, 1.5, True, "1"])
    def test_a_round_must_be_a_whole_number(self, value: object, tmp_path: Path) -> None:
        run = Run.open(make(tmp_path, "a", metrics=lines({"round": 0}, {"round": value})))
        with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: round is .*, not an integer"):
            _ = run.metrics

    def test_a_missing_document_is_named(self, tmp_path: Path) -> None:
        run = Run.open(make(tmp_path, "a"))
        with pytest.raises(RunError, match=r"partition\.json: the file is missing"):
            _ = run.partition

    def test_a_damaged_document_is_named_with_its_line(self, tmp_path: Path) -> None:
        folder = make(
            tmp_path, "a", partition='{\n "x": ,\n}', summary="[]", environment="[" * 9999
        )
        (folder / "config.yaml").write_text("a: 1\nb: [1\nc: 2\n")
        run = Run.open(folder)
        with pytest.raises(RunError, match=r"partition\.json, line 2: damaged JSON"):
            _ = run.partition
        with pytest.raises(RunError, match=r"summary\.json: holds a list, not a mapping"):
            _ = run.summary
        with pytest.raises(RunError, match=r"environment\.json"):
            _ = run.environment
        with pytest.raises(RunError, match=r"damaged YAML: .*config\.yaml:3: "):
            _ = run.config

    def test_what_is_no_run_folder_is_not_opened(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="no such folder"):
            Run.open(tmp_path / "none")
        with pytest.raises(RunError, match=r"not a run folder, there is no config\.yaml"):
            Run.open(tmp_path)


class TestFinding:
    @pytest.fixture(name="root")
    def root_fixture(self, tmp_path: Path) -> Path:
        root = tmp_path / "runs"
        for name in (
            "mnist-20250102-000000-aaaa",
            "digits-20250103-000000-bbbb",
            "digits-20250101-000000-cccc",
        ):
            make(root, name)
        (root / "notes").mkdir()
        return root

    def test_by_path_name_beginning_and_latest(self, root: Path) -> None:
        mnist = root / "mnist-20250102-000000-aaaa"
        assert find_run(str(mnist), root / "elsewhere") == mnist
        assert find_run(mnist.name, root) == mnist
        assert find_run("mnist", root) == mnist
        assert find_run("digits-20250101", root).name == "digits-20250101-000000-cccc"
        assert find_run("latest", root).name == "digits-20250103-000000-bbbb"

    def test_ambiguity_lists_the_candidates(self, root: Path) -> None:
        with pytest.raises(RunError) as caught:
            find_run("digits", root)
        assert str(caught.value) == (
            "'digits' names 2 runs: digits-20250103-000000-bbbb, digits-20250101-000000-cccc"
        )

    @pytest.mark.parametrize("name", ["cifar", "notes", "", "20250102"])
    def test_an_unknown_name_lists_what_there_is(self, name: str, root: Path) -> None:
        with pytest.raises(RunError, match=f"no run '{name}' in .*; there are: digits-20250103"):
            find_run(name, root)

    def test_nothing_there(self, tmp_path: Path) -> None:
        for root in (tmp_path, tmp_path / "none"):
            with pytest.raises(RunError, match=r"no run 'latest' in .*; it holds no runs"):
                find_run("latest", root)

    def test_many_candidates_are_not_all_listed(self, tmp_path: Path) -> None:
        for index in range(13):
            make(tmp_path, f"a-20250101-0000{index:02d}-0000")
        with pytest.raises(RunError, match=r"names 13 runs: .* and 3 more"):
            find_run("a", tmp_path)


class TestListing:
    def test_rows(self, tmp_path: Path) -> None:
        done = '{"status": "finished", "rounds": 5, "accuracy": 0.9, "seconds": 12.5}'
        make(tmp_path, "a-20250102-030405-aaaa", summary=done)
        going = lines({"round": 0}, {"round": 1, "eval_accuracy": 0.5, "elapsed_s": 2})
        make(tmp_path, "b-20250103-000000-aaaa", metrics=going)
        make(tmp_path, "c-20250101-000000-aaaa", summary="{")
        b, a, c = list_runs(tmp_path)
        assert (a.name, a.status, a.rounds, a.accuracy, a.seconds) == (
            "a-20250102-030405-aaaa",
            "finished",
            5,
            0.9,
            12.5,
        )
        assert a.started == datetime(2025, 1, 2, 3, 4, 5)
        assert (b.status, b.rounds, b.accuracy, b.seconds) == ("unfinished", 1, 0.5, 2.0)
        assert (c.status, c.rounds) == ("damaged", None)
        assert c.problem is not None
        assert "summary.json, line 1" in c.problem

    def test_a_renamed_run_is_dated_by_its_files(self, tmp_path: Path) -> None:
        for name, date in (("best", 2000), ("odd-20259999-000000-aaaa", 1000)):
            os.utime(make(tmp_path, name) / "config.yaml", (date, date))
        assert [row.name for row in list_runs(tmp_path)] == ["best", "odd-20259999-000000-aaaa"]

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert list_runs(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (True, None), (None, None), ("1", None), (10**400, None), ([], None)],
)
def test_number(value: object, expected: float | None) -> None:
    assert number(value) == expected
