"""One citation style: authors, "title", year, place; docs/references.md lists every work."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CITATION = re.compile(
    r'[^"]+, "(?P<title>[^"]+)", (\d{4})\. '
    r"(?P<place>arXiv:\d{4}\.\d{4,5}|doi:10\.\S+?|JPL Publication \S+|Internet-Draft \S+?)"
    r"( \(.+\))?\."
)
BOOKS = {
    'D. E. Knuth, "The art of computer programming", volume 3, 1973 (for any number of values).'
}


def citations():
    """Yield every entry of the References sections of the package, on one line."""
    for file in (ROOT / "qsfl_flower").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            _, found, section = (ast.get_docstring(node) or "").partition(
                "References\n----------\n"
            )
            text = section.split("\n\n")[0] if found else ""
            # An entry begins on a line of its own; its place may stand on the next.
            for entry in re.split(r"(?<=\.)\n(?!arXiv:|doi:|JPL|Internet-Draft)", text):
                if entry:
                    yield " ".join(entry.split())


def test_every_citation_says_where_to_find_the_work():
    assert [c for c in citations() if c not in BOOKS and not CITATION.fullmatch(c)] == []


def test_a_work_is_cited_in_one_way_and_listed():
    works = {}
    for citation in citations():
        if found := CITATION.fullmatch(citation):
            works.setdefault(found["place"], set()).add(re.sub(r"( \(.+\))?\.$", ".", citation))
    assert [forms for forms in works.values() if len(forms) > 1] == []
    listed = (ROOT / "docs" / "references.md").read_text()
    lines = {line.removeprefix("- ") for line in listed.splitlines() if line.startswith("- ")}
    assert lines == {forms.pop() for forms in works.values()} | {
        'D. E. Knuth, "The art of computer programming", volume 3, 1973.'
    }
