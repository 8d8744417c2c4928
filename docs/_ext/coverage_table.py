"""The directive ``coverage-table``, which shows a CSV file of models as a searchable table."""

from __future__ import annotations

import csv
import html
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

COLUMNS = ("library", "model", "outcome", "layout", "reductions", "channels", "hosts", "reason")

FIELD = """
<div class="coverage-search">
<input type="search" id="coverage-search" aria-label="Search the table"
 placeholder="resnet, NHWC, refused, several words …">
<span id="coverage-count" aria-live="polite">{count} models</span>
</div>
"""


class CoverageTable(SphinxDirective):
    """A searchable table of the CSV file that the argument names, relative to the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the file and return the table."""
        relative, absolute = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        with Path(absolute).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        head = "".join(f"<th>{column}</th>" for column in COLUMNS)
        body = "\n".join(_row(row) for row in rows)
        table = f'<div class="coverage" tabindex="0"><table id="coverage"><thead><tr>{head}</tr></thead>'
        markup = f"{FIELD.format(count=len(rows))}{table}<tbody>\n{body}\n</tbody></table></div>"
        return [nodes.raw("", markup, format="html")]


def _row(row: dict[str, str]) -> str:
    cells = (f'<td class="{column}">{html.escape(row[column])}</td>' for column in COLUMNS)
    return f"<tr>{''.join(cells)}</tr>"


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("coverage-table", CoverageTable)
    app.add_js_file("coverage.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
