"""Building HTML that cannot be broken by its content.

Text that comes from a run (client names, rejection details, metric names) may be hostile. Elements
are therefore built by `element`, which escapes every child that is not `Html` already; there is no
other way to get text into a page. The page also carries a content security policy that forbids
scripts and requests, so it stays inert even if a mistake is made here.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from qsfl_flower.simulations.report.style import STYLE

_VOID = frozenset({"img", "meta", "br", "wbr"})
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Html(str):
    """Markup that goes into a page as it is; made by the functions of this module only."""

    __slots__ = ()


def clean(text: object) -> str:
    """Return printable text: control, bidirectional and broken characters become ``U+FFFD``."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs"}
        else "\ufffd"
        for character in plain
    )


def element(tag: str, *children: object, **attributes: str | bool | None) -> Html:
    """Build one element.

    Parameters
    ----------
    tag : str
        Name of the element.
    *children : object
        `Html` is taken as it is, None is left out, everything else is cleaned and escaped.
    **attributes : str, bool or None
        Attribute values; a trailing underscore of a name is dropped (``class_``), other
        underscores become hyphens; True gives a bare attribute, None and False give none.

    Returns
    -------
    Html
        The element.
    """
    opening = tag
    for name, value in attributes.items():
        key = name.rstrip("_").replace("_", "-")
        if value is True:
            opening += f" {key}"
        elif value is not None and value is not False:
            opening += f' {key}="{html.escape(clean(value))}"'
    if tag in _VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(children)}</{tag}>")


def join(children: Iterable[object]) -> Html:
    """Put children behind one another, escaping those that are not `Html`."""
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(clean(child))
            for child in children
            if child is not None
        )
    )


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: str,
    text: Collection[int] = (0,),
) -> Html:
    """Build a table that scrolls inside its own box.

    Parameters
    ----------
    head : sequence
        Column headings.
    rows : iterable of sequences
        Cells; the first cell of a row is its heading.
    caption : str
        What the table shows, read out by screen readers.
    text : collection of int
        The columns that hold text; the others hold numbers and are set flush right.

    Returns
    -------
    Html
        The table.
    """

    def cells(row: Sequence[object], tag: str) -> Iterable[Html]:
        for column, cell in enumerate(row):
            kind = None if column in text else "number"
            if tag == "th":
                yield element("th", cell, scope="col", class_=kind)
            elif column == 0:
                yield element("th", cell, scope="row")
            else:
                yield element("td", cell, class_=kind)

    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *cells(head, "th"))),
            element("tbody", *(element("tr", *cells(row, "td")) for row in rows)),
        ),
        class_="scroll",
        role="region",
        aria_label=caption,
        tabindex="0",
    )


def folded_table(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    caption: str,
    text: Collection[int] = (0,),
    shown: int = 30,
    most: int = 1000,
) -> Html:
    """Build a table whose first rows are open and whose others unfold on request.

    Parameters
    ----------
    head, rows, caption, text
        As for `table`.
    shown : int
        Rows that are open.
    most : int
        Rows that are written at all, so that thousands of clients do not choke a phone.

    Returns
    -------
    Html
        One table, and a second one in a ``<details>`` element if there are more rows.
    """
    first = table(head, rows[:shown], caption, text)
    rest = rows[shown:most]
    if not rest:
        return first
    left_out = len(rows) - shown - len(rest)
    summary = f"{len(rest)} more rows"
    if left_out:
        summary += f" ({left_out} further rows are only in the run folder)"
    return join([first, details(summary, table(head, rest, f"{caption}, continued", text))])


def details(summary: str, *children: object) -> Html:
    """Build a part that unfolds on request."""
    return element("details", element("summary", summary), *children)


def page(title: str, *body: object) -> str:
    """Build the whole page: no scripts, no requests, styles inside.

    Parameters
    ----------
    title : str
        Title of the browser window.
    *body : object
        Content, escaped unless it is `Html`.

    Returns
    -------
    str
        The HTML document.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    return "<!doctype html>\n" + element("html", head, element("body", *body), lang="en") + "\n"
