"""What every picture passes, real or fake: one crop, one resize, one JPEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from benchmarks.reproduction.data.landmarks import Points

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
Mask = NDArray[np.bool_]  # (H, W)

# JPEG stands in for the H.264 of FaceForensics++ (Rössler et al., ICCV 2019): c23, "visually nearly lossless", is
# its HQ, and c40 its LQ.
QUALITIES = {"HQ": 90, "LQ": 40}
MARGIN = 1.3  # side of the crop over the larger side of the face, as FaceForensics++ crops


class Box(NamedTuple):
    """A square in a picture, in whole pixels: its left upper corner and its side."""

    x: int
    y: int
    side: int


class BrokenPicture(ValueError):
    """A file that holds no picture that can be read."""


def read_picture(path: Path) -> Picture:
    """A picture file, in RGB.

    Raises:
        BrokenPicture: if it can't be read, with the reason.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise BrokenPicture("no such file") from None
    except UnidentifiedImageError:
        raise BrokenPicture("not a picture") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on broken files
        raise BrokenPicture(f"can't be read: {error}") from error


def face_box(points: Points, shape: tuple[int, ...]) -> Box:
    """A square around points, ``MARGIN`` times as large as they are, moved and cut to lie within the picture."""
    low, high = points.min(0), points.max(0)
    return _inside((low + high) / 2, MARGIN * float((high - low).max()), shape)


def centre_box(shape: tuple[int, ...]) -> Box:
    """The largest square in the middle of a picture."""
    height, width = shape[:2]
    return _inside(np.array([width, height]) / 2, float(min(height, width)), shape)


def _inside(centre: Points, side: float, shape: tuple[int, ...]) -> Box:
    height, width = shape[:2]
    whole = max(1, min(round(side), height, width))
    x, y = np.round(centre - whole / 2).astype(int).tolist()
    return Box(min(max(x, 0), width - whole), min(max(y, 0), height - whole), whole)


def finish(picture: Picture, mask: Mask, box: Box, size: int, quality: str) -> tuple[Picture, Mask]:
    """:func:`file`, decoded: the picture, uint8 (size, size, 3), and the mask, bool (size, size)."""
    data, covered = file(picture, mask, box, size, quality)
    return decode(data), covered


def file(picture: Picture, mask: Mask, box: Box, size: int, quality: str) -> tuple[bytes, Mask]:
    """Crop, resize and compress a picture, and crop and resize its mask alike.

    Args:
        picture: uint8 (H, W, 3).
        mask: bool (H, W), True where the picture was changed.
        box: to crop to.
        size: side of the result in pixels.
        quality: a key of ``QUALITIES``.

    Returns:
        The bytes of a JPEG file, and the mask, bool (size, size): True where more than half of a pixel was.
    """
    small = resize(crop(picture, box), size)
    covered = resize(crop(mask, box).astype(np.float32), size)
    return encode(small, QUALITIES[quality]), covered > 0.5


def crop(array: NDArray[Any], box: Box) -> NDArray[Any]:
    """What is in a box."""
    return array[box.y : box.y + box.side, box.x : box.x + box.side]


def resize(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Make a square array so large: smaller by averaging areas, larger by linear interpolation."""
    method = cv2.INTER_AREA if size < len(array) else cv2.INTER_LINEAR
    return cv2.resize(array, (size, size), interpolation=method)


def encode(picture: Picture, quality: int) -> bytes:
    """A picture as the bytes of a JPEG file."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} and dtype {picture.dtype} can't be written as JPEG")
    return bytes(data)


def decode(data: bytes) -> Picture:
    """The picture in the bytes of a JPEG file."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
