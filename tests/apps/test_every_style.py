"""Apps of every style take the chain, or are refused in one sentence; see `every_style`.

Two of them run with the slow tests, a few seconds each. The others need minutes, and the extra
``test-apps``: they run every night.
"""

from __future__ import annotations

import pytest

from tests.apps.every_style import (
    PACKAGES,
    PRESETS,
    STYLES,
    cell,
    chained,
    lines_changed,
    lines_on_page,
    make_keys,
    results_on_page,
    rows,
    source,
)


def test_the_apps_know_nothing_of_the_suite_and_change_by_few_lines():
    assert {p.stem for p in STYLES.glob("*.py")} == set(PACKAGES)
    for name in PACKAGES:
        assert "qsfl" not in source(name).lower()
        for preset in PRESETS:
            compile(chained(name, preset), name, "exec")
            assert lines_changed(name, preset) <= (7 if name == "message_loop" else 5)


def test_the_page_shows_every_app_and_what_is_said():
    found = results_on_page()
    assert list(found) == list(PACKAGES)
    assert rows(found) == lines_on_page()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sklearn_log_loss", "message_loop"])
def test_the_app_fares_as_the_page_says(name, tmp_path):
    keys = make_keys(tmp_path / "keys")
    assert cell(name, "cross_silo", keys) == results_on_page()[name]["cross_silo"] == "yes"
