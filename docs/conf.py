"""Sphinx: `sphinx-build -W docs build/docs` makes the pages; a warning is an error."""

from __future__ import annotations

import re
from pathlib import Path

project = "memslots"
author = "The memslots authors"
copyright = author
init = Path(__file__).parent.parent / "memslots" / "__init__.py"
found = re.search(r'^__version__ = "([^"]+)"', init.read_text(), re.MULTILINE)
assert found is not None
release = version = found[1]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
default_role = "py:obj"
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"memslots {release}"
html_static_path = ["_static"]
html_css_files = ["theme.css"]
