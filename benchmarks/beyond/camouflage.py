"""Camouflaged objects: synthetic ones in ordinary photographs, or a folder of COD10K, CAMO or CHAMELEON."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from torch import nn

from benchmarks.beyond import hiding, maps, segmentation, trees
from benchmarks.beyond.photographs import halves, photographs, squares
from benchmarks.beyond.pictures import Made, Parts, Pictures
from benchmarks.beyond.task import Material, Plan, Row
from benchmarks.reproduction.data.pipeline import Mask, Picture

CONTRASTS: Final = (0, 10, 25)  # differences in lightness, which goes from 0 to 100
TEXTURES: Final = 5  # number of places from which a texture is chosen
KIND: Final = "synthetic camouflage"


class Camouflage(segmentation.Segmentation):
    """Find camouflaged objects."""

    name = "camouflage"
    measures = ("S", "E", "weighted F", "MAE")
    of_faces = False

    def parts(self, material: Material, plan: Plan, seed: int) -> Parts:
        """Hide shapes in photographs, or read a real data set."""
        if material.tree is not None:
            return trees.camouflage(material.tree, plan.size)
        train, test = halves(photographs(material.photographs), seed)
        made = (_made(train, plan.size, plan.squares, seed, False), _made(test, plan.size, plan.tested, seed, True))
        return Parts(Pictures.stack(made[0]), None, Pictures.stack(made[1]))

    def measured(self, network: nn.Module, parts: Parts) -> tuple[Row, list[Row]]:
        """Return S-measure, mean E-measure, weighted F and MAE."""
        rows = segmentation.by_group(network, parts.test, parts.test.kinds, _measured)
        return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in self.measures}, rows

    def summary(self, runs: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
        """Return the figures over all pictures, and by contrast or test set."""
        cases: dict[str, segmentation.Case] = {f"{rows[0]['kind']}, all": lambda row: True}
        for condition in dict.fromkeys(row["condition"] for row in rows):
            cases[condition] = lambda row, condition=condition: row["condition"] == condition
        return segmentation.table(rows, self.measures, cases)


def _measured(found: maps.Map, mask: Mask, kind: str) -> Mapping[str, float]:
    return maps.camouflage(found, mask)


def _made(found: Mapping[str, Picture], size: int, count: int, seed: int, tested: bool) -> list[Made]:
    """Hide a shape in squares of photographs: at every contrast for testing, at a random one for training."""
    made = []
    for name, photograph in found.items():
        for index in range(count):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index, tested])
            background, *textures = squares(photograph, size, 1 + TEXTURES, rng)
            for contrast in CONTRASTS if tested else (CONTRASTS[int(rng.integers(len(CONTRASTS)))],):
                picture, mask = hiding.hidden(background, textures, contrast, rng)
                made.append(Made(picture, mask, KIND, f"contrast {contrast}", f"{name}/{index}"))
    return made
