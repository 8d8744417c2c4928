"""Reading a photograph as a map that self-information can be computed of."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


class PhotoError(Exception):
    """A photograph that cannot be read; the message is one line that names the file and why."""


@dataclass(frozen=True)
class Photo:
    """A photograph, upright and without transparency.

    Attributes:
        name: what to call it.
        pixels: float32 (1, C, H, W) in [0, 1]; C is 3 (red, green, blue) or 1 (grey).
    """

    name: str
    pixels: Tensor

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels."""
        return ("red", "green", "blue") if self.pixels.shape[1] == 3 else ("grey",)

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[2]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[3]


def read(path: str | os.PathLike[str]) -> Photo:
    """Read a photograph in any format that Pillow knows.

    The EXIF orientation is applied, transparency is laid over white, and of an animation the first frame is taken.
    Grey stays one channel, with 16 bits where it has them; everything else becomes red, green and blue.

    Raises:
        PhotoError: the file is missing, is no image, is damaged, or has more pixels than Pillow holds safe.
    """
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
            pixels = _pixels(upright)
    except UnidentifiedImageError:
        raise PhotoError(f"{path} is not an image that Pillow can read") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise PhotoError(
            f"{path} has more than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow holds safe to decode; scale it down"
        ) from None
    except OSError as error:
        # What the system reports has an errno; what is left is a decoder's complaint.
        raise PhotoError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise PhotoError(f"cannot decode {path}: {_first_line(error)}") from error
    return Photo(_printable(os.path.basename(path)), pixels)


def example() -> Photo:
    """The astronaut photograph (NASA, public domain) that scikit-image ships.

    Raises:
        ImportError: scikit-image is not installed.
    """
    from skimage import data

    return Photo("astronaut", _eight_bits(data.astronaut()))  # type: ignore[no-untyped-call]


def _pixels(image: Image.Image) -> Tensor:
    """An upright image as (1, C, H, W) in [0, 1]."""
    if image.mode.startswith(("I", "F")):
        return _many_bits(np.asarray(image))
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        # Files name transparent grey levels and palette entries in ways that only the conversion to RGBA knows.
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
        image = image.getchannel(0) if grey else image
    return _eight_bits(np.array(image.convert("L" if grey else "RGB")))


def _eight_bits(values: npt.NDArray[np.uint8]) -> Tensor:
    pixels = torch.from_numpy(np.atleast_3d(values)).permute(2, 0, 1).unsqueeze(0)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format) / 255


def _many_bits(values: npt.NDArray[np.generic]) -> Tensor:
    """Grey of more than 8 bits: 16-bit integers by their range, what is wider by its own extremes.

    What is not a number becomes the lowest value, what is infinite the nearest one.
    """
    wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    wide = np.nan_to_num(wide, nan=low, posinf=high, neginf=low)
    return torch.from_numpy((wide - low) / ((high - low) or 1)).to(torch.float32)[None, None]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _printable(name: str) -> str:
    """A file's name without what no page and no terminal can show."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
