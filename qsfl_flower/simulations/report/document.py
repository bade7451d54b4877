"""From sections to files: the page and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from qsfl_flower import __version__
from qsfl_flower.crypto.files import replace_file
from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report.html import Html, element, page
from qsfl_flower.simulations.report.section import Section


def document(title: str, introduction: Html | None, sections: Sequence[Section]) -> str:
    """Build the page: heading, links, sections, footer."""
    links = (
        element("li", element("a", section.title, href=f"#{section.anchor}"))
        for section in sections
    )
    header = element(
        "header",
        element("h1", title),
        introduction,
        element("nav", element("ul", *links), aria_label="Sections"),
    )
    written = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    footer = element("footer", f"Written by QSFL-Flower {__version__} on {written}.")
    return page(title, element("main", header, *(part.html() for part in sections), footer))


def publish(content: str, out: Path, sections: Sequence[Section], plots: Path) -> Path:
    """Write the page and the pictures; the page appears whole or not at all.

    Parameters
    ----------
    content : str
        The page.
    out : Path
        Where the page goes.
    sections : sequence of Section
        Where the pictures come from.
    plots : Path
        Folder for the pictures, created if there are any.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    RunError
        If a file cannot be written.
    """
    try:
        for plot in (plot for section in sections for plot in section.plots):
            plots.mkdir(parents=True, exist_ok=True)
            replace_file(plots / f"{plot.name}.png", plot.png, 0o644)
        replace_file(out, content.encode(), 0o644)
    except OSError as error:
        raise RunError(f"{error.filename or out}: cannot write the report: {error}") from error
    return out
