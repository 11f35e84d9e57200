# SPDX-License-Identifier: Apache-2.0
"""The site of these pages: pip install ".[docs]" && sphinx-build -W -n docs docs/_build/html

Pages are Markdown that reads well by itself. Where they have Python, the site runs it: every block that
begins with ```python becomes a cell of a MyST notebook, and what it prints or draws stands below it. The same
blocks run in tests/test_docs.py. Python that is only to be shown, because it needs another library, begins
with ```py. Pages with {code-cell} blocks run in the site alone.
"""

import os
import pathlib
import re

DOCS = pathlib.Path(__file__).parent

project = "jax-na"
author = "the authors of jax-na"
copyright = "the authors of jax-na, Apache 2.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = "jax-na"
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header"
]  # generated tables begin at a lower level than the page that they stand in

# Notebooks: an error in a cell is an error of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # pages may write files
nb_execution_timeout = 900  # seconds of a cell, on a machine that does other work too
nb_merge_streams = True
nb_render_markdown_format = "myst"
FRONT = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n"
os.environ |= {
    "JAX_PLATFORMS": "cpu",  # the same pages on every machine
    "JAX_NA_TUNING": "off",
    "JAX_NA_DOCS": str(DOCS),  # for pages that read files of the checkout
}

# The reference: docstrings are Google's sections with lines of formulas; single backquotes are code.
default_role = "code"
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Only names of this library can be wrong: nothing is looked up in the network.
nitpick_ignore_regex = [("py:.*", r"(?!jax_na\.|flax_layers\.).*")]


def as_notebook(app, name, source):
    """Python blocks of a page as cells of a notebook."""
    text = source[0]
    if re.search(r"^```python$", text, re.MULTILINE) and not text.startswith("---"):
        source[0] = FRONT + re.sub(r"^```python$", "```{code-cell}", text, flags=re.MULTILINE)


def readable(app, what, name, thing, options, lines):
    """Docstrings as reStructuredText: indented lines between paragraphs are formulas, a star is a star."""
    found, is_code = [], False
    for i, line in enumerate(lines):
        is_new = line.startswith("    ") and i > 0 and not lines[i - 1].strip()
        above = next((text for text in reversed(lines[:i]) if text and not text.startswith(" ")), "")
        if is_new and not is_code and not re.fullmatch(r"\w+:", above):
            found += ["::", ""]
            is_code = True
        is_code = is_code and (not line or line.startswith(" "))
        is_program = is_code or line.lstrip().startswith((">>>", "..."))
        found.append(line if is_program else re.sub(r"(`[^`]*`)|\*(?=[a-z])", star, line))
    lines[:] = found


def star(match):
    """A star outside of code, as in [*spatial], which would begin emphasis."""
    return match[1] or r"\*"


def setup(app):
    app.connect("source-read", as_notebook)
    app.connect("autodoc-process-docstring", readable, priority=100)  # before napoleon
