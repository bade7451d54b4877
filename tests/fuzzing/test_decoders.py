"""No bytes from outside end in anything but a `QSFLError`, and none cost more than their length."""

from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .decoder import Decoder
from .decoders import decoders

NAMES = sorted(decoders())
SLOW = {"experiment", "run configuration", "budgets", "relay of masks", "header of shares"}
"""Fewer and shorter inputs where one takes many milliseconds."""

TOKENS = [
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"18446744073709551616", b"9" * 400, b'""',
    b'"\xff"', b'"\\ud800"', b'"\\u001b[31m"', b"[]", b"{}", b"[[[]]]", b'{"a":{"a":[]}}',
    b"[" * 3000, b'{"":' * 3000, b"-0.0", b"1.5", b'"numpy.ndarray"', b'"../x"', b".inf",
    b"&a [*a]",
]  # fmt: skip
TOKEN = re.compile(rb'"[^"\n]*"|-?\d[\d.eE+-]*|true|false|null|[\[\]{}]')


def cut(data: bytes, a: float, b: float) -> tuple[int, int]:
    """Return two places in the data, in order."""
    low, high = sorted((int(a * len(data)), int(b * len(data))))
    return low, high


@st.composite
def mutations(draw: st.DrawFn, examples: tuple[bytes, ...]) -> bytes:
    """One of the examples, changed in a few places: bytes, lengths, slices and JSON values."""
    data = draw(st.sampled_from(examples))
    for _ in range(draw(st.integers(1, 4))):
        what = draw(st.integers(0, 6))
        low, high = cut(data, draw(st.floats(0, 1)), draw(st.floats(0, 1)))
        if what == 0:
            data = data[:low] + data[high:]
        elif what == 1:
            data = data[:high] + data[low:]
        elif what == 2:
            data = data[:low] + draw(st.binary(max_size=9)) + data[low:]
        elif what == 3:
            number = draw(st.sampled_from([0, 1, 127, 128, 255, 65535, 2**31, 2**32 - 1, 2**63]))
            width = draw(st.sampled_from([1, 2, 4, 8]))
            packed = (number % 256**width).to_bytes(width, draw(st.sampled_from(["big", "little"])))
            data = data[:low] + packed + data[low + width :]
        elif found := [*TOKEN.finditer(data)][:200]:
            one = draw(st.sampled_from(found))
            data = data[: one.start()] + draw(st.sampled_from(TOKENS)) + data[one.end() :]
        else:
            data = draw(st.binary(max_size=64))
    return data


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_read(name):
    assert all(decoders()[name].accepts(example) for example in decoders()[name].examples)


def searching(decoder: Decoder) -> Callable[[], None]:
    """Return the search of one reader, for the test below and for `tools/fuzz`."""

    @settings(
        max_examples=6 if decoder.name in SLOW else 30,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(mutations(decoder.examples))
    def search(data: bytes) -> None:
        decoder.accepts(data)

    return search


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_errors_of_ours(name):
    searching(decoders()[name])()


@pytest.mark.parametrize("name", NAMES)
def test_time_and_memory_are_those_of_the_length(name):
    """A valid input grown in the ways that make readers do more than read."""
    decoder, size = decoders()[name], 500 if name in SLOW else 50_000
    example = decoder.examples[0]
    grown = [example + example[:40] * (size // min(40, len(example)))]
    grown += [seed * (size // len(seed)) for seed in (b"[", b'{"a":', b"9", b"- ", b"\0")]
    for data in grown:
        tracemalloc.start()
        began = time.process_time()
        decoder.accepts(data)
        took, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert took < 5, f"{data[:20]!r} takes {took:.1f} s"
        assert peak < 50e6, f"{data[:20]!r} takes {peak / 1e6:.0f} MB"
