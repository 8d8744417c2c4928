"""Your own real and fake pictures, from two folders or from an existing split."""

from __future__ import annotations

import csv
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.reproduction.data.faces import (
    FEWEST,
    FRACTIONS,
    PARTS,
    REAL,
    Faces,
    Parts,
    Recipe,
    Sample,
    Skipped,
    Source,
    limit,
    split,
)
from benchmarks.reproduction.data.pipeline import BrokenPicture, centre_box, finish, read_picture

CLASSES: Final = (REAL, "fake")
PART_OF: Final = {"train": "train", "val": "validation", "test": "test"}
SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TABLE: Final = "groups.csv"
HELD_OUT: Final = (6 / 7, 1 / 7, 0.0)  # shares of train and validation in a train folder without a val folder
NAMED: Final = 5  # number of names to list in a message


class Entry(NamedTuple):
    """A picture file.

    Attributes:
        name: path within the folder, with slashes.
        label: one of ``CLASSES``.
        part: part that its folder assigns it to, if any.
        group: person or video that it shows; the pictures of a group are in one part.
    """

    name: str
    label: str
    part: str | None
    group: str


class Folder(Source):
    """Pictures in ``real`` and ``fake``; or in ``train``, ``test`` and optionally ``val``, each with these two inside.

    Subfolders are searched too. ``groups.csv`` beside them, with the columns ``picture`` (its path within the folder,
    such as ``real/a.png``) and ``group``, defines which pictures show one person or one video; all pictures of a group
    are in one part of the split. A picture without a row is a group of its own. Without a ``val`` folder, a seventh of
    the groups in ``train`` form the validation part; without any split, 60, 10 and 30 % of the groups form the three
    parts, chosen by the recipe's seed. Unreadable files are skipped, with a warning that says how many.

    A picture is cropped to its central square, then resized and compressed like all others.

    Args:
        root: folder of the pictures.
    """

    def fingerprint(self, quality: str) -> str:
        """Return a digest of the table of groups and the pictures' names, sizes and times, for every quality alike."""
        digest = hashlib.sha256()
        for entry in self.entries():
            about = (self.root / entry.name).stat()
            digest.update(f"{entry} {about.st_size} {about.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def parts(self, recipe: Recipe) -> Parts:
        """Return the pictures, made by a recipe.

        Raises:
            FileNotFoundError: if a required folder is missing.
            ValueError: if a folder has no picture, if a group is in two parts, or if the table of groups is invalid.
        """
        entries = self.entries()
        sides = _sides(entries, recipe.seed)
        kept = _limited(sides, _classes(entries), recipe)
        entries = [entry for entry in entries if entry.group in kept]
        samples: dict[str, list[Sample]] = {part: [] for part in PARTS}
        skipped: dict[str, list[Skipped]] = {part: [] for part in PARTS}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = pool.map(lambda entry: self._sample(entry, recipe), entries)
            for entry, one in zip(tqdm(entries, desc=f"pictures {recipe.size} px", unit="picture"), made, strict=True):
                if isinstance(one, Skipped):
                    skipped[sides[entry.group]].append(one)
                else:
                    samples[sides[entry.group]].append(one)
        _warn_of([each for some in skipped.values() for each in some], len(entries))
        return Parts(*(Faces.stack(samples[part], recipe.size, skipped[part]) for part in PARTS))

    def entries(self) -> list[Entry]:
        """Return the picture files, sorted by name.

        Raises:
            FileNotFoundError: if a required folder is missing.
            ValueError: if a folder has no picture, if a group is in two parts, or if the table of groups is invalid.
        """
        found = [
            (path.relative_to(self.root).as_posix(), label, part)
            for part, folder in self._folders().items()
            for label in CLASSES
            for path in _pictures(folder / label)
        ]
        groups = self._groups({name for name, _, _ in found})
        entries = sorted(Entry(name, label, part, groups.get(name, name)) for name, label, part in found)
        parts: dict[str, set[str]] = {}
        for entry in entries:
            parts.setdefault(entry.group, set()).add(entry.part or "")
        if leaked := [group for group, assigned in parts.items() if len(assigned) > 1]:
            raise ValueError(
                f"{len(leaked)} groups of {self.root / TABLE} are in more than one of the folders "
                f"{', '.join(PART_OF)}: {_some(leaked)}; move each into one"
            )
        if not groups:
            _warn_of_names(entries)
        return entries

    def _folders(self) -> dict[str | None, Path]:
        """Return the folders that contain ``real`` and ``fake``, by part; the key is ``None`` if there is no split."""
        whole = [label for label in CLASSES if (self.root / label).is_dir()]
        parts = {part: self.root / name for name, part in PART_OF.items() if (self.root / name).is_dir()}
        if whole and parts:
            raise ValueError(
                f"{self.root} holds both {' and '.join(whole)} and {', '.join(path.name for path in parts.values())}; "
                "keep either the two classes or the split of them"
            )
        if parts and not {"train", "test"} <= parts.keys():
            raise FileNotFoundError(f"{self.root} holds only {_some(path.name for path in parts.values())}; a split "
                                    "needs the folders train and test, and may have val")  # fmt: skip
        if not whole and not parts:
            raise FileNotFoundError(f"{self.root} must hold the folders real and fake, or train and test with these "
                                    "two inside; it holds neither")  # fmt: skip
        return {**parts} if parts else {None: self.root}

    def _groups(self, names: Collection[str]) -> dict[str, str]:
        """Return the group of each picture that the table names; empty without a table."""
        path = self.root / TABLE
        if not path.is_file():
            return {}
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if reader.fieldnames is None or not {"picture", "group"} <= set(reader.fieldnames):
            raise ValueError(f"{path} must have the columns picture and group, got {reader.fieldnames}")
        groups: dict[str, str] = {}
        for number, row in enumerate(rows, 2):
            name, group = (row["picture"] or "").strip(), (row["group"] or "").strip()
            if not name or not group:
                raise ValueError(f"{path}, row {number}: picture and group must not be empty, got {name!r}, {group!r}")
            if groups.setdefault(name, group) != group:
                raise ValueError(f"{path}: {name} is in two groups, {groups[name]!r} and {group!r}; keep one")
        if unknown := [name for name in groups if name not in names]:
            raise ValueError(
                f"{path} names {len(unknown)} pictures that are not in the folder: {_some(unknown)}; "
                "give paths as real/a.png, in the folder"
            )
        if alone := sorted(set(names) - groups.keys()):
            warnings.warn(
                f"{len(alone)} of {len(names)} pictures have no row in {path}, and are groups of their own: "
                f"{_some(alone)}",
                stacklevel=2,
            )
        return groups

    def _sample(self, entry: Entry, recipe: Recipe) -> Sample | Skipped:
        path = self.root / entry.name
        try:
            picture = read_picture(path)
        except BrokenPicture as error:
            return Skipped(str(path), str(error))
        nothing = np.zeros(picture.shape[:2], bool)
        made = finish(picture, nothing, centre_box(picture.shape), recipe.size, recipe.quality)
        return Sample(*made, entry.group, entry.label)


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; pictures must be in {' and '.join(CLASSES)}")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise ValueError(f"{folder} holds no picture; files must end in {', '.join(SUFFIXES)}")
    return found


def _sides(entries: Collection[Entry], seed: int) -> dict[str, str]:
    """Return the part of each group, from its folder or by the seed."""
    own = {entry.group: entry.part for entry in entries if entry.part is not None}
    if "validation" in own.values():
        return own
    sides = {group: part for group, part in own.items() if part == "test"}
    for groups in _classes(entries):
        free = [group for group in groups if group not in sides]
        sides |= split(free, seed, fractions=HELD_OUT if own else FRACTIONS)
    return sides


def _limited(sides: Mapping[str, str], classes: Iterable[Collection[str]], recipe: Recipe) -> dict[str, str]:
    """Keep about as many groups as the recipe asks for: real, fake and mixed groups in proportion."""
    if recipe.people is None:
        return dict(sides)
    kept: dict[str, str] = {}
    for groups in classes:
        share = max(FEWEST * len(PARTS), round(recipe.people * len(groups) / len(sides)))
        kept |= limit({group: sides[group] for group in groups}, share, recipe.seed)
    return kept


def _classes(entries: Iterable[Entry]) -> list[list[str]]:
    """Return the groups with real pictures, with fake ones and with both separately, since no part may lack a class."""
    labels: dict[str, set[str]] = {}
    for entry in entries:
        labels.setdefault(entry.group, set()).add(entry.label)
    found: dict[tuple[str, ...], list[str]] = {}
    for group, classes in labels.items():
        found.setdefault(tuple(sorted(classes)), []).append(group)
    return [found[classes] for classes in sorted(found)]


def _some(names: Iterable[str]) -> str:
    """Format the first few of many names."""
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (", ..." if len(listed) > NAMED else "")


def _warn_of(skipped: Collection[Skipped], count: int) -> None:
    if skipped:
        named = _some(f"{each.path} ({each.reason})" for each in skipped)
        warnings.warn(f"{len(skipped)} of {count} pictures can't be read and are left out: {named}", stacklevel=3)


def _warn_of_names(entries: Iterable[Entry]) -> None:
    """Warn of names that occur in both classes, since they may show one person or one video."""
    stems = Counter(stem for stem, _ in {(Path(entry.name).stem, entry.label) for entry in entries})
    if twice := sorted(stem for stem, count in stems.items() if count > 1):
        warnings.warn(
            f"{len(twice)} names occur in both real and fake: {_some(twice)}. If they are of the same person or video, "
            f"say so in {TABLE}, lest one be trained on and the other tested",
            stacklevel=3,
        )
