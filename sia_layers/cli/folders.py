"""Find and read the photographs of a command: files, and folders with all their subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sia_layers.cli.common import DRAWING_ADVICE, Refusal, refusing

if TYPE_CHECKING:
    from sia_layers.photo import Photo

MOST_NAMED: Final = 5
PASSED_OVER: Final = "__MACOSX"  # where archives made on macOS keep metadata of every file


class Photos:
    """The photographs that the user names, and those in folders that the user names, in the order of their names.

    A named file must be readable; unreadable files in folders are left out. Hidden files are skipped, and a folder
    that several links lead to is read once.

    Args:
        paths: files and folders.
        without: a folder to skip.

    Attributes:
        paths: the files to read, and whether each was named.
        count: number of photographs read so far.
        left_out: for each path that was left out, the reason.

    Raises:
        Refusal: a folder has no images or cannot be read.
    """

    def __init__(self, paths: Iterable[Path], without: Path | None = None) -> None:
        self.paths: list[tuple[Path, bool]] = []
        self.count = 0
        self.left_out: dict[Path, str] = {}
        self._seen = {_identity(without)} if without is not None and without.is_dir() else set()
        for path in paths:
            if path.is_dir():
                self.paths += [(found, False) for found in self._in_folder(path)]
            else:
                self.paths.append((path, True))

    def read(self) -> Iterator[tuple[Path, Photo]]:
        """Read the photographs one after the other.

        Raises:
            Refusal: a named file cannot be read, or none of the files can.
        """
        with refusing(ImportError, advice=DRAWING_ADVICE):
            from sia_layers import photo

        self.count = 0
        for path, named in self.paths:
            try:
                found = photo.read(path)
            except photo.PhotoError as error:
                if named:
                    raise Refusal(photo.printable(str(error))) from error
                self.left_out[path] = str(error)
                continue
            self.count += 1
            yield path, found
        if not self.count:
            reason = next(self.left_out[path] for path, _ in self.paths if path in self.left_out)
            raise Refusal(f"none of the {len(self.paths)} photographs can be read; {reason}")

    def report(self) -> None:
        """Print how many photographs were read, and which files were left out."""
        from sia_layers.photo import printable

        print(f"photos    {self.count}")
        if self.left_out:
            print(f"left out  {len(self.left_out)}")
        for path in sorted(self.left_out)[:MOST_NAMED]:
            print(f"          {printable(self.left_out[path])}")
        if len(self.left_out) > MOST_NAMED:
            print(f"          and {len(self.left_out) - MOST_NAMED} more")

    def _in_folder(self, folder: Path) -> list[Path]:
        with refusing(ImportError, advice=DRAWING_ADVICE):
            from sia_layers.photo import suffixes

        known, found = suffixes(), []
        for path in self._files(folder):
            if path.suffix.lower() not in known:
                self.left_out[path] = f"{path} does not have the suffix of an image"
            elif not path.is_file():  # reading a pipe could block for ever
                self.left_out[path] = f"{path} is not a regular file"
            else:
                found.append(path)
        if not found:
            raise Refusal(f"neither {folder} nor its subfolders hold a file with the suffix of an image")
        return found

    def _files(self, folder: Path) -> Iterator[Path]:
        left = [folder]
        while left:
            path = left.pop()
            if not path.is_dir():
                yield path
                continue
            try:
                identity, names = _identity(path), sorted(os.listdir(path), reverse=True)
            except OSError as error:
                reason = f"cannot read {path}: {error.strerror}"
                if path == folder:
                    raise Refusal(reason) from error
                self.left_out[path] = reason
                continue
            if identity not in self._seen:
                self._seen.add(identity)
                left += [path / name for name in names if not name.startswith(".") and name != PASSED_OVER]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
