"""Write the tables of docs/beyond-faces.md and the statements that they support, from the CSV files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import harness
from benchmarks.beyond.networks import VARIANTS
from benchmarks.reproduction.report import CsvRow, cell, percent, table, verdict

FEWEST: Final = 5  # seeds below which differences are not judged


def filled(page: str, folder: Path) -> str:
    """Insert every section that has results between its marks on the page.

    Raises:
        ValueError: a mark is missing, or they are in the wrong order.
    """
    for name, section in SECTIONS.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
            raise ValueError(f"the page must hold {start.strip()!r} and {end!r} once, in this order")
        if (folder / f"{name}.csv").exists():
            before, _, rest = page.partition(start)
            page = before + start + section(folder) + end + rest.partition(end)[2]
    return page


def _localisation(folder: Path) -> str:
    rows = harness.read(folder / "localisation.csv")
    wholes = [case for case in ("photographs, all", "faces, all") if any(row["case"] == case for row in rows)]
    parts = [_setting(folder, "localisation")]
    for case in wholes:
        real = _of(rows, "real photograph" if case.startswith("photographs") else "real face")
        parts.append(_wide(rows, case, ("F1", "AUC", "IoU"), ("F1", "AUC"), ("false alarm", real)))
    detail = [case for case in dict.fromkeys(row["case"] for row in rows) if case not in (*wholes, *_REAL)]
    return "\n".join([*parts, _across(rows, detail, "AUC"), _verdicts(rows, wholes, ("F1", "AUC"))])


def _camouflage(folder: Path) -> str:
    rows = harness.read(folder / "camouflage.csv")
    whole, *detail = dict.fromkeys(row["case"] for row in rows)
    return "\n".join(
        [
            _setting(folder, "camouflage"),
            _wide(rows, whole, ("S", "E", "weighted F", "MAE"), ("S", "weighted F")),
            _across(rows, detail, "weighted F"),
            _verdicts(rows, [whole], ("S", "weighted F")),
        ]
    )


def _spoofing(folder: Path) -> str:
    rows = harness.read(folder / "spoofing.csv")
    whole, *detail = dict.fromkeys(row["case"] for row in rows)
    return "\n".join(
        [
            _setting(folder, "spoofing"),
            _wide(rows, whole, ("ACER", "HTER", "AUC"), ("ACER", "AUC")),
            _across(rows, detail, "HTER"),
            _verdicts(rows, [whole], ("ACER", "AUC")),
        ]
    )


_REAL: Final = ("real photograph", "real face")
SECTIONS: Final[dict[str, Callable[[Path], str]]] = {
    "localisation": _localisation,
    "camouflage": _camouflage,
    "spoofing": _spoofing,
}


def _of(rows: Sequence[CsvRow], case: str) -> dict[str, CsvRow]:
    found = {row["network"]: row for row in rows if row["case"] == case}
    return {name: found[name] for name in VARIANTS if name in found}


def _wide(
    rows: Sequence[CsvRow], case: str, measures: Sequence[str], compared: Sequence[str],
    beside: tuple[str, Mapping[str, CsvRow]] | None = None,
) -> str:  # fmt: skip
    """Format a table of one case, with networks as rows and measures and differences from bare as columns."""
    columns = [*measures, *(f"{measure} - bare" for measure in compared)]
    heads = [case, *(name.replace(" - ", " − ") for name in columns), *([] if beside is None else [beside[0]])]
    lines = []
    for name, row in _of(rows, case).items():
        line = [name, *(cell(row, column) for column in columns)]
        if beside is not None:
            line.append(cell(beside[1][name], beside[0]) if name in beside[1] else "")
        lines.append(line)
    return table(heads, lines)


def _across(rows: Sequence[CsvRow], cases: Sequence[str], measure: str) -> str:
    """Format a table of one measure, with networks as rows and cases as columns."""
    found = {case: _of(rows, case) for case in cases}
    names = [name for name in VARIANTS if any(name in of for of in found.values())]
    lines = [[name, *(cell(of[name], measure) if name in of else "" for of in found.values())] for name in names]
    return table([measure, *cases], lines)


def _verdicts(rows: Sequence[CsvRow], cases: Sequence[str], measures: Sequence[str]) -> str:
    """Return what the paired differences from bare support, and the number of intervals that exclude zero."""
    found = [
        (f"{network} − bare, {case}", measure, percent(row, f"{measure} - bare"))
        for measure in measures for case in cases for network, row in _of(rows, case).items()
        if row.get(f"{measure} - bare")
    ]  # fmt: skip
    seeds = min((len(row["seeds"].split()) for case in cases for row in _of(rows, case).values()), default=0)
    if not found or seeds < FEWEST:
        return (
            f"- The tables cover {seeds} of at least {FEWEST} seeds so far. So few seeds cannot separate differences "
            "between networks from those between training runs: nothing is judged here yet.\n"
        )
    lines = [f"- {verdict(what, *figures, f'points of {measure}')}\n" for what, measure, figures in found]
    apart = sum(low > 0 or high < 0 for _, _, (_, low, high) in found)
    return "".join(lines) + (
        f"- {apart} of these {len(found)} intervals exclude zero. They share the bare runs, and none is corrected for "
        "multiple comparisons.\n"
    )


def _setting(folder: Path, name: str) -> str:
    """Return a line on the settings of the figures below it, from the rows of the runs."""
    runs = harness.read(folder / f"{name}_runs.csv")
    seeds = sorted({int(run["seed"]) for run in runs})
    first = runs[0]
    commits, dates = (sorted({run[key] for run in runs}) for key in ("commit", "date"))
    machines, versions = ("; ".join(sorted({run[key] for run in runs})) for key in ("machine", "versions"))
    seconds = [float(run["core seconds"]) for run in runs]
    gains = [float(gain) for run in runs for gain in run["gains"].split()]
    reach = f" Gains of SIA after training: {min(gains):+.2f} to {max(gains):+.2f}." if gains else ""
    return (
        f"{len(runs)} runs, seeds {', '.join(map(str, seeds))}; {first['material']}; {first['size']} pixels, "
        f"{first['epochs']} epochs, {first['train pictures']} training and {first['test pictures']} test pictures at "
        f"seed {seeds[0]}; {min(seconds):.0f} to {max(seconds):.0f} s of one core per training; "
        f"{machines}; {versions}; "
        f"trained at {', '.join(commits)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.{reach}\n"
    )
