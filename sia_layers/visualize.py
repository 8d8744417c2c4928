"""Draw the self-information of a photograph, or of a model's feature maps of it."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from sia_layers.photo import Photo

COLOURS: Final = colormaps["inferno"]
INK, FAINT, LINE = "#1d1d1f", "#6e6e73", "#0a84ff"
MOST_PIXELS: Final = 2000  # per side; no panel can show more, and drawing more takes long
BRIGHTEST: Final = 0.998  # quantile of the pixels at which the colours end
DIMMED: Final = 0.55  # brightness of the photo in the overlay
FORMATS: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")
LEAST_DPI, MOST_DPI = 20, 1200
BINS: Final = 100
SITE_COLUMNS: Final = 4


class FigureError(Exception):
    """Raised for a figure that cannot be written; the message is one line that names the file and the reason."""


class Box(NamedTuple):
    """A rectangle on the page, in inches from its lower left corner."""

    left: float
    bottom: float
    width: float
    height: float


class Page(NamedTuple):
    """The size of a figure and the places of its panels, in inches."""

    size: tuple[float, float]
    photo: Box
    info: Box
    overlay: Box
    distribution: Box


def draw(photo: Photo, info: Tensor, caption: str = "") -> Figure:
    """Draw a photograph and its self-information in one figure.

    Args:
        photo: the photograph.
        info: its self-information (1, C, H, W) in nats; the figure shows the mean over the channels.
        caption: text under the title.
    """
    mean = info.detach().cpu().float().mean(1, keepdim=True)
    pixels, values = _image(photo.pixels), _image(mean)[..., 0]
    page, top = arrange(photo.width / photo.height), _top(mean.numpy())
    norm = Normalize(0, top)
    figure = Figure(figsize=page.size)
    FigureCanvasAgg(figure)
    _headline(figure, page.photo.left, f"Self-information of {photo.name}", caption)
    axes = _panel(figure, page.photo, "Photo", picture=True)
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    axes = _panel(figure, page.info, "Self-information", picture=True)
    axes.imshow(values, cmap=COLOURS, norm=norm)
    _colour_bar(figure, page.info, norm, mean.max().item() > top)
    axes = _panel(figure, page.overlay, "Overlay", picture=True)
    axes.imshow(_overlay(pixels, COLOURS(norm(values))[..., :3]))
    axes = _panel(figure, page.distribution, "Distribution", picture=False)
    _histogram(axes, mean.flatten(), norm)
    return figure


def draw_sites(photo: Photo, maps: Mapping[str, Tensor], caption: str = "") -> Figure:
    """Draw a photograph and the self-information of a model's feature maps of it.

    Args:
        photo: the input of the model.
        maps: self-information (1, C, H, W) in nats by the name of the site; the figure shows means over the channels.
        caption: text under the title.
    """
    aspect = photo.width / photo.height
    width, height = 4.0 * min(1, aspect), 4.0 * min(1, 1 / aspect)
    columns = min(len(maps) + 1, SITE_COLUMNS)
    rows = -(-(len(maps) + 1) // columns)
    across, down, left, bottom, head = max(width, 2.2) + 1.1, height + 0.75, 0.4, 0.35, 0.3
    figure = Figure(figsize=(left + columns * across, bottom + rows * down + head))
    FigureCanvasAgg(figure)
    boxes = [
        Box(left + column * across, bottom + row * down, width, height)
        for row in reversed(range(rows))
        for column in range(columns)
    ]
    _headline(figure, left, f"Self-information of {photo.name}, site by site", caption)
    pixels = _image(photo.pixels)
    axes = _panel(figure, boxes[0], "Photo", picture=True)
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    for box, (name, info) in zip(boxes[1:], maps.items(), strict=False):
        mean = info.detach().cpu().float().mean(1, keepdim=True)
        top = _top(mean.numpy())
        norm = Normalize(0, top)
        size = f"{info.shape[1]} × {info.shape[2]} × {info.shape[3]}"
        axes = _panel(figure, box, _cut(name, width - 1.1, 11), picture=True)
        axes.set_title(size, loc="right", fontsize=9, color=FAINT, pad=6)
        axes.imshow(_image(mean)[..., 0], cmap=COLOURS, norm=norm, interpolation="nearest")
        _colour_bar(figure, box, norm, mean.max().item() > top)
    return figure


def arrange(aspect: float) -> Page:
    """Lay out the panels for a photograph of a given width / height: in a square, or in a strip if it is long."""
    left, right, bottom, head, title, axis = 0.85, 0.95, 0.7, 1.0, 0.45, 0.9
    if aspect > 2:  # panoramas: one panel below the other
        width, height, below = 9.0, max(9 / aspect, 0.6), 2.4
        rows = [bottom + below + title + row * (height + title) for row in (2, 1, 0)]
        photo, info, overlay = (Box(left, row, width, height) for row in rows)
        size = (left + width + right, rows[0] + height + head)
        return Page(size, photo, info, overlay, Box(left, bottom, width, below))
    if aspect < 0.5:  # towers: one panel beside the other
        width, height, beside = max(6 * aspect, 1.8), 6.0, 3.6
        columns = (left, left + width + axis / 2, left + 2 * width + axis / 2 + right)
        photo, info, overlay = (Box(column, bottom, width, height) for column in columns)
        distribution = Box(columns[2] + width + axis, bottom, beside, height)
        return Page((distribution.left + beside + axis / 2, bottom + height + head), photo, info, overlay, distribution)
    width, height = 4.6 * min(1, aspect), 4.6 * min(1, 1 / aspect)
    second, upper = left + width + axis, bottom + height + title
    return Page(
        (second + width + right, upper + height + head),
        Box(left, upper, width, height),
        Box(second, upper, width, height),
        Box(left, bottom, width, height),
        Box(second, bottom, width, height),
    )


def check_output(path: Path, dpi: float) -> None:
    """Check that a figure can be written, before any work is done.

    Raises:
        FigureError: the folder does not exist, the path is not a regular file, its suffix is not that of a figure, or
            the resolution is out of range.
    """
    if not LEAST_DPI <= dpi <= MOST_DPI:
        raise FigureError(f"dpi must be from {LEAST_DPI} to {MOST_DPI}, got {dpi:g}")
    if path.suffix.lower() not in FORMATS:
        raise FigureError(f"cannot write {path}: its name must end in one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise FigureError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        raise FigureError(f"cannot write {path}: it exists and is not a regular file")


def write(figure: Figure, path: Path, dpi: float = 150) -> None:
    """Write a figure, completely or not at all, in the format of the suffix and with ``dpi`` pixels per inch.

    Raises:
        FigureError: the file cannot be written.
    """
    check_output(path, dpi)
    target = path.resolve()  # so that a link stays a link
    part = target.with_name(f".{os.getpid()}.part")
    try:
        try:
            with open(part, "xb") as file, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # in the name of the photo
                figure.savefig(file, format=target.suffix.lower().lstrip("."), dpi=dpi)
            if target.exists():
                part.chmod(stat.S_IMODE(target.stat().st_mode))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise FigureError(f"cannot write {path}: {error.strerror or error}") from error


def _image(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Convert (1, C, H, W) to (H, W, C), and average pixels down if there are more than a panel can show."""
    height, width = tensor.shape[2:]
    if max(height, width) > MOST_PIXELS:
        scale = MOST_PIXELS / max(height, width)
        tensor = F.interpolate(tensor, [max(1, round(height * scale)), max(1, round(width * scale))], mode="area")
    return np.asarray(tensor[0].permute(1, 2, 0).numpy(), dtype=np.float32)


def _headline(figure: Figure, inset: float, title: str, caption: str) -> None:
    """Write the title and the caption, ``inset`` inches from the left edge of the page."""
    width, height = figure.get_size_inches()
    left, room = inset / width, width - 2 * inset
    style: dict[str, Any] = {"va": "top", "ha": "left", "parse_math": False}
    figure.text(left, 1 - 0.2 / height, _cut(title, room, 14), fontsize=14, fontweight="bold", color=INK, **style)
    figure.text(left, 1 - 0.47 / height, _cut(caption, room, 9), fontsize=9, color=FAINT, **style)


def _cut(text: str, inches: float, points: float) -> str:
    """Shorten a text to what fits into a width at a font size."""
    letters = int(inches * 72 / (0.62 * points))
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _panel(figure: Figure, box: Box, title: str, *, picture: bool) -> Axes:
    axes = figure.add_axes(_share(figure, box))
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=6)
    axes.tick_params(colors=FAINT, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(not picture and name in ("left", "bottom"))
        spine.set_color(FAINT)
    if picture:
        axes.set_anchor("NW")
        axes.set_xticks([])
        axes.set_yticks([])
    return axes


def _share(figure: Figure, box: Box) -> tuple[float, float, float, float]:
    """Convert a box to fractions of the page, as matplotlib needs it."""
    width, height = figure.get_size_inches()
    return box.left / width, box.bottom / height, box.width / width, box.height / height


def _top(values: npt.NDArray[np.float32]) -> float:
    """Return the value at which the colours end: a quantile, so that a few bright pixels do not darken the rest."""
    return float(np.quantile(values, BRIGHTEST)) or float(values.max()) or 1.0


def _overlay(pixels: npt.NDArray[np.float32], colours: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Blend the map into the dimmed grey photo as two slides on one screen, so that 0 nats add nothing."""
    grey = pixels.mean(2, keepdims=True)
    both: npt.NDArray[np.floating] = 1 - (1 - DIMMED * grey) * (1 - colours)
    return both.clip(0, 1)


def _colour_bar(figure: Figure, beside: Box, norm: Normalize, beyond: bool) -> None:
    axes = figure.add_axes(_share(figure, Box(beside.left + beside.width + 0.12, beside.bottom, 0.14, beside.height)))
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), cax=axes, extend="max" if beyond else "neither")
    bar.ax.yaxis.set_major_locator(MaxNLocator(min(8, max(2, int(2 * beside.height)))))
    bar.ax.tick_params(colors=FAINT, labelsize=9, length=3)
    bar.ax.set_title("nats", loc="left", fontsize=9, color=FAINT, pad=6)
    bar.outline.set_visible(False)


def _histogram(axes: Axes, values: Tensor, norm: Normalize) -> None:
    """Plot the share of pixels over self-information, in the colours of the map, with median and mean.

    The axis of the share is logarithmic, because most pixels carry next to nothing and the few others matter.
    """
    bins = min(BINS, max(10, values.numel() // 50))
    counts, edges = np.histogram(values.numpy(), bins, range=(0, values.max().item() or 1.0))
    share = 100 * counts / counts.sum()
    low, high = 10 ** np.floor(np.log10(0.7 * share[counts > 0].min())), share.max()
    axes.set_yscale("log")
    axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=COLOURS(norm((edges[:-1] + edges[1:]) / 2)))
    axes.stairs(share, edges, baseline=low, color=FAINT, linewidth=0.6)
    for name, value, dashes in (("median", values.median().item(), "-"), ("mean", values.mean().item(), "--")):
        axes.plot([value, value], [low, high], dashes, color=LINE, linewidth=1.2, label=f"{name} {value:.2f}")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(low, high * (high / low) ** 0.15)  # room for the legend
    axes.set_xlabel("self-information (nats)", fontsize=9, color=FAINT)
    axes.set_ylabel("share of pixels (%)", fontsize=9, color=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper right", ncols=2, fontsize=9, frameon=False, labelcolor=FAINT, borderaxespad=0)
