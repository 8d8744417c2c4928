"""Configure the documentation; ``make docs`` builds it and treats every warning as an error."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "sia-layers"
author = "The sia-layers authors"
copyright = f"2026, {author}"
version = release = installed("sia-layers")

extensions = [
    "coverage_table",
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "examples/*.ipynb", "examples/*.zip", "scripts"]
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = f"sia-layers {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a33100", "color-brand-content": "#a33100"},
    "dark_css_variables": {"color-brand-primary": "#ff9a5c", "color-brand-content": "#ff9a5c"},
}
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Doctests see the names that pytest gives them: those of their module.
doctest_global_setup = """
import torch
from torch import nn
from sia_layers import *
from sia_layers.frequency import block_transform, inverse_block_transform
"""

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": r"\.py$",
    "ignore_pattern": "__init__",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 1,
    "write_computation_times": False,  # that page loads scripts from the network
    "copyfile_regex": r".*\.rst",
    "plot_gallery": "True",
    "only_warn_on_example_error": False,
    "abort_on_example_error": True,
}


# Pages at the root of the repository.
AT_THE_ROOT = {
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"\[([^\]]+)\]\(((?!\w+:|#)[^)#\s]+)((?:#[^)]*)?)\)")


def _as_in_the_repository(app: Any, name: str, source: list[str]) -> None:
    """Replace an include of a root page by its text, and links to folders, which have no page, by their names."""
    page = Path(app.env.doc2path(name))
    included = re.fullmatch(r"```{include} \.\./(\w+\.md)\n```\s*", source[0])
    if included is not None:
        app.env.note_dependency(str(HERE.parent / included[1]), docname=name)
        source[0] = LINK.sub(_from_the_root, (HERE.parent / included[1]).read_text(encoding="utf-8"))

    def named(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        return f"{link[1]} (`{target.relative_to(HERE.parent)}/`)" if target.is_dir() else link[0]

    source[0] = LINK.sub(named, source[0])


def _from_the_root(link: re.Match[str]) -> str:
    text, target, anchor = link.groups()
    inside = target.removeprefix("docs/")
    target = AT_THE_ROOT.get(target, inside if inside != target else f"../{target}")
    return f"[{text}]({target}{anchor})"


def setup(app: Any) -> None:
    """Connect to the build."""
    app.connect("source-read", _as_in_the_repository)
