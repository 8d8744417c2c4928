"""The result files of a task: one row per run, rows by photograph or person, and the table made from them.

A run whose row exists, with the same settings and material, is not repeated: later calls, on any machine, build on the
committed files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import harness
from benchmarks.beyond.networks import VARIANTS
from benchmarks.beyond.task import Row, Task


class Results:
    """The three files of a task in a folder.

    Args:
        folder: folder of the files.
        task: task that they belong to.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self.task = task
        self.table_file, self.runs_file, self.rows_file = (
            folder / f"{task.name}{ending}.csv" for ending in ("", "_runs", "_by_source")
        )

    def runs(self) -> list[dict[str, str]]:
        """Return the rows of all runs, as text; an empty list if there is no file."""
        return harness.read(self.runs_file) if self.runs_file.exists() else []

    def rows(self) -> list[dict[str, str]]:
        """Return the rows by photograph or person, as text; an empty list if there is no file."""
        return harness.read(self.rows_file) if self.rows_file.exists() else []

    def holds(self, wanted: Row) -> bool:
        """Tell whether a run with these settings exists."""
        return any(all(run.get(name) == _as_text(value) for name, value in wanted.items()) for run in self.runs())

    def check(self, wanted: Row) -> None:
        """Refuse a run that cannot share a table with the existing runs.

        Raises:
            ValueError: there are runs with other settings or other material.
        """
        shared = [name for name in wanted if name not in ("network", "seed")]
        for run in self.runs():
            if differing := [name for name in shared if run[name] != _as_text(wanted[name])]:
                raise ValueError(
                    f"{self.runs_file} has runs with another {', '.join(differing)}; choose another folder with "
                    "--results, or remove the task's files there"
                )

    def add(self, run: Row, rows: Sequence[Row]) -> None:
        """Record a run and its rows, replacing one of the same network and seed."""
        place = (run["network"], str(run["seed"]))
        others, runs = (
            [row for row in found if (row["network"], row["seed"]) != place] for found in (self.rows(), self.runs())
        )
        harness.write(self.rows_file, sorted([*others, *rows], key=_rank))
        harness.write(self.runs_file, sorted([*runs, run], key=_rank))  # last, since its row marks the run as complete

    def write_table(self) -> None:
        """Write the table of means and intervals, over the seeds that all networks share: pictures differ by seed."""
        runs = self.runs()
        networks: dict[str, set[str]] = {}
        for run in runs:
            networks.setdefault(run["seed"], set()).add(run["network"])
        everyone = set().union(*networks.values())
        seeds = {seed for seed, found in networks.items() if found == everyone} or set(networks)
        if seeds:
            kept = ([row for row in found if row["seed"] in seeds] for found in (runs, self.rows()))
            harness.write(self.table_file, self.task.summary(*kept))


def _rank(row: Row) -> tuple[int, int]:
    return int(row["seed"]), list(VARIANTS).index(row["network"])


def _as_text(value: object) -> str:
    return "" if value is None else str(value)
