"""Faces drawn from ellipses, with landmarks, in folders like those of data sets; and helpers to check loaded parts."""

import csv
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.reproduction.data import manipulate


def ellipse(centre, radii, start, stop, count):
    angle = np.radians(np.linspace(start, stop, count))
    return np.array(centre) + np.stack([np.cos(angle), np.sin(angle)], 1) * radii


def drawn_face(seed, size=160):
    """Return a face of ellipses with skin-like noise, and its 68 landmarks."""
    rng = np.random.default_rng(seed)
    width, height = rng.uniform(0.28, 0.33) * size, rng.uniform(0.36, 0.41) * size
    middle = np.array([size / 2, size / 2]) + rng.uniform(-3, 3, 2)
    eyes = [np.add(middle, (side * width * 0.45, -height * 0.2)) for side in (-1, 1)]
    nose, mouth = np.add(middle, (0, height * 0.2)), np.add(middle, (0, height * 0.55))
    points = np.concatenate([
        ellipse(middle, (width, height), 180, 0, 17),
        *(ellipse(eye - [0, height * 0.15], (width * 0.3, height * 0.1), 180, 360, 5) for eye in eyes),
        np.linspace(middle - [0, height * 0.15], nose, 4),
        ellipse(nose, (width * 0.2, height * 0.08), 180, 0, 5),
        *(ellipse(eye, (width * 0.22, height * 0.08), 180, 480, 6) for eye in eyes),
        ellipse(mouth, (width * 0.4, height * 0.12), 180, 510, 12),
        ellipse(mouth, (width * 0.3, height * 0.03), 180, 495, 8),
    ])  # fmt: skip
    picture = np.full((size, size, 3), rng.integers(150, 220), np.uint8)
    skin = rng.uniform([150, 100, 80], [220, 170, 140])

    def fill(centre, radii, colour):
        cv2.ellipse(picture, np.round(centre).astype(int).tolist(), np.round(radii).astype(int).tolist(), 0, 0, 360,
                    list(colour), -1, cv2.LINE_AA)  # fmt: skip

    fill(middle, (width, height * 1.15), skin)
    for eye in eyes:
        fill(eye - [0, height * 0.15], (width * 0.3, height * 0.05), skin * 0.4)
        fill(eye, (width * 0.22, height * 0.08), (240, 240, 240))
        fill(eye, (width * 0.08, height * 0.08), (40, 30, 20))
    fill(nose, (width * 0.2, height * 0.08), skin * 0.8)
    fill(mouth, (width * 0.4, height * 0.12), (170, 70, 70))
    noise = cv2.GaussianBlur(rng.normal(0, 1, (size, size)), (0, 0), 1.0)
    noisy = picture + rng.uniform(5, 9) * (noise / noise.std())[..., None]
    return np.clip(noisy, 0, 255).astype(np.uint8), points


def write_faces(root, count, first=0):
    """Write a folder that ``Landmarked`` accepts."""
    (root / "faces").mkdir(parents=True)
    rows = []
    for index in range(first, first + count):
        picture, points = drawn_face(index)
        Image.fromarray(picture).save(root / "faces" / f"p{index:03}.png")
        rows.append([f"p{index:03}", *np.round(points, 1).ravel().tolist()])
    write_rows(root, rows)
    return root


def write_rows(root, rows, header=None):
    columns = header or ["image", *(f"{axis}{index}" for index in range(68) for axis in "xy")]
    with (root / "landmarks.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def read_rows(root):
    with (root / "landmarks.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def forge(kind, target, donor, seed):
    rng = np.random.default_rng(seed)
    if kind == "face swap":
        return manipulate.face_swap(*target, *donor, rng)
    return manipulate.ALONE[kind](*target, rng)


def sides_of(parts):
    return {person: part for part, each in zip(parts._fields, parts, strict=True) for person in each.people}


def same(one, other):
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.masks, b.masks)
        and a.people == b.people
        and a.kinds == b.kinds
        for a, b in zip(one, other, strict=True)
    )


def reasons_of(parts):
    """Return the reason for each skipped item, by its name without the suffix."""
    return {Path(each.path).stem: each.reason for part in parts for each in part.skipped}


def write_pictures(root, classes, size=48, first=0):
    """Write drawn faces as files, a given number per folder in ``classes``; fakes have a coarse left half."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            picture = cv2.resize(drawn_face(1000 * len(name) + index, 96)[0], (size, size + 8))
            if name.endswith("fake"):
                coarse = cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
                picture[:, : size // 2] = cv2.resize(coarse, (size, size + 8))[:, : size // 2]
            Image.fromarray(picture).save(root / name / f"{Path(name).name}{index:03}.png")
    return root
