"""What is generated from the schema is up to date, complete, and true."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import (
    Experiment,
    experiment_from_dict,
    json_schema,
    load_experiment,
)
from qsfl_flower.simulations.config.__main__ import generated
from qsfl_flower.simulations.config.reference import markdown
from qsfl_flower.simulations.config.shape import allowed, sections

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "configuration.md"


@pytest.mark.parametrize("path", generated(ROOT), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path):
    """If not: ``python -m qsfl_flower.simulations.config``."""
    assert path.read_text(encoding="utf-8") == generated(ROOT)[path]


def test_page_lists_every_key_with_its_default():
    """Checked against the models themselves, not against the code that writes the page."""
    rows = set(re.findall(r"^\| `(\w+)` \| .+ \| (.+) \| .+\. \|$", markdown(), re.MULTILINE))

    def missing(part: dict) -> list[str]:
        found = []
        for key, value in part.items():
            if key in ("scheme", "stage") or (key == "name" and "stages" in part):
                continue
            if isinstance(value, dict) and value:
                found += [*([] if (key, "see below") in rows else [key]), *missing(value)]
            elif key != "stages":
                text = {None: "null", True: "true", False: "false"}.get(
                    value if value is None or isinstance(value, bool) else "", repr(value)
                )
                found += [] if (key, f"`{text}`") in rows else [key]
        return found

    assert missing(Experiment().model_dump(mode="json")) == []
    for one in sections():
        for key in one.schema["properties"]:
            assert f"`{key}" in markdown()
        for key in set(one.schema.get("required", ())) - {one.tag}:
            assert (key, "required") in rows


def test_every_key_says_what_it_means_and_what_is_allowed():
    for one in sections():
        assert one.schema["description"].endswith(".")
        for key, schema in one.schema["properties"].items():
            assert allowed(schema), key
            assert "$ref" in schema or schema["description"].endswith("."), key


def test_examples_of_the_page_load(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    experiments = [one for one in blocks if not one.startswith("# yaml-language-server")]
    assert experiments
    for text in experiments:
        (tmp_path / "x.yaml").write_text(text)
        assert load_experiment(tmp_path / "x.yaml").name == "my-first-run"


def test_overrides_of_the_page_work():
    lines = re.findall(r"^qsfl run plain (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        overrides = re.findall(r"--set (?:'([^']+)'|(\S+))", line)
        assert overrides
        load_experiment("plain", [quoted or bare for quoted, bare in overrides])


def test_messages_of_the_page_are_real(tmp_path, monkeypatch):
    shown = re.search(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("name: x\nclients:\n  cuont: 5\n\n\n\n  learning_rate: '0.1'\n")
    with pytest.raises(ConfigError) as caught:
        load_experiment("my.yaml")
    for real, line in zip(str(caught.value).split("\n"), shown.strip().split("\n"), strict=True):
        assert real.startswith(line.removesuffix("..."))


def test_editor_schema_is_a_schema_and_finds_mistakes():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    checker = jsonschema.Draft202012Validator(json_schema())
    for text in (
        "{}",
        "extends: base",
        "extends: [base, ./x.yaml]",
        "data: {partition: {alpha: 0.3}}",  # the scheme may come from what is extended
        "strategy: {min_replies: 3}",
    ):
        checker.validate(yaml.safe_load(text))
    for text in (
        "rouns: 3",
        "rounds: 0",
        "rounds: ten",
        "extends: 5",
        "clients: {cuont: 3}",
        "clients: {momentum: 1.0}",
        "data: {dataset: minst}",
        "data: {partition: {scheme: dirichlett}}",
        "data: {partition: {scheme: iid, alpha: 3}}",
        "strategy: {name: fedavg, eta: 3}",
        "strategy: {stages: [{stage: clip}]}",
        "strategy: {stages: [{clip_norm: 1}]}",
        "faults: [{client: 0}]",
        "model: {name: mnist_cnn}",
    ):
        assert not checker.is_valid(yaml.safe_load(text)), text


def test_editor_schema_is_a_copy():
    before = copy.deepcopy(json_schema())
    json_schema()["properties"].clear()
    json_schema()["$defs"]["ClientsSpec"]["properties"].clear()
    assert json_schema() == before
    with pytest.raises(ConfigError, match="allowed: count"):
        experiment_from_dict({"clients": {"x": 1}})


def test_json_of_the_schema_is_plain():
    assert json.loads(json.dumps(json_schema())) == json_schema()


def test_importing_is_light():
    """Neither Flower, Ray nor torch is imported for reading a configuration."""
    code = (
        "import sys; from qsfl_flower.simulations.config import load_experiment; "
        "load_experiment('quickstart'); print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"flwr", "ray", "torch", "sklearn", "numpy", "scipy", "pandas", "flwr_datasets"}
    assert heavy.isdisjoint(done.stdout.split())
