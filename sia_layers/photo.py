"""Read a photograph as a map."""

from __future__ import annotations

import importlib
import os
import warnings
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

# Formats that Pillow, or an older Pillow, leaves to plugins: their modules and packages, and the brands in the files.
PLUGINS: Final = {"AVIF": ("pillow_avif", "pillow-avif-plugin"), "HEIC": ("pillow_heif", "pillow-heif")}
BRANDS: Final = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
}
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(Exception):
    """Raised for a photograph that cannot be read; the message is one line that names the file and the reason."""


@dataclass(frozen=True)
class Photo:
    """A photograph, upright and without transparency.

    Attributes:
        name: of the photograph, for people.
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
    """Read a photograph in any format that Pillow supports, and HEIC if pillow-heif is installed.

    A valid EXIF orientation is applied, transparency is composited over white, and the first frame of an animation is
    taken. A grey image keeps its one channel, and its 16 bits if it has them; every other image becomes red, green
    and blue.

    Raises:
        PhotoError: the file is missing, is not an image, is damaged, or has more pixels than Pillow considers safe.
    """
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about invalid EXIF
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _opened(file) as image:
                deep = _keeps_both_bytes(image)
                image.load()
                upright = _upright(image)
            pixels = _grey_over_white(np.asarray(upright)) if deep else _pixels(upright)
    except UnidentifiedImageError as error:
        advice = error.args[0] if isinstance(error, _MissingPluginError) else "is not an image that Pillow can read"
        raise PhotoError(f"{path} {advice}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise PhotoError(
            f"{path} has more than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow considers safe to decode; scale it "
            "down"
        ) from None
    except OSError as error:
        # Errors of the operating system have an errno; any other OSError is from a decoder.
        raise PhotoError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # decoders may raise anything for a damaged file
        raise PhotoError(f"cannot decode {path}: {_first_line(error)}") from error
    return Photo(printable(os.path.basename(path)), pixels)


def suffixes() -> frozenset[str]:
    """Return the suffixes, lower-case and with the dot, of the files that :func:`read` may be able to read."""
    return frozenset(Image.registered_extensions()) | {".avif", ".avifs", ".heic", ".heif", ".hif"}


def example() -> Photo:
    """Return the photograph of an astronaut (NASA, public domain) that scikit-image ships.

    Raises:
        ImportError: scikit-image is not installed.
    """
    from skimage import data

    return Photo("astronaut", _eight_bits(data.astronaut()))  # type: ignore[no-untyped-call]


class _MissingPluginError(UnidentifiedImageError):
    """Raised for a format that Pillow reads only with a plugin, which is not installed."""


def _opened(file: BinaryIO) -> Image.Image:
    """Open the image in a file, with the plugin for its format if Pillow does not read it by itself."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        name = _format_of(file)
        if name is None:
            raise
        module, package = PLUGINS[name]
        try:
            plugin = importlib.import_module(module)  # the plugin for AVIF registers itself
        except ImportError:
            raise _MissingPluginError(
                f"is {name}, which this Pillow does not read by itself; pip install {package}"
            ) from None
        if name == "HEIC":
            plugin.register_heif_opener()
        file.seek(0)
        return Image.open(file)


def _format_of(file: BinaryIO) -> str | None:
    """Return the name of a format that needs a plugin, by the brands at the start of the file; None for any other."""
    file.seek(0)
    head = file.read(64)
    if head[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, size, 4))}
    return next((name for name, known in BRANDS.items() if brands & known), None)


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF orientation says; return it unchanged if the EXIF is invalid."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # invalid EXIF may raise anything
        turn = None
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image) -> Tensor:
    """Convert an upright image to (1, C, H, W) in [0, 1]."""
    if image.mode.startswith(("I", "F")):
        values, clear = np.asarray(image), image.info.get("transparency")
        return _many_bits(values if clear is None else np.where(values == clear, 65535, values))
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        # Only the conversion to RGBA handles every way in which files declare transparent grey levels and colours.
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
        image = image.getchannel(0) if grey else image
    return _eight_bits(np.array(image.convert("L" if grey else "RGB")))


def _keeps_both_bytes(image: Image.Image) -> bool:
    """Tell whether the image is 16-bit grey with alpha, and prepare it to decode all four bytes of each pixel.

    Pillow has no mode for such an image, and would decode it to RGBA without the lower bytes. Decoded as raw RGBA, its
    pixels are (high grey, low grey, high alpha, low alpha).
    """
    if not isinstance(image, PngImagePlugin.PngImageFile) or [tile[3] for tile in image.tile] != ["LA;16B"]:
        return False
    codec, extents, offset, _ = image.tile[0]
    image.tile = [(codec, extents, offset, "RGBA")]  # type: ignore[list-item] # Pillow 10 has plain tuples
    return True


def _grey_over_white(values: npt.NDArray[np.uint8]) -> Tensor:
    """Composite 16-bit grey with alpha (H, W, 4), as :func:`_keeps_both_bytes` leaves it, over white."""
    grey, alpha = np.moveaxis(np.ascontiguousarray(values).view(">u2").astype(np.float64), 2, 0) / 65535
    return torch.from_numpy(grey * alpha + (1 - alpha)).to(torch.float32)[None, None]


def _eight_bits(values: npt.NDArray[np.uint8]) -> Tensor:
    pixels = torch.from_numpy(np.atleast_3d(values)).permute(2, 0, 1).unsqueeze(0)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format) / 255


def _many_bits(values: npt.NDArray[np.generic]) -> Tensor:
    """Scale grey of more than 8 bits to [0, 1]: 16-bit integers by their range, anything wider by its own extremes.

    NaN becomes the lowest finite value, and infinity the nearest one.
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


def printable(name: str) -> str:
    """Replace the characters of a file name that cannot be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
