"""Measure networks right after training, since their weights are not kept: Figure 1 and localisation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final

from benchmarks.reproduction.corruptions import SEVERITIES, STRENGTHS, corrupted
from benchmarks.reproduction.data.faces import REAL, Faces
from benchmarks.reproduction.experiments.localise import (
    centred,
    computed,
    gradient,
    information,
    pairs,
    pixel_auc,
    site_maps,
)
from benchmarks.reproduction.scores import Predictions, auc
from benchmarks.reproduction.training import Run, create, predict

MEASURED: Final = ("lite bare", "lite SIA", "lite not identity at first")
LOCALISED: Final = ("lite SIA", "lite not identity at first")
MEASURED_FOLDS: Final = range(4)
Row = dict[str, Any]


def one_fake_each(faces: Faces) -> Faces:
    """Return every real picture, and one fake of each person, whose kind rotates from person to person."""
    kinds = [kind for kind in dict.fromkeys(faces.kinds) if kind != REAL]
    turn = {person: kinds[place % len(kinds)] for place, person in enumerate(sorted(set(faces.people)))}
    return faces.take(
        [
            index
            for index, (person, kind) in enumerate(zip(faces.people, faces.kinds, strict=True))
            if kind in (REAL, turn[person])
        ]
    )


def robustness(run: Run, test: Faces) -> list[Row]:
    """Return the AUC of a run's test pictures under every corruption and severity; severity 0 is no corruption.

    Args:
        run: completed run.
        test: test pictures, of which one fake of each person is used.
    """
    faces, detector = one_fake_each(test), run.detector()
    labels, rows = faces.labels.numpy(), list[Row]()
    for name in STRENGTHS:
        for severity in (0, *SEVERITIES):
            logits = predict(detector, corrupted(faces.images, name, severity)).numpy()
            score = auc(Predictions(labels, logits, faces.people, faces.kinds))
            rows.append(
                {"corruption": name, "severity": severity, "people": len(set(faces.people)), "AUC": round(score, 5)}
            )
    return rows


def localisation(run: Run, test: Faces) -> list[Row]:
    """Return the pixel AUC of maps on one fake of each person, and on the real picture with the same mask.

    Args:
        run: run of a network with SIA.
        test: test pictures, of which those with a mask are used.
    """
    fakes, reals = pairs(one_fake_each(test))
    size = fakes.images.shape[-1]
    maps = {
        "self-information, K=3": lambda x: information(x, 3),
        "self-information, K=7": lambda x: information(x, 7),
        "gradient magnitude": gradient,
        "centred Gaussian": centred,
        **{f"before training, {name}": maker for name, maker in site_maps(create(run.settings).eval()).items()},
        **{f"trained, {name}": maker for name, maker in site_maps(run.detector()).items()},
    }
    rows: list[Row] = []
    for name, make in maps.items():
        fake, real = (computed(make, faces.images) for faces in (fakes, reals))
        aucs = [
            (kind, pixel_auc(mask, fake[index]), pixel_auc(mask, real[index]))
            for index, (kind, mask) in enumerate(zip(fakes.kinds, fakes.masks, strict=True))
        ]
        for kind in ("all", *dict.fromkeys(fakes.kinds)):
            rows.append({"map": name, "kinds": kind, "size": size, **_means(aucs, kind)})
    return rows


def _means(aucs: Sequence[tuple[str, float, float]], kind: str) -> Row:
    selected = [(fake, real) for own, fake, real in aucs if kind in ("all", own)]
    fake, real = map(fmean, zip(*selected, strict=True))
    return {
        "pictures": len(selected),
        "AUC": round(fake, 5),
        "real": round(real, 5),
        "fake - real": round(fake - real, 5),
    }
