"""Today's code gives the bits that it gave when ``python -m tests.golden`` was last run."""

import json

import pytest

from tests.golden.runs import CONFIGS, golden, machine, play


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_gives_the_same_bits(name, tmp_path):
    wanted = json.loads(golden(name).read_text())
    if (here := machine()) != (there := wanted.pop("machine")):
        pytest.skip(
            f"recorded on {there}; this is {here}: run python -m tests.golden before and after"
        )
    assert json.loads(json.dumps(play(name, tmp_path))) == wanted


def test_other_keys_and_other_noise_give_another_private_model(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = play("quickstart", tmp_path / "a", "rounds=1", seed=1)
    assert first["final"] != play("quickstart", tmp_path / "b", "rounds=1", seed=2)["final"]
