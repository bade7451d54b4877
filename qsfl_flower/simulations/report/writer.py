"""The report of one run."""

from __future__ import annotations

from pathlib import Path

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report.document import document, publish
from qsfl_flower.simulations.report.html import element, join
from qsfl_flower.simulations.report.section import Section, SectionFunction
from qsfl_flower.simulations.report.sections import SECTIONS
from qsfl_flower.simulations.runs import Run


def write_report(folder: Path) -> Path:
    """Write the report of a run: ``plots/*.png`` and a self-contained ``report.html``.

    It does not matter whether the run finished, failed, was interrupted or still goes on. A
    damaged file of the run folder costs the sections that need it; they say so.

    Parameters
    ----------
    folder : Path
        The run folder.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    RunError
        If the folder is no run folder, or cannot be written.
    """
    run = Run.open(folder)
    made = [_section(function, run) for function in SECTIONS]
    sections = [section for section in made if section is not None]
    notes = join(element("p", note, class_="note") for note in run.notes)
    content = document(run.name, notes, sections)
    return publish(content, folder / "report.html", sections, folder / "plots")


def _section(function: SectionFunction, run: Run) -> Section | None:
    try:
        return function(run)
    except RunError as error:
        name = function.__name__
        message = element("p", f"This part is missing. {error}", class_="note bad")
        return Section(name, name.capitalize(), (message,))
