"""Measure how well the self-information of DCT coefficients shows a splice that only its compression reveals.

``python -m benchmarks.splice [--csv FILE] [--plot FILE]``. A photograph is compressed as JPEG. Then a rectangle of the
same photograph, uncompressed or compressed on another grid, is pasted back into its place, so that the content hardly
changes. The AUC measures how well the mean I of a block separates the blocks of the rectangle from the others: 0.5 is
chance, and below 0.5 the rectangle is the darker part. The photographs come with scikit-image.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks import harness
from sia_layers import frequency_self_information

BLOCK: Final = 8
PHOTOS: Final = ("chelsea", "coffee", "astronaut")
BANDWIDTHS: Final = (1.0, 0.1)

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]


class Splice(NamedTuple):
    """The parameters of a splice: JPEG qualities (None: uncompressed), and the offset of the donor's block grid."""

    title: str
    host: int | None
    donor: int | None
    shift: tuple[int, int] = (0, 0)
    finally_: int | None = None


SPLICES: Final = (
    Splice("original in quality 75", 75, None),
    Splice("quality 90 in 75, grids differ", 75, 90, (3, 5)),
    Splice("the same, saved at 95", 75, 90, (3, 5), 95),
    Splice("quality 50 in the original", None, 50),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the files that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.splice", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the first two splices of every photograph")
    given = parser.parse_args(arguments)
    rows = []
    print(f"{'photo':10}  {'splice':32}  {'bandwidth':>9}  {'AUC':>5}  {'high half':>9}")
    for name in PHOTOS:
        for splice in SPLICES:
            picture, mask = made(photograph(name), splice)
            for bandwidth in BANDWIDTHS:
                info = measured(picture, bandwidth)
                scores = auc(info.mean(0), mask), auc(info[info.shape[0] // 2 :].mean(0), mask)
                row = {"photo": name, "splice": splice.title, "bandwidth": bandwidth}
                rows.append({**row, "AUC": scores[0], "AUC of the high half": scores[1]})
                print(f"{name:10}  {splice.title:32}  {bandwidth:9g}  {scores[0]:5.3f}  {scores[1]:9.3f}")
    if given.csv is not None:
        harness.write(given.csv, rows)
    if given.plot is not None:
        draw(given.plot)
    return 0


def photograph(name: str) -> Pixels:
    """Return a photograph from scikit-image, cropped to whole blocks."""
    from skimage import data

    pixels: Pixels = getattr(data, name)()
    height, width = (length // BLOCK * BLOCK for length in pixels.shape[:2])
    return pixels[:height, :width]


def made(pixels: Pixels, splice: Splice) -> tuple[Pixels, Values]:
    """Return the spliced picture and a mask of its blocks, 1 in the rectangle and 0 elsewhere."""
    rows, columns = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    top, left, height, width = rows // 4, columns // 3, 12, 14
    place = tuple(slice(BLOCK * start, BLOCK * (start + size)) for start, size in ((top, height), (left, width)))
    # Rolling before compression and back afterwards moves the donor's block grid but not its content.
    donor = np.roll(compressed(np.roll(pixels, splice.shift, (0, 1)), splice.donor), np.negative(splice.shift), (0, 1))
    picture = compressed(pixels, splice.host).copy()
    picture[place] = donor[place]
    mask = np.zeros((rows, columns))
    mask[top : top + height, left : left + width] = 1
    return compressed(picture, splice.finally_), mask


def compressed(pixels: Pixels, quality: int | None) -> Pixels:
    """Compress and decode a picture as JPEG without chroma subsampling; None leaves it unchanged."""
    if quality is None:
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(file))


def measured(picture: Pixels, bandwidth: float) -> Values:
    """Return the self-information of the luminance's coefficients, of shape (b^2, H', W')."""
    grey = np.array(Image.fromarray(picture).convert("L"), dtype=np.float32) / 255
    info = frequency_self_information(torch.from_numpy(grey)[None, None], block=BLOCK, bandwidth=bandwidth)
    return np.asarray(info[0].numpy(), dtype=np.float64)


def auc(score: Values, mask: Values) -> float:
    """Return the AUC: the probability that a block of the rectangle scores higher than another block."""
    inside, outside = score[mask > 0], np.sort(score[mask == 0])
    below, upto = (np.searchsorted(outside, inside, side).mean() for side in ("left", "right"))
    return float((below + upto) / 2 / len(outside))


def draw(path: Path) -> None:
    """Draw every photograph with its rectangle marked, and the maps of its first two splices."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    shown = [(splice, bandwidth) for splice in SPLICES[:2] for bandwidth in BANDWIDTHS]
    figure = Figure(figsize=(3 * (1 + len(shown)), 2.6 * len(PHOTOS)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(len(PHOTOS), 1 + len(shown)), PHOTOS, strict=True):
        picture, mask = made(photograph(name), SPLICES[0])
        top, left = (int(where[0]) * BLOCK for where in np.nonzero(mask))
        style: dict[str, Any] = {"fill": False, "edgecolor": "white", "linewidth": 1}
        axes[0].imshow(picture)
        axes[0].add_patch(Rectangle((left, top), 14 * BLOCK, 12 * BLOCK, **style))
        axes[0].set_title(f"{name}, the rectangle marked", fontsize=8, loc="left")
        for panel, (splice, bandwidth) in zip(axes[1:], shown, strict=True):
            picture, mask = made(photograph(name), splice)
            info = measured(picture, bandwidth).mean(0)
            panel.imshow(info, cmap="inferno", interpolation="nearest")
            title = f"{splice.title}\nbandwidth {bandwidth:g}, AUC {auc(info, mask):.2f}"
            panel.set_title(title, fontsize=8, loc="left")
        for panel in axes:
            panel.set_axis_off()
    figure.savefig(path, dpi=75)
    print(f"drawn: {path}")


if __name__ == "__main__":
    sys.exit(main())
