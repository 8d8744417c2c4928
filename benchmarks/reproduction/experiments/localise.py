"""Test how well self-information alone locates a manipulation: pixel AUC against the mask.

The pixel AUC of a map is the probability that a manipulated pixel has a higher value than another one. It is computed
for every fake of the test part, and for the real picture of the same person with the same mask. The latter is what a
map gains from the face alone, whose eyes and mouth have more detail than its cheeks whether or not they were
manipulated. Only the difference between the two is about forgery.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Final

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reproduction.data.faces import Faces
from benchmarks.reproduction.networks import Detector
from benchmarks.reproduction.scores import mean_interval
from benchmarks.reproduction.study import Measurement, Pictures, Row, Source, Study
from benchmarks.reproduction.training import Run, Settings, as_input, create
from sia_layers import capture_self_information, self_information

Map = Callable[[Tensor], Tensor]  # pictures float (N, 3, S, S) in [0, 1] to maps (N, S, S)
COLUMNS: Final = {
    "map": "<36", "size": "4d", "kinds": "<20", "pictures": "8d", "AUC": "6.3f", "real": "6.3f",
    "fake - real": "11.3f", "fake - real low": "15.3f", "fake - real high": "16.3f",
}  # fmt: skip
INSIDE: Final = ("SIA network, before training here", "SIA network, trained")


def pictures(study: Study) -> list[Pictures]:
    """Return the pictures at the network's size, and larger ones for the maps that need no network."""
    return [Pictures(size, "HQ", seed) for size in _sizes(study) for seed in study.seeds]


def hindrance(study: Study) -> str | None:
    """Return why this data set is unsuitable, or None."""
    if all(study.known[each].masks for each in pictures(study)):
        return None
    return f"localise needs masks of what was changed, and the data set {study.source.name!r} has none"


def settings(study: Study) -> list[Settings]:
    """Return Table 1's runs of SIA."""
    return [study.settings("lite SIA", seed) for seed in study.seeds]


def measurements(study: Study) -> list[Measurement]:
    """Return one measurement per run, of the pictures' own maps and of those inside the network."""
    return [
        Measurement("localisation", each, localisation, _options(study, each.seed), 120.0) for each in settings(study)
    ]


def localisation(run: Run, source: Source, options: Row) -> list[Row]:
    """Return the pixel AUC of every map on every fake of the run's test part, and on the person's real picture."""
    inside = {
        f"{state}, {name}": maker
        for state, detector in zip(INSIDE, (create(run.settings).eval(), run.detector()), strict=True)
        for name, maker in site_maps(detector).items()
    }
    rows = []
    for size in options["sizes"]:
        fakes, reals = pairs(source.parts(Pictures(size, run.settings.quality, run.settings.seed)).test)
        maps = {**of_the_picture(size), **(inside if size == run.settings.size else {})}
        for name, make in maps.items():
            fake, real = (computed(make, faces.images) for faces in (fakes, reals))
            rows += [
                {"map": name, "size": size, "kinds": kind, "person": person, "AUC": pixel_auc(mask, fake[index]),
                 "real": pixel_auc(mask, real[index])}
                for index, (kind, person, mask) in enumerate(zip(fakes.kinds, fakes.people, fakes.masks, strict=True))
            ]  # fmt: skip
    return rows


def pairs(faces: Faces) -> tuple[Faces, Faces]:
    """Return the fakes whose mask marks the manipulation, and a real picture of the same person for each.

    Raises:
        ValueError: there are none, as in data sets without masks.
    """
    real_of: dict[str, int] = {}
    for index, (kind, person) in enumerate(zip(faces.kinds, faces.people, strict=True)):
        if kind == "real":
            real_of.setdefault(person, index)
    changed = faces.masks.flatten(1).float().mean(1)
    fakes = [
        index
        for index, (kind, person) in enumerate(zip(faces.kinds, faces.people, strict=True))
        if kind != "real" and 0 < changed[index] < 1 and person in real_of
    ]
    if not fakes:
        raise ValueError("no fake in the test part has a mask and a real picture beside it; this data set has no masks")
    return faces.take(fakes), faces.take([real_of[faces.people[index]] for index in fakes])


def pixel_auc(mask: Tensor, values: Tensor) -> float:
    """Return the probability that a map (S, S) is higher at a pixel inside the mask (S, S) than at one outside."""
    return float(roc_auc_score(mask.flatten().numpy(), values.flatten().numpy()))


def of_the_picture(size: int) -> dict[str, Map]:
    """Return maps that need no network: self-information, and simple ones that it must beat to be meaningful."""
    single: dict[str, Map] = {
        **{f"self-information, K={side}": partial(information, kernel_size=side) for side in (3, 7)},
        "gradient magnitude": gradient,
        "high-pass energy": high_pass,
    }
    window = size // 16 * 2 + 1
    smooth = {f"{name}, smoothed": partial(_smoothed, make=make, window=window) for name, make in single.items()}
    return {**single, **smooth, "centred Gaussian": centred}


def information(x: Tensor, kernel_size: int) -> Tensor:
    """Return the self-information of the RGB picture, averaged over channels."""
    return self_information(x, kernel_size).mean(1)


def gradient(x: Tensor) -> Tensor:
    """Return the magnitude of Sobel's gradient, averaged over channels."""
    maps = [
        np.hypot(cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)).mean(-1)
        for picture in _arrays(x)
    ]
    return torch.from_numpy(np.stack(maps))


def high_pass(x: Tensor) -> Tensor:
    """Return the squared difference from the picture blurred by one pixel, averaged over channels."""
    maps = [np.square(picture - cv2.GaussianBlur(picture, (0, 0), 1.0)).mean(-1) for picture in _arrays(x)]
    return torch.from_numpy(np.stack(maps))


def centred(x: Tensor) -> Tensor:
    """Return a centred Gaussian, a quarter of the picture wide, that ignores the content: faces are centred."""
    side = x.shape[-1]
    line = cv2.getGaussianKernel(side, side / 4, cv2.CV_32F)
    return torch.from_numpy(line @ line.T).expand(len(x), side, side)


def write(study: Study) -> None:
    """Write localise.csv, localise_runs.csv, and a picture of some faces to the work folder."""
    by_seed = [study.measured(each) or [] for each in measurements(study)]
    cases = list(dict.fromkeys((row["map"], row["size"]) for row in by_seed[0]))
    kinds = [None, *dict.fromkeys(row["kinds"] for row in by_seed[0])]
    study.write("localise", [_row(*case, kind, by_seed) for case in cases for kind in kinds], COLUMNS)
    abouts = [study.about(study.run(each)) for each in settings(study)]
    runs = [
        {**_means(*case, kind, rows), **about}
        for about, rows in zip(abouts, by_seed, strict=True)
        for case in cases
        for kind in kinds
    ]
    study.write("localise_runs", runs)
    first = settings(study)[0]
    test = study.source.parts(Pictures(first.size, first.quality, first.seed)).test
    draw(test, study.run(first), study.work / "localise.png")


def draw(faces: Faces, run: Run, path: Path, rows: int = 6) -> None:
    """Draw the real picture, fake, mask, self-information of the picture and that inside the trained network in rows.

    The figure shows faces from the data set: keep it with the data, and do not publish it.
    """
    fakes, reals = pairs(faces)
    kinds = list(dict.fromkeys(fakes.kinds))
    chosen = [
        [index for index, kind in enumerate(fakes.kinds) if kind == kinds[row % len(kinds)]][row // len(kinds)]
        for row in range(min(rows, len(kinds) * min(fakes.kinds.count(kind) for kind in kinds)))
    ]
    fakes, reals = fakes.take(chosen), reals.take(chosen)
    inside = site_maps(run.detector())
    panels = {
        "real": reals.images.permute(0, 2, 3, 1),
        "fake": fakes.images.permute(0, 2, 3, 1),
        "mask": fakes.masks,
        "self-information, K=7": information(as_input(fakes.images), 7),
        **{name: computed(make, fakes.images) for name, make in inside.items()},
    }
    figure = Figure(figsize=(1.9 * len(panels), 1.9 * len(chosen)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(chosen), len(panels), squeeze=False)
    for column, (title, pictures) in enumerate(panels.items()):
        axes[0, column].set_title(title, fontsize=8)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture.numpy(), cmap="gray" if title == "mask" else "magma")
            axes[row, column].set(xticks=[], yticks=[])
    for row, kind in enumerate(fakes.kinds):
        axes[row, 0].set_ylabel(kind, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\nwritten: {path}")


def _means(name: str, size: int, kind: str | None, rows: list[Row]) -> Row:
    """Return the means over the pictures of one run, under names that do not clash with the run's own columns."""
    selected = [row for row in rows if (row["map"], row["size"]) == (name, size) and kind in (None, row["kinds"])]
    auc, real = (fmean(row[column] for row in selected) for column in ("AUC", "real"))
    return {"map": name, "map size": size, "map kinds": kind or "all", "pictures": len(selected), "map AUC": auc,
            "map real": real, "map fake - real": auc - real}  # fmt: skip


def _row(name: str, size: int, kind: str | None, by_seed: list[list[Row]]) -> Row:
    """Return the mean of one map over pictures and seeds, for one manipulation or for all."""
    selected = [
        [row for row in rows if (row["map"], row["size"]) == (name, size) and kind in (None, row["kinds"])]
        for rows in by_seed
    ]
    people = [[row["person"] for row in rows] for rows in selected]

    def mean(figure: Callable[[Row], float], column: str, lowest: float = 0.0) -> Row:
        values = [[figure(row) for row in rows] for rows in selected]
        return mean_interval(values, people).clipped(lowest, 1.0).as_row(column)

    return {
        "map": name,
        "size": size,
        "kinds": kind or "all",
        "pictures": sum(map(len, selected)),
        **mean(lambda row: row["AUC"], "AUC"),
        **mean(lambda row: row["real"], "real"),
        **mean(lambda row: row["AUC"] - row["real"], "fake - real", -1.0),
    }


def _sizes(study: Study) -> Sequence[int]:
    return tuple(dict.fromkeys((study.budget.size, study.budget.map_size)))


def _options(study: Study, seed: int) -> Row:
    sizes = _sizes(study)
    digests = [study.known[Pictures(size, "HQ", seed)].fingerprint for size in sizes]
    return {"sizes": list(sizes), "states": INSIDE, "data": digests}


def computed(make: Map, images: Tensor) -> Tensor:
    """Return the maps (N, S, S) of pictures uint8 (N, 3, S, S)."""
    with torch.no_grad():
        return torch.cat([make(as_input(part)) for part in images.split(64)])


def site_maps(detector: Detector) -> dict[str, Map]:
    """Return the self-information that gates each site of a network, largest map first, resized to the picture."""
    with torch.no_grad(), capture_self_information(detector) as maps:
        detector(torch.rand(1, 3, 64, 64))
    return {f"1/{64 // maps[site].shape[-1]}": partial(_at_site, detector=detector, site=site) for site in maps}


def _at_site(x: Tensor, detector: Detector, site: str) -> Tensor:
    with capture_self_information(detector) as maps:
        detector(x)
    return F.interpolate(maps[site].mean(1, keepdim=True), x.shape[-2:], mode="bilinear").squeeze(1)


def _smoothed(x: Tensor, make: Map, window: int) -> Tensor:
    return F.avg_pool2d(make(x).unsqueeze(1), window, 1, window // 2, count_include_pad=False).squeeze(1)


def _arrays(x: Tensor) -> NDArray[np.float32]:
    return x.permute(0, 2, 3, 1).contiguous().numpy()
