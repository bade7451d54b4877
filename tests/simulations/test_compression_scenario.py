from __future__ import annotations

import pytest

from qsfl_flower.errors import QSFLError
from qsfl_flower.simulations.scenarios.compression import SCHEMES, compare, federate


def a_run(values, bytes_up):
    return {"accuracy": {4 * i: v for i, v in enumerate(values)}, "bytes_up": bytes_up}


def test_rows_compare_with_the_dense_run():
    rows = compare(
        {
            "dense": a_run([0.1, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9], 1000.0),
            "late": a_run([0.1, 0.5, 0.8, 0.89, 0.895, 0.895, 0.896], 5.0),
            "never": a_run([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3], 5.0),
        }
    )
    dense, late, never = rows
    assert (dense["points_lost"], dense["rounds"], dense["more_rounds"]) == (0, 8, 0)
    assert (late["points_lost"], late["rounds"], late["more_rounds"]) == (2.48, 12, 0.5)
    assert (never["rounds"], never["more_rounds"], never["share_of_dense"]) == (None, None, 0.005)


@pytest.mark.slow
def test_compressed_rounds_learn_from_real_pictures():
    try:
        run = federate("mnist", SCHEMES["1 %"], rounds=12)
    except QSFLError as error:
        pytest.skip(f"no MNIST: {error}")
    accuracy = list(run["accuracy"].values())
    assert accuracy[-1] > accuracy[0] + 0.1
    assert run["bytes_up"] < 0.01 * run["bytes_down"]
