"""The rule in a configuration that names its module."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = """
import sys
from pathlib import Path
import pytest
from tests.golden.runs import play
print(play("case.yaml", Path(sys.argv[1]))["metrics"][-1]["eval_accuracy"])
"""


@pytest.fixture
def case(tmp_path):
    def write(options="{share: 0.4}", plugins="[nearest]"):
        text = f"""
extends: plain
plugins: {plugins}
strategy:
  stages: [{{stage: robust, rule: nearest, options: {options}}}]
attacks: [{{attack: scaling, factor: 100, clients: [1, 2]}}]
"""
        (tmp_path / "case.yaml").write_text(text)
        return "case.yaml"

    return write


def test_it_keeps_long_updates_out(case, python, tmp_path):
    case()
    (tmp_path / "run").mkdir()
    done = python(HERE, "-c", RUN, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0.5


@pytest.mark.parametrize(
    ("options", "plugins", "message"),
    [
        ("{share: 2}", "[nearest]", "option 'share' must be a number > 0 and <= 1, got 2"),
        ("{shar: 0.5}", "[nearest]", "rule 'nearest' has no option 'shar'; did you mean 'share'?"),
        ("{}", "[]", "strategy.stages.0.rule: must be one of krum, "),
        ("{}", "[neares]", "case.yaml:3: plugins.0: module 'neares' cannot be imported"),
        ("{}", "[json]", "module 'json' has no list QSFL_PLUGINS of what it adds"),
        ("{}", "['../x']", "case.yaml:3: plugins.0: must be "),
    ],
)
def test_mistakes_are_explained(case, qsfl, options, plugins, message):
    done = qsfl(HERE, "validate", case(options, plugins))
    assert done.returncode == 2
    assert message in done.stderr


def test_validate_says_what_it_imports(case, qsfl):
    assert qsfl(HERE, "validate", case()).stdout.startswith("# imports nearest (plugins)\n")
