"""Sphinx's settings: `make docs` builds the pages of this folder, offline and strictly, into build/docs."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "excl"
author = "the developers of excl"
release = version_of("excl")
extensions = ["myst_parser", "sphinx.ext.autodoc", "command_reference"]
exclude_patterns = ["_ext", "notebooks"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpicky = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
suppress_warnings = ["misc.highlighting_failure"]  # shell examples hold an ellipsis where more may stand
html_theme = "furo"
html_title = f"excl {release}"
html_copy_source = False
