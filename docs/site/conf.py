"""The documentation site: `make docs`. Sphinx reads the Markdown of docs/ and the docstrings of the package."""

import re
from pathlib import Path

import paragator

DOCS = Path(__file__).parents[1]

project = "paragator"
author = "the paragator maintainers"
release = paragator.__version__
root_doc = "site/contents"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
html_theme = "furo"
html_title = f"paragator {release}"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["wrap.css"]
html_theme_options = {"navigation_with_keys": True}
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_member_order = "bysource"


def as_written(app, what, name, obj, options, lines):
    """Docstrings are prose with tables in columns: a paragraph with columns or an indent is shown as it is written."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    out = []
    for text in paragraphs:
        rows = text.split("\n")
        if any(row.startswith(" ") or re.match(r"\S+( \S+)* {2,}\S", row) for row in rows):
            out += ["::", "", *("   " + row for row in rows), ""]
        else:
            out += [re.sub(r"([*_|\\])", r"\\\1", re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", row)) for row in rows] + [
                ""
            ]
    lines[:] = out


def within(app, name, content):
    """A link to a folder, or to a page outside docs/, is shown as text: the site does not have it."""

    def link(match):
        label, target = match.groups()
        place = ((DOCS / name).parent / target.partition("#")[0]).resolve()
        elsewhere = place.is_dir() or (place.suffix == ".md" and DOCS not in place.parents)
        return label if place.exists() and elsewhere else match[0]

    content[0] = re.sub(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)", link, content[0])


def setup(app):
    app.connect("source-read", within)
    app.connect("autodoc-process-docstring", as_written)
