"""Manipulation localisation: find the manipulated pixels of a photograph or a face.

The data are splices, copy-moves and removals in ordinary photographs, and the four face manipulations of the
reproduction, all of them finally compressed at one of three JPEG qualities. One network learns all of them; training
and test also include unchanged pictures.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.beyond import edits, maps, segmentation
from benchmarks.beyond.photographs import Random, halves, is_grey, photographs, square
from benchmarks.beyond.pictures import Made, Parts, Pictures
from benchmarks.beyond.task import Material, Plan, Row
from benchmarks.reproduction import data
from benchmarks.reproduction.data.faces import REAL, Faces
from benchmarks.reproduction.data.pipeline import Mask, Picture, decode, encode
from benchmarks.reproduction.training import sampled

QUALITIES: Final = (95, 75, 50)
REAL_KINDS: Final = ("real photograph", "real face")


class Localisation(segmentation.Segmentation):
    """Find manipulated pixels."""

    name = "localisation"
    measures = ("F1", "AUC", "IoU")

    def parts(self, material: Material, plan: Plan, seed: int) -> Parts:
        """Forge photographs, and faces if there are any."""
        train, test = halves(photographs(material.photographs), seed)
        made = (_forged(train, plan.size, plan.squares, seed, False), _forged(test, plan.size, plan.tested, seed, True))
        if material.faces is not None:
            faces = data.load(
                "landmarked", material.faces, size=plan.size, seed=seed, people=plan.people, cache=material.cache
            )
            made[0].extend(_saved(faces.train, seed, False))
            made[1].extend(_saved(faces.test, seed, True))
        return Parts(Pictures.stack(made[0]), None, Pictures.stack(made[1]))

    def order(self, train: Pictures, generator: torch.Generator) -> Tensor:
        """Return every real picture and as many manipulated ones, spread evenly over the kinds."""
        return sampled(train.kinds, train.sources, generator)

    def measured(self, network: nn.Module, parts: Parts) -> tuple[Row, list[Row]]:
        """Return pixel F1, AUC and IoU of manipulated pictures, and the share of pixels flagged in unchanged ones."""
        test = parts.test
        kinds = [
            REAL_KINDS["/" not in source] if kind == REAL else kind
            for kind, source in zip(test.kinds, test.sources, strict=True)
        ]
        rows = segmentation.by_group(network, test, kinds, _measured)
        changed = [row for row in rows if row["kind"] not in REAL_KINDS]
        return {name: round(float(np.mean([row[name] for row in changed])), 4) for name in self.measures}, rows

    def summary(self, runs: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
        """Return the figures by kind of picture, by manipulation and by quality."""
        changed = [row for row in rows if row["kind"] not in REAL_KINDS]
        cases: dict[str, segmentation.Case] = {}
        for family, holds in {"photographs": _of_photograph, "faces": _of_face}.items():
            if any(map(holds, changed)):
                cases[f"{family}, all"] = holds
                for kind in dict.fromkeys(row["kind"] for row in changed if holds(row)):
                    cases[kind] = lambda row, kind=kind: row["kind"] == kind
                for condition in dict.fromkeys(row["condition"] for row in changed):
                    cases[f"{family}, {condition}"] = lambda row, condition=condition, holds=holds: (
                        holds(row) and row["condition"] == condition
                    )
        found = segmentation.table(changed, self.measures, cases)
        real = [row for row in rows if row["kind"] in REAL_KINDS]
        kinds = {
            kind: (lambda row, kind=kind: row["kind"] == kind) for kind in dict.fromkeys(row["kind"] for row in real)
        }
        return found + segmentation.table(real, ("false alarm",), kinds)


def _of_photograph(row: Row) -> bool:
    return row["kind"] in edits.EDITS


def _of_face(row: Row) -> bool:
    return row["kind"] not in edits.EDITS and row["kind"] not in REAL_KINDS


def _measured(found: maps.Map, mask: Mask, kind: str) -> Mapping[str, float]:
    if kind in REAL_KINDS:
        return {"false alarm": maps.flagged(found)}
    return {"F1": maps.f1(found, mask), "AUC": maps.pixel_auc(found, mask), "IoU": maps.iou(found, mask)}


def _forged(found: Mapping[str, Picture], size: int, count: int, seed: int, tested: bool) -> list[Made]:
    """Cut squares from photographs, and make from each an unchanged picture and one with every edit."""
    made = []
    for name, photograph in found.items():
        for index in range(count):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index, tested])
            host = edits.compressed(square(photograph, size, rng), rng)
            source = f"{name}/{index}"
            made += _at_qualities(host, np.zeros((size, size), bool), REAL, source, rng, tested)
            for kind, edit in edits.EDITS.items():
                picture, mask = edit(host, _donor(found, name, size, rng), rng)
                made += _at_qualities(picture, mask, kind, source, rng, tested)
    return made


def _donor(found: Mapping[str, Picture], host: str, size: int, rng: Random) -> Picture:
    """Cut a square from another photograph of the part; match the host in having colour or not."""
    grey = is_grey(found[host])
    others = [name for name in found if name != host and (grey or not is_grey(found[name]))]
    others = others or [name for name in found if name != host] or [host]
    cut = square(found[others[int(rng.integers(len(others)))]], size, rng)
    return np.repeat(cv2.cvtColor(cut, cv2.COLOR_RGB2GRAY)[..., None], 3, 2) if grey else cut


def _at_qualities(picture: Picture, mask: Mask, kind: str, source: str, rng: Random, tested: bool) -> list[Made]:
    """Save a picture as JPEG: at every quality for testing, at a random one for training."""
    qualities = QUALITIES if tested else (QUALITIES[int(rng.integers(len(QUALITIES)))],)
    return [Made(decode(encode(picture, quality)), mask, kind, f"JPEG {quality}", source) for quality in qualities]


def _saved(faces: Faces, seed: int, tested: bool) -> list[Made]:
    """Recompress faces, which the data set provides at quality 90."""
    rng = np.random.default_rng([seed, len(faces), tested])
    made = []
    for image, mask, kind, person in zip(faces.images, faces.masks, faces.kinds, faces.people, strict=True):
        if kind == REAL or 0 < mask.sum() < mask.numel():
            made += _at_qualities(image.permute(1, 2, 0).numpy(), mask.numpy(), kind, person, rng, tested)
    return made
