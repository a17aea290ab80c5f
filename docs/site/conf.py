"""How Sphinx writes the site. `docs/site/build.py` puts its pages together; nothing is fetched, here or by a reader."""

from __future__ import annotations

from importlib import metadata

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

project = "Glassbox"
release = metadata.version("glassbox-sae")
extensions = ["myst_parser", "sphinx.ext.autodoc", "matplotlib.sphinxext.plot_directive", "sphinx_gallery.gen_gallery"]
root_doc = "README"
templates_path = []
# a class is described where it is defined and where it is offered
suppress_warnings = ["config.cache", "ref.python"]

html_theme = "furo"
html_title = "Glassbox"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]

myst_heading_anchors = 3
default_role = "code"  # docstrings write code between single backticks

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}

plot_formats = [("svg", 96)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = True

sphinx_gallery_conf = {
    "examples_dirs": "docs/tutorials",
    "gallery_dirs": "docs/learn",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_", "__repr__"),
}


class Markdown(SphinxDirective):
    """Reads its content as Markdown, which is how docstrings are written here."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        document = new_document(self.state.document["source"], self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        return document.children


def as_markdown(_app: Sphinx, _what: str, _name: str, _found: object, _options: object, lines: list[str]) -> None:
    lines[:] = [".. markdown::", "", *(f"   {line}" for line in lines), ""]


def setup(app: Sphinx) -> None:
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", as_markdown)
