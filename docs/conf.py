"""How Sphinx builds the book. From the repository's root: `python -m sphinx -W --keep-going -c docs . build/book`.

The whole repository is the source folder, so that a relative link means the same here as on GitHub: to another page,
to an image, or to a file of code, for which docs/book.py makes a page. Nothing is fetched from a network, neither while
the book is built nor while it is read.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # for book.py, and for a clone that is not installed

project = "tinyvit"
copyright = "the tinyvit authors"
language = "en"
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["*.md", "docs/**", "benchmarks/*.md", "demos/*.md"]
exclude_patterns = ["**/.*", "build", "dist", "runs", "*venv*"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "book"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # the names that GitHub gives to headings
highlight_language = "text"  # of blocks that name no language

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "tinyvit"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "native"
