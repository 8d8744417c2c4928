"""Faces, real and forged: data sets from their folders, split by person, cropped and compressed alike."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

try:
    import numpy as np
    import torch

    from benchmarks import harness
    from benchmarks.reproduction.data.faces import FOLDS, REAL, Faces, Parts, Recipe, Skipped, Source, split
    from benchmarks.reproduction.data.folder import Folder
    from benchmarks.reproduction.data.forensics import DFDC, CelebDF, FaceForensics, WildDeepfake
    from benchmarks.reproduction.data.landmarked import Landmarked
    from benchmarks.reproduction.data.manipulate import MANIPULATIONS
    from benchmarks.reproduction.data.pipeline import QUALITIES
    from benchmarks.reproduction.data.portraits import SUBSETS, Person, Portraits, read_files
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the reproduction's data need {error.name}, which is not installed; pip install 'sia-layers[reproduction]'",
        name=error.name,
    ) from error

__all__ = [
    "MANIPULATIONS",
    "QUALITIES",
    "SOURCES",
    "SUBSETS",
    "Faces",
    "Parts",
    "Person",
    "Skipped",
    "files_of",
    "fingerprint_of",
    "load",
    "people_of",
    "prepare",
    "split",
]

# Modules whose code determines the pictures, besides that of the data set itself.
MAKERS = ("clips", "faces", "landmarked", "landmarks", "manipulate", "pipeline")
SOURCES: dict[str, type[Source]] = {
    "landmarked": Landmarked,
    "portraits": Portraits,
    "folder": Folder,
    "faceforensics": FaceForensics,
    "dfdc": DFDC,
    "celebdf": CelebDF,
    "wilddeepfake": WildDeepfake,
}


def load(
    source: str,
    root: Path,
    *,
    size: int,
    quality: str = "HQ",
    seed: int = 0,
    people: int | None = None,
    folds: int = FOLDS,
    cache: Path | None = None,
) -> Parts:
    """Read a data set and make its pictures, or load them from the cache.

    Args:
        source: a key of ``SOURCES``.
        root: the data set's folder.
        size: side of the pictures in pixels.
        quality: a key of ``QUALITIES``.
        seed: seed of the manipulations and of the split by person, if the data set has no split of its own; for
            portraits it counts through folds.
        people: largest number of people over all parts; ``None`` for all.
        folds: number of folds of portraits.
        cache: folder for finished pictures. They are made again when the data set, the settings or this package have
            changed.

    Raises:
        FileNotFoundError: if the folder does not exist or lacks what the source needs.
        ValueError: if an argument is invalid, or a part would lack real or fake pictures.
    """
    data, recipe = _opened(source, root, Recipe(size, quality, seed, people, folds))
    if isinstance(data, Portraits) and cache is not None:
        return data.kept_parts(recipe, _folder(data, recipe, cache))
    kept = cache / f"{source}-{size}-{quality}-{_key(data, recipe)}.npz" if cache is not None else None
    if kept is not None and (parts := _read(kept)) is not None:
        return parts
    parts = data.parts(recipe)
    _check(parts, root)
    if kept is not None:
        _write(kept, parts)
    return parts


def prepare(
    source: str,
    root: Path,
    *,
    size: int,
    quality: str = "HQ",
    seed: int = 0,
    people: int | None = None,
    folds: int = FOLDS,
    cache: Path,
    processes: int = 2,
) -> None:
    """Make the portraits that :func:`load` takes from the cache, for all folds at once and with several processes.

    An interrupted call resumes where it stopped. Other data sets need no preparation: ``load`` makes them as a whole.

    Args:
        source: name of the data set, as for :func:`load`; likewise all other arguments except the last.
        root: the data set's folder.
        size: side of the pictures in pixels.
        quality: a key of ``QUALITIES``.
        seed: seed of any of the folds that share the pictures.
        people: largest number of people.
        folds: number of folds of portraits.
        cache: folder for finished pictures.
        processes: number of processes.
    """
    data, recipe = _opened(source, root, Recipe(size, quality, seed, people, folds))
    if isinstance(data, Portraits):
        data.make(recipe, _folder(data, recipe, cache), processes)


def files_of(
    root: Path, *, size: int, quality: str, people: int | None, cache: Path
) -> tuple[list[bytes], list[str], list[str]]:
    """Return the JPEG files of portraits with the kind and person of each; make those that are missing."""
    data, recipe = _opened("portraits", root, Recipe(size, quality, 0, people))
    assert isinstance(data, Portraits)
    folder = _folder(data, recipe, cache)
    rows = [
        (file, kind, person)
        for person in data.make(recipe, folder, processes=1).folds
        for kind, file in read_files(folder, person).items()
    ]
    files, kinds, names = zip(*rows, strict=True)
    return list(files), list(kinds), list(names)


def fingerprint_of(source: str, root: Path, quality: str = "HQ") -> str:
    """Return a fingerprint that changes when the source data of a quality change."""
    data, recipe = _opened(source, root, Recipe(64, quality, 0, None))
    return data.fingerprint(recipe.quality)[:16]


def people_of(source: str, root: Path) -> dict[str, Person]:
    """Return facts about the people of a data set, by name; empty except for portraits."""
    data = SOURCES[source](root)
    return data.people if isinstance(data, Portraits) else {}


def _opened(source: str, root: Path, recipe: Recipe) -> tuple[Source, Recipe]:
    """Validate the arguments, and return the data set and the recipe."""
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if recipe.quality not in QUALITIES:
        raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {recipe.quality!r}")
    if recipe.size < 16:
        raise ValueError(f"size must be 16 pixels or more, got {recipe.size}")
    if recipe.folds < len(Parts._fields):
        raise ValueError(f"folds must be {len(Parts._fields)} or more, got {recipe.folds}")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the folder of the data set")
    return SOURCES[source](root), recipe


def _folder(data: Portraits, recipe: Recipe, cache: Path) -> Path:
    """Return the folder of the portraits of all folds of a recipe."""
    shared = recipe._replace(seed=recipe.seed // recipe.folds)
    return cache / f"portraits-{recipe.size}-{recipe.quality}-{_key(data, shared)}"


def _check(parts: Parts, root: Path) -> None:
    for part, faces in zip(Parts._fields, parts, strict=True):
        for label, name in enumerate((REAL, "fake")):
            if not (faces.labels == label).any():
                reasons = "; ".join(f"{each.path}: {each.reason}" for each in faces.skipped[:5]) or "nothing"
                raise ValueError(f"{root} has no {name} picture for the {part} part; skipped there: {reasons}")


def _key(data: Source, recipe: Recipe) -> str:
    """Return a digest of the data, of the settings and of the code that makes the pictures."""
    digest = hashlib.sha256(json.dumps([data.fingerprint(recipe.quality), recipe]).encode())
    for name in (*MAKERS, type(data).__module__.rpartition(".")[2]):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def _write(path: Path, parts: Parts) -> None:
    """Save the parts, completely or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for part, faces in zip(Parts._fields, parts, strict=True):
        for name in ("images", "labels", "masks"):
            arrays[f"{part}.{name}"] = getattr(faces, name).numpy()
        for name in ("people", "kinds", "skipped"):
            arrays[f"{part}.{name}"] = np.array(json.dumps(getattr(faces, name)))
    harness.replace(path, lambda part: np.savez(part, **arrays))


def _read(path: Path) -> Parts | None:
    """Return the saved parts; ``None`` if there are none or the file is damaged."""
    try:
        with np.load(path) as arrays:
            return Parts(*(_faces(arrays, part) for part in Parts._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _faces(arrays: np.lib.npyio.NpzFile, part: str) -> Faces:
    images, labels, masks = (torch.from_numpy(arrays[f"{part}.{name}"]) for name in ("images", "labels", "masks"))
    people, kinds, skipped = (json.loads(str(arrays[f"{part}.{name}"])) for name in ("people", "kinds", "skipped"))
    return Faces(images, labels, masks, tuple(people), tuple(kinds), tuple(Skipped(*each) for each in skipped))
