"""Sphinx configuration: ``sphinx-build -W docs site``."""

from importlib.metadata import version as _version

project = "QSFL-Flower"
author = "The QSFL-Flower authors"
release = _version("qsfl-flower")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = "QSFL-Flower"
exclude_patterns = ["_build"]

# Docstrings: NumPy style in reStructuredText; `name` refers to whatever has that name.
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_generate = False
# Pages: Markdown, also readable where the repository is browsed.
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
