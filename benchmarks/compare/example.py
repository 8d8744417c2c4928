"""Write an example folder for the comparison: tiles of scikit-image's pictures, with and without a resampled patch.

``python -m benchmarks.compare.example FOLDER``. The patch is a round region of the tile at a lower resolution, with
too much grain in place of the lost detail, as a crude generator would leave it. All tiles of a picture form one group.
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
SIDE: Final = 96  # side of a tile in pixels
MOST: Final = 16  # most tiles per picture
PLAIN: Final = 4.0  # grey levels: a tile that varies less is too plain to forge


def tiles(picture: Picture) -> Iterator[Picture]:
    """Cut a picture into evenly spread squares that do not overlap, and skip the plain ones."""
    rows, columns = (length // SIDE for length in picture.shape[:2])
    cut = [
        picture[SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
        for row in range(rows)
        for column in range(columns)
    ]
    candidates = [tile for tile in cut if tile.std() > PLAIN]
    for index in np.linspace(0, len(candidates) - 1, min(MOST, len(candidates))).round().astype(int):
        yield candidates[index]


def forged(tile: Picture, rng: np.random.Generator) -> Picture:
    """Return a tile with a round patch whose coarse structure is real and whose detail is synthetic."""
    factor = rng.uniform(1.5, 2.5)
    small = cv2.resize(tile, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    lost = cv2.GaussianBlur((tile - coarse) ** 2, (0, 0), 3.0).mean(2, keepdims=True) ** 0.5
    grain = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE, 1)), (0, 0), 0.7)[..., None]
    made = coarse + (1.5 * lost + 4) * grain / grain.std()
    weight = _disc(rng)[..., None]
    return np.round(np.clip(tile + weight * (made - tile), 0, 255)).astype(np.uint8)


def write(folder: Path, seed: int = 0) -> int:
    """Write the folder, and return the number of tiles per class.

    Raises:
        FileExistsError: if the folder exists.
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
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare.example", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist")
    folder = parser.parse_args(arguments).folder
    try:
        print(f"{write(folder)} real tiles and as many fake ones written to {folder}")
    except FileExistsError:
        parser.error(f"{folder} already exists; name another folder")
    return 0


def _disc(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a mask that is 1 in a disc of at least a third of the tile and fades to 0 around it."""
    radius = rng.uniform(0.3, 0.45) * SIDE
    x, y = rng.uniform(radius, SIDE - radius, 2)
    rows, columns = np.indices((SIDE, SIDE), dtype=np.float32)
    return np.clip((radius - np.hypot(rows - y, columns - x)) / 6, 0, 1).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
