"""Ordinary photographs, from scikit-image and scikit-learn or from a folder, and squares cut from them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from benchmarks.reproduction.data.pipeline import Box, BrokenPicture, Mask, Picture, crop, read_picture, resize

Random = np.random.Generator
Split = tuple[dict[str, Picture], dict[str, Picture]]

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
FROM_SKIMAGE: Final = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "rocket",
)
FROM_SKLEARN: Final = ("china", "flower")
TESTED: Final = 0.45  # share of the photographs in the test part
SHORTEST: Final = 160  # pixels: squares cut from a smaller photograph would be too similar
CLOSEST, WIDEST = 1.25, 3.0  # side of a square before resizing, relative to the side of the finished picture


def photographs(folder: Path | None = None) -> dict[str, Picture]:
    """Return photographs by name, uint8 (H, W, 3); grey ones have three equal channels.

    Args:
        folder: folder of photographs, searched recursively; None for the thirteen that come with the libraries.

    Raises:
        FileNotFoundError: the folder has too few readable photographs of 160 pixels or more.
    """
    if folder is None:
        return dict(_shipped())
    found = {}
    for path in sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES):
        try:
            picture = read_picture(path)
        except BrokenPicture:
            continue
        if min(picture.shape[:2]) >= SHORTEST:
            found[path.relative_to(folder).with_suffix("").as_posix().replace("/", "_")] = picture
    if len(found) < 4:
        raise FileNotFoundError(
            f"{folder} has {len(found)} readable photographs of {SHORTEST} pixels or more; two parts need 4"
        )
    return found


@cache
def _shipped() -> Mapping[str, Picture]:
    from skimage import data
    from sklearn.datasets import load_sample_image

    found = {name: getattr(data, name)() for name in FROM_SKIMAGE}
    found["motorcycle"] = data.stereo_motorcycle()[0]
    found |= {name: load_sample_image(f"{name}.jpg") for name in FROM_SKLEARN}
    return {name: np.ascontiguousarray(_as_rgb(picture)) for name, picture in sorted(found.items())}


def _as_rgb(picture: Picture) -> Picture:
    return np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture[..., :3]


def is_grey(picture: Picture) -> bool:
    """Tell whether a picture has no colour."""
    return bool((picture[..., :1] == picture).all())


def halves(found: Mapping[str, Picture], seed: int) -> Split:
    """Split photographs into train and test, separately for coloured and grey ones."""
    train: dict[str, Picture] = {}
    test: dict[str, Picture] = {}
    rng = np.random.default_rng([seed, 0])
    for grey in (False, True):
        names = [name for name in sorted(found) if is_grey(found[name]) == grey]
        drawn = [names[index] for index in rng.permutation(len(names))]
        count = round(TESTED * len(drawn))
        test |= {name: found[name] for name in sorted(drawn[:count])}
        train |= {name: found[name] for name in sorted(drawn[count:])}
    return train, test


def square(photograph: Picture, size: int, rng: Random) -> Picture:
    """Cut a square of random size and position, and resize it to ``size`` pixels."""
    return squares(photograph, size, 1, rng)[0]


def squares(photograph: Picture, size: int, count: int, rng: Random) -> list[Picture]:
    """Cut ``count`` squares of one random size from random places, and resize them to ``size`` pixels."""
    first = _box(photograph, size, rng)
    height, width = photograph.shape[:2]
    boxes = [first] + [
        first._replace(x=int(rng.integers(width - first.side + 1)), y=int(rng.integers(height - first.side + 1)))
        for _ in range(count - 1)
    ]
    return [resize(crop(photograph, box), size) for box in boxes]


def _box(photograph: Picture, size: int, rng: Random) -> Box:
    height, width = photograph.shape[:2]
    shorter = min(height, width)
    low = min(shorter, round(CLOSEST * size))
    side = int(rng.integers(low, min(shorter, round(WIDEST * size)) + 1))
    return Box(int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side)


def blob(size: int, rng: Random, areas: tuple[float, float], margin: int = 3) -> Mask:
    """Draw a smooth closed shape, bool (size, size).

    Args:
        size: side of the picture in pixels.
        rng: random number generator.
        areas: approximate smallest and largest share of the picture that the shape covers.
        margin: distance to the border in pixels.
    """
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(angles)
    for wave in range(2, 6):
        radius += rng.uniform(0, 0.6 / wave) * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    stretch, turn = rng.uniform(1, 1.8), rng.uniform(0, np.pi)
    points = np.stack([stretch * radius * np.cos(angles), radius * np.sin(angles)], 1)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    area = rng.uniform(*areas) * size * size
    x, y = points.T
    points *= np.sqrt(area / (0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))))
    room = size - 2 * margin - 1
    points *= min(1.0, room / float(np.ptp(points, axis=0).max()))
    low, high = points.min(0), points.max(0)
    points += margin - low + rng.uniform(0, 1, 2) * np.maximum(room - (high - low), 0)
    drawn = np.zeros((size, size), np.uint8)
    cv2.fillPoly(drawn, [np.round(points).astype(np.int32)], 1)
    return drawn.astype(bool)


def soft(mask: Mask, sigma: float) -> np.ndarray:
    """Return a mask with its edge blurred by a Gaussian, float32 (S, S, 1), for blending."""
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)[..., None]
