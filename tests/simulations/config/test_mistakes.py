"""Every mistake of mistakes.txt gives exactly its message.

After a change of the schema or of the wording, ``python tests/simulations/config/test_mistakes.py``
writes the messages anew; read the difference before you commit it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import load_experiment

TABLE = Path(__file__).with_name("mistakes.txt")


@dataclass(frozen=True)
class Case:
    """What is in case.yaml, which overrides follow, and what is said about it."""

    text: str
    overrides: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        lines = [f"--set {one}" for one in self.overrides]
        return "\n".join([self.text, *lines, *(f">> {one}" for one in self.message.split("\n"))])


def blocks() -> list[str]:
    return TABLE.read_text(encoding="utf-8").rstrip().split("\n\n")


def is_case(block: str) -> bool:
    return "\n>> " in block


def parse(block: str) -> Case:
    lines = block.split("\n")
    text = list(takewhile(lambda line: not line.startswith(("--set ", ">> ")), lines))
    return Case(
        "\n".join(text),
        tuple(one.removeprefix("--set ") for one in lines if one.startswith("--set ")),
        "\n".join(one.removeprefix(">> ") for one in lines if one.startswith(">> ")),
    )


CASES = [parse(block) for block in blocks() if is_case(block)]


def message_of(case: Case) -> str:
    """Load the case in the working folder and return what is said about it."""
    Path("case.yaml").write_text(case.text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_experiment("case.yaml", case.overrides)
    return str(caught.value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.message.split("; ")[0][:60])
def test_message(case, here):
    assert message_of(case) == case.message


def test_table_is_large_and_without_repetitions():
    assert len(CASES) >= 120
    assert len({str(case) for case in CASES}) == len(CASES)


def test_every_message_names_place_and_key_or_reason():
    """A line is ``file:line: ...`` or ``--set override: ...`` and says more than that."""
    for case in CASES:
        for line in case.message.split("\n"):
            assert line.startswith(("case.yaml:", "--set "))
            assert (
                len(line.split(": ")) >= 3
                or "nested" in line
                or "a key must" in line
                or ("the top level" in line or "must be key.sub=value" in line)
            ), line


if __name__ == "__main__":
    old = blocks()
    os.chdir(tempfile.mkdtemp())
    new = []
    for one in old:
        if is_case(one):
            case = parse(one)
            one = str(Case(case.text, case.overrides, message_of(case)))
        new.append(one)
    TABLE.write_text("\n\n".join(new) + "\n", encoding="utf-8")
    sys.stdout.write(f"{sum(a != b for a, b in zip(old, new, strict=True))} messages changed\n")
