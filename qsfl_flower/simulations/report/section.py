"""What a section of the report is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, element
from qsfl_flower.simulations.runs import Run


@dataclass(frozen=True)
class Row:
    """Pictures and text side by side where there is room, below one another on a phone."""

    cells: tuple[Html | Plot, ...]

    def html(self) -> Html:
        """The row inside a page."""
        cells = (c.html() if isinstance(c, Plot) else element("div", c) for c in self.cells)
        return element("div", *cells, class_="row")


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Parameters
    ----------
    anchor : str
        Name of the part in links, unique on the page.
    title : str
        Heading.
    parts : tuple of Html or Row
        Content from top to bottom.
    """

    anchor: str
    title: str
    parts: tuple[Html | Row, ...]

    @property
    def plots(self) -> tuple[Plot, ...]:
        """The pictures of this part."""
        rows = (part for part in self.parts if isinstance(part, Row))
        return tuple(cell for row in rows for cell in row.cells if isinstance(cell, Plot))

    def html(self) -> Html:
        """The part inside a page."""
        name = f"{self.anchor}-title"
        blocks = (part.html() if isinstance(part, Row) else part for part in self.parts)
        heading = element("h2", self.title, id=name)
        return element("section", heading, *blocks, id=self.anchor, aria_labelledby=name)


SectionFunction = Callable[[Run], Section | None]
