"""Whatever is in a file, an override or a dict: an experiment, or a ConfigError that names it."""

from __future__ import annotations

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import (
    Experiment,
    experiment_from_dict,
    load_experiment,
    shipped_configs,
)
from qsfl_flower.simulations.config.shape import sections

VALID = [path.read_text(encoding="utf-8") for path in shipped_configs().values()]
KEYS = [*sorted({key for one in sections() for key in one.schema["properties"]}), "extends"]
WORDS = [*sorted({one.kind for one in sections() if one.kind}), "all", "mlp", "npz", "adam"]
SYNTAX = [*":{}[],&*!|>'\"%@`#-?\t\n \\<=~\0\x85\ufeff\ud800", "- ", ": ", "---\n", "<<: "]

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=20,
)


def check(load) -> None:
    """Fail if it raises anything but a ConfigError whose lines each say something."""
    try:
        assert isinstance(load(), Experiment)
        return
    except ConfigError as error:
        lines = str(error).split("\n")
    assert all(": " in line and line.isprintable() for line in lines), lines


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8")))
def test_random_bytes(here_once, content):
    here_once.write_bytes(content)
    check(lambda: load_experiment(here_once))


@settings(deadline=None)
@given(st.lists(st.sampled_from(SYNTAX + KEYS + WORDS + ["1", "0.5", "true"]), max_size=30))
def test_random_tokens(here_once, tokens):
    here_once.write_bytes("".join(tokens).encode("utf-8", "surrogatepass"))
    check(lambda: load_experiment(here_once))


@settings(deadline=None)
@given(
    plain.map(yaml.safe_dump) | st.dictionaries(st.sampled_from(KEYS), plain).map(yaml.safe_dump)
)
def test_random_documents(here_once, text):
    here_once.write_text(text, encoding="utf-8")
    check(lambda: load_experiment(here_once))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS) | st.integers(), plain))
def test_random_dicts(data):
    check(lambda: experiment_from_dict(data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files(here_once, data):
    """Characters and lines of a shipped file are removed, doubled, swapped or replaced."""
    text = data.draw(st.sampled_from(VALID))
    for _ in range(data.draw(st.integers(1, 4))):
        parts = list(text) if data.draw(st.booleans()) else text.splitlines(keepends=True)
        if not parts:
            break
        at = data.draw(st.integers(0, len(parts) - 1))
        other = data.draw(st.integers(0, len(parts) - 1))
        match data.draw(st.sampled_from(["remove", "double", "swap", "replace"])):
            case "remove":
                del parts[at]
            case "double":
                parts.insert(at, parts[at])
            case "swap":
                parts[at], parts[other] = parts[other], parts[at]
            case "replace":
                parts[at] = data.draw(st.sampled_from(SYNTAX + KEYS + WORDS))
        text = "".join(parts)
    here_once.write_bytes(text.encode("utf-8", "surrogatepass"))
    check(lambda: load_experiment(here_once))


@settings(deadline=None)
@given(
    st.lists(
        st.text(max_size=30)
        | st.builds(
            "{}={}".format,
            st.lists(st.sampled_from([*KEYS, "0", "1", ""]), min_size=1, max_size=4).map(".".join),
            plain.map(lambda value: yaml.safe_dump(value, default_flow_style=True).strip()),
        ),
        max_size=4,
    )
)
def test_random_overrides(overrides):
    check(lambda: load_experiment("quickstart", overrides))


@settings(deadline=None)
@given(st.text(max_size=40))
def test_random_paths(path):
    check(lambda: load_experiment(path))
