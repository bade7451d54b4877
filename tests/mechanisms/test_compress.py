"""One description of the parameters of compression: all that shows them follows from it."""

import subprocess
import sys
from typing import get_args

import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.compression import COMPRESS, CompressOptions
from qsfl_flower.mechanisms.compression.client import COMPRESS_STEPS
from qsfl_flower.mechanisms.compression.core import FORMATS, Scheme
from qsfl_flower.mechanisms.compression.options import Values
from qsfl_flower.node.steps import STEPS
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.stages import stages_of
from qsfl_flower.stages import Compress


def test_both_halves_read_it():
    options = CompressOptions(ratio=0.2, values="int4")
    stage = COMPRESS.stage(options, seed=3)
    assert isinstance(stage, Compress)
    assert stage.scheme == Scheme(ratio=0.2, values="int4")
    assert COMPRESS.steps() == COMPRESS_STEPS
    assert COMPRESS_STEPS.items() <= STEPS.items()
    assert CompressOptions.from_dict(stage.scheme.to_dict()) == options


def test_a_configuration_builds_the_same_stage():
    stages = [{"stage": "compress", "ratio": 0.2, "warmup_rounds": 3}]
    exp = experiment_from_dict({"seed": 5, "strategy": {"name": "fedavg", "stages": stages}})
    (stage,) = stages_of(exp)
    assert (stage.scheme, stage.seed) == (Scheme(ratio=0.2, warmup_rounds=3), 5)


def test_what_does_not_go_together_is_refused_everywhere_alike():
    values = {"momentum": 0.5, "feedback": False}
    for make in (CompressOptions, Scheme):
        with pytest.raises(ConfigError, match="0 without feedback"):
            make(**values)
    stages = [{"stage": "compress", **values}]
    with pytest.raises(ConfigError, match="0 without feedback"):
        experiment_from_dict({"strategy": {"name": "fedavg", "stages": stages}})


def test_every_format_has_its_name():
    assert get_args(Values) == tuple(FORMATS)


def test_the_records_need_nothing_heavy():
    code = (
        "import sys, qsfl_flower.mechanisms; print({'numpy', 'torch', 'flwr'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
