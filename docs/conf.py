"""How Sphinx builds the site: `make docs`, without a network."""

from __future__ import annotations

from importlib import metadata

project = "ksmpy"
author = "The ksmpy authors"
release = metadata.version("ksmpy")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Pages say "../README.md" and "../bench", which are files of the repository, not of the site.
suppress_warnings = ["myst.xref_missing"]

autodoc_typehints = "description"
# Docstrings put names between single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
# What only a type checker imports.
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}

html_theme = "furo"
html_title = f"ksmpy {release}"
html_show_sphinx = False
