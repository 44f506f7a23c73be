"""How Sphinx builds these pages: `nox -s docs`, a warning is an error."""

import tomllib
from pathlib import Path

# Read, not imported: building the pages needs neither the package nor MLflow installed.
_project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

project = _project["name"]
version = release = _project["version"]
author = _project["authors"][0]["name"]
project_copyright = author

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = project
