"""The floors of `tools/coverage`: a folder below its own is named."""

import runpy
from pathlib import Path

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "coverage"))


def report(**reached):
    lines = {folder: reached.get(folder, 100) for folder in TOOL["FLOORS"]}
    return {
        "files": {
            f"/anywhere/qsfl_flower/{folder}/core.py": {
                "summary": {"covered_lines": count, "num_statements": 100}
            }
            for folder, count in lines.items()
        }
    }


def test_a_folder_below_its_floor_is_named():
    def below(**reached):
        return TOOL["below"](TOOL["by_folder"](report(**reached)))

    assert below() == []
    assert below(crypto=TOOL["FLOORS"]["crypto"]) == []
    assert below(crypto=TOOL["FLOORS"]["crypto"] - 1) == ["crypto"]


def test_every_folder_with_a_floor_exists():
    package = Path(__file__).parents[1] / "qsfl_flower"
    assert [f for f in TOOL["FLOORS"] if not (package / f).is_dir()] == []
