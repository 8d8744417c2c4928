"""Photographs with landmarks, and the forgeries made from them."""

from __future__ import annotations

import csv
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.reproduction.data import manipulate, pipeline
from benchmarks.reproduction.data.faces import (
    FEWEST,
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
from benchmarks.reproduction.data.landmarks import LAYOUTS, Points, layout
from benchmarks.reproduction.data.manipulate import Face
from benchmarks.reproduction.data.pipeline import BrokenPicture, Mask, decode, face_box, read_picture

SUFFIXES = (".png", ".jpg", ".jpeg")
CANDIDATES = 5  # number of people that a swap's donor is chosen from
SMALLEST = 32  # pixels: a smaller face has nothing to manipulate


class Landmarked(Source):
    """A real picture of each person, and a forgery by each of ``manipulate.MANIPULATIONS``.

    The folder contains ``landmarks.csv``, with the columns ``image, x0, y0, x1, y1, ...`` in pixels, and the pictures,
    named as in its first column with or without a suffix, in ``faces/`` or beside the file. One picture is one person.
    The donor of a face swap is another person in the same part.

    Args:
        root: folder of the data set.
    """

    def fingerprint(self, quality: str) -> str:
        """Return a digest of the landmarks, the same for every quality, and of the pictures' names, sizes and times."""
        digest = hashlib.sha256(self._csv().read_bytes())
        for name, path in sorted(self.pictures().items()):
            about = path.stat()
            digest.update(f"{name} {about.st_size} {about.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def parts(self, recipe: Recipe) -> Parts:
        """Return the pictures, made by a recipe.

        Raises:
            ValueError: if the table has no landmarks, or if too few people are usable.
        """
        points, pictures = self.landmarks(), self.pictures()
        sides = limit(split([*points, *pictures], recipe.seed), recipe.people, recipe.seed)
        made = []
        with tqdm(total=len(sides), desc=f"faces {recipe.size} px {recipe.quality}", unit="person") as progress:
            for part in PARTS:
                faces: list[Face] = []
                skipped: list[Skipped] = []
                for person in sorted(name for name, side in sides.items() if side == part):
                    found = read_face(person, pictures.get(person), points.get(person, "no row in landmarks.csv"))
                    if isinstance(found, Face):
                        faces.append(found)
                    else:
                        skipped.append(found)
                progress.update(len(skipped))
                if len(faces) < FEWEST:
                    raise ValueError(_too_few(self.root, part, faces, skipped))
                samples = []
                for face in faces:
                    made_of = forged(face, [other for other in faces if other is not face], recipe)
                    samples += [Sample(decode(file), mask, face.person, kind) for kind, file, mask in made_of]
                    progress.update()
                made.append(Faces.stack(samples, recipe.size, skipped))
        return Parts(*made)

    def _csv(self) -> Path:
        path = self.root / "landmarks.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{self.root} has no landmarks.csv; a folder of landmarked faces needs one")
        return path

    def pictures(self) -> dict[str, Path]:
        """Return the picture files, by name without suffix."""
        folder = self.root / "faces" if (self.root / "faces").is_dir() else self.root
        return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}

    def landmarks(self) -> dict[str, Points | str]:
        """Return the landmarks of each picture, or why they are unusable, by name without suffix."""
        with self._csv().open(newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        count = (len(header) - 1) // 2
        wanted = ["image", *(f"{axis}{index}" for index in range(count) for axis in "xy")]
        if header != wanted or count not in LAYOUTS:
            raise ValueError(
                f"{self._csv()} must have the columns image, x0, y0, x1, y1, ... of {' or '.join(map(str, LAYOUTS))} "
                f"landmarks, got {len(header)}: {', '.join(header[:4])}, ..."
            )
        found: dict[str, Points | str] = {}
        for name, *values in filter(None, rows):
            stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in SUFFIXES else name
            found[stem] = "two rows in landmarks.csv" if stem in found else _points(values, count)
        return found


def _points(values: list[str], count: int) -> Points | str:
    if len(values) != 2 * count:
        return f"{len(values)} numbers in its row of landmarks.csv, expected {2 * count}"
    try:
        points = np.array(values, dtype=np.float64).reshape(count, 2)
    except ValueError as error:
        return f"its row of landmarks.csv: {error}"
    return points if np.isfinite(points).all() else "a landmark is not a finite number"


def read_face(person: str, path: Path | None, points: Points | str) -> Face | Skipped:
    """Return a person's photograph if it and its landmarks exist and match."""
    if path is None or isinstance(points, str):
        return Skipped(person, "no picture" if path is None else str(points))
    try:
        picture = read_picture(path)
    except BrokenPicture as error:
        return Skipped(str(path), str(error))
    height, width = picture.shape[:2]
    face = points[list(layout(points).face)]
    if (face < 0).any() or (face > [width - 1, height - 1]).any():
        return Skipped(str(path), f"its landmarks leave the picture of {width}x{height} pixels")
    if np.ptp(face, axis=0).min() < SMALLEST:
        return Skipped(str(path), f"its landmarks span fewer than {SMALLEST} pixels")
    return Face(person, picture, points)


def forged(face: Face, others: Sequence[Face], recipe: Recipe) -> Iterator[tuple[str, bytes, Mask]]:
    """Make a person's pictures: the photograph and one forgery of each kind.

    Args:
        face: photograph to forge.
        others: candidates for the donor of a face swap.
        recipe: size, quality and seed.

    Yields:
        The kind, the bytes of a JPEG file, and the mask of manipulated pixels, bool (size, size).
    """
    box = face_box(face.points[list(layout(face.points).face)], face.picture.shape)
    nothing = np.zeros(face.picture.shape[:2], bool)
    yield REAL, *pipeline.file(face.picture, nothing, box, recipe.size, recipe.quality)
    for index, kind in enumerate(manipulate.MANIPULATIONS):
        # A person's forgeries do not depend on those of others.
        rng = np.random.default_rng([recipe.seed, zlib.crc32(face.person.encode()), index])
        donor = None if kind in manipulate.ALONE else _donor(face, others, rng)
        picture, mask = manipulate.forge(kind, face, donor, rng)
        yield kind, *pipeline.file(picture, mask, box, recipe.size, recipe.quality)


def _donor(face: Face, others: Sequence[Face], rng: np.random.Generator) -> Face:
    """Return the person with the most similar skin colour among a few random candidates, as a forger would choose."""
    drawn = rng.choice(len(others), size=min(CANDIDATES, len(others)), replace=False)
    colour = manipulate.mean_colour(face.picture, face.points)
    return min(
        (others[index] for index in drawn),
        key=lambda other: float(np.linalg.norm(manipulate.mean_colour(other.picture, other.points) - colour)),
    )


def _too_few(root: Path, part: str, faces: list[Face], skipped: list[Skipped]) -> str:
    reasons = "; ".join(f"{each.path}: {each.reason}" for each in skipped[:5]) or "nothing was skipped"
    return (
        f"{root} leaves {len(faces)} usable faces for the {part} part, which needs {FEWEST}; "
        f"{len(skipped)} skipped ({reasons})"
    )
