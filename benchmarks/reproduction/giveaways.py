"""Measure how well file size and colour statistics alone separate real from fake portraits.

``python -m benchmarks.reproduction.giveaways --data PATH [--people 120]``. An AUC of 0.5, within its margin, means
that a network has to look at the content.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import harness
from benchmarks.reproduction import data
from benchmarks.reproduction.data.faces import REAL

Features = NDArray[np.float64]  # (N, features)
COLUMNS: Final = {
    "quality": "<7", "people": "<13", "count": "5d", "kinds": "<20", "file": "6.3f", "colour": "6.3f", "both": "6.3f",
    "margin": "6.3f",
}  # fmt: skip


def file_statistics(files: Sequence[bytes]) -> Features:
    """Return statistics of JPEG files that need no decoding."""
    rows = []
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            tables = [value for table in image.quantization.values() for value in table]  # type: ignore[attr-defined]
            known = [len(image.info), len(image.getexif()), len(image.getbands()), image.layers]  # type: ignore[attr-defined]
            rows.append([len(file), image.width, image.height, *known, *tables])
    return np.array(rows, dtype=float)


def colour_spread(files: Sequence[bytes]) -> Features:
    """Return the standard deviations of R - G and B - G over each picture."""
    rows = []
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=float), 2, 0)
        rows.append([(red - green).std(), (blue - green).std()])
    return np.array(rows)


def linear_auc(features: Features, labels: Sequence[int], people: Sequence[str]) -> float:
    """Return the AUC of a linear classifier on people that it was not trained on."""
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    probabilities = cross_val_predict(model, features, labels, groups=people, cv=GroupKFold(6), method="predict_proba")
    return float(roc_auc_score(labels, probabilities[:, 1]))


def margin(labels: Sequence[int]) -> float:
    """Return two standard errors of a chance AUC (Hanley and McNeil, 1982, without separation)."""
    fake = int(np.sum(labels))
    real = len(labels) - fake
    return float(2 * ((real + fake + 1) / (12 * real * fake)) ** 0.5)


def auc_of(
    files: Sequence[bytes], kinds: Sequence[str], people: Sequence[str], forgeries: Sequence[str]
) -> dict[str, float]:
    """Return AUCs of real pictures against some kinds of forgeries: from the file, from the colours, and from both.

    Args:
        files: JPEG files.
        kinds: kind of each file, ``"real"`` or its manipulation.
        people: person of each file.
        forgeries: kinds to separate from real pictures.
    """
    chosen = [index for index, kind in enumerate(kinds) if kind in (REAL, *forgeries)]
    some, names = [files[index] for index in chosen], [people[index] for index in chosen]
    labels = [int(kinds[index] != REAL) for index in chosen]
    file, colour = file_statistics(some), colour_spread(some)
    features = {"file": file, "colour": colour, "both": np.hstack([file, colour])}
    return {name: linear_auc(each, labels, names) for name, each in features.items()} | {"margin": margin(labels)}


def rows_of(root: Path, size: int, quality: str, people: int | None, cache: Path) -> list[dict[str, Any]]:
    """Return a row for each subset of the portraits and each kind of forgery, and for all kinds together."""
    table = data.people_of("portraits", root)
    files, kinds, names = data.files_of(root, size=size, quality=quality, people=people, cache=cache)
    rows = []
    for subset, holds in data.SUBSETS.items():
        chosen = [index for index, name in enumerate(names) if holds(table[name])]
        some = [[each[index] for index in chosen] for each in (files, kinds, names)]
        for forgeries in (*((kind,) for kind in data.MANIPULATIONS), data.MANIPULATIONS):
            aucs = auc_of(*some, forgeries)
            kind = forgeries[0] if len(forgeries) == 1 else "all"
            rows.append({"quality": quality, "people": subset, "count": len(set(some[2])), "kinds": kind, **aucs})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write it as CSV."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduction.giveaways", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="PATH", help="folder of the portraits")
    add("--people", type=int, metavar="N", help="approximate number of people (all)")
    add("--size", type=int, default=128, help="side of the pictures in pixels (%(default)s)")
    add("--quality", nargs="+", choices=data.QUALITIES, default=[*data.QUALITIES], help="JPEG quality (both)")
    add("--work", type=Path, default=Path(".reproduction"), metavar="FOLDER", help="folder for pictures")
    add("--csv", type=Path, metavar="FILE", help="also write the figures to this file")
    given = parser.parse_args(arguments)
    table = harness.Table(torch.device("cpu"), COLUMNS)
    for quality in given.quality:
        for row in rows_of(given.data, given.size, quality, given.people, given.work / "pictures"):
            table.add(**row, size=given.size)
    if given.csv is not None:
        table.write(given.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
