"""FaceForensics++, DFDC, Celeb-DF and WildDeepfake, in their original folders.

The owners of each give access on request. Four evenly spaced frames are taken from each video (.mp4, .avi) or from each
folder of frames. A frame is cropped to the face if there are landmarks in the format of DeepfakeBench (Yan et al.,
NeurIPS 2023 Datasets and Benchmarks): one ``.npy`` per frame, in ``landmarks`` where the frame is in ``frames``.
Otherwise it is cropped to its central square, which suits frames that are already faces but not whole scenes; extract
the faces of those first.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.reproduction.data.clips import PICTURES, VIDEOS, Clip, Forensics, evenly
from benchmarks.reproduction.data.faces import REAL, Skipped

COMPRESSION = {"HQ": "c23", "LQ": "c40"}  # FaceForensics++'s folder for each quality
KINDS = {  # DeepfakeBench's names
    "FF-real": REAL,
    "FF-DF": "Deepfakes",
    "FF-F2F": "Face2Face",
    "FF-FS": "FaceSwap",
    "FF-NT": "NeuralTextures",
    "FF-FH": "FaceShifter",
}
FORGERIES = [kind for kind in KINDS.values() if kind != REAL]
PART_OF = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


class FaceForensics(Forensics):
    """FaceForensics++ (Rössler et al., ICCV 2019), with DeepfakeBench's JSON or in its own folders.

    If ``FaceForensics++.json`` is in the folder or in its ``dataset_json``, it names the videos. Otherwise they are
    those in ``original_sequences/youtube/c23/{frames,videos}`` and
    ``manipulated_sequences/<manipulation>/c23/{frames,videos}``, split by ``train.json``, ``val.json`` and
    ``test.json`` in the folder or in its ``splits``, if these exist. Either tree may lie in a folder
    ``FaceForensics++``. HQ uses c23 and LQ c40. Masks come from ``c23/masks`` (of frames) or ``masks/videos``.

    A person is the number of a source video; the two people of a manipulated video are in the same part. Videos of
    other manipulations, such as DeepFakeDetection, and those without such numbers in their names are skipped.
    """

    def clips(self, quality: str) -> list[Clip | Skipped]:
        """Return the videos of a quality, and those that are unusable.

        Raises:
            ValueError: if a JSON file does not have the expected structure.
        """
        listed = [self.root / "FaceForensics++.json", self.root / "dataset_json" / "FaceForensics++.json"]
        for path in filter(Path.is_file, listed):
            return self._listed(path, COMPRESSION[quality])
        return self._found(COMPRESSION[quality])

    def _tree(self) -> Path:
        inner = self.root / "FaceForensics++"
        return inner if inner.is_dir() else self.root

    def _listed(self, path: Path, compression: str) -> list[Clip | Skipped]:
        try:
            found: list[Clip | Skipped] = []
            for label, parts in _json(path)["FaceForensics++"].items():
                for part, qualities in parts.items():
                    for name, video in qualities.get(compression, {}).items():
                        files = _some(self._tree() / _tail(frame) for frame in video["frames"])
                        found.append(self._clip(files, KINDS[label], name, PART_OF[part]))
            return found
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is not laid out as DeepfakeBench's: {error!r}") from error

    def _found(self, compression: str) -> list[Clip | Skipped]:
        tree, part_of = self._tree(), self._own_split()
        folders = [(REAL, tree / "original_sequences" / "youtube")]
        manipulated = tree / "manipulated_sequences"
        if manipulated.is_dir():
            folders += [(folder.name, folder) for folder in sorted(manipulated.iterdir()) if folder.is_dir()]
        found: list[Clip | Skipped] = []
        for kind, folder in folders:
            for name, files in _videos(folder / compression).items():
                found.append(self._clip(files, kind, name, part_of.get(name)))
        return found

    def _clip(self, files: Path | tuple[Path, ...], kind: str, name: str, part: str | None) -> Clip | Skipped:
        if not files:
            return Skipped(f"{kind}/{name}", "no frames of this video are listed")
        video = files if isinstance(files, Path) else files[0].parent
        if kind not in (REAL, *FORGERIES):
            return Skipped(str(video), f"{kind} is none of the manipulations {', '.join(FORGERIES)}")
        if not re.fullmatch(r"\d+" if kind == REAL else r"\d+_\d+", name):
            wanted = "a number, as 000" if kind == REAL else "two numbers, as 000_003"
            return Skipped(str(video), f"the name of a video of {kind} must be {wanted}")
        if isinstance(files, Path):
            masks = files.parents[2] / "masks" / "videos" / files.name
        else:
            masks = files[0].parents[3] / "c23" / "masks" / name  # c40 has the same
        return Clip(files, kind, tuple(name.split("_")), part, masks if masks.exists() else None)

    def _own_split(self) -> dict[str, str]:
        """Return the part of each video that the official lists of pairs name; empty if there are no lists."""
        part_of: dict[str, str] = {}
        for name in ("train", "val", "test"):
            for path in (
                self.root / f"{name}.json",
                self._tree() / f"{name}.json",
                self.root / "splits" / f"{name}.json",
            ):
                if path.is_file():
                    try:
                        for first, second in _json(path):
                            names = (first, second, f"{first}_{second}", f"{second}_{first}")
                            part_of |= dict.fromkeys(names, PART_OF[name])
                    except (TypeError, ValueError) as error:
                        raise ValueError(f"{path} must be a list of pairs of video numbers: {error}") from error
        return part_of


class DFDC(Forensics):
    """The Deepfake Detection Challenge (Dolhansky et al., 2020).

    Every ``metadata.json`` below the folder describes the videos beside it, or their frames in ``frames/<video>``:
    label, part, and the video that a fake was made from. ``labels.csv`` in ``test`` describes the videos there. A
    person is the source video.
    """

    def clips(self, quality: str) -> list[Clip | Skipped]:
        """Return the videos, the same in every quality, and those that the tables name but that are missing.

        Raises:
            ValueError: if a label is invalid, or a table does not have the expected structure.
        """
        found: list[Clip | Skipped] = []
        for table in sorted(self.root.rglob("metadata.json")):
            videos = _videos(table.parent)
            for name, about in _metadata(table).items():
                if (files := videos.get(Path(name).stem)) is None:
                    found.append(_gone(table, name))
                    continue
                source = Path(about.get("original") or name).stem
                kind = _kind(about.get("label"), {"REAL": REAL, "FAKE": "DFDC"}, table)
                found.append(Clip(files, kind, (source,), PART_OF.get(about.get("split", ""))))
        for table in sorted(self.root.rglob("labels.csv")):
            videos = _videos(table.parent)
            for name, label in _labels(table):
                if (files := videos.get(Path(name).stem)) is None:
                    found.append(_gone(table, name))
                    continue
                kind = _kind(label, {"0": REAL, "1": "DFDC"}, table)
                found.append(Clip(files, kind, (Path(name).stem,), "test"))
        return found


class CelebDF(Forensics):
    """Celeb-DF, v1 or v2 (Li et al., CVPR 2020).

    The videos are in ``Celeb-real``, ``YouTube-real`` and ``Celeb-synthesis``, or their frames in ``frames`` there; a
    fake ``id1_id0_0007`` is ``id1_0007`` with the face of ``id0``. ``List_of_testing_videos.txt`` defines the test part
    by video, since its owners have the same people in train and in test. A person is then a source video, and results
    do not generalise to unseen people. Without the list, people are split, and a fake of two people from different
    parts is skipped.
    """

    tied = False  # nearly all people are connected by swaps, directly or through others

    def clips(self, quality: str) -> list[Clip | Skipped]:
        """Return the videos, the same in every quality, and those that are listed but missing.

        Raises:
            ValueError: if a line of the list is not a label and a path, if the list names none of the videos, or if it
                labels a video in a folder of fakes as real, or the other way round.
        """
        tests = self._tests()
        found: list[Clip | Skipped] = []
        seen: set[str] = set()
        for folder, kind in (("Celeb-real", REAL), ("YouTube-real", REAL), ("Celeb-synthesis", "Celeb-DF")):
            for name, files in _videos(self.root / folder).items():
                ids = [part for part in name.split("_") if part.startswith("id")]
                number = name.rpartition("_")[2]
                people = tuple(ids) if ids else (f"YouTube-{name}",)
                if tests is None:
                    found.append(Clip(files, kind, people))
                    continue
                path = f"{folder}/{name}"
                if tests.get(path, kind == REAL) != (kind == REAL):
                    raise ValueError(f"{self._list()} must label {path} {int(kind == REAL)}, for it is in {folder}")
                seen.add(path)
                people = (f"{people[0]}_{number}",) if ids else people
                found.append(Clip(files, kind, people, "test" if path in tests else "train"))
        if found and tests is not None:
            found += self._missing(tests, seen)
        return found

    def _missing(self, tests: dict[str, bool], seen: set[str]) -> list[Skipped]:
        """Return the listed videos that are missing; raise if the list names none of the videos."""
        missing = sorted(tests.keys() - seen)
        if len(missing) == len(tests):
            raise ValueError(
                f"{self._list()} must list videos that are in {self.root}, as {min(seen)}, got {len(tests)} others"
                + (f", as {missing[0]} (all without suffix)" if missing else "")
            )
        return [Skipped(str(self.root / path), "listed for the test, but there is no such video") for path in missing]

    def _list(self) -> Path:
        return self.root / "List_of_testing_videos.txt"

    def _tests(self) -> dict[str, bool] | None:
        """Return whether each listed video is real, by its path without the suffix; ``None`` if there is no list."""
        path = self._list()
        if not path.is_file():
            return None
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        if wrong := [line for line in lines if len(line) != 2 or line[0] not in ("0", "1")]:
            raise ValueError(f"{path} must have a label and a path in each line, got {' '.join(wrong[0])!r}")
        return {Path(name).with_suffix("").as_posix(): label == "1" for label, name in lines}


class WildDeepfake(Forensics):
    """WildDeepfake (Zi et al., ACM Multimedia 2020): face sequences from the web.

    ``real_train``, ``fake_train``, ``real_test`` and ``fake_test``, in the folder or in its ``deepfake_in_the_wild``,
    contain the unpacked archives: each folder with pictures is a sequence, and each top-level folder is a source video,
    by which the parts are split.
    """

    def clips(self, quality: str) -> list[Clip | Skipped]:
        """Return the sequences, the same in every quality."""
        inner = self.root / "deepfake_in_the_wild"
        tree = inner if inner.is_dir() else self.root
        found: list[Clip | Skipped] = []
        for part in ("train", "test"):
            for label, kind in ((REAL, REAL), ("fake", "WildDeepfake")):
                top = tree / f"{label}_{part}"
                for folder, _, names in sorted(os.walk(top)):
                    if files := _some(Path(folder) / name for name in names if name.lower().endswith(PICTURES)):
                        video = (Path(folder).relative_to(top).parts or ("",))[0]
                        found.append(Clip(files, kind, (f"{label}_{part}/{video}",), part))
        return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _metadata(table: Path) -> dict[str, dict[str, Any]]:
    """Return what a ``metadata.json`` says about each video, by file name."""
    about = _json(table)
    if not isinstance(about, dict) or not all(isinstance(each, dict) for each in about.values()):
        raise ValueError(f"{table} must be an object with an object for each video, got {json.dumps(about)[:60]}")
    return about


def _labels(table: Path) -> list[tuple[str, str]]:
    """Return file name and label of each video in a ``labels.csv``."""
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or [])
        if not {"filename", "label"} <= set(header):
            raise ValueError(f"{table} must have the columns filename, label, got {', '.join(header) or 'none'}")
        return [(row["filename"], row["label"]) for row in reader]


def _gone(table: Path, name: str) -> Skipped:
    return Skipped(str(table.parent / name), f"in {table.name}, but there is no such video")


def _kind(label: Any, kinds: dict[str, str], table: Path) -> str:
    if label not in kinds:
        raise ValueError(f"{table} must label each video {' or '.join(kinds)}, got {label!r}")
    return kinds[label]


def _tail(path: str) -> Path:
    """Return the part of a path below the data set's folder; the path may come from another machine."""
    names = path.replace("\\", "/").split("/")
    for start in ("original_sequences", "manipulated_sequences"):
        if start in names:
            return Path(*names[names.index(start) :])
    raise KeyError(path)


def _videos(folder: Path) -> dict[str, Path | tuple[Path, ...]]:
    """Return videos by name: folders in ``frames``, otherwise files in ``videos``, otherwise files in this folder."""
    if (folder / "frames").is_dir():
        inside = sorted(path for path in (folder / "frames").iterdir() if path.is_dir())
        listed = {
            path.name: _some(file for file in path.iterdir() if file.suffix.lower() in PICTURES) for path in inside
        }
        return {name: files for name, files in listed.items() if files}
    files = folder / "videos" if (folder / "videos").is_dir() else folder
    if not files.is_dir():
        return {}
    return {path.stem: path for path in sorted(files.iterdir()) if path.suffix.lower() in VIDEOS}


def _some(files: Iterable[Path]) -> tuple[Path, ...]:
    """Select frames from a list, sorted by number if their names are numbers."""
    ordered = sorted(files, key=lambda path: (int(path.stem) if path.stem.isdecimal() else -1, path.name))
    return tuple(ordered[index] for index in evenly(len(ordered)))
