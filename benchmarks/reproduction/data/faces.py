"""Pictures of faces in memory, and the split of people into parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

REAL = "real"
PARTS = ("train", "validation", "test")
FRACTIONS = (0.6, 0.1, 0.3)  # shares of the people, in the order of PARTS
FEWEST = 2  # people in a part: a face swap needs a donor
FOLDS = 8


class Skipped(NamedTuple):
    """Something unusable, and the reason."""

    path: str
    reason: str


class Recipe(NamedTuple):
    """The parameters that determine the pictures.

    Args:
        size: side of the pictures in pixels.
        quality: a key of ``pipeline.QUALITIES``.
        seed: seed of the split by person, and of all random choices in the manipulations.
        people: largest number of people over all parts; ``None`` for all.
        folds: number of folds, for data sets that test each person once; others ignore it.
    """

    size: int
    quality: str
    seed: int
    people: int | None
    folds: int = FOLDS


class Sample(NamedTuple):
    """A finished picture, uint8 (S, S, 3) in RGB, and its mask, bool (S, S), True where it was manipulated."""

    picture: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    person: str
    kind: str


@dataclass(frozen=True)
class Faces:
    """Pictures with their labels.

    Args:
        images: uint8 (N, 3, S, S), RGB.
        labels: int64 (N,), 0 real and 1 fake.
        masks: bool (N, S, S), True where a picture was manipulated; all False for real pictures, and for all pictures
            of a data set without masks.
        people: identity or source video of each picture, by which the parts are split.
        kinds: ``"real"`` or the name of the manipulation, for each picture.
        skipped: files that could not be used.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    people: tuple[str, ...]
    kinds: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        lengths = [len(each) for each in (self.images, self.labels, self.masks, self.people, self.kinds)]
        if len(set(lengths)) != 1:
            raise ValueError(f"images, labels, masks, people and kinds must be of one length, got {lengths}")

    def __len__(self) -> int:
        return len(self.people)

    @classmethod
    def stack(cls, samples: Sequence[Sample], size: int, skipped: Iterable[Skipped] = ()) -> Faces:
        """Collect samples that are ``size`` pixels wide and high."""
        pictures = np.stack([each.picture for each in samples]) if samples else np.empty((0, size, size, 3), np.uint8)
        masks = np.stack([each.mask for each in samples]) if samples else np.empty((0, size, size), bool)
        return cls(
            torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(),
            torch.tensor([each.kind != REAL for each in samples], dtype=torch.int64),
            torch.from_numpy(masks),
            tuple(each.person for each in samples),
            tuple(each.kind for each in samples),
            tuple(skipped),
        )

    def take(self, indices: Sequence[int] | Tensor) -> Faces:
        """Select faces by index, in the given order, and keep ``skipped``."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            masks=self.masks[chosen],
            people=tuple(self.people[index] for index in chosen.tolist()),
            kinds=tuple(self.kinds[index] for index in chosen.tolist()),
        )

    def among(self, people: Collection[str]) -> Faces:
        """Select the pictures of some people."""
        return self.take([index for index, person in enumerate(self.people) if person in people])

    def of(self, kind: str) -> Faces:
        """Select the real faces and those of one manipulation."""
        if kind not in self.kinds or kind == REAL:
            known = ", ".join(sorted(set(self.kinds) - {REAL})) or "none"
            raise ValueError(f"kind must be one of the manipulations here ({known}), got {kind!r}")
        return self.take([index for index, each in enumerate(self.kinds) if each in (REAL, kind)])


class Parts(NamedTuple):
    """The three parts of a split; no person is in two."""

    train: Faces
    validation: Faces
    test: Faces


class Source(ABC):
    """A data set in a folder.

    Args:
        root: folder of the data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def fingerprint(self, quality: str) -> str:
        """Return a fingerprint that changes when the source data of a quality change."""

    @abstractmethod
    def parts(self, recipe: Recipe) -> Parts:
        """Return the pictures, made by a recipe."""


def split(
    people: Iterable[str],
    seed: int,
    ties: Iterable[tuple[str, str]] = (),
    fractions: Sequence[float] = FRACTIONS,
) -> dict[str, str]:
    """Assign each person to one part, at random.

    Args:
        people: their names; duplicates count once.
        seed: seed of the random order.
        ties: pairs of people who must be in the same part, because both are in one picture.
        fractions: shares of the people in train, validation and test; a part with share 0 stays empty.

    Returns:
        The part of each person. Each part gets two people, if there are enough, before it gets its share.
    """
    names = sorted(set(people))
    if not names:
        return {}
    share = {part: fraction for part, fraction in zip(PARTS, fractions, strict=True) if fraction > 0}
    filled = dict.fromkeys(share, 0)
    sides: dict[str, str] = {}
    groups = _tied(names, ties)
    for index in np.random.default_rng(seed).permutation(len(groups)):
        part = min(share, key=lambda each: (filled[each] >= FEWEST, filled[each] / share[each]))  # the least filled
        filled[part] += len(groups[index])
        sides.update(dict.fromkeys(groups[index], part))
    return sides


def deal(classes: Mapping[str, str], folds: int, seed: int) -> dict[str, int]:
    """Deal people into folds of equal size, each with its share of every class.

    Nobody is the only one of their class in a fold: a class with too few people is dealt into fewer folds.

    Args:
        classes: class of each person; every class needs two people or more.
        folds: number of folds.
        seed: seed of the random order.

    Returns:
        The fold of each person, from 0.

    Raises:
        ValueError: if a class has only one person, or if a fold stays empty.
    """
    members: dict[str, list[str]] = {}
    for person in sorted(classes):
        members.setdefault(classes[person], []).append(person)
    generator, filled = np.random.default_rng(seed), [0] * folds
    dealt: dict[str, int] = {}
    for name, people in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(people) < FEWEST:
            raise ValueError(f"{people[0]} is the only one of {name!r}; a class needs {FEWEST} people or more")
        emptiest = sorted(range(folds), key=filled.__getitem__)[: len(people) // FEWEST]
        for place, index in enumerate(generator.permutation(len(people))):
            fold = emptiest[place % len(emptiest)]
            dealt[people[index]] = fold
            filled[fold] += 1
    if not all(filled):
        raise ValueError(f"{len(classes)} people are too few for {folds} folds; each needs {FEWEST} people of a class")
    return dealt


def _tied(names: Sequence[str], ties: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return people in groups that are tied directly or through others."""
    place = {name: index for index, name in enumerate(names)}
    edges = np.array([(place[first], place[second]) for first, second in ties], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(names), len(names)))
    count, group_of = connected_components(graph, directed=False)
    groups: list[list[str]] = [[] for _ in range(count)]
    for name, group in zip(names, group_of.tolist(), strict=True):
        groups[group].append(name)
    return groups


def limit(sides: Mapping[str, str], people: int | None, seed: int) -> dict[str, str]:
    """Keep at most ``people`` people, each part in proportion; those who are kept stay in their part.

    Raises:
        ValueError: if ``people`` is too few for three parts.
    """
    if people is None or people >= len(sides):
        return dict(sides)
    if people < FEWEST * len(PARTS):
        raise ValueError(f"people must be {FEWEST * len(PARTS)} or more, {FEWEST} a part, got {people}")
    names = sorted(sides)
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    kept: dict[str, str] = {}
    for part in PARTS:
        there = [name for name in order if sides[name] == part]
        count = max(FEWEST, round(people * len(there) / len(sides)))
        kept.update(dict.fromkeys(there[:count], part))
    return kept
