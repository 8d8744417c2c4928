"""Videos of a data set, or their frames: select frames, crop them, and assign them to the parts."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.reproduction.data.faces import (
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
from benchmarks.reproduction.data.pipeline import (
    Box,
    BrokenPicture,
    Mask,
    Picture,
    centre_box,
    face_box,
    finish,
    read_picture,
)

VIDEOS = (".mp4", ".avi")
PICTURES = (".png", ".jpg", ".jpeg")
FRAMES = 4  # frames per video
HELD_OUT = (6 / 7, 1 / 7, 0.0)  # shares of train and validation in a data set's own training part


class Clip(NamedTuple):
    """A video, or its frames.

    Args:
        frames: a video file, or the selected frames of a video.
        kind: ``"real"`` or the name of the manipulation.
        people: identities or source videos; the first is the one whose face was manipulated.
        part: the data set's own part, if any.
        masks: a video, or a folder with a picture named like each frame: white where the frame was manipulated.
    """

    frames: Path | tuple[Path, ...]
    kind: str
    people: tuple[str, ...]
    part: str | None = None
    masks: Path | None = None

    @property
    def name(self) -> str:
        """The path to use in messages."""
        return str(self.frames if isinstance(self.frames, Path) else self.frames[0].parent)


class Frame(NamedTuple):
    """A frame, its mask, and the path that it came from."""

    picture: Picture
    mask: Mask
    path: Path


class Forensics(Source):
    """A data set of videos; subclasses list the videos.

    If the data set's own split has a test part, it is used; its training part is split further by person if there is no
    validation part. Otherwise its people are split. A video whose people are in two parts is skipped. Such videos, and
    unusable ones, count as skipped in train.

    Args:
        root: folder of the data set.
    """

    tied = True  # whether the people in one fake must stay in one part; otherwise such a fake is skipped

    @abstractmethod
    def clips(self, quality: str) -> list[Clip | Skipped]:
        """Return the videos of a quality, and those that are unusable."""

    def fingerprint(self, quality: str) -> str:
        """Return a digest of the list of videos, and of the sizes and times of their files."""
        digest = hashlib.sha256()
        for clip in self.clips(quality):
            if isinstance(clip, Skipped):
                digest.update(f"{clip}\n".encode())
                continue
            paths = (clip.frames,) if isinstance(clip.frames, Path) else clip.frames
            about = [(path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None for path in paths]
            digest.update(f"{clip} {about}\n".encode())
        return digest.hexdigest()

    def parts(self, recipe: Recipe) -> Parts:
        """Return the frames, processed by a recipe.

        Raises:
            FileNotFoundError: if no usable video is found.
        """
        found = self.clips(recipe.quality)
        clips = [each for each in found if isinstance(each, Clip)]
        unused = [each for each in found if isinstance(each, Skipped)]
        if not clips:
            reason = f"; {len(unused)} skipped, the first is {unused[0].path}: {unused[0].reason}" if unused else ""
            name = type(self).__name__
            raise FileNotFoundError(f"{self.root} holds no video or frames of {name} in this quality{reason}")
        if not any(clip.part == "test" for clip in clips):
            clips = [clip._replace(part=None) for clip in clips]
        sides = _sides(clips, recipe.seed, self.tied)
        kept = limit(sides, recipe.people, recipe.seed)
        # If one frame has landmarks, all must, lest real and fake frames be cropped by different rules.
        with_landmarks = any(_landmarks(path).is_file() for clip in clips for path in _pictures(clip)[:1])
        samples: dict[str, list[Sample]] = {part: [] for part in PARTS}
        skipped: dict[str, list[Skipped]] = {part: [] for part in PARTS}
        skipped["train"] += unused
        for clip in tqdm(clips, desc=f"{type(self).__name__} {recipe.size} px {recipe.quality}", unit="video"):
            part = _side(clip, sides)
            if part is None:
                skipped["train"].append(Skipped(clip.name, "its people are on two sides of the split, or on none"))
            elif clip.people[0] in kept:
                for frame in frames(clip):
                    made = frame if isinstance(frame, Skipped) else _finished(frame, clip, with_landmarks, recipe)
                    if isinstance(made, Skipped):
                        skipped[part].append(made)
                    else:
                        samples[part].append(made)
        return Parts(*(Faces.stack(samples[part], recipe.size, skipped[part]) for part in PARTS))


def _sides(clips: Sequence[Clip], seed: int, tied: bool) -> dict[str, str]:
    """Return the part of each person."""
    own: dict[str, str] = {}
    for part in PARTS:  # test comes last: people in a test video belong to test
        for clip in clips:
            if clip.part == part:
                own |= dict.fromkeys(clip.people, part)
    if "test" in own.values() and "validation" in own.values():
        return own
    tests = {person: part for person, part in own.items() if part == "test"}
    people = {person for clip in clips for person in clip.people if not tests or clip.part == "train"} - tests.keys()
    pairs = [(clip.people[0], other) for clip in clips for other in clip.people[1:] if tied]
    forged = people & {person for clip in clips if clip.kind != REAL for person in clip.people}
    sides = dict(tests)
    for group in (forged, people - forged):  # separately, so that each part has fakes
        ties = [pair for pair in pairs if group.issuperset(pair)]
        sides |= split(group, seed, ties, HELD_OUT if tests else FRACTIONS)
    return sides


def _side(clip: Clip, sides: Mapping[str, str]) -> str | None:
    """Return the part of a clip: that of its people, if they share one and it agrees with the data set's split."""
    part, *others = {sides.get(person) for person in clip.people}
    fits = clip.part in (None, part) or (clip.part, part) == ("train", "validation")
    return part if fits and not others else None


def frames(clip: Clip) -> Iterator[Frame | Skipped]:
    """Yield the selected frames of a clip, with their masks."""
    try:
        pictures = _video(clip.frames) if isinstance(clip.frames, Path) else map(read_or_skip, clip.frames)
        masks = _video(clip.masks) if clip.masks is not None and clip.masks.suffix in VIDEOS else None
    except BrokenPicture as error:
        yield Skipped(clip.name, str(error))
        return
    paths = [clip.frames] * FRAMES if isinstance(clip.frames, Path) else clip.frames
    for index, (picture, path) in enumerate(zip(pictures, paths, strict=False)):
        if isinstance(picture, Skipped):
            yield picture
            continue
        shown: Picture | Skipped | None = None
        if masks is not None:
            shown = masks[index] if index < len(masks) else Skipped(str(clip.masks), "fewer frames than the video")
        elif clip.masks is not None and not isinstance(clip.frames, Path):
            shown = read_or_skip(clip.masks / path.with_suffix(".png").name)
        if isinstance(shown, Skipped):
            yield shown
        elif shown is not None and shown.shape != picture.shape:
            yield Skipped(str(path), f"a mask of shape {shown.shape[:2]} on a frame of shape {picture.shape[:2]}")
        else:
            mask = np.zeros(picture.shape[:2], bool) if shown is None else shown.max(2) > 127
            yield Frame(picture, mask, path)


def read_or_skip(path: Path) -> Picture | Skipped:
    """Return a picture from a file, or why it is unusable."""
    try:
        return read_picture(path)
    except BrokenPicture as error:
        return Skipped(str(path), str(error))


def evenly(count: int) -> list[int]:
    """Return indices into ``count`` frames: all, or ``FRAMES`` in the middles of equal stretches if there are more."""
    taken = min(count, FRAMES)
    return [(2 * index + 1) * count // (2 * taken) for index in range(taken)]


def _video(path: Path) -> list[Picture]:
    """Return evenly spaced frames of a video file."""
    reader = cv2.VideoCapture(str(path))
    try:
        found = []
        for index in evenly(int(reader.get(cv2.CAP_PROP_FRAME_COUNT))):
            reader.set(cv2.CAP_PROP_POS_FRAMES, index)
            done, frame = reader.read()
            if done:
                found.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    finally:
        reader.release()
    if not found:
        raise BrokenPicture("no frame of this video can be read" if path.is_file() else "no such file")
    return found


def _pictures(clip: Clip) -> tuple[Path, ...]:
    return () if isinstance(clip.frames, Path) else clip.frames


def _landmarks(path: Path) -> Path:
    """Return DeepfakeBench's path for the landmarks of a frame: ``landmarks`` replaces the last ``frames``."""
    names = list(path.parts)
    if "frames" in names:
        names[len(names) - 1 - names[::-1].index("frames")] = "landmarks"
    return Path(*names).with_suffix(".npy")


def _box(frame: Frame, with_landmarks: bool) -> Box:
    """Return the box of the face.

    Raises:
        BrokenPicture: if the frame should have landmarks but does not.
    """
    if not with_landmarks:
        return centre_box(frame.picture.shape)
    path = _landmarks(frame.path)
    try:
        points = np.load(path).reshape(-1, 2).astype(np.float64)
    except (OSError, ValueError) as error:
        raise BrokenPicture(f"its landmarks {path} can't be read: {error}") from error
    height, width = frame.picture.shape[:2]
    if not (len(points) and ((points >= 0) & (points <= [width, height])).any()):
        raise BrokenPicture(f"its landmarks {path} lie outside of it")
    return face_box(np.clip(points, 0, [width - 1, height - 1]), frame.picture.shape)


def _finished(frame: Frame, clip: Clip, with_landmarks: bool, recipe: Recipe) -> Sample | Skipped:
    try:
        box = _box(frame, with_landmarks)
    except BrokenPicture as error:
        return Skipped(str(frame.path), str(error))
    made = finish(frame.picture, frame.mask, box, recipe.size, recipe.quality)
    return Sample(*made, clip.people[0], clip.kind)
