"""The reproduction's portraits: their people, folds, donors and grey forgeries, and the stored pictures."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

EXTRA = "pip install 'sia-layers[reproduction]'"
np = pytest.importorskip("numpy", reason=EXTRA)
cv2 = pytest.importorskip("cv2", reason=EXTRA)
Image = pytest.importorskip("PIL.Image", reason=EXTRA)
for module in ("scipy", "sklearn", "tqdm"):
    pytest.importorskip(module, reason=EXTRA)

from drawn_faces import drawn_face, forge, same, sides_of, write_faces  # noqa: E402

from benchmarks.reproduction import data  # noqa: E402
from benchmarks.reproduction.data import faces, manipulate, portraits  # noqa: E402

PORTRAITS = os.environ.get("SIA_PORTRAITS")
needs_portraits = pytest.mark.skipif(not PORTRAITS, reason="SIA_PORTRAITS is not set to a folder of portraits")


def write_people(root, strata):
    """Write people.csv for the pictures of ``write_faces``, with the era and colour of each."""
    rows = [[f"p{index:03}.png", colour, era] for index, (era, colour) in enumerate(strata)]
    with (root / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "colour", "era"], *rows])


STRATA = [("modern", "yes")] * 7 + [("old", "no")] * 8 + [("middle", "yes")] * 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write two data sets: portraits of three strata, one of them with a single person; and faces without a table."""
    root = tmp_path_factory.mktemp("joined")
    write_people(write_faces(root / "portraits", len(STRATA)), STRATA)
    write_faces(root / "plain", 6, first=50)
    return root


def folds(folder, cache, count=3):
    return [data.load("portraits", folder, size=32, seed=fold, folds=3, cache=cache) for fold in range(count)]


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    return folds(folder, tmp_path_factory.mktemp("kept"))


# Folds


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.integers(3, 9), st.integers(0, 99))
def test_folds_are_even_and_leave_nobody_alone(counts, folds, seed):
    classes = {f"{kind} {index}": str(kind) for kind, count in enumerate(counts) for index in range(count)}
    if sum(count // 2 for count in counts) < folds:
        with pytest.raises(ValueError, match="too few"):
            faces.deal(classes, folds, seed)
        return
    dealt = faces.deal(classes, folds, seed)
    assert dealt.keys() == classes.keys() and set(dealt.values()) == set(range(folds))
    assert dealt == faces.deal(dict(reversed(classes.items())), folds, seed)
    sizes = Counter((fold, classes[person]) for person, fold in dealt.items())
    assert min(sizes.values()) >= 2
    for kind, count in enumerate(counts):
        shares = [number for (_, name), number in sizes.items() if name == str(kind)]
        assert max(shares) - min(shares) <= 1 and len(shares) == min(folds, count // 2)


def test_folds_refuse_too_few_people():
    with pytest.raises(ValueError, match=r"c is the only one of 'lonely'; a class needs 2"):
        faces.deal({"a": "x", "b": "x", "c": "lonely"}, 3, 0)
    with pytest.raises(ValueError, match="3 people are too few for 3 folds"):
        faces.deal(dict.fromkeys("abc", "x"), 3, 0)


def test_everybody_is_tested_once_and_never_in_two_parts(made):
    tested = [sides for parts in made for sides in set(parts.test.people)]
    assert len(tested) == len(set(tested)) == 7 + 8 + 6
    for parts in made:
        people = [set(part.people) for part in parts]
        assert sum(map(len, people)) == len(set.union(*people)) == len(tested)
        for part in parts:
            assert Counter(part.kinds) == dict.fromkeys(("real", *data.MANIPULATIONS), len(set(part.people)))
            assert part.labels.tolist() == [kind != "real" for kind in part.kinds]
            assert part.images.shape == (len(part), 3, 32, 32) and part.masks.shape == (len(part), 32, 32)
            assert not part.masks[part.labels == 0].any() and part.masks[part.labels == 1].flatten(1).any(1).all()


def test_the_pictures_of_a_person_are_the_same_in_every_fold(made):
    first, second = (
        {
            (person, kind): image
            for part in parts
            for person, kind, image in zip(part.people, part.kinds, part.images, strict=True)
        }
        for parts in made[:2]
    )
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_class_with_one_person_is_skipped_with_the_reason(made):
    (skipped,) = {skip for parts in made for part in parts for skip in part.skipped}
    assert skipped.path == "portraits/p015" and "only one of 'portraits, middle, colour'" in skipped.reason


def test_a_donor_has_the_same_fold_folder_era_and_colour(folder, tmp_path, monkeypatch):
    pairs, forge_face = [], manipulate.forge

    def recorded(kind, face, donor, rng):
        if donor is not None:
            pairs.append((face.person, donor.person))
        return forge_face(kind, face, donor, rng)

    monkeypatch.setattr(manipulate, "forge", recorded)
    tests = [set(parts.test.people) for parts in folds(folder, tmp_path)]
    people = data.people_of("portraits", folder)
    assert len(pairs) == len({face for face, _ in pairs}) == 21
    for face, donor in pairs:
        assert face != donor and people[face].stratum == people[donor].stratum
        assert any({face, donor} <= tested for tested in tests)


def test_another_round_deals_and_forges_anew(folder, made, tmp_path):
    again = data.load("portraits", folder, size=32, seed=3, folds=3, cache=tmp_path)
    assert sides_of(again) != sides_of(made[0]) and sides_of(again).keys() == sides_of(made[0]).keys()


# People


def test_the_table_joins_folders_and_names_subsets(folder):
    people = data.people_of("portraits", folder)
    assert len(people) == 22 and people["plain/p050"] == ("plain/p050", "plain", "modern", True)
    counts = {name: sum(map(chosen, people.values())) for name, chosen in data.SUBSETS.items()}
    assert counts == {"all": 22, "modern colour": 13, "old prints": 8}


def test_one_folder_serves_alone_with_the_same_names(folder):
    alone = data.people_of("portraits", folder / "portraits")
    assert alone.items() <= data.people_of("portraits", folder).items() and len(alone) == 16


@pytest.mark.parametrize(
    ("strata", "message"),
    [
        ([("modern", "yes")] * 5, "no row for 1 pictures, the first is p005"),
        ([("modern", "maybe")] * 6, "colour must be yes or no .* got 'maybe' and 'modern' for p000.png"),
        ([("antique", "no")] * 6, "era one of old, middle, modern, got 'no' and 'antique'"),
    ],
)
def test_a_wrong_table_of_people_is_refused(tmp_path, strata, message):
    write_people(write_faces(tmp_path / "set", 6), strata)
    with pytest.raises(ValueError, match=message):
        data.load("portraits", tmp_path / "set", size=32)


def test_a_table_of_people_needs_its_columns(tmp_path):
    (write_faces(tmp_path / "set", 6) / "people.csv").write_text("image,age\np000.png,40\n")
    with pytest.raises(ValueError, match=r"people\.csv lacks the columns colour, era"):
        data.people_of("portraits", tmp_path / "set")


def test_a_folder_without_landmarks_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither .* nor a folder in it has landmarks\.csv"):
        data.load("portraits", tmp_path, size=32)


def test_too_few_folds_are_refused(folder):
    with pytest.raises(ValueError, match="folds must be 3 or more, got 2"):
        data.load("portraits", folder, size=32, folds=2)


# Grey


@pytest.mark.parametrize("kind", data.MANIPULATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_the_forgery_of_a_grey_picture_is_grey(kind, seed):
    target, donor = (
        manipulate.Face(str(each), manipulate.without_colour(picture), points)
        for each in (1, 2)
        for picture, points in [drawn_face(each)]
    )
    made, mask = manipulate.forge(kind, target, donor, np.random.default_rng(seed))
    assert manipulate.is_grey(made) and not np.array_equal(made, target.picture)
    seam = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3)), iterations=6).astype(bool)
    assert np.array_equal(made[~seam], target.picture[~seam])


def test_self_blending_alone_would_colour_it():
    picture, points = drawn_face(1)
    made, _ = forge("self-blending", (manipulate.without_colour(picture), points), None, 0)
    assert not manipulate.is_grey(made)


@pytest.mark.parametrize("kind", data.MANIPULATIONS)
def test_forgeries_of_colour_pictures_are_unchanged(kind):
    target, donor = (manipulate.Face(str(each), *drawn_face(each)) for each in (1, 2))
    made, mask = manipulate.forge(kind, target, donor, np.random.default_rng(3))
    expected = forge(kind, target[1:], donor[1:], 3)
    assert np.array_equal(made, expected[0]) and np.array_equal(mask, expected[1])


def test_photographs_without_colour_become_grey(made, folder):
    people = data.people_of("portraits", folder)
    for part in made[0]:
        spread = part.images.amax(1).int() - part.images.amin(1).int()
        coloured = spread.flatten(1).any(1).tolist()
        assert coloured == [people[person].colour for person in part.people]


# Stored pictures


def test_interrupted_making_resumes(folder, made, tmp_path, monkeypatch):
    replace, left = portraits.harness.replace, 10

    def stopped(path, write):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        replace(path, write)

    with monkeypatch.context() as patched:
        patched.setattr(portraits.harness, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            folds(folder, tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert len(kept) == 8
    assert same(folds(folder, tmp_path, 1)[0], made[0])
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}.items()
    assert len(list(tmp_path.rglob("*.npz"))) == 21


def test_two_processes_make_what_one_does(folder, made, tmp_path, monkeypatch):
    given = {"size": 32, "folds": 3, "cache": tmp_path}
    data.prepare("portraits", folder, **given, processes=2)
    monkeypatch.setattr(portraits, "forged", lambda *_: pytest.fail("made again"))
    assert same(data.load("portraits", folder, **given), made[0])


def test_a_failure_reports_its_cause(folder, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(portraits, "forged", fails)
    with pytest.raises(RuntimeError, match=r"batches of pictures failed, the first: OSError: no space left"):
        data.prepare("portraits", folder, size=32, folds=3, cache=tmp_path, processes=1)


def test_fewer_people_keep_every_stratum(folder, tmp_path):
    parts = data.load("portraits", folder, size=32, folds=3, people=12, cache=tmp_path)
    people = data.people_of("portraits", folder)
    assert len(sides_of(parts)) in range(11, 15)
    assert len({people[person].stratum for person in sides_of(parts)}) == 3


@needs_portraits
def test_every_portrait_is_usable():
    people = data.people_of("portraits", Path(PORTRAITS))
    parts = data.load("portraits", Path(PORTRAITS), size=32, people=24, folds=3)
    assert len(people) >= 918 and 24 <= len(sides_of(parts)) <= 32
