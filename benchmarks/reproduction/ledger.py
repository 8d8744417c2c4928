"""Tables that grow run by run and lie in the repository, so that another machine goes on where one stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks import harness

Row = Mapping[str, Any]


class Ledger:
    """A CSV file of rows that some columns tell apart; every row is written as soon as it is added.

    Args:
        path: of the file; it need not be there yet.
        keys: columns that no two rows share the values of.

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
        """All rows, as text."""
        return list(self._rows.values())

    def __contains__(self, values: Sequence[Any]) -> bool:
        return tuple(map(str, values)) in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows, and write the file; a row with the keys of another takes its place, and keeps its other columns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            self._read()  # what another process has added meanwhile
            for row in rows:
                key = self._key(row)
                self._rows[key] = {**self._rows.get(key, {}), **{name: str(value) for name, value in row.items()}}
            harness.write(self.path, self.rows)

    def _read(self) -> None:
        for row in harness.read(self.path) if self.path.exists() else []:
            if missing := [name for name in self.keys if name not in row]:
                raise ValueError(f"{self.path} lacks the columns {', '.join(missing)}; move it away to begin a new one")
            self._rows[self._key(row)] = row

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.keys)
