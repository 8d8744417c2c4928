"""The reproduction's data: the split by person, photographs with landmarks, and the cache."""

import importlib
import os
import sys
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

from drawn_faces import drawn_face, read_rows, same, sides_of, write_faces, write_rows  # noqa: E402

from benchmarks.reproduction import data  # noqa: E402
from benchmarks.reproduction.data import faces, landmarked, manipulate  # noqa: E402

PHOTOGRAPHS = os.environ.get("SIA_FACES")
needs_photographs = pytest.mark.skipif(not PHOTOGRAPHS, reason="SIA_FACES is not set to a folder of landmarked faces")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("landmarked") / "set", 12)


@pytest.mark.parametrize("missing", ["cv2", "PIL", "scipy"])
def test_a_missing_package_says_what_to_install(monkeypatch, missing):
    for name in [each for each in sys.modules if each.startswith("benchmarks.reproduction.data")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [each for each in sys.modules if each.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"need {missing}.*pip install 'sia-layers\[reproduction\]'"):
        importlib.import_module("benchmarks.reproduction.data")


# The split


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 60), st.integers(0, 1000), st.data())
def test_split_keeps_everyone_and_ties_in_one_part(count, seed, drawn):
    people = [f"p{index}" for index in range(count)]
    pairs = drawn.draw(st.lists(st.tuples(st.sampled_from(people), st.sampled_from(people)), max_size=10))
    sides = data.split(people, seed, pairs)
    assert set(sides) == set(people)
    assert all(sides[first] == sides[second] for first, second in pairs)
    assert sides == data.split(reversed(people), seed, pairs)
    if not pairs:
        assert set(sides.values()) == {"train", "validation", "test"}
        assert abs(sum(side == "train" for side in sides.values()) - 0.6 * count) <= 2


def test_split_depends_on_the_seed():
    people = [f"p{index}" for index in range(30)]
    assert data.split(people, 0) != data.split(people, 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(10, 60), st.integers(6, 60), st.integers(0, 100))
def test_limit_moves_nobody_to_another_part(count, people, seed):
    sides = data.split([f"p{index}" for index in range(count)], seed)
    kept = faces.limit(sides, people, seed)
    assert kept.items() <= sides.items()
    assert set(kept.values()) == set(sides.values())
    assert len(kept) <= max(people + 3, 6)


def test_limit_refuses_too_few():
    with pytest.raises(ValueError, match=r"people must be 6 or more.*got 5"):
        faces.limit(data.split([f"p{index}" for index in range(20)], 0), 5, 0)


# Faces


def some_faces():
    kinds = ("real", "face swap", "reenactment", "real")
    return data.Faces(torch.arange(4 * 12).reshape(4, 3, 2, 2).to(torch.uint8), torch.tensor([0, 1, 1, 0]),
                      torch.zeros(4, 2, 2, dtype=torch.bool), ("a", "a", "b", "b"), kinds)  # fmt: skip


def test_take_and_of_keep_fields_consistent():
    all_of_them = some_faces()
    taken = all_of_them.take([3, 1])
    assert len(taken) == 2
    assert taken.people == ("b", "a") and taken.kinds == ("real", "face swap") and taken.labels.tolist() == [0, 1]
    assert torch.equal(taken.images, all_of_them.images[[3, 1]])
    assert all_of_them.of("reenactment").kinds == ("real", "reenactment", "real")


def test_faces_refuse_unknown_kinds():
    with pytest.raises(ValueError, match=r"face swap, reenactment.*got 'deepfake'"):
        some_faces().of("deepfake")
    with pytest.raises(ValueError, match="of one length"):
        data.Faces(torch.zeros(2, 3, 2, 2), torch.zeros(1), torch.zeros(2, 2, 2), ("a", "b"), ("real", "real"))


# Landmarked


def test_landmarked_gives_each_person_a_real_picture_and_a_forgery_of_each_kind(folder):
    parts = data.load("landmarked", folder, size=64)
    assert len({*sides_of(parts)}) == 12 and sum(map(len, parts)) == 12 * 5
    for each in parts:
        assert each.images.dtype == torch.uint8 and each.images.shape == (len(each), 3, 64, 64)
        assert each.labels.dtype == torch.int64 and each.masks.dtype == torch.bool
        assert each.labels.tolist() == [kind != "real" for kind in each.kinds]
        assert not each.masks[each.labels == 0].any()
        assert each.masks[each.labels == 1].flatten(1).any(1).all()
        assert set(each.kinds) == {"real", *data.MANIPULATIONS}
        assert not each.skipped
    sets = [set(each.people) for each in parts]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]


def test_a_donor_is_another_person_of_the_same_part(folder, monkeypatch):
    owners = {picture.tobytes(): f"p{seed:03}" for seed in range(12) for picture in [drawn_face(seed)[0]]}
    pairs, swap = [], manipulate.face_swap

    def recorded(target, points, donor, donor_points, rng):
        pairs.append((owners[target.tobytes()], owners[donor.tobytes()]))
        return swap(target, points, donor, donor_points, rng)

    monkeypatch.setattr(manipulate, "face_swap", recorded)
    sides = sides_of(data.load("landmarked", folder, size=64))
    assert len(pairs) == 12
    assert all(target != donor and sides[target] == sides[donor] for target, donor in pairs)


def test_load_depends_only_on_its_seed(folder):
    first, again, other = (data.load("landmarked", folder, size=64, seed=seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert sides_of(first) != sides_of(other)


def test_fewer_people_stay_on_their_sides(folder):
    everyone, few = (
        sides_of(data.load("landmarked", folder, size=64)),
        data.load("landmarked", folder, size=64, people=7),
    )
    assert len(sides_of(few)) < 12
    assert sides_of(few).items() <= everyone.items()


def test_unusable_data_are_counted_with_their_reason(tmp_path):
    root = write_faces(tmp_path / "set", 50)
    rows = read_rows(root)
    (root / "faces" / "p000.png").write_bytes(b"no picture")
    whole = (root / "faces" / "p001.png").read_bytes()
    (root / "faces" / "p001.png").write_bytes(whole[: len(whole) // 2])
    (root / "faces" / "p002.png").unlink()
    rows[3] = rows[3][:-2]
    rows[4][5] = "left"
    rows[5][5] = "nan"
    rows[6][1:] = [float(value) + 100 for value in rows[6][1:]]
    rows[7][1:] = [80 + (float(value) - 80) / 10 for value in rows[7][1:]]
    rows.append(rows[8])
    del rows[9]
    write_rows(root, rows)
    parts = data.load("landmarked", root, size=64)
    skipped = {Path(each.path).stem: each.reason for part in parts for each in part.skipped}
    expected = {
        "p000": "not a picture",
        "p001": "can't be read",
        "p002": "no picture",
        "p003": "134 numbers",
        "p004": "could not convert",
        "p005": "not a finite number",
        "p006": "leave the picture",
        "p007": "fewer than 32 pixels",
        "p008": "two rows",
        "p009": "no row",
    }
    assert skipped.keys() == expected.keys()
    assert all(text in skipped[person] for person, text in expected.items()), skipped
    assert sides_of(parts).keys() == {f"p{index:03}" for index in range(10, 50)}


def test_pictures_may_be_beside_the_table_and_named_with_their_suffix(tmp_path):
    root = write_faces(tmp_path / "set", 6)
    for picture in (root / "faces").iterdir():
        picture.rename(root / picture.name)
    (root / "faces").rmdir()
    write_rows(root, [[f"{name}.png", *values] for name, *values in read_rows(root)])
    assert len(sides_of(data.load("landmarked", root, size=32))) == 6


def test_an_invalid_table_is_refused(tmp_path):
    root = write_faces(tmp_path / "set", 6)
    write_rows(root, [["p000", 1, 2]], ["image", "x0", "y0"])
    with pytest.raises(ValueError, match=r"landmarks.csv must have the columns.*got 3: image, x0, y0"):
        data.load("landmarked", root, size=64)
    (root / "landmarks.csv").write_text("")
    with pytest.raises(ValueError, match="must have the columns"):
        data.load("landmarked", root, size=64)
    (root / "landmarks.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no landmarks\.csv"):
        data.load("landmarked", root, size=64)


def test_too_few_usable_faces_are_an_error_that_says_why(tmp_path):
    root = write_faces(tmp_path / "set", 6)
    for picture in sorted((root / "faces").iterdir())[:5]:
        picture.write_bytes(b"")
    with pytest.raises(ValueError, match=r"usable faces for the .* part, which needs 2; .*skipped.*not a picture"):
        data.load("landmarked", root, size=64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "imagenet"}, "source must be one of landmarked.*got 'imagenet'"),
        ({"quality": "MQ"}, "quality must be one of HQ, LQ, got 'MQ'"),
        ({"size": 8}, "size must be 16 pixels or more, got 8"),
        ({"people": 3}, "people must be 6 or more"),
    ],
)
def test_load_refuses_wrong_arguments(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**{"source": "landmarked", "root": folder, "size": 64, **arguments})


def test_load_refuses_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        data.load("landmarked", tmp_path / "nowhere", size=64)


# The cache


def test_the_cache_returns_what_was_made(folder, tmp_path, monkeypatch):
    made = data.load("landmarked", folder, size=48, cache=tmp_path / "kept")
    with monkeypatch.context() as patched:
        patched.setattr(landmarked.Landmarked, "parts", lambda *_: pytest.fail("made again"))
        again = data.load("landmarked", folder, size=48, cache=tmp_path / "kept")
    assert same(made, again) and [each.skipped for each in made] == [each.skipped for each in again]
    (file,) = (tmp_path / "kept").iterdir()
    data.load("landmarked", folder, size=48, seed=1, cache=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2
    file.write_bytes(file.read_bytes()[:1000])
    assert same(made, data.load("landmarked", folder, size=48, cache=tmp_path / "kept"))


def test_the_cache_is_rebuilt_when_the_data_change(tmp_path):
    root = write_faces(tmp_path / "set", 8)
    before = data.load("landmarked", root, size=48, cache=tmp_path / "kept")
    Image.fromarray(drawn_face(3)[0][:, ::-1]).save(root / "faces" / "p003.png")
    assert not same(before, data.load("landmarked", root, size=48, cache=tmp_path / "kept"))


def test_a_write_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    def fails(path, **arrays):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(KeyboardInterrupt):
        data.load("landmarked", folder, size=48, cache=tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


@needs_photographs
def test_every_photograph_is_usable():
    parts = data.load("landmarked", Path(PHOTOGRAPHS), size=64, people=12)
    assert 6 <= len(sides_of(parts)) <= 14
    assert not any(each.skipped for each in parts)
    assert all(0.05 < each.masks[each.labels == 1].float().mean() < 0.6 for each in parts)
