"""Run the benchmarks one after the other, and write the tables of docs/performance.md from what they measured.

``python -m benchmarks all [--quick] [--fresh] [--results FOLDER]``. Each benchmark runs in a process of its own and
leaves a CSV, and a plot where it has one; those whose CSV is there already are not run again, so that an interrupted
run goes on where it stopped. ``--fresh`` starts over.
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
IMAGES: Final = ROOT / "docs/images"


class Part(NamedTuple):
    """A benchmark: its module, its table's columns, its options, those of the whole run alone, and where it runs."""

    module: str
    columns: tuple[str, ...]
    options: tuple[str, ...] = ()
    when_whole: tuple[str, ...] = ()
    quick: bool = True  # whether the quick run has it
    plots: bool = True


PARTS: Final = {
    "op": Part(
        "op", ("map", "K", "S", "dtype", "layout", "pass", "provider", "ms", "MiB", "times"), when_whole=("--memory",),
    ),
    "op-threads": Part(
        "op", ("map", "K", "pass", "provider", "ms", "times"),
        ("--threads", "2", "--kernel-sizes", "3", "7", "--passes", "forward"), plots=False,
    ),
    "op-maps": Part(
        "op", ("map", "K", "pass", "provider", "ms", "times"),
        ("--maps", "all", "--kernel-sizes", "3", "--passes", "forward"), quick=False, plots=False,
    ),
    "scaling": Part("scaling", ("axis", "provider", "slope")),
    "module": Part(
        "module",
        ("map", "layer", "parameters", "forward ms", "times sia", "training ms", "times", "forward MiB",
         "training MiB"),
    ),
    "model": Part(
        "model", ("model", "batch", "pass", "variant", "parameters", "ms", "added %", "20 %", "80 %", "MiB"),
    ),
    "limit": Part(
        "limit",
        ("K", "S", "exponentials", "operations", "ns/exp", "ns/fma", "GB/s", "limit ms", "kernel ms", "of limit %"),
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code is 0 if every part ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="+", choices=("all", *PARTS), metavar="PART", help=f"all, {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, in a folder of their own")
    parser.add_argument("--fresh", action="store_true", help="run parts again whose results are there already")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where the CSV files go (benchmarks/results)")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="whose tables to write (%(default)s)")
    given = parser.parse_args(arguments)
    folder = given.results or ROOT / "benchmarks/results" / ("quick" if given.quick else "full")
    every = [name for name, part in PARTS.items() if part.quick or not given.quick]
    chosen = every if "all" in given.parts else [name for name in PARTS if name in given.parts]
    failed = [name for name in chosen if not _ran(name, folder, given)]
    if given.page.exists():
        given.page.write_text(filled(given.page.read_text(), folder))
        print(f"tables written: {given.page}")
    return int(bool(failed))


def _ran(name: str, folder: Path, given: argparse.Namespace) -> bool:
    part, path = PARTS[name], folder / f"{name}.csv"
    if path.exists() and not given.fresh:
        print(f"=== {name}: {path} is there already")
        return True
    print(f"=== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{part.module}", "--csv", str(path), *part.options]
    command += ["--quick"] if given.quick else [*part.when_whole]
    # A quick run's plots lie beside its figures, those of the whole one where the page shows them.
    command += (
        ["--plot", str((folder if given.quick or given.results else IMAGES) / f"{name}.png")] if part.plots else []
    )
    start = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    print(
        f"=== {name}: {'done' if code == 0 else f'failed with exit code {code}'} in {time.monotonic() - start:.0f} s\n"
    )
    return code == 0


def filled(page: str, folder: Path) -> str:
    """A page with the table of every part that has results put between its marks."""
    for name, part in PARTS.items():
        path, start, end = folder / f"{name}.csv", f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if path.exists() and start in page and end in page:
            before, _, rest = page.partition(start)
            page = before + start + as_markdown(harness.read(path), part.columns) + end + rest.partition(end)[2]
    return page


def as_markdown(rows: list[dict[str, str]], columns: Sequence[str]) -> str:
    """Rows as a table in Markdown, with what they were measured on above it."""
    shown = [name for name in columns if any(row.get(name) for row in rows)]
    first = rows[0]
    lines = [
        f"{first['machine']}; {first['threads']} thread(s); {first['versions']}; {first['commit']}, {first['date']}",
        "",
        f"| {' | '.join(shown)} |",
        "|" + "---|" * len(shown),
        *(f"| {' | '.join(_rounded(row.get(name, '')) for name in shown)} |" for row in rows if row.get(shown[-1])),
    ]
    return "\n".join(lines) + "\n"


def _rounded(cell: str) -> str:
    """Three digits of what is no whole number."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return cell if cell.isdecimal() else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
