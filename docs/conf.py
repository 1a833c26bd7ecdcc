"""Sphinx's settings. The sources are written by build.py from the notebooks; see there."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sphinx.application import Sphinx  # noqa: E402
from sphinx.pycode import ModuleAnalyzer  # noqa: E402

import protein_atlas  # noqa: E402

project = "protein_atlas"
author = copyright = "The protein_atlas authors"
version = release = protein_atlas.__version__

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax", "sphinx-mathjax-offline",
    "docstrings",
]
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_timeout = 600
nb_execution_show_tb = True  # a notebook that fails is a warning, and so an error: all that do are named
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "Imports of the examples"
nb_ipywidgets_js = {}  # they would be loaded from another host

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
default_role = "code"

# Types of other libraries are named, and not linked: their inventories would have to be fetched. Nor are private ones.
nitpick_ignore_regex = [(r"py:.*", r"(?!protein_atlas\.).*"), (r"py:.*", r"protein_atlas\.[a-z_.]+\._.*")]

html_theme = "furo"
html_title = f"protein_atlas {version}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
exclude_patterns = ["**/.ipynb_checkpoints"]


def read(app: Sphinx, module: str) -> None:
    """Refuse a module of ours that Sphinx cannot read: it would say nothing, list the module's code in its index, and
    write no page of it. `Annotated[str, ...]` says that it is of `builtins`, which have no source."""
    if module.split(".")[0] == "protein_atlas":
        ModuleAnalyzer.for_module(module).analyze()


def setup(app: Sphinx) -> None:
    app.connect("viewcode-find-source", read)
