"""A folder to try the comparison on: tiles of scikit-image's pictures, and the same with a patch made anew.

``python -m benchmarks.compare.example FOLDER``. The patch is a round part of the tile at a lower resolution with too
much grain in place of the detail that this lost, as a crude generator would leave it. All tiles of a picture are one
group.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image

from benchmarks.reproduction.data.pipeline import Picture

PICTURES: Final = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SIDE: Final = 96  # of a tile, in pixels
MOST: Final = 16  # tiles of a picture
PLAIN: Final = 4.0  # grey levels: a tile that varies less has nothing to forge


def tiles(picture: Picture) -> Iterator[Picture]:
    """Cut a picture into squares that don't overlap, evenly over it, and leave out what is plain."""
    rows, columns = (length // SIDE for length in picture.shape[:2])
    cut = [
        picture[SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
        for row in range(rows)
        for column in range(columns)
    ]
    held = [tile for tile in cut if tile.std() > PLAIN]
    for index in np.linspace(0, len(held) - 1, min(MOST, len(held))).round().astype(int):
        yield held[index]


def forged(tile: Picture, rng: np.random.Generator) -> Picture:
    """Return a tile with a round patch whose coarse part is right and whose fine part is made up."""
    factor = rng.uniform(1.5, 2.5)
    small = cv2.resize(tile, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    lost = cv2.GaussianBlur((tile - coarse) ** 2, (0, 0), 3.0).mean(2, keepdims=True) ** 0.5
    grain = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE, 1)), (0, 0), 0.7)[..., None]
    made = coarse + (1.5 * lost + 4) * grain / grain.std()
    weight = _disc(rng)[..., None]
    return np.round(np.clip(tile + weight * (made - tile), 0, 255)).astype(np.uint8)


def write(folder: Path, seed: int = 0) -> int:
    """Write the folder; how many tiles there are of each class.

    Raises:
        FileExistsError: if it is there already.
    """
    rng, count = np.random.default_rng(seed), 0
    for label in ("real", "fake"):
        (folder / label).mkdir(parents=True)
    with (folder / "groups.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["picture", "group"])
        for name in PICTURES:
            stem = Path(name).stem
            with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
                picture = np.asarray(image.convert("RGB"))
            for index, tile in enumerate(tiles(picture)):
                for label, made in (("real", tile), ("fake", forged(tile, rng))):
                    Image.fromarray(made).save(folder / label / f"{stem}-{index}.png")
                    table.writerow([f"{label}/{stem}-{index}.png", stem])
                count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder that is named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare.example", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="to write to; it must not be there yet")
    folder = parser.parse_args(arguments).folder
    try:
        print(f"{write(folder)} real tiles and as many fake ones written to {folder}")
    except FileExistsError:
        parser.error(f"{folder} is there already; name another")
    return 0


def _disc(rng: np.random.Generator) -> NDArray[np.float32]:
    """1 in a disc of a third of the tile or more, fading out to 0 around it."""
    radius = rng.uniform(0.3, 0.45) * SIDE
    x, y = rng.uniform(radius, SIDE - radius, 2)
    rows, columns = np.indices((SIDE, SIDE), dtype=np.float32)
    return np.clip((radius - np.hypot(rows - y, columns - x)) / 6, 0, 1).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
