"""The shelves of docs/: every page stands on one, under a title of its own."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SHELVES = ["Tutorials", "How-to guides", "Explanation", "Reference"]


def test_every_page_stands_on_one_of_four_shelves():
    shelves = re.findall(
        r"```\{toctree\}\n:caption: (.+)\n((?:.+\n)+)```", (DOCS / "index.md").read_text()
    )
    assert [caption for caption, _ in shelves] == SHELVES
    listed = [page for _, pages in shelves for page in pages.split()]
    files = {
        str(file.relative_to(DOCS).with_suffix(""))
        for kind in ("*.md", "reference/*.rst")
        for file in DOCS.glob(kind)
    }
    assert sorted(listed) == sorted(files - {"index"})


def test_no_two_pages_have_the_same_title():
    titles = [
        file.read_text().splitlines()[0].lstrip("# ").lower()
        for kind in ("*.md", "reference/*.rst")
        for file in DOCS.glob(kind)
    ]
    assert len(titles) == len(set(titles))
