"""How the documentation is built: `nox -s docs`, with warnings as errors."""

import importlib.metadata
import os
import re
import warnings
from dataclasses import fields
from typing import Any

import tmpdiff_bench  # silences what third parties print when they are imported

os.environ["TQDM_DISABLE"] = "1"  # bars fill pages
project = "tmpdiff_bench"
author = copyright = "The tmpdiff_bench authors"
release = importlib.metadata.version("tmpdiff_bench")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
html_theme = "furo"
html_title = f"tmpdiff_bench {release}"
html_show_sphinx = False
exclude_patterns = ["gallery"]  # its scripts become pages of first-steps/

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": False}
default_role = "code"  # names in docstrings are in single backticks

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "first-steps",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "copyfile_regex": r".*\.rst",
    "capture_repr": ("_repr_html_", "__repr__"),
}
suppress_warnings = ["config.cache"]  # the gallery's settings hold a function
warnings.filterwarnings("ignore", category=DeprecationWarning)
assert tmpdiff_bench.__name__ == project


def setup(app: Any) -> None:
    """Links that lead out of docs/, into the repository, become the names of their files here, and
    |x| in docstrings is no substitution.
    """

    def named(_app: Any, _page: str, source: list[str]) -> None:
        link = r"(?<!!)\[([^\]]+)\]\(\.\./([^)]+)\)"
        source[0] = re.sub(link, r"\1 (`\2`)", source[0])

    def said(_app: Any, _what: str, name: str, of: Any, _options: Any, lines: list[str]) -> None:
        lines[:] = [line.replace("|", r"\|") for line in lines]
        if of is tmpdiff_bench.Experiment:
            lines += ["", *(f":param {f.name}: {f.metadata['help']}" for f in fields(of))]

    app.connect("source-read", named)
    app.connect("autodoc-process-docstring", said)
