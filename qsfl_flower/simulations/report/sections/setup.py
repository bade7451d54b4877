"""What is needed to run it again: configuration and environment."""

from __future__ import annotations

from qsfl_flower.simulations.report import text
from qsfl_flower.simulations.report.html import details, element, folded_table
from qsfl_flower.simulations.report.section import Section
from qsfl_flower.simulations.runs import Run

_MOST_CHARACTERS = 200_000


def configuration(run: Run) -> Section:
    """Show the resolved configuration as it stands in the file."""
    folder = run.folder.resolve()
    command = element("code", f"qsfl run {folder.parent.name}/{folder.name}/config.yaml")
    return Section(
        "configuration",
        "Configuration",
        (
            element("p", "Everything that affects the result. The same run again: ", command),
            element("pre", text.shorten(run.config_text.rstrip(), _MOST_CHARACTERS), tabindex="0"),
        ),
    )


def environment(run: Run) -> Section:
    """Show the software and the machine."""
    record = run.environment
    git, packages = record.get("git"), record.get("packages")
    revision = git.get("revision") if isinstance(git, dict) else None
    if revision and isinstance(git, dict) and git.get("dirty"):
        revision = f"{revision} with uncommitted changes"
    facts = {
        "Python": record.get("python"),
        "Platform": record.get("platform"),
        "CPUs": record.get("cpus"),
        "Git revision": revision,
    }
    rows = [(name, text.NONE if value is None else value) for name, value in facts.items()]
    parts = [folded_table(("What", "Value"), rows, "Environment", (0, 1))]
    if isinstance(packages, dict) and packages:
        listed = sorted(packages.items(), key=lambda pair: str(pair[0]).lower())
        table = folded_table(("Package", "Version"), listed, "Packages", (0, 1), shown=1000)
        parts.append(details(text.count(len(packages), "package"), table))
    return Section("environment", "Environment", tuple(parts))
