"""The common parts of the two tasks that predict a map: the network, the loss, and rows averaged per photograph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.beyond import networks
from benchmarks.beyond.maps import Map
from benchmarks.beyond.pictures import Pictures
from benchmarks.beyond.task import Row, Task, outputs
from benchmarks.reproduction.data.pipeline import Mask
from benchmarks.reproduction.scores import Interval, mean_interval

Case = Callable[[Row], bool]
DIGITS: Final = 4


class Segmentation(Task):
    """A task whose network returns a logit for each pixel."""

    def network(self, variant: str, pretrained: bool) -> nn.Module:
        """Return EfficientNet-Lite0 with LR-ASPP."""
        return networks.Segmenter(variant, pretrained)

    def loss(self, network: nn.Module, x: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        """Return binary cross-entropy plus the Dice loss of the whole batch."""
        logits, truth = network(x), masks.to(x.dtype)
        predicted = logits.sigmoid()
        dice = 1 - (2 * (predicted * truth).sum() + 1) / (predicted.sum() + truth.sum() + 1)
        return F.binary_cross_entropy_with_logits(logits, truth) + dice


def by_group(
    network: nn.Module, test: Pictures, kinds: Sequence[str], measure: Callable[[Map, Mask, str], Mapping[str, float]]
) -> list[Row]:
    """Measure the map of every picture, and average over those of one photograph, kind and condition.

    Args:
        network: network that returns logits (N, S, S).
        test: the pictures.
        kinds: kind of each picture, for the rows.
        measure: function of a map, a mask and the kind that returns figures.
    """
    found: dict[tuple[str, str, str], list[Mapping[str, float]]] = {}
    for index, logits in enumerate(outputs(network, test)):
        figures = measure(logits.sigmoid().double().numpy(), test.masks[index].numpy(), kinds[index])
        found.setdefault((kinds[index], test.conditions[index], test.groups[index]), []).append(figures)
    return [
        {"kind": kind, "condition": condition, "group": group, "pictures": len(members),
         **{name: round(float(np.mean([figures[name] for figures in members])), DIGITS) for name in members[0]}}
        for (kind, condition, group), members in found.items()
    ]  # fmt: skip


def table(rows: Sequence[Row], measures: Sequence[str], cases: Mapping[str, Case]) -> list[Row]:
    """Compute means with intervals over photographs or people and over seeds, and paired differences from bare.

    Args:
        rows: rows of all runs.
        measures: columns of figures.
        cases: name of each case, and the rows that belong to it.
    """
    made = []
    for case, holds in cases.items():
        selected = [row for row in rows if holds(row)]
        variants = [name for name in networks.VARIANTS if any(row["network"] == name for row in selected)]
        for variant in variants:
            row: Row = {"case": case, "network": variant, "seeds": _seeds(selected, variant)}
            for measure in measures:
                if all(each[measure] != "" for each in selected):
                    row |= _interval(selected, variant, measure).clipped(0, 1).as_row(measure)
                    if variant != "bare" and "bare" in variants:
                        row |= _interval(selected, variant, measure, "bare").as_row(f"{measure} - bare")
            made.append(row)
    return made


def _seeds(rows: Sequence[Row], variant: str) -> str:
    return " ".join(str(seed) for seed in sorted({int(row["seed"]) for row in rows if row["network"] == variant}))


def _interval(rows: Sequence[Row], variant: str, measure: str, other: str | None = None) -> Interval:
    """Return the interval of a measure, or of its difference from another network on the same pictures."""
    of = {_place(row): float(row[measure]) for row in rows if row["network"] == variant}
    if other is not None:
        beside = {_place(row): float(row[measure]) for row in rows if row["network"] == other}
        of = {place: value - beside[place] for place, value in of.items() if place in beside}
    values: dict[str, list[float]] = {}
    groups: dict[str, list[str]] = {}
    for (seed, _, _, group), value in of.items():
        values.setdefault(seed, []).append(value)
        groups.setdefault(seed, []).append(group)
    return mean_interval(list(values.values()), list(groups.values()))


def _place(row: Row) -> tuple[str, str, str, str]:
    return str(row["seed"]), row["kind"], row["condition"], row["group"]
