"""Draw examples of the tasks' pictures, from photographs of scikit-image and scikit-learn.

``python -m benchmarks.beyond.figure [FILE]`` writes docs/images/beyond_faces.png. It shows no face from a data set.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.beyond import edits, hiding, recapture
from benchmarks.beyond.camouflage import CONTRASTS, TEXTURES
from benchmarks.beyond.photographs import Random, photographs, square, squares
from benchmarks.reproduction.data.pipeline import Mask, Picture, decode, encode

SIZE: Final = 128
SHOWN: Final = ("chelsea", "china", "gravel")
DONORS: Final = ("coffee", "rocket", "brick")
OUTLINE: Final = (255, 0, 0)
Panel = tuple[str, Picture, Mask | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure and print its path."""
    given = sys.argv[1:] if arguments is None else arguments
    path = Path(given[0]) if given else Path(__file__).parents[2] / "docs/images/beyond_faces.png"
    draw(path)
    print(f"drawn: {path}")
    return 0


def draw(path: Path) -> None:
    """Draw a row for each photograph: the original, three edits, three contrasts of camouflage, and two recaptures."""
    rows = [
        _panels(host, donor, np.random.default_rng([7, index]))
        for index, (host, donor) in enumerate(zip(SHOWN, DONORS, strict=True))
    ]
    figure = Figure(figsize=(1.25 * len(rows[0]), 1.32 * len(rows)), layout="constrained", dpi=110)
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(rows[0]))
    for number, (axes, panels) in enumerate(zip(grid, rows, strict=True)):
        for axis, (title, picture, mask) in zip(axes, panels, strict=True):
            axis.imshow(picture if mask is None else outlined(picture, mask), interpolation="nearest")
            axis.set_axis_off()
            if number == 0:
                axis.set_title(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    drawn.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)  # a third of the bytes


def outlined(picture: Picture, mask: Mask) -> Picture:
    """Draw a thin red line around a mask on a picture."""
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    drawn = picture.copy()
    drawn[grown & ~mask] = OUTLINE
    return drawn


def _panels(host: str, donor: str, rng: Random) -> list[Panel]:
    found = photographs()
    whole, *textures = squares(found[host], SIZE, 1 + TEXTURES, rng)
    other = square(found[donor], SIZE, rng)
    panels: list[Panel] = [("real", whole, None)]
    for kind, edit in edits.EDITS.items():
        picture, mask = edit(edits.compressed(whole, rng), other, rng)
        panels.append((kind, decode(encode(picture, 75)), mask))
    for contrast in CONTRASTS:
        picture, mask = hiding.hidden(whole, textures, contrast, rng)
        panels.append((f"synthetic camouflage,\ncontrast {contrast}", picture, mask))
    large = square(found[host], recapture.ENLARGED * SIZE, rng)
    for kind, present in recapture.ATTACKS.items():
        panels.append((f"simulated {kind}", recapture.before_camera(present(large, rng), SIZE, rng), None))
    return panels


if __name__ == "__main__":
    sys.exit(main())
