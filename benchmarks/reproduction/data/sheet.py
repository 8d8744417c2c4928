"""A contact sheet: a row a person, the real picture, its forgeries, and where each was changed."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation

from benchmarks.reproduction.data.faces import REAL, Faces
from benchmarks.reproduction.data.pipeline import Picture

OUTLINE = (0, 255, 0)  # of a mask


def sheet(faces: Faces, people: int = 6) -> Picture:
    """Draw the first people of a part.

    Args:
        faces: the part; each person must have the same kinds of pictures, one of each.
        people: rows, at most.

    Returns:
        uint8 (rows · S, columns · S, 3): the real picture, the forgeries in the order of their kinds, and the outline
        of each forgery's mask on the real picture.

    Raises:
        ValueError: if a person lacks a kind.
    """
    kinds = [REAL, *(kind for kind in dict.fromkeys(faces.kinds) if kind != REAL)]
    place = {pair: index for index, pair in enumerate(zip(faces.people, faces.kinds, strict=True))}
    rows = []
    for person in list(dict.fromkeys(faces.people))[:people]:
        if missing := [kind for kind in kinds if (person, kind) not in place]:
            raise ValueError(f"each person must have a picture of each kind, {person} has no {', '.join(missing)}")
        chosen = [place[person, kind] for kind in kinds]
        pictures = [faces.images[index].permute(1, 2, 0).numpy() for index in chosen]
        masks = [faces.masks[index].numpy() for index in chosen[1:]]
        outlines = [np.where((binary_dilation(mask) & ~mask)[..., None], OUTLINE, pictures[0]) for mask in masks]
        rows.append(np.hstack([*pictures, *outlines]))
    return np.vstack(rows).astype(np.uint8)
