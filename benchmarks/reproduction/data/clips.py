"""Videos, or their frames, of a data set: which frames are taken, where they are cropped, which side they are on."""

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
FRAMES = 4  # of a video
HELD_OUT = (6 / 7, 1 / 7, 0.0)  # train and validation, of what a data set calls train


class Clip(NamedTuple):
    """A video, or its frames.

    Args:
        frames: a video file, or the frames to take of one.
        kind: ``"real"`` or the name of the manipulation.
        people: identities or source videos; the first is the one whose face was changed.
        part: the part that the data set itself puts it in, if any.
        masks: a video, or a folder with a picture of each frame's name: white where the frame was changed.
    """

    frames: Path | tuple[Path, ...]
    kind: str
    people: tuple[str, ...]
    part: str | None = None
    masks: Path | None = None

    @property
    def name(self) -> str:
        """The path to speak of it by."""
        return str(self.frames if isinstance(self.frames, Path) else self.frames[0].parent)


class Frame(NamedTuple):
    """A frame, where it was changed, and the path it came from."""

    picture: Picture
    mask: Mask
    path: Path


class Forensics(Source):
    """A data set of videos; a subclass says which there are.

    The split is the data set's own where it has one with a test part; what it calls train is split further by person
    if it has no validation part. Otherwise its people are split. A video whose people are on two sides is skipped.
    Such videos, and those that can't be used, count as skipped in train.

    Args:
        root: the folder.
    """

    tied = True  # whether people who are in one fake must stay on one side; else such a fake is skipped

    @abstractmethod
    def clips(self, quality: str) -> list[Clip | Skipped]:
        """The videos that there are in a quality, and those that can't be used."""

    def fingerprint(self, quality: str) -> str:
        """Digest of what the videos are, and of the sizes and times of their files."""
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
        """The frames, made by a recipe.

        Raises:
            FileNotFoundError: if no video is found that can be used.
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
        # Where one has landmarks all must, lest real and fake be cropped by different rules.
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
    """The part of each person."""
    own: dict[str, str] = {}
    for part in PARTS:  # test comes last: who is in a test video is in test
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
    for group in (forged, people - forged):  # each for itself, so that each part has fakes
        ties = [pair for pair in pairs if group.issuperset(pair)]
        sides |= split(group, seed, ties, HELD_OUT if tests else FRACTIONS)
    return sides


def _side(clip: Clip, sides: Mapping[str, str]) -> str | None:
    """The part of a clip: its people's, if they have one, and if the data set's own doesn't speak against it."""
    part, *others = {sides.get(person) for person in clip.people}
    fits = clip.part in (None, part) or (clip.part, part) == ("train", "validation")
    return part if fits and not others else None


def frames(clip: Clip) -> Iterator[Frame | Skipped]:
    """The frames to take of a clip, with their masks."""
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
    """A picture file, or why it can't be used."""
    try:
        return read_picture(path)
    except BrokenPicture as error:
        return Skipped(str(path), str(error))


def evenly(count: int) -> list[int]:
    """Which of ``count`` frames are taken: ``FRAMES``, or all if there are fewer, in the middles of equal stretches."""
    taken = min(count, FRAMES)
    return [(2 * index + 1) * count // (2 * taken) for index in range(taken)]


def _video(path: Path) -> list[Picture]:
    """Evenly spaced frames of a video file."""
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
    """Where DeepfakeBench keeps the landmarks of a frame: in ``landmarks``, in place of the last ``frames``."""
    names = list(path.parts)
    if "frames" in names:
        names[len(names) - 1 - names[::-1].index("frames")] = "landmarks"
    return Path(*names).with_suffix(".npy")


def _box(frame: Frame, with_landmarks: bool) -> Box:
    """Where the face is.

    Raises:
        BrokenPicture: if the frame ought to have landmarks and has not.
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
