"""Faces, real and forged: data sets from their folders, split by person, cropped and compressed alike."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

try:
    import numpy as np
    import torch

    from benchmarks.reproduction.data.faces import REAL, Faces, Parts, Recipe, Skipped, Source, split
    from benchmarks.reproduction.data.forensics import DFDC, CelebDF, FaceForensics, WildDeepfake
    from benchmarks.reproduction.data.landmarked import Landmarked
    from benchmarks.reproduction.data.manipulate import MANIPULATIONS
    from benchmarks.reproduction.data.pipeline import QUALITIES
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the reproduction's data need {error.name}, which is not installed; pip install 'sia-layers[reproduction]'",
        name=error.name,
    ) from error

__all__ = ["MANIPULATIONS", "QUALITIES", "SOURCES", "Faces", "Parts", "Skipped", "load", "split"]

SOURCES: dict[str, type[Source]] = {
    "landmarked": Landmarked,
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
    cache: Path | None = None,
) -> Parts:
    """Read a data set, and make its pictures, or take them from the cache.

    Args:
        source: a key of ``SOURCES``.
        root: the data set's folder.
        size: side of the pictures in pixels.
        quality: a key of ``QUALITIES``.
        seed: of the split by person, where the data set has none of its own, and of the manipulations.
        people: how many, at most, over all parts; ``None`` for all.
        cache: folder to keep the made pictures in. They are made anew when the data set, the settings or this package
            have changed.

    Raises:
        FileNotFoundError: if there is no such folder, or if it doesn't hold what the source needs.
        ValueError: if an argument is not one of those expected, or a part would lack real or fake pictures.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if quality not in QUALITIES:
        raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
    if size < 16:
        raise ValueError(f"size must be 16 pixels or more, got {size}")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the folder of the data set")
    data = SOURCES[source](root)
    recipe = Recipe(size, quality, seed, people)
    kept = cache / f"{source}-{size}-{quality}-{_key(data, recipe)}.npz" if cache is not None else None
    if kept is not None and (parts := _read(kept)) is not None:
        return parts
    parts = data.parts(recipe)
    _check(parts, root)
    if kept is not None:
        _write(kept, parts)
    return parts


def _check(parts: Parts, root: Path) -> None:
    for part, faces in zip(Parts._fields, parts, strict=True):
        for label, name in enumerate((REAL, "fake")):
            if not (faces.labels == label).any():
                reasons = "; ".join(f"{each.path}: {each.reason}" for each in faces.skipped[:5]) or "nothing"
                raise ValueError(f"{root} has no {name} picture for the {part} part; skipped there: {reasons}")


def _key(data: Source, recipe: Recipe) -> str:
    """Digest of the data, of the settings and of the code that makes the pictures."""
    digest = hashlib.sha256(json.dumps([data.fingerprint(recipe.quality), recipe]).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _write(path: Path, parts: Parts) -> None:
    """Keep the parts, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for part, faces in zip(Parts._fields, parts, strict=True):
        for name in ("images", "labels", "masks"):
            arrays[f"{part}.{name}"] = getattr(faces, name).numpy()
        for name in ("people", "kinds", "skipped"):
            arrays[f"{part}.{name}"] = np.array(json.dumps(getattr(faces, name)))
    path.parent.mkdir(parents=True, exist_ok=True)
    part_file = path.with_name(f".{path.stem}.{os.getpid()}.part.npz")
    try:
        np.savez(part_file, **arrays)
        part_file.replace(path)
    finally:
        part_file.unlink(missing_ok=True)


def _read(path: Path) -> Parts | None:
    """The parts that were kept; ``None`` if there are none, or if the file is broken."""
    try:
        with np.load(path) as arrays:
            return Parts(*(_faces(arrays, part) for part in Parts._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _faces(arrays: np.lib.npyio.NpzFile, part: str) -> Faces:
    images, labels, masks = (torch.from_numpy(arrays[f"{part}.{name}"]) for name in ("images", "labels", "masks"))
    people, kinds, skipped = (json.loads(str(arrays[f"{part}.{name}"])) for name in ("people", "kinds", "skipped"))
    return Faces(images, labels, masks, tuple(people), tuple(kinds), tuple(Skipped(*each) for each in skipped))
