"""CSV tables in the repository that grow run by run, so that another machine can resume an interrupted study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks import harness

Row = Mapping[str, Any]


class Ledger:
    """A CSV file whose rows are identified by some columns; every row is written as soon as it is added.

    Args:
        path: path of the file, which need not exist.
        keys: columns whose values identify a row.

    Raises:
        ValueError: the file lacks one of the columns.

    Example:
        >>> import tempfile
        >>> ledger = Ledger(Path(tempfile.mkdtemp()) / "runs.csv", ["network", "fold"])
        >>> ledger.add([{"network": "bare", "fold": 0, "AUC": 0.75}])
        >>> ("bare", 0) in ledger, ("bare", 1) in ledger
        (True, False)
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, tuple(keys)
        self._rows: dict[tuple[str, ...], dict[str, str]] = {}
        self._read()

    @property
    def rows(self) -> list[dict[str, str]]:
        """Return all rows, as text."""
        return list(self._rows.values())

    def __contains__(self, values: Sequence[Any]) -> bool:
        return tuple(map(str, values)) in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def refresh(self) -> None:
        """Include the rows that other processes have added."""
        with self._locked():
            self._read()

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows and write the file; a row with existing keys replaces that row, but keeps its other columns."""
        with self._locked():
            self._read()
            for row in rows:
                key = self._key(row)
                self._rows[key] = {**self._rows.get(key, {}), **{name: str(value) for name, value in row.items()}}
            harness.write(self.path, self.rows)

    def _locked(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"))

    def _read(self) -> None:
        for row in harness.read(self.path) if self.path.exists() else []:
            if missing := [name for name in self.keys if name not in row]:
                raise ValueError(
                    f"{self.path} lacks the columns {', '.join(missing)}; move the file away to start a new one"
                )
            self._rows[self._key(row)] = row

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.keys)
