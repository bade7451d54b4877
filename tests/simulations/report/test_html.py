from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.simulations.report.html import (
    Html,
    clean,
    element,
    folded_table,
    join,
    page,
    table,
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(markup: str) -> Tags:
    parser = Tags()
    parser.feed(markup)
    parser.close()
    return parser


def test_elements() -> None:
    assert element("p", "a", None, 3, element("b", "c")) == "<p>a3<b>c</b></p>"
    assert element("img", alt="x", class_="y", aria_label="z") == (
        '<img alt="x" class="y" aria-label="z">'
    )
    assert element("details", open=True, hidden=False, id=None) == "<details open></details>"


@given(text=st.text())
def test_text_stays_text(text: str) -> None:
    inside = parsed(element("p", text, title=text))
    assert inside.tags == ["p"]
    assert inside.text == clean(text)
    assert inside.attributes == [{"title": clean(text)}]


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'&lt;", "</p>"]
)
def test_markup_in_text_is_escaped(text: str) -> None:
    assert parsed(element("p", text, title=text)).tags == ["p"]
    assert parsed(join([text, element("b")])).tags == ["b"]
    assert parsed(table([text], [[text], [text]], text)).tags.count("table") == 1
    assert "<script>alert" not in page(text, text)


def test_characters_that_deceive_or_break_are_replaced() -> None:
    assert clean("a\x00b\ud800c\u202ed\x1b[0m\x7f") == "a�b�c�d�[0m�"
    assert clean("line\n\tnext ε ✓ é") == "line\n\tnext ε ✓ é"
    clean("\ud800").encode()


def test_a_table_marks_headings_and_numbers() -> None:
    made = table(["Client", "Loss"], [["a", 1.5]], "Clients")
    assert '<th scope="row">a</th><td class="number">1.5</td>' in made
    assert '<th scope="col" class="number">Loss</th>' in made
    assert "<caption>Clients</caption>" in made


def test_a_long_table_folds_and_an_endless_one_is_cut() -> None:
    rows = [[str(index)] for index in range(50)]
    assert "<details>" not in folded_table(["x"], rows[:30], "Rows")
    folded = folded_table(["x"], rows, "Rows")
    assert folded.count("<tr>") == 50 + 2
    assert "<summary>20 more rows</summary>" in folded
    cut = folded_table(["x"], rows, "Rows", most=40)
    assert cut.count("<tr>") == 40 + 2
    assert "10 more rows (10 further rows are only in the run folder)" in cut


def test_a_page_is_inert() -> None:
    made = page("Title", Html("<main></main>"))
    assert made.startswith("<!doctype html>\n<html")
    assert (
        "default-src &#x27;none&#x27;; img-src data:; style-src &#x27;unsafe-inline&#x27;" in made
    )
    assert "width=device-width" in made
    assert set(parsed(made).tags) == {"html", "head", "meta", "title", "style", "body", "main"}
