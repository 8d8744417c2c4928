"""Pictures in memory with their labels, and the three parts of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.reproduction.data.faces import REAL
from benchmarks.reproduction.data.pipeline import Mask, Picture


class Made(NamedTuple):
    """A finished picture.

    Attributes:
        picture: uint8 (S, S, 3), RGB.
        mask: bool (S, S), True where the picture was changed or something was hidden.
        kind: ``"real"``, or the manipulation.
        condition: test condition, such as ``"JPEG 75"``.
        source: photograph or person that it was made from and, after a slash, the number of the square.
    """

    picture: Picture
    mask: Mask
    kind: str
    condition: str
    source: str


@dataclass(frozen=True)
class Pictures:
    """The pictures of one part.

    Attributes:
        images: uint8 (N, 3, S, S), RGB.
        masks: bool (N, S, S).
        kinds: ``"real"`` or the manipulation of each picture.
        conditions: test condition of each picture.
        sources: source of each picture.
    """

    images: Tensor
    masks: Tensor
    kinds: tuple[str, ...]
    conditions: tuple[str, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kinds)

    @classmethod
    def stack(cls, made: Sequence[Made]) -> Pictures:
        """Collect finished pictures of one size.

        Raises:
            ValueError: there are none.
        """
        if not made:
            raise ValueError("a part has no picture; use more photographs or people")
        images = torch.from_numpy(np.stack([each.picture for each in made])).permute(0, 3, 1, 2).contiguous()
        masks = torch.from_numpy(np.stack([each.mask for each in made]))
        kinds, conditions, sources = zip(*((each.kind, each.condition, each.source) for each in made), strict=True)
        return cls(images, masks, kinds, conditions, sources)

    @property
    def labels(self) -> Tensor:
        """Return int64 (N,): 0 real, 1 otherwise."""
        return torch.tensor([kind != REAL for kind in self.kinds], dtype=torch.int64)

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the photograph or person of each picture, which the bootstrap resamples."""
        return tuple(source.partition("/")[0] for source in self.sources)


class Parts(NamedTuple):
    """The parts of a split; no photograph and no person is in two. ``test`` selects nothing."""

    train: Pictures
    validation: Pictures | None
    test: Pictures

    def fingerprint(self) -> str:
        """Return a digest of all pixels, masks, kinds, conditions and sources."""
        digest = hashlib.sha256()
        for part in self:
            if part is not None:
                digest.update(part.images.numpy().tobytes() + part.masks.numpy().tobytes())
                digest.update(repr((part.kinds, part.conditions, part.sources)).encode())
        return digest.hexdigest()[:16]
