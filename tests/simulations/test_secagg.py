"""The shipped configuration of the pairwise-mask sum on Flower's Ray backend, so marked slow."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.runner import run_experiment

pytestmark = pytest.mark.slow


def rounds(summary):
    text = Path(summary["folder"], "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()][1:]


def test_lost_clients_are_left_out_and_the_sum_is_that_of_the_others(tmp_path):
    """The same clients without masks reach the same model up to the ring's resolution."""
    output = f"output.folder={tmp_path}"
    masked = run_experiment(load_experiment("secagg", [output, "rounds=5"]))
    assert [r["accepted"] for r in rounds(masked)] == [10, 9, 10, 9, 8]
    exchanges = [r["stages"]["masked_sum"]["exchanges"] for r in rounds(masked)]
    assert exchanges == [4, 3, 3, 3, 3]
    whole = run_experiment(load_experiment("secagg", [output, "rounds=2", "faults=[]"]))
    changes = ["strategy.max_num_examples=200", "strategy.max_weight_ratio=1000"]
    stages = "strategy.stages=[{stage: clip, clip_norm: 5.0}]"
    plain = run_experiment(
        load_experiment("secagg", [output, "rounds=2", "faults=[]", stages, *changes])
    )
    models = [load_file(f"{run['folder']}/model.safetensors") for run in (whole, plain)]
    for name, array in models[0].items():
        np.testing.assert_allclose(array, models[1][name], rtol=0, atol=2e-6)
