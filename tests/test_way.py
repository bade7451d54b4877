"""The page that shows the way of an update, against a round that is traced."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_names_the_files_that_an_update_passes():
    passed = runpy.run_path(str(ROOT / "tools" / "way"))["traced"]()
    shown = {}
    sections = (ROOT / "docs" / "way.md").read_text().split("\n## ")[1:]
    for name, _, body in (section.partition("\n") for section in sections):
        rows = re.findall(r"^    qsfl_flower/(\S*) +(.*)$", body, re.MULTILINE)
        files = [f"{folder}{stem}.py" for folder, stems in rows for stem in stems.split(" -> ")]
        shown[name.lower()] = set(files)
    assert shown == {name: set(way) for name, way in passed.items()}, (
        "write the page anew: tools/way --write docs/way.md"
    )
