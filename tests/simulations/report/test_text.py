from __future__ import annotations

import math

import pytest

from qsfl_flower.simulations.report import text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0.0, "0"),
        (12.0, "12"),
        (1234567.0, "1,234,567"),
        (0.24531, "0.2453"),
        (-0.5, "-0.5"),
        (12345.6, "12,346"),
        (1e-7, "1.00e-07"),
        (1.5e30, "1.50e+30"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_decimal(value: float | None, expected: str) -> None:
    assert text.decimal(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (19420, "19.4 kB"),
        (999_600, "1 MB"),
        (1_234_567, "1.23 MB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_size(value: float | None, expected: str) -> None:
    assert text.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (math.inf, "–"),
        (0, "0.0 s"),
        (0.0042, "4.2 ms"),
        (0.042, "42 ms"),
        (0.9999, "1.0 s"),
        (7.34, "7.3 s"),
        (99.97, "1 min 40 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_duration(value: float | None, expected: str) -> None:
    assert text.duration(value) == expected


def test_small_words() -> None:
    assert text.percent(0.9345) == "93.5 %" or text.percent(0.9345) == "93.4 %"
    assert text.percent(None) == "–"
    assert text.count(1, "round") == "1 round"
    assert text.count(2000, "class", "classes") == "2,000 classes"
    assert text.shorten("abcdef", 4) == "abc…"
    assert text.shorten("abcd", 4) == "abcd"


def test_clients_are_named_in_natural_order() -> None:
    assert text.some_clients({"10", "9", "a2", "a10"}) == "clients 9, 10, a2, a10"
    assert text.some_clients(["3"]) == "client 3"
    many = text.some_clients([str(index) for index in range(1500)])
    assert many == "clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1,490 more"


@pytest.mark.parametrize("name", ["²", "1²3", "٣", "9" * 5000, "", "a" * 100])
def test_any_name_can_be_sorted(name: str) -> None:
    assert sorted([name, "1", "b"], key=text.natural)


def test_reasons_in_plain_words() -> None:
    assert text.reason("not-finite") == "held NaN or infinite numbers"
    assert text.reason("brand-new") == "were rejected as 'brand-new'"
