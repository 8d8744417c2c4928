"""Run the benchmarks one after another, and write the tables and plots of docs/performance.md from their CSV files.

``python -m benchmarks all [--quick] [--fresh] [--results FOLDER] [--page FILE]``. Each benchmark runs in a separate
process. Benchmarks whose CSV file exists are skipped, so that an interrupted run resumes where it stopped. ``--fresh``
starts over. With ``--quick``, no page is written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import harness

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs/performance.md"


FIGURES: Final = {"ms": "{} ms", "times": "{}×", "MiB": "{} MiB"}  # columns that share a cell, and their formats


class Part(NamedTuple):
    """A benchmark and its table.

    Attributes:
        module: name of its module.
        columns: columns of its table.
        across: a further column, each of whose values becomes a column with its figures.
        options: command-line options.
        when_whole: further options, except with --quick.
        quick: whether it runs with --quick.
    """

    module: str
    columns: tuple[str, ...]
    across: str = ""
    options: tuple[str, ...] = ()
    when_whole: tuple[str, ...] = ()
    quick: bool = True


PARTS: Final = {
    "op": Part(
        "op", ("map", "K", "S", "dtype", "layout", "pass", "ms", "times"), "provider",
    ),
    "op-memory": Part(
        "op", ("map", "K", "pass", "MiB"), "provider",
        ("--memory", "--kernel-sizes", "3", "7", "--passes", "forward", "both"), quick=False,
    ),
    "op-threads": Part(
        "op", ("map", "K", "ms", "times"), "provider",
        ("--threads", "2", "--kernel-sizes", "3", "7", "--passes", "forward"),
    ),
    "op-maps": Part(
        "op", ("map", "shape", "ms", "times"), "provider",
        ("--maps", "all", "--kernel-sizes", "3", "--passes", "forward"), quick=False,
    ),
    "op-peers": Part("op", ("map", "K", "S", "ms", "times"), "provider", ("--peers",), quick=False),
    "variants": Part("variants", ("map", "K", "variant", "ms", "times plain", "20 %", "80 %")),
    "overhead": Part("overhead", ("call", "shape", "beyond kernels us", "whole us")),
    "scaling": Part("scaling", ("axis", "provider", "slope")),
    "module": Part(
        "module",
        ("map", "layer", "parameters", "forward ms", "times sia", "training ms", "times", "forward MiB",
         "training MiB"),
    ),
    "model": Part(
        "model", ("model", "batch", "pass", "variant", "parameters", "ms", "added %", "20 %", "80 %", "MiB"),
        when_whole=("--models", "efficientnet_b4@380", "resnet50@224"),
    ),
    "limit": Part(
        "limit",
        ("K", "S", "exponentials", "operations", "ns/exp", "ns/fma", "GB/s", "limit ms", "kernel ms", "of limit %"),
    ),
    # This part compiles and counts, and writes its tables to a separate page.
    "gpu": Part("gpu_report", (), when_whole=("--page", "docs/gpu.md", "--plot", "docs/images/gpu.png")),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested parts; the exit code is 0 if all succeeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="+", choices=("all", *PARTS), metavar="PART", help=f"all, {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, in a separate folder")
    parser.add_argument("--fresh", action="store_true", help="repeat parts that already have results")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="folder for the CSV files (benchmarks/results)")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="page whose tables to write (docs/performance.md; with --quick none)"
    )
    given = parser.parse_args(arguments)
    page = given.page or (None if given.quick else PAGE)
    folder = given.results or ROOT / "benchmarks/results" / ("quick" if given.quick else "full")
    every = [name for name, part in PARTS.items() if part.quick or not given.quick]
    chosen = every if "all" in given.parts else [name for name in PARTS if name in given.parts]
    failed = [name for name in chosen if not _run_part(name, folder, given)]
    if page is not None and page.exists():
        page.write_text(filled(page.read_text(), folder))
        draw(folder, page.parent / "images")
        print(f"tables and plots written: {page}")
    return int(bool(failed))


def _run_part(name: str, folder: Path, given: argparse.Namespace) -> bool:
    part, path = PARTS[name], folder / f"{name}.csv"
    if path.exists() and not given.fresh:
        print(f"=== {name}: {path} already exists")
        return True
    print(f"=== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{part.module}", "--csv", str(path), *part.options]
    command += ["--quick"] if given.quick else [*part.when_whole]
    start = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    print(
        f"=== {name}: {'done' if code == 0 else f'failed with exit code {code}'} in {time.monotonic() - start:.0f} s\n"
    )
    return code == 0


def filled(page: str, folder: Path) -> str:
    """Insert the table of every part that has results between its marks on a page."""
    for name, part in PARTS.items():
        path, start, end = folder / f"{name}.csv", f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if path.exists() and start in page and end in page:
            before, _, rest = page.partition(start)
            page = before + start + as_markdown(harness.read(path), part) + end + rest.partition(end)[2]
    return page


def draw(folder: Path, images: Path) -> None:
    """Draw the plot of every part that has results and a plot."""
    from benchmarks import plots  # imports Matplotlib

    for name, drawn in plots.DRAWN.items():
        if (folder / f"{name}.csv").exists():
            drawn(harness.as_numbers(harness.read(folder / f"{name}.csv")), images / f"{name}.png")


def as_markdown(rows: list[dict[str, str]], part: Part) -> str:
    """Format rows as a Markdown table below a line that names the machine, the versions and the commit."""
    first = rows[0]
    heads, lines = _across(rows, part) if part.across else _down(rows, part.columns)
    return "\n".join([
        f"{first['machine']}; {first['threads']} thread(s); {first['versions']}; {first['commit']}, {first['date']}",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines)),
        "",
    ])  # fmt: skip


def _down(rows: list[dict[str, str]], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines, one for each row with a value in the last column."""
    shown = [name for name in columns if any(row.get(name) for row in rows)]
    return shown, [[_rounded(row.get(name, "")) for name in shown] for row in rows if row.get(shown[-1])]


def _across(rows: list[dict[str, str]], part: Part) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines; rows that differ only in ``part.across`` and in their figures share a line."""
    keys = [name for name in part.columns if name not in FIGURES]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        figures = (form.format(_rounded(row[name])) for name, form in FIGURES.items() if row.get(name))
        lines.setdefault(tuple(row[name] for name in keys), {})[row[part.across]] = ", ".join(figures)
    heads = list(dict.fromkeys(row[part.across] for row in rows))
    return [*keys, *heads], [[*key, *(cells.get(head, "") for head in heads)] for key, cells in lines.items()]


def _rounded(cell: str) -> str:
    """Round a number to three significant digits, unless it is a whole number."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return cell if cell.isdecimal() else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
