"""Portraits from several eras, in colour and in grey, in one table of people; each person is tested once.

The pictures are made once for all folds: the donor of a face swap comes from the same fold, so that the two people are
always in the same part. The pictures are stored as JPEG files per person, so that an interrupted call resumes where it
stopped.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.reproduction import jobs
from benchmarks.reproduction.data.faces import FEWEST, Faces, Parts, Recipe, Sample, Skipped, Source, deal
from benchmarks.reproduction.data.landmarked import Landmarked, forged, read_face
from benchmarks.reproduction.data.landmarks import Points
from benchmarks.reproduction.data.manipulate import Face, without_colour
from benchmarks.reproduction.data.pipeline import decode

ERAS: Final = ("old", "middle", "modern")
TABLE: Final = "people.csv"
INDEX: Final = "people.json"
AT_ONCE: Final = 16  # people per job


class Person(NamedTuple):
    """Facts about a person, who is in one photograph.

    Attributes:
        name: folder and picture, such as ``london_faces/001_03``.
        source: name of the folder.
        era: one of ``ERAS``.
        colour: whether the photograph has real colour rather than a tone or a stain.
    """

    name: str
    source: str
    era: str
    colour: bool

    @property
    def stratum(self) -> str:
        """Return the class that the donor of a face swap shares, and that is spread evenly over the folds."""
        return f"{self.source}, {self.era}, {'colour' if self.colour else 'grey'}"


SUBSETS: Final[dict[str, Callable[[Person], bool]]] = {
    "all": lambda person: True,
    "modern colour": lambda person: person.colour and person.era == "modern",
    "old prints": lambda person: not person.colour and person.era != "modern",
}


class Dealt(NamedTuple):
    """The fold of each person, and the people who could not be used."""

    folds: dict[str, int]
    skipped: tuple[Skipped, ...]


class Portraits(Source):
    """One photograph of each person, real and forged in each of four ways, with known colour and era.

    The folder is one that :class:`Landmarked` accepts, or contains several of them, whose people are combined. Each may
    contain ``people.csv`` with the columns ``image``, ``colour`` (yes or no) and ``era`` (old, middle or modern), and
    any others; without it all its photographs count as modern and coloured. Photographs without real colour are
    converted to grey, and so are their forgeries. The donor of a face swap comes from the same folder, era and colour
    class, and from the same fold.

    A recipe's seed counts through folds: with 8 folds, seeds 0 to 7 test folds 0 to 7, so each person once; seeds 8 to
    15 repeat this with people dealt and pictures forged anew. The fold after the test fold is the validation part, and
    all others are the training part.

    Args:
        root: folder of the portraits.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        folders = [root] if (root / "landmarks.csv").is_file() else sorted(root.iterdir())
        self.folders = {each.resolve().name: Landmarked(each) for each in folders if (each / "landmarks.csv").is_file()}
        if not self.folders:
            raise FileNotFoundError(f"neither {root} nor a folder in it has landmarks.csv; portraits need one")

    def fingerprint(self, quality: str) -> str:
        """Return a digest of the tables, the same for every quality, and of the pictures' names, sizes and times."""
        digest = hashlib.sha256()
        for name, folder in self.folders.items():
            table = folder.root / TABLE
            text = table.read_text(encoding="utf-8-sig") if table.is_file() else None
            digest.update(json.dumps([name, folder.fingerprint(quality), text]).encode())
        return digest.hexdigest()

    @functools.cached_property
    def people(self) -> dict[str, Person]:
        """Return the table of all people with a picture or landmarks, by name.

        Raises:
            ValueError: if a ``people.csv`` lacks a column or a picture, or has an invalid value.
        """
        return {
            person.name: person
            for name, (pictures, points) in self._contents.items()
            for person in _people(name, self.folders[name].root, sorted({*pictures, *points}))
        }

    @functools.cached_property
    def _contents(self) -> dict[str, tuple[dict[str, Path], dict[str, Points | str]]]:
        """The pictures and landmarks of every folder."""
        return {name: (folder.pictures(), folder.landmarks()) for name, folder in self.folders.items()}

    def parts(self, recipe: Recipe) -> Parts:
        """Return the pictures, made by a recipe, without storing them.

        Raises:
            ValueError: if there are too few people for the folds.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.kept_parts(recipe, Path(folder))

    def kept_parts(self, recipe: Recipe, folder: Path) -> Parts:
        """Return the pictures of a recipe: take those that exist from a folder, and store the others there."""
        dealt = self.make(recipe, folder, processes=1)
        test = recipe.seed % recipe.folds
        validation = (test + 1) % recipe.folds
        samples: tuple[list[Sample], ...] = ([], [], [])
        for person, fold in dealt.folds.items():
            samples[{test: 2, validation: 1}.get(fold, 0)].extend(_read(folder, person, recipe.size))
        skipped = (dealt.skipped, (), ())
        return Parts(*(Faces.stack(some, recipe.size, why) for some, why in zip(samples, skipped, strict=True)))

    def make(self, recipe: Recipe, folder: Path, processes: int) -> Dealt:
        """Make the pictures of a recipe that a folder lacks, and store them there.

        Args:
            recipe: recipe; only the round of its seed matters, which all folds share.
            folder: folder for these pictures alone.
            processes: number of processes.

        Raises:
            ValueError: if there are too few people for the folds.
            RuntimeError: if some could not be made.
        """
        recipe = recipe._replace(seed=recipe.seed // recipe.folds)
        dealt = self._dealt(recipe, folder)
        groups: dict[tuple[int, str], list[str]] = {}
        for name, fold in dealt.folds.items():
            groups.setdefault((fold, self.people[name].stratum), []).append(name)
        todo = []
        for group in groups.values():
            missing = [name for name in group if not _file(folder, name).exists()]
            for first in range(0, len(missing), AT_ONCE):
                some = missing[first : first + AT_ONCE]
                todo.append(jobs.Job(some[0], len(some), _make, (self.root, recipe, some, group, folder)))
        errors = jobs.run(todo, processes, f"faces {recipe.size} px {recipe.quality}")[1]
        if errors:
            raise RuntimeError(f"{len(errors)} batches of pictures failed, the first: {min(errors.values())}")
        return dealt

    def faces(self, people: Iterable[str]) -> dict[str, Face | Skipped]:
        """Read the photographs of people, or say why they are unusable."""
        found = dict[str, Face | Skipped]()
        for name in people:
            pictures, points = self._contents[self.people[name].source]
            stem = name.partition("/")[2]
            face = read_face(name, pictures.get(stem), points.get(stem, "no row in landmarks.csv"))
            if isinstance(face, Face) and not self.people[name].colour:
                face = face._replace(picture=without_colour(face.picture))
            found[name] = face
        return found

    def _dealt(self, recipe: Recipe, folder: Path) -> Dealt:
        """Read each person's fold from the folder, or deal people and write the result there."""
        if (folder / INDEX).exists():
            saved = json.loads((folder / INDEX).read_text())
            return Dealt(saved["folds"], tuple(Skipped(*each) for each in saved["skipped"]))
        found = self.faces(self.people)
        skipped = [each for each in found.values() if isinstance(each, Skipped)]
        strata: dict[str, list[str]] = {}
        for name, face in found.items():
            if isinstance(face, Face):
                strata.setdefault(self.people[name].stratum, []).append(name)
        usable: dict[str, str] = {}
        for stratum, names in _limited(strata, recipe).items():
            if len(names) < FEWEST:
                skipped += [Skipped(name, f"the only one of {stratum!r}: a face swap needs a donor") for name in names]
            else:
                usable |= dict.fromkeys(names, stratum)
        if not usable:
            reasons = "; ".join(f"{each.path}: {each.reason}" for each in skipped[:5])
            raise ValueError(f"{self.root} leaves no usable face; {len(skipped)} skipped ({reasons})")
        dealt = Dealt(deal(usable, recipe.folds, recipe.seed), tuple(skipped))
        harness.replace(folder / INDEX, lambda path: path.write_text(json.dumps(dealt._asdict())))
        return dealt


def _people(source: str, root: Path, images: Sequence[str]) -> list[Person]:
    """Return the people of a folder, whose pictures are named ``images``."""
    path = root / TABLE
    if not path.is_file():
        return [Person(f"{source}/{image}", source, "modern", True) for image in images]
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if missing := [name for name in ("image", "colour", "era") if name not in (reader.fieldnames or ())]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    found: dict[str, Person] = {}
    for row in rows:
        stem, colour, era = Path(row["image"]).stem, row["colour"], row["era"]
        if colour not in ("yes", "no") or era not in ERAS:
            raise ValueError(
                f"{path}: colour must be yes or no and era one of {', '.join(ERAS)}, got {colour!r} and {era!r} for "
                f"{row['image']}"
            )
        found[stem] = Person(f"{source}/{stem}", source, era, colour == "yes")
    if unknown := [image for image in images if image not in found]:
        raise ValueError(f"{path} has no row for {len(unknown)} pictures, the first is {unknown[0]}")
    return [found[image] for image in images]


def _limited(strata: dict[str, list[str]], recipe: Recipe) -> dict[str, list[str]]:
    """Keep about as many people as the recipe asks for: a proportional share of every stratum, but at least two."""
    count = sum(map(len, strata.values()))
    if recipe.people is None or recipe.people >= count:
        return strata
    generator, kept = np.random.default_rng(recipe.seed), dict[str, list[str]]()
    for stratum, names in sorted(strata.items()):
        drawn = generator.permutation(len(names))[: max(FEWEST, round(recipe.people * len(names) / count))]
        kept[stratum] = sorted(names[index] for index in drawn)
    return kept


def _make(root: Path, recipe: Recipe, people: Sequence[str], group: Sequence[str], folder: Path) -> None:
    """Make the pictures of people with donors from their group, in any process."""
    faces = [face for face in Portraits(root).faces(group).values() if isinstance(face, Face)]
    for face in faces:
        if face.person in people:
            others = [other for other in faces if other is not face]
            made = list(forged(face, others, recipe))
            harness.replace(_file(folder, face.person), functools.partial(_write, made))


def _file(folder: Path, person: str) -> Path:
    return folder / f"{person}.npz"


def _write(made: Sequence[tuple[str, bytes, np.ndarray]], path: Path) -> None:
    files = {kind: np.frombuffer(file, np.uint8) for kind, file, _ in made}
    np.savez(path, masks=np.packbits([mask for _, _, mask in made], axis=-1), **files)


def read_files(folder: Path, person: str) -> dict[str, bytes]:
    """Return the stored JPEG files of a person, by kind."""
    with np.load(_file(folder, person)) as stored:
        return {kind: stored[kind].tobytes() for kind in stored.files if kind != "masks"}


def _read(folder: Path, person: str, size: int) -> list[Sample]:
    with np.load(_file(folder, person)) as stored:
        masks = np.unpackbits(stored["masks"], axis=-1, count=size).astype(bool)
    files = read_files(folder, person)
    return [Sample(decode(file), mask, person, kind) for (kind, file), mask in zip(files.items(), masks, strict=True)]
