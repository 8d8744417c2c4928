"""Render formulas as MathML, which browsers display without scripts or network access."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _display(self: Any, node: nodes.math_block) -> None:
    source = node.astext().strip()
    if r"\\" in source and r"\begin" not in source:
        source = rf"\begin{{align}} {source} \end{{align}}"
    self.body.append(f'<div class="math notranslate">{latex2mathml.tex2mathml(source, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer that ``html_math_renderer`` names."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
