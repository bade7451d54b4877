from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report import write_report

Builder = Callable[..., Path]
EVIL = (
    "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>"
    "$\\frac{_\ud800\x00"
)


class Checker(HTMLParser):
    """Collects what matters for safety and access, and checks that elements are closed."""

    VOID = ("meta", "img", "br", "wbr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(page: Path) -> Checker:
    return Checker(page.read_text(encoding="utf-8"))


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path, build_run: Builder) -> Path:
    return build_run(tmp_path / "quickstart-20251122-101600-ab12", rounds=8)


def test_the_report_has_all_sections_and_pictures(folder: Path) -> None:
    page = write_report(folder)
    assert page == folder / "report.html"
    made = read(page)
    assert made.tags.count("h1") == 1
    titles = re.findall(r"<h2[^>]*>([^<]+)", page.read_text())
    assert titles == [
        *("Result", "Training", "Data", "Clients", "Stages", "Events"),
        *("Configuration", "Environment"),
    ]
    names = ["accuracy", "bytes", "loss", "partition", "rejections", "time"]
    assert sorted(path.stem for path in (folder / "plots").iterdir()) == names
    for name in names:
        Image.open(folder / "plots" / f"{name}.png").verify()
    assert len(made.images) == len(names)
    assert not list(folder.glob("*.part"))


def test_the_page_is_self_contained_and_accessible(folder: Path) -> None:
    page = write_report(folder)
    made = read(page)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(made.tags)
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in made.images)
    assert all(len(str(image["alt"])) > 20 for image in made.images)
    assert all(image["width"] and image["height"] for image in made.images)
    addresses = [value for name, value in made.attributes if name in {"href", "src", "action"}]
    assert all(value.startswith(("#", "data:image/png")) for value in addresses)
    ids = [value for name, value in made.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in addresses if value.startswith("#")} <= set(ids)
    text = page.read_text()
    assert "url(" not in text
    assert "@import" not in text
    assert page.stat().st_size < 1_000_000


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed", None])
@pytest.mark.parametrize("rounds", [0, 1])
def test_any_end_and_hardly_any_round(
    status: str | None, rounds: int, tmp_path: Path, build_run: Builder
) -> None:
    folder = build_run(tmp_path / "a", clients=3, rounds=rounds, status=status)
    page = write_report(folder).read_text()
    assert f">{status or 'unfinished'}</span>" in page


def test_a_run_that_failed_before_anything_was_written(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: a\n")
    (tmp_path / "summary.json").write_text('{"status": "failed", "error": "no data"}')
    page = write_report(tmp_path).read_text()
    assert "no data" in page
    assert "metrics.jsonl is absent" in page
    assert page.count("the file is missing from the run folder") == 2


def test_a_report_can_be_written_again_while_the_run_goes_on(folder: Path) -> None:
    first = write_report(folder).read_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 9, "eval_accuracy": 0.123}\n{"round": 10, "ev')
    second = write_report(folder).read_text()
    assert "12.3 %" not in first
    assert "12.3 %" in second
    assert "last line of metrics.jsonl is cut off" in second


def test_hostile_names_stay_text(tmp_path: Path, build_run: Builder) -> None:
    folder = build_run(tmp_path / "a", clients=3, rounds=2, status=None)
    (folder / "config.yaml").write_text(f"name: {json.dumps(EVIL)}\n")
    summary = {"status": EVIL, "error": EVIL}
    (folder / "summary.json").write_text(json.dumps(summary))
    holding = {"client": EVIL, "num_train": 3, "label_counts": [1, 2]}
    partition = {"scheme": EVIL, "class_names": [EVIL, EVIL], "clients": [holding]}
    (folder / "partition.json").write_text(json.dumps(partition))
    (folder / "environment.json").write_text(json.dumps({"packages": {EVIL: EVIL}, "python": EVIL}))
    metrics = {
        "round": 1,
        "selected": 2,
        "rejected": {EVIL: 1},
        "skipped": EVIL,
        "alarm": EVIL,
        "eval_accuracy": EVIL,
        "eval_loss": 1.0,
        "stages": {EVIL: {EVIL: 1.0}},
        "timing": {EVIL: 1.0},
    }
    records = [metrics | {"round": number} for number in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    client = {"round": 1, "client": EVIL, "status": EVIL, "detail": EVIL, "weight": EVIL}
    (folder / "clients.jsonl").write_text(json.dumps(client) + "\n")
    event = {"time": EVIL, "kind": EVIL, "message": EVIL, EVIL: EVIL}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    page = write_report(folder)
    made = read(page)
    assert "script" not in made.tags
    assert all(str(image["src"]).startswith("data:") for image in made.images)
    assert not [name for name, _ in made.attributes if name.startswith("on")]
    assert "&lt;script&gt;" in page.read_text()
    assert "http-equiv" in page.read_text()


def test_a_damaged_file_costs_only_the_sections_that_need_it(folder: Path) -> None:
    (folder / "partition.json").write_text("{")
    text = write_report(folder).read_text()
    assert "This part is missing." in text
    assert "partition.json, line 1: damaged JSON" in text
    assert "Accuracy" in text
    assert read(folder / "report.html").tags.count("section") == 8


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        write_report(tmp_path)


def test_what_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "plots").write_text("in the way")
    with pytest.raises(RunError, match=r"plots.*cannot write the report"):
        write_report(folder)
