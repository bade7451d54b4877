"""YAML 1.2 words and numbers, and texts that are no YAML."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.config.document import dump, parse
from qsfl_flower.simulations.config.tree import Place, to_plain


def read(text: str) -> object:
    node = parse(text, Place("x", 1))
    return None if node is None else to_plain(node)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("~", None),
        ("Null", None),
        ("12", 12),
        ("-7", -7),
        ("+7", 7),
        ("012", 12),  # YAML 1.1 would read 10
        ("0o12", 10),
        ("0x1F", 31),
        ("1e-3", 0.001),  # YAML 1.1 would read text
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("12:30", "12:30"),  # YAML 1.1 would read 750
        ("1_000", "1_000"),
        ("2026-01-31", "2026-01-31"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("!!float 12", 12.0),
        ("[1, a, {b: null}]", [1, "a", {"b": None}]),
        ("on: yes", {"on": "yes"}),
        ("1: 2", {"1": 2}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
    ],
)
def test_values(text, value):
    found = read(text)
    assert found == value
    assert type(found) is type(value)


def test_nan():
    assert math.isnan(read(".nan"))


def test_places_are_the_lines_of_the_keys():
    """A section starts at its key, a list item at its first line."""
    text = "# one\na:\n  b: 1\n\n  c:\n    - 1\n    - d: 2\n      e: 3\n"
    node = parse(text, Place("x.yaml", 1))
    a = node.value["a"]
    assert (node.place.line, a.place.line) == (2, 2)
    assert a.value["b"].place.line == 3
    items = a.value["c"].value
    assert (a.value["c"].place.line, items[0].place.line, items[1].place.line) == (5, 6, 7)
    assert items[1].value["e"].place.line == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b\0c", "x:1: not valid YAML: the character '\\x00' is not allowed"),
        ("\n\na: \x07", "x:3: not valid YAML: the character '\\x07' is not allowed"),
        ("a: " + "9" * 5000, f"x:1: a: cannot be read as int: '{'9' * 56}..."),
        ("[" * 30 + "]" * 30, "x:1: nested deeper than 24 levels"),
        ("[" * 50_000, "x:1: not valid YAML: nested too deeply"),
        (
            "a: &a [1, 1]\n"
            + "".join(f"{c}: &{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]\n" for c in "bcdefgh"),
            "x:1: more than 50000 values (what an alias repeats counts too)",
        ),
        ('a: "\\U99999999"', "x:1: not valid YAML: an escape names a character that does not"),
        ("%YAML 2.0\n---\na: 1", "x:1: not valid YAML: found incompatible YAML document"),
    ],
)
def test_hostile_text(text, message):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\n\n", "---\n# x\n...\n"])
def test_empty_file(text, write):
    write(case=text)
    with pytest.raises(ConfigError) as caught:
        load_experiment("case.yaml")
    assert str(caught.value) == (
        "case.yaml:1: the file is empty; a first line could be 'extends: quickstart'"
    )


texts = st.text() | st.sampled_from(
    ["yes", "off", "1e-3", "010", "0o7", "1_0", "12:30", "~", "=", "<<", "", "2026-01-31", ".5"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_dumped_is_read_back(data):
    assert read(dump(data)) == data


@settings(deadline=None)
@given(st.dictionaries(st.text(alphabet="abc"), values, max_size=3))
def test_other_readers_of_yaml_agree(data):
    """A YAML 1.1 reader sees the same values: ambiguous text is quoted, floats have a point."""
    assert yaml.safe_load(dump(data)) == data
