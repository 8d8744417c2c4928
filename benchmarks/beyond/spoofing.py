"""Face anti-spoofing: live faces and simulated recaptures of them, or a folder of a real data set.

The threshold is that of equal error rates on the validation part. APCER is the share of an attack's pictures that are
accepted as live, and BPCER the share of live ones that are rejected (ISO/IEC 30107-3). ACER is the mean of BPCER and
the largest APCER, and HTER the mean of BPCER and the share of all attacks that are accepted.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.beyond import networks, recapture, trees
from benchmarks.beyond.photographs import SUFFIXES
from benchmarks.beyond.pictures import Made, Parts, Pictures
from benchmarks.beyond.task import Material, Plan, Row, Task, outputs
from benchmarks.reproduction.data.faces import PARTS, REAL, limit, split
from benchmarks.reproduction.data.pipeline import Picture, centre_box, crop, read_picture, resize
from benchmarks.reproduction.networks.detector import cross_entropy
from benchmarks.reproduction.scores import (
    Array,
    Predictions,
    Score,
    difference,
    interval,
    weighted_accuracy,
    weighted_auc,
)
from benchmarks.reproduction.training import sampled

FRACTIONS: Final = (0.5, 0.2, 0.3)  # shares of the people in train, validation (for the threshold) and test
CONDITION: Final = "simulated recapture"


class Spoofing(Task):
    """Distinguish live faces from recaptured ones."""

    name = "spoofing"
    measures = ("ACER", "HTER", "AUC")
    of_photographs = False

    def parts(self, material: Material, plan: Plan, seed: int) -> Parts:
        """Recapture faces, or read a real data set."""
        if material.tree is not None:
            return trees.spoofing(material.tree, plan.size, seed)
        if material.faces is None:
            raise ValueError("spoofing needs faces; name the folder of a face data set with --data or --tree")
        faces = _faces(material.faces)
        sides = limit(split(faces, seed, fractions=FRACTIONS), plan.people, seed)
        made: dict[str, list[Made]] = {part: [] for part in PARTS}
        for person, part in sorted(sides.items()):
            made[part] += _recaptured(person, read_picture(faces[person]), plan.size, seed)
        return Parts(*(Pictures.stack(made[part]) for part in PARTS))

    def network(self, variant: str, pretrained: bool) -> nn.Module:
        """Return EfficientNet-Lite0 with one logit."""
        return networks.classifier(variant, pretrained)

    def loss(self, network: nn.Module, x: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        """Return binary cross-entropy."""
        return cross_entropy(network(x), labels)

    def order(self, train: Pictures, generator: torch.Generator) -> Tensor:
        """Return every live picture and as many attacks, spread evenly over the kinds."""
        return sampled(train.kinds, train.groups, generator)

    def measured(self, network: nn.Module, parts: Parts) -> tuple[Row, list[Row]]:
        """Return ACER, HTER and AUC, and each picture's logit relative to the threshold."""
        assert parts.validation is not None
        logits = torch.stack(list(outputs(network, parts.validation))).numpy()
        threshold = equal_error_threshold(logits, parts.validation.labels.numpy())
        test = parts.test
        above = torch.stack(list(outputs(network, test))).numpy() - threshold
        rows = [
            {"kind": kind, "condition": condition, "group": group, "above threshold": round(float(value), 4)}
            for kind, condition, group, value in zip(test.kinds, test.conditions, test.groups, above, strict=True)
        ]
        found = _predictions([{**row, "seed": 0} for row in rows])[0]
        ones = np.ones((1, len(rows)))
        figures = {name: round(float(score(found, ones)[0]), 4) for name, score in SCORES.items()}
        return {**figures, "threshold": round(threshold, 4)}, rows

    def summary(self, runs: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
        """Return the figures for all attacks, and for each attack against live faces."""
        attacks = list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != REAL))
        cases = {"all attacks": attacks, **{attack: [attack] for attack in attacks}}
        made = []
        for case, kinds in cases.items():
            selected = [row for row in rows if row["kind"] in (REAL, *kinds)]
            variants = [name for name in networks.VARIANTS if any(row["network"] == name for row in selected)]
            found = {name: _predictions([row for row in selected if row["network"] == name]) for name in variants}
            for variant in variants:
                seeds = sorted(found[variant])
                row: Row = {"case": case, "network": variant, "seeds": " ".join(map(str, seeds))}
                for name, score in SCORES.items():
                    row |= interval([found[variant][seed] for seed in seeds], score).as_row(name)
                    paired = [seed for seed in seeds if seed in found.get("bare", {})]
                    if variant != "bare" and paired:
                        two = ([found[which][seed] for seed in paired] for which in (variant, "bare"))
                        row |= difference(*two, score).as_row(f"{name} - bare")
                made.append(row)
        return made


def equal_error_threshold(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the threshold at which the error rates of live pictures and attacks are most nearly equal."""
    levels = np.unique(logits)
    thresholds = np.concatenate([[levels[0] - 1], (levels[1:] + levels[:-1]) / 2, [levels[-1] + 1]])
    passed = (logits[labels == 1] <= thresholds[:, None]).mean(1)
    refused = (logits[labels == 0] > thresholds[:, None]).mean(1)
    gaps = np.abs(passed - refused)
    best = np.flatnonzero(gaps == gaps.min())
    return float(thresholds[best[len(best) // 2]])


def half_total_error(found: Predictions, weights: Array) -> Array:
    """Return HTER (B,) at the threshold 0 under weights (B, N) of the pictures."""
    return 1 - weighted_accuracy(found, weights)


def classification_error(found: Predictions, weights: Array) -> Array:
    """Return ACER (B,) at the threshold 0 under weights (B, N): the mean of the worst APCER and BPCER."""
    kinds, wrong = np.array(found.kinds), (found.logits > 0) != (found.labels == 1)
    with np.errstate(invalid="ignore"):
        shares = {kind: (weights * (wrong & (kinds == kind))).sum(1) / (weights * (kinds == kind)).sum(1)
                  for kind in dict.fromkeys(found.kinds)}  # fmt: skip
    return (shares.pop(REAL) + np.max(list(shares.values()), axis=0)) / 2


SCORES: Final[dict[str, Score]] = {"ACER": classification_error, "HTER": half_total_error, "AUC": weighted_auc}


def _predictions(rows: Sequence[Row]) -> dict[int, Predictions]:
    """Return the predictions of each seed from rows whose threshold is 0."""
    seeds: dict[int, list[Row]] = {}
    for row in rows:
        seeds.setdefault(int(row["seed"]), []).append(row)
    return {
        seed: Predictions.from_lists(
            [int(row["kind"] != REAL) for row in kept], [float(row["above threshold"]) for row in kept],
            [row["group"] for row in kept], [row["kind"] for row in kept],
        )
        for seed, kept in seeds.items()
    }  # fmt: skip


def _faces(root: Path) -> dict[str, Path]:
    """Return the pictures in a folder of faces, one per person, from ``faces/`` if it exists."""
    folder = root / "faces" if (root / "faces").is_dir() else root
    found: Mapping[str, Path] = {
        path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES
    }
    if not found:
        raise FileNotFoundError(f"{folder} has no pictures; choose a folder with one picture of each person")
    return dict(found)


def _recaptured(person: str, picture: Picture, size: int, seed: int) -> list[Made]:
    """Return a face as the camera sees it live, on paper and on a screen."""
    large = resize(crop(picture, centre_box(picture.shape)), recapture.ENLARGED * size)
    nowhere = np.zeros((size, size), bool)
    made = []
    for index, (kind, present) in enumerate({REAL: recapture.live, **recapture.ATTACKS}.items()):
        rng = np.random.default_rng([seed, zlib.crc32(person.encode()), index])
        seen = recapture.before_camera(present(large, rng), size, rng)
        made.append(Made(seen, nowhere, kind, CONDITION, person))
    return made
