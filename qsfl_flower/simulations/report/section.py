"""What a section of the report is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from qsfl_flower.simulations.report.figures import Plot
from qsfl_flower.simulations.report.html import Html, element
from qsfl_flower.simulations.runs import Run


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Parameters
    ----------
    anchor : str
        Name of the part in links, unique on the page.
    title : str
        Heading.
    parts : tuple of Html or Plot
        Content from top to bottom; neighbouring plots share a row where there is room.
    """

    anchor: str
    title: str
    parts: tuple[Html | Plot, ...]

    @property
    def plots(self) -> tuple[Plot, ...]:
        """The pictures of this part."""
        return tuple(part for part in self.parts if isinstance(part, Plot))

    def html(self) -> Html:
        """The part inside a page."""
        blocks = []
        for is_plot, group in groupby(self.parts, lambda part: isinstance(part, Plot)):
            if is_plot:
                plots = (part.html() for part in group if isinstance(part, Plot))
                blocks.append(element("div", *plots, class_="figures"))
            else:
                blocks.extend(part for part in group if isinstance(part, Html))
        heading = element("h2", self.title, id=f"{self.anchor}-title")
        return element(
            "section", heading, *blocks, id=self.anchor, aria_labelledby=f"{self.anchor}-title"
        )


SectionFunction = Callable[[Run], Section | None]
