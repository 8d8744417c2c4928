"""The processing that every picture, real or fake, undergoes: one crop, one resize, one JPEG compression."""

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

# JPEG replaces the H.264 of FaceForensics++ (Rössler et al., ICCV 2019): its HQ is c23, "visually nearly lossless", and
# its LQ is c40.
QUALITIES = {"HQ": 90, "LQ": 40}
MARGIN = 1.3  # side of the crop relative to the larger side of the face, as in FaceForensics++


class Box(NamedTuple):
    """A square in a picture, in whole pixels: its upper left corner and its side."""

    x: int
    y: int
    side: int


class BrokenPicture(ValueError):
    """A file without a readable picture."""


def read_picture(path: Path) -> Picture:
    """Return a picture file in RGB.

    Raises:
        BrokenPicture: if it cannot be read; the message says why.
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
    """Return a square around points, ``MARGIN`` times their extent, shifted and clipped to lie within the picture."""
    low, high = points.min(0), points.max(0)
    return _inside((low + high) / 2, MARGIN * float((high - low).max()), shape)


def centre_box(shape: tuple[int, ...]) -> Box:
    """Return the largest central square of a picture."""
    height, width = shape[:2]
    return _inside(np.array([width, height]) / 2, float(min(height, width)), shape)


def _inside(centre: Points, side: float, shape: tuple[int, ...]) -> Box:
    height, width = shape[:2]
    whole = max(1, min(round(side), height, width))
    x, y = np.round(centre - whole / 2).astype(int).tolist()
    return Box(min(max(x, 0), width - whole), min(max(y, 0), height - whole), whole)


def finish(picture: Picture, mask: Mask, box: Box, size: int, quality: str) -> tuple[Picture, Mask]:
    """Return :func:`file`, decoded: the picture, uint8 (size, size, 3), and the mask, bool (size, size)."""
    data, covered = file(picture, mask, box, size, quality)
    return decode(data), covered


def file(picture: Picture, mask: Mask, box: Box, size: int, quality: str) -> tuple[bytes, Mask]:
    """Crop, resize and compress a picture, and crop and resize its mask in the same way.

    Args:
        picture: uint8 (H, W, 3).
        mask: bool (H, W), True where the picture was manipulated.
        box: box to crop to.
        size: side of the result in pixels.
        quality: a key of ``QUALITIES``.

    Returns:
        The bytes of a JPEG file, and the mask, bool (size, size): True where over half of a pixel's area was
        manipulated.
    """
    small = resize(crop(picture, box), size)
    covered = resize(crop(mask, box).astype(np.float32), size)
    return encode(small, QUALITIES[quality]), covered > 0.5


def crop(array: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return the part of an array inside a box."""
    return array[box.y : box.y + box.side, box.x : box.x + box.side]


def resize(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Resize a square array: shrink by averaging areas, enlarge by linear interpolation."""
    method = cv2.INTER_AREA if size < len(array) else cv2.INTER_LINEAR
    return cv2.resize(array, (size, size), interpolation=method)


def encode(picture: Picture, quality: int) -> bytes:
    """Encode a picture as the bytes of a JPEG file."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} and dtype {picture.dtype} can't be written as JPEG")
    return bytes(data)


def decode(data: bytes) -> Picture:
    """Decode the bytes of a JPEG file."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
