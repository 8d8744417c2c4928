"""Read real data sets in their original folders: COD10K, CAMO and CHAMELEON, and those of face anti-spoofing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.beyond.photographs import SUFFIXES
from benchmarks.beyond.pictures import Made, Parts, Pictures
from benchmarks.reproduction.data.clips import VIDEOS, Clip, Frame, frames, read_or_skip
from benchmarks.reproduction.data.faces import PARTS, REAL, Skipped, split
from benchmarks.reproduction.data.pipeline import Picture, centre_box, crop, resize

IMAGES: Final = ("image", "images", "imgs", "img")
MASKS: Final = ("GT_Object", "GT", "gt", "Mask", "Masks")
GENERAL: Final = {*IMAGES, "train", "test", "traindataset", "testdataset"}  # folder names that name no data set
LIVE: Final = {"live", "real", "genuine", "client", "clientraw", "clientface", "bonafide"}
SPOOF: Final = {"spoof", "attack", "attacks", "fake", "imposter", "imposterraw", "imposterface"}
KINDS: Final = ("print", "photo", "cut", "mask", "replay", "video", "screen", "mobile", "highdef")
OULU: Final = re.compile(r"\d_\d_(\d\d)_([1-5])")
OULU_KINDS: Final = {"1": REAL, "2": "print", "3": "print", "4": "video", "5": "video"}
CASIA: Final = {
    "1": REAL, "2": REAL, "HR_1": REAL, "3": "photo", "4": "photo", "HR_2": "photo", "5": "cut", "6": "cut",
    "HR_3": "cut", "7": "video", "8": "video", "HR_4": "video",
}  # fmt: skip
HELD_OUT: Final = (0.7, 0.3, 0.0)  # shares of train and validation in a data set's own training part
FRACTIONS: Final = (0.5, 0.2, 0.3)


class Pair(NamedTuple):
    """A picture and its camouflage mask: the files, the part, and the data set."""

    image: Path
    mask: Path
    part: str
    data: str


class Presented(NamedTuple):
    """A file of a face: a picture or video, ``"real"`` or the attack, the person, and the part if known."""

    file: Path
    kind: str
    person: str
    part: str | None


def camouflage(root: Path, size: int) -> Parts:
    """Read pictures of camouflaged objects, each resized as a whole to a square; skip those without an object.

    Raises:
        FileNotFoundError: there are no training or no test pictures.
    """
    made: dict[str, list[Made]] = {"train": [], "test": []}
    for pair in camouflage_pairs(root):
        picture, mask = read_or_skip(pair.image), read_or_skip(pair.mask)
        if isinstance(picture, Skipped) or isinstance(mask, Skipped):
            continue
        covered = resize((mask.max(2) > 127).astype(np.float32), size) > 0.5
        if 0 < covered.sum() < covered.size:
            source = f"{pair.data}-{pair.image.stem}"
            made[pair.part].append(Made(resize(picture, size), covered, "camouflage", pair.data, source))
    for part, found in made.items():
        if not found:
            raise FileNotFoundError(
                f"{root} has no camouflaged object for the {part} part; put COD10K or CAMO there, CHAMELEON beside it"
            )
    return Parts(Pictures.stack(made["train"]), None, Pictures.stack(made["test"]))


def camouflage_pairs(root: Path) -> list[Pair]:
    """Find the pictures and masks of COD10K, CAMO and CHAMELEON below a folder.

    Folders of pictures are ``Image``, ``Images`` or ``Imgs``, with ``GT_Object`` or ``GT`` beside them, whose masks
    have the pictures' names and the suffix png. ``Train`` or ``TrainDataset`` in the path marks the training part:

    - COD10K: ``Train/Image``, ``Train/GT_Object``, ``Test/Image``, ``Test/GT_Object``;
    - CAMO: ``Images/Train``, ``Images/Test``, ``GT``;
    - CHAMELEON: ``Imgs``, ``GT``; only for testing;
    - the collections: ``TrainDataset/Imgs`` and ``GT``, ``TestDataset/CAMO/Imgs`` and ``GT``, and so on.
    """
    found = []
    for folder in sorted(each for each in root.rglob("*") if each.is_dir() and each.name.lower() in IMAGES):
        masks = next((folder.parent / name for name in MASKS if (folder.parent / name).is_dir()), None)
        if masks is None:
            continue
        for image in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
            mask = masks / f"{image.stem}.png"
            names = image.relative_to(root).parts[:-1]
            if mask.is_file():
                part = "train" if any(name.lower() in ("train", "traindataset") for name in names) else "test"
                data = next((name for name in names if name.lower() not in GENERAL), root.name)
                found.append(Pair(image, mask, part, data))
    return found


def spoofing(root: Path, size: int, seed: int) -> Parts:
    """Read live faces and attacks, centre-cropped to a square; take four frames of a video.

    The split is the data set's own. If it has no validation part, people from its training part form one; if it has no
    parts at all, the people are split.

    Raises:
        FileNotFoundError: a part lacks live faces or attacks.
    """
    found = spoofing_files(root)
    people = {each.person for each in found if each.part in (None, "train")}
    if not any(each.part == "test" for each in found):
        people = {each.person for each in found}
        found = [each._replace(part=None) for each in found]
        sides = split(people, seed, fractions=FRACTIONS)
    elif not any(each.part == "validation" for each in found):
        found = [each._replace(part=None) if each.part == "train" else each for each in found]
        sides = split(people, seed, fractions=HELD_OUT)
    else:
        sides = dict.fromkeys(people, "train")
    made: dict[str, list[Made]] = {part: [] for part in PARTS}
    skipped = 0
    for each in found:
        for picture in _pictures(each):
            if picture is None:
                skipped += 1
                continue
            square = resize(crop(picture, centre_box(picture.shape)), size)
            part = each.part or sides[each.person]
            made[part].append(Made(square, np.zeros((size, size), bool), each.kind, root.name, each.person))
    if skipped:
        print(f"{root}: {skipped} unreadable files were skipped", file=sys.stderr)
    for part, pictures in made.items():
        if len({picture.kind == REAL for picture in pictures}) < 2:
            raise FileNotFoundError(
                f"{root} lacks live faces or attacks for the {part} part; it has {len(found)} files"
            )
    return Parts(*(Pictures.stack(made[part]) for part in PARTS))


def spoofing_files(root: Path) -> list[Presented]:
    """Find pictures and videos of live faces and attacks below a folder, and label each.

    - OULU-NPU: ``Train_files/1_1_01_1.avi`` (phone, session, person and type); ``Dev_files``, ``Test_files``;
    - CASIA-FASD: ``train_release/1/HR_1.avi`` (person and type); ``test_release``;
    - all others by a folder in the path: ``live`` or ``real`` against ``spoof`` or ``attack`` and the like, and
      ``train``, ``dev`` or ``val``, and ``test`` for the parts, if there are any: Replay-Attack, MSU-MFSD,
      CelebA-Spoof, NUAA, LCC-FASD. The person is ``client001`` in the name, or the folder above ``live`` and ``spoof``,
      or else the file itself; the last is correct only if every file shows another person, and makes the results too
      good otherwise.
    """
    suffixes = (*SUFFIXES, *VIDEOS, ".mov")
    found = []
    for file in sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes):
        names = [name.lower() for name in file.relative_to(root).parts[:-1]]
        part = next((part for name in names if (part := _part(name)) is not None), None)
        if (match := OULU.fullmatch(file.stem)) is not None:
            found.append(Presented(file, OULU_KINDS[match[2]], match[1], part))
        elif file.stem in CASIA and names and names[-1].isdigit():
            found.append(Presented(file, CASIA[file.stem], f"{part}-{names[-1]}", part))
        elif (kind := _kind(names, file.stem.lower())) is not None:
            found.append(Presented(file, kind, _person(names, file.stem), part))
    return found


def _part(name: str) -> str | None:
    starts = {"train": "train", "dev": "validation", "val": "validation", "test": "test"}
    return next((part for start, part in starts.items() if re.match(rf"{start}([a-z]*)?([_-]|$)", name)), None)


def _kind(names: Sequence[str], stem: str) -> str | None:
    """Return "real", the kind of attack by the first word that names one, or None if no folder labels the file."""
    if any(name in LIVE for name in names):
        return REAL
    if not any(name in SPOOF for name in names):
        return None
    return next((kind for kind in KINDS if kind in stem or kind in names), "spoof")


def _person(names: Sequence[str], stem: str) -> str:
    if (match := re.search(r"client\d+", stem.lower())) is not None:
        return match[0]
    place = next(index for index, name in enumerate(names) if name in LIVE | SPOOF)
    above = names[place - 1] if place else ""
    return above if above.isdigit() else stem


def _pictures(each: Presented) -> Iterator[Picture | None]:
    """Yield the frames of a file, or None if it cannot be read."""
    whole = each.file if each.file.suffix.lower() not in SUFFIXES else (each.file,)
    for frame in frames(Clip(whole, each.kind, (each.person,))):
        yield frame.picture if isinstance(frame, Frame) else None
