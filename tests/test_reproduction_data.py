"""The reproduction's data: forgeries, the split by person, the pipeline, and the data sets' loaders."""

import csv
import importlib
import io
import json
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

from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import GroupKFold, cross_val_predict  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from benchmarks.reproduction import data  # noqa: E402
from benchmarks.reproduction.data import faces, landmarked, landmarks, manipulate, pipeline, sheet  # noqa: E402
from benchmarks.reproduction.data.clips import evenly  # noqa: E402
from benchmarks.reproduction.data.forensics import FORGERIES, FaceForensics  # noqa: E402

PHOTOGRAPHS = os.environ.get("SIA_FACES")
needs_photographs = pytest.mark.skipif(not PHOTOGRAPHS, reason="SIA_FACES is not set to a folder of landmarked faces")


def ellipse(centre, radii, start, stop, count):
    angle = np.radians(np.linspace(start, stop, count))
    return np.array(centre) + np.stack([np.cos(angle), np.sin(angle)], 1) * radii


def drawn_face(seed, size=160):
    """A face of ellipses with skin-like noise, and its 68 landmarks."""
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
    """A folder as ``Landmarked`` takes it."""
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("landmarked") / "set", 12)


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
    """Why each thing was skipped, by its name without the suffix."""
    return {Path(each.path).stem: each.reason for part in parts for each in part.skipped}


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
def test_split_puts_everyone_on_one_side_and_ties_together(count, seed, drawn):
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
def test_limit_moves_nobody(count, people, seed):
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


def test_take_and_of_keep_what_belongs_together():
    all_of_them = some_faces()
    taken = all_of_them.take([3, 1])
    assert len(taken) == 2
    assert taken.people == ("b", "a") and taken.kinds == ("real", "face swap") and taken.labels.tolist() == [0, 1]
    assert torch.equal(taken.images, all_of_them.images[[3, 1]])
    assert all_of_them.of("reenactment").kinds == ("real", "reenactment", "real")


def test_faces_refuse_what_they_have_not():
    with pytest.raises(ValueError, match=r"face swap, reenactment.*got 'deepfake'"):
        some_faces().of("deepfake")
    with pytest.raises(ValueError, match="of one length"):
        data.Faces(torch.zeros(2, 3, 2, 2), torch.zeros(1), torch.zeros(2, 2, 2), ("a", "b"), ("real", "real"))


# Manipulations


def test_layouts_name_landmarks_that_there_are():
    for count, layout in landmarks.LAYOUTS.items():
        for group in (layout.face, layout.brows, *layout.eyes, layout.nose, layout.mouth):
            assert len(set(group)) == len(group) and set(group) <= set(range(count)) and set(group) <= set(layout.face)
    with pytest.raises(ValueError, match="189 or 68 a face, got 5"):
        landmarks.layout(np.zeros((5, 2)))


@pytest.mark.parametrize("kind", data.MANIPULATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_only_what_the_mask_covers_is_changed(kind, seed):
    target, donor = drawn_face(1), drawn_face(2)
    before = target[0].copy()
    picture, mask = forge(kind, target, donor, seed)
    assert np.array_equal(target[0], before)
    assert picture.shape == before.shape and picture.dtype == np.uint8
    assert mask.shape == before.shape[:2] and mask.dtype == bool
    assert 0.02 < mask.mean() < 0.5
    seam = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3)), iterations=6).astype(bool)
    assert np.array_equal(picture[~seam], before[~seam])
    changed = (picture != before).any(2)
    assert changed[mask].mean() > 0.6
    assert changed[mask].mean() > 10 * changed[~mask].mean()


@pytest.mark.parametrize("kind", data.MANIPULATIONS)
def test_a_forgery_is_decided_by_its_seed(kind):
    target, donor = drawn_face(1), drawn_face(2)
    first, again, other = (forge(kind, target, donor, seed) for seed in (5, 5, 8))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("seed", range(4))
def test_a_swap_carries_the_donor(seed):
    target, (picture, points) = drawn_face(1), drawn_face(2)
    marked, nose = picture.copy(), 30
    cv2.circle(marked, np.round(points[nose]).astype(int).tolist(), 5, (0, 0, 0), -1)
    plain, mask = manipulate.face_swap(*target, picture, points, np.random.default_rng(seed))
    swapped, _ = manipulate.face_swap(*target, marked, points, np.random.default_rng(seed))
    x, y = np.round(target[1][nose]).astype(int)
    assert mask[y, x]
    assert swapped[y - 1 : y + 2, x - 1 : x + 2].mean() < plain[y - 1 : y + 2, x - 1 : x + 2].mean() - 40


def test_a_swap_ends_where_the_donors_picture_does():
    target, (picture, points) = drawn_face(1), drawn_face(2)
    half = picture[: picture.shape[0] // 2]
    inside = np.flatnonzero(points[:, 1] < len(half) - 1)
    assert 0 < len(inside) < len(points)
    _, mask = manipulate.face_swap(*target, half, points, np.random.default_rng(0))
    lowest = np.flatnonzero(mask.any(1)).max()
    assert lowest < target[1][:, 1].max() - 20


@pytest.mark.parametrize("seed", range(3))
def test_resynthesis_keeps_the_strength_of_the_detail_and_not_its_structure(seed):
    picture, points = drawn_face(3)
    made, mask = manipulate.texture_resynthesis(picture, points, np.random.default_rng(seed))
    core = cv2.erode(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)

    def detail(image):
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
        return (grey - cv2.GaussianBlur(grey, (0, 0), 2))[core]

    assert 0.7 < detail(made).std() / detail(picture).std() < 1.4
    assert np.corrcoef(detail(made), detail(picture))[0, 1] < 0.9


def test_reenactment_moves_mouth_and_eyes_and_leaves_the_nose():
    picture, points = drawn_face(3)
    for seed in range(4):
        _, mask = manipulate.reenactment(picture, points, np.random.default_rng(seed))
        marked = mask[tuple(np.round(points).astype(int).T[::-1])]
        layout = landmarks.layout(points)
        assert marked[list(layout.mouth)].mean() > 0.8
        assert marked[list(layout.brows)].mean() > 0.8
        assert marked[list(layout.nose)].mean() < 0.5


# The pipeline


@settings(max_examples=100, deadline=None)
@given(
    st.integers(20, 200),
    st.integers(20, 200),
    st.lists(st.tuples(st.floats(-20, 220), st.floats(-20, 220)), min_size=2),
)
def test_boxes_lie_in_the_picture(height, width, points):
    for box in (pipeline.face_box(np.array(points), (height, width, 3)), pipeline.centre_box((height, width, 3))):
        assert box.side >= 1
        assert box.x >= 0 and box.y >= 0 and box.x + box.side <= width and box.y + box.side <= height


def test_finish_crops_picture_and_mask_alike():
    picture, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), bool)
    picture[20:40, 30:50] = 255
    mask[20:40, 30:50] = True
    made, covered = pipeline.finish(picture, mask, pipeline.Box(20, 10, 40), 32, "HQ")
    assert made.shape == (32, 32, 3) and covered.shape == (32, 32)
    assert covered.sum() == 16 * 16 and covered[8:24, 8:24].all()
    assert np.array_equal(made.mean(2) > 127, covered)


def test_lower_quality_is_a_smaller_file_that_is_further_off():
    picture = drawn_face(1)[0]
    files = {name: pipeline.encode(picture, quality) for name, quality in data.QUALITIES.items()}
    errors = {name: np.abs(pipeline.decode(file).astype(int) - picture).mean() for name, file in files.items()}
    assert len(files["LQ"]) < len(files["HQ"]) / 1.5
    assert errors["HQ"] < errors["LQ"]


def file_statistics(files):
    """What can be told of a file without looking at the picture: (N, features)."""
    rows = []
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            tables = [value for table in image.quantization.values() for value in table]
            known = [len(image.info), len(image.getexif()), len(image.getbands()), image.layers]
            rows.append([len(file), image.width, image.height, *known, *tables])
    return np.array(rows, dtype=float)


def told_apart(files, labels, people):
    """AUC of a classifier on file statistics, on people that it has not been trained on."""
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    folds = GroupKFold(6)
    found = cross_val_predict(model, file_statistics(files), labels, groups=people, cv=folds, method="predict_proba")
    return roc_auc_score(labels, found[:, 1])


def margin(labels):
    """Two standard errors of the AUC of chance (Hanley and McNeil, 1982, with no separation)."""
    fake = int(np.sum(labels))
    real = len(labels) - fake
    return 2 * ((real + fake + 1) / (12 * real * fake)) ** 0.5


def files_of(monkeypatch, root, quality, size):
    """The JPEG file of each picture, as the pipeline writes it."""
    files, encode = [], pipeline.encode

    def recorded(picture, jpeg):
        files.append(encode(picture, jpeg))
        return files[-1]

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "encode", recorded)
        parts = data.load("landmarked", root, size=size, quality=quality)
    kinds = [kind for each in parts for kind in each.kinds]
    return files, kinds, [person for each in parts for person in each.people]


def check_file_statistics(files, kinds, people):
    """Of each kind, and of all of them together."""
    for some in (*((kind,) for kind in data.MANIPULATIONS), data.MANIPULATIONS):
        chosen = [index for index, each in enumerate(kinds) if each in ("real", *some)]
        labels = np.array([kinds[index] != "real" for index in chosen], dtype=int)
        found = told_apart([files[index] for index in chosen], labels, [people[index] for index in chosen])
        assert abs(found - 0.5) < margin(labels), f"{some}: AUC {found:.3f} from file statistics"


@pytest.mark.parametrize("quality", data.QUALITIES)
def test_file_statistics_tell_nothing(tmp_path, monkeypatch, quality):
    files, kinds, people = files_of(monkeypatch, write_faces(tmp_path / "set", 45, first=100), quality, 96)
    assert len(files) == len(kinds) == 45 * 5
    check_file_statistics(files, kinds, people)


def test_file_statistics_would_tell_if_there_were_something_to_tell():
    pictures = [drawn_face(seed)[0] for seed in range(30)]
    files = [pipeline.encode(picture, quality) for picture in pictures for quality in (90, 88)]
    found = told_apart(files, np.tile([0, 1], 30), np.repeat(np.arange(30), 2))
    assert found > 0.95


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


def test_load_is_decided_by_its_seed(folder):
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


def test_what_cannot_be_used_is_counted_with_its_reason(tmp_path):
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


def test_pictures_may_lie_beside_the_table_and_carry_their_suffix(tmp_path):
    root = write_faces(tmp_path / "set", 6)
    for picture in (root / "faces").iterdir():
        picture.rename(root / picture.name)
    (root / "faces").rmdir()
    write_rows(root, [[f"{name}.png", *values] for name, *values in read_rows(root)])
    assert len(sides_of(data.load("landmarked", root, size=32))) == 6


def test_a_table_that_is_none_is_refused(tmp_path):
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


def test_load_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        data.load("landmarked", tmp_path / "nowhere", size=64)


def test_a_sheet_shows_real_pictures_forgeries_and_masks(folder):
    train = data.load("landmarked", folder, size=32).train
    drawn = sheet.sheet(train, people=2)
    assert drawn.shape == (2 * 32, 9 * 32, 3) and drawn.dtype == np.uint8
    assert np.array_equal(drawn[:32, :32], train.images[0].permute(1, 2, 0).numpy())
    assert (drawn[:, 5 * 32 :] == sheet.OUTLINE).all(2).any() and not (drawn[:, : 5 * 32] == sheet.OUTLINE).all(2).any()
    with pytest.raises(ValueError, match="has no face swap"):
        sheet.sheet(train.take([0, 6, 7]))


# The cache


def test_the_cache_gives_back_what_was_made(folder, tmp_path, monkeypatch):
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


def test_the_cache_is_made_anew_when_the_data_change(tmp_path):
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


# Data sets of videos


def write_video(path, level, count=8, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*form), 10, size)
    if not writer.isOpened():
        pytest.skip(f"OpenCV can't write {path.suffix} here")
    for _ in range(count):
        writer.write(np.full((size[1], size[0], 3), level, np.uint8))
    writer.release()


def write_frames(path, level, count=6, size=(40, 40)):
    path.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(path / f"{index:03}.png")


def write_faceforensics(root, write, suffix, kind="videos"):
    """Twelve source videos and six pairs of fakes, each pair both ways."""
    ids = [f"{index:03}" for index in range(12)]
    for name in ids:
        write(root / "original_sequences" / "youtube" / "c23" / kind / f"{name}{suffix}", 50)
    for first, second in zip(ids[::2], ids[1::2], strict=True):
        for name in (f"{first}_{second}", f"{second}_{first}"):
            write(root / "manipulated_sequences" / "Deepfakes" / "c23" / kind / f"{name}{suffix}", 200)
    return ids


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_faceforensics_from_videos_without_lists_keeps_pairs_together(tmp_path, suffix):
    ids = write_faceforensics(tmp_path, write_video, suffix)
    masks = tmp_path / "manipulated_sequences" / "Deepfakes" / "masks" / "videos"
    write_video(masks / f"000_001{suffix}", 255)
    parts = data.load("faceforensics", tmp_path, size=32)
    sides = sides_of(parts)
    assert sides.keys() == set(ids)
    assert all(sides[first] == sides[second] for first, second in zip(ids[::2], ids[1::2], strict=True))
    assert sum(map(len, parts)) == 24 * 4
    for each in parts:
        assert set(each.kinds) == {"real", "Deepfakes"}
        means = each.images.float().mean((1, 2, 3))
        assert (means[each.labels == 0] < 80).all() and (means[each.labels == 1] > 170).all()
    masked = [person for each in parts for person, mask in zip(each.people, each.masks, strict=True) if mask.all()]
    assert masked == ["000"] * 4
    with pytest.raises(FileNotFoundError, match="FaceForensics in this quality"):
        data.load("faceforensics", tmp_path, size=32, quality="LQ")


def test_faceforensics_follows_the_official_lists(tmp_path):
    root = tmp_path / "FaceForensics++"
    ids = write_faceforensics(root, write_frames, "", "frames")
    write_frames(root / "manipulated_sequences" / "Deepfakes" / "c23" / "masks" / "000_001", 255)
    pairs = [[first, second] for first, second in zip(ids[::2], ids[1::2], strict=True)]
    for name, some in (("train", pairs[:3]), ("val", pairs[3:4]), ("test", pairs[4:5])):
        (root / f"{name}.json").write_text(json.dumps(some))
    parts = data.load("faceforensics", tmp_path, size=32)
    assert [sorted(set(each.people)) for each in parts] == [ids[:6], ids[6:8], ids[8:10]]
    assert sum(mask.all() for mask in parts.train.masks) == 4
    assert {Path(each.path).name for each in parts.train.skipped} == {"010", "011", "010_011", "011_010"}


@pytest.mark.parametrize("kind", FORGERIES)
def test_faceforensics_knows_its_manipulations(tmp_path, kind):
    write_frames(tmp_path / "original_sequences" / "youtube" / "c23" / "frames" / "000", 50)
    write_frames(tmp_path / "manipulated_sequences" / kind / "c23" / "frames" / "000_003", 200)
    real, fake = FaceForensics(tmp_path).clips("HQ")
    assert (real.kind, real.people) == ("real", ("000",))
    assert (fake.kind, fake.people) == (kind, ("000", "003"))


def test_faceforensics_skips_what_has_no_source_and_target(tmp_path):
    ids = write_faceforensics(tmp_path, write_frames, "", "frames")
    originals, forgeries = tmp_path / "original_sequences" / "youtube", tmp_path / "manipulated_sequences"
    scenes = ("01_02__walking__ABCDEFGH", "01_03__talking__IJKLMNOP")
    for name in (*scenes, "001_002"):
        write_frames(forgeries / "DeepFakeDetection" / "c23" / "frames" / name, 200)
    write_frames(forgeries / "FaceShifter" / "c23" / "frames" / "02_03__kitchen__QRSTUVWX", 200)
    write_frames(originals / "c23" / "frames" / "03__podium", 50)
    parts = data.load("faceforensics", tmp_path, size=32)
    assert sides_of(parts).keys() == set(ids)
    assert {kind for each in parts for kind in each.kinds} == {"real", "Deepfakes"}
    reasons = reasons_of(parts)
    assert sum(len(each.skipped) for each in parts) == len(reasons) == 5
    assert all("DeepFakeDetection is none of the manipulations" in reasons[name] for name in (*scenes, "001_002"))
    assert reasons["02_03__kitchen__QRSTUVWX"] == "the name of a video of FaceShifter must be two numbers, as 000_003"
    assert reasons["03__podium"] == "the name of a video of real must be a number, as 000"


def test_skipped_videos_alone_are_an_error_that_says_why(tmp_path):
    write_frames(tmp_path / "manipulated_sequences" / "DeepFakeDetection" / "c23" / "frames" / "01_02__walking__A", 200)
    with pytest.raises(FileNotFoundError, match=r"1 skipped, the first is .*01_02__walking__A: DeepFakeDetection is"):
        data.load("faceforensics", tmp_path, size=32)


def deepfakebench(tmp_path):
    """The tree of DeepfakeBench with its JSON, whose paths are another machine's."""
    root = tmp_path / "rgb"
    ids = write_faceforensics(root / "FaceForensics++", write_frames, "", "frames")
    listed = {label: {part: {"c23": {}} for part in ("train", "val", "test")} for label in ("FF-real", "FF-DF")}
    for folder in sorted((root / "FaceForensics++").rglob("frames/*")):
        first = ids.index(folder.name[:3])
        part = "train" if first < 6 else "val" if first < 8 else "test"
        label = "FF-DF" if "_" in folder.name else "FF-real"
        names = [f"D:\\sets\\{file.relative_to(root)}".replace("/", "\\") for file in sorted(folder.iterdir())]
        listed[label][part]["c23"][folder.name] = {"label": label, "frames": names}
    (root / "dataset_json").mkdir()
    (root / "dataset_json" / "FaceForensics++.json").write_text(json.dumps({"FaceForensics++": listed}))
    return root, ids


def test_faceforensics_by_the_json_of_deepfakebench(tmp_path):
    root, ids = deepfakebench(tmp_path)
    parts = data.load("faceforensics", root, size=32)
    assert [sorted(set(each.people)) for each in parts] == [ids[:6], ids[6:8], ids[8:]]
    assert [len(each) for each in parts] == [48, 16, 32]
    assert not any(each.skipped for each in parts)
    file = root / "dataset_json" / "FaceForensics++.json"
    listed = json.loads(file.read_text())
    listed["FaceForensics++"]["FF-DF"]["train"]["c23"]["000_001"]["frames"] = []
    file.write_text(json.dumps(listed))
    assert reasons_of(data.load("faceforensics", root, size=32)) == {"000_001": "no frames of this video are listed"}
    file.write_text('{"FaceForensics++": {"FF-real": []}}')
    with pytest.raises(ValueError, match="not laid out as DeepfakeBench's"):
        data.load("faceforensics", root, size=32)
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        data.load("faceforensics", root, size=32)


def test_frames_are_cropped_to_their_landmarks(tmp_path):
    root, _ = deepfakebench(tmp_path)
    frames = sorted(root.rglob("*.png"))
    corner = np.array([[2, 2], [12, 2], [2, 12], [12, 12]])
    for path in frames:
        picture = np.asarray(Image.open(path)).copy()
        picture[:15, :15] = 255 - picture[:15, :15]
        Image.fromarray(picture).save(path)
        points = Path(str(path).replace("/frames/", "/landmarks/")).with_suffix(".npy")
        points.parent.mkdir(parents=True, exist_ok=True)
        np.save(points, corner)
    points.unlink()
    parts = data.load("faceforensics", root, size=32)
    real = torch.cat([each.images[each.labels == 0] for each in parts]).float()
    assert (real - 205).abs().max() < 6
    assert ["its landmarks" in each.reason for part in parts for each in part.skipped] == [True]


def test_broken_frames_and_videos_are_counted(tmp_path):
    root, _ = deepfakebench(tmp_path)
    broken = root / "FaceForensics++" / "original_sequences" / "youtube" / "c23" / "frames" / "000"
    for path in broken.iterdir():
        path.write_bytes(b"")
    parts = data.load("faceforensics", root, size=32)
    assert [each.reason for each in parts.train.skipped] == ["not a picture"] * 4
    videos = tmp_path / "videos"
    write_faceforensics(videos, write_video, ".avi")
    (videos / "original_sequences" / "youtube" / "c23" / "videos" / "000.avi").write_bytes(b"no video")
    reasons = [each.reason for part in data.load("faceforensics", videos, size=32) for each in part.skipped]
    assert reasons == ["no frame of this video can be read"]


def test_an_empty_class_is_an_error(tmp_path):
    for index in range(6):
        write_frames(tmp_path / "original_sequences" / "youtube" / "c23" / "frames" / f"{index:03}", 50)
    with pytest.raises(ValueError, match="no fake picture for the train part"):
        data.load("faceforensics", tmp_path, size=32)


def test_dfdc_reads_labels_and_splits_by_source_video(tmp_path):
    about = {}
    for index in range(12):
        about[f"r{index}.mp4"] = {"label": "REAL", "split": "train"}
        about[f"f{index}.mp4"] = {"label": "FAKE", "split": "train", "original": f"r{index}.mp4"}
    part = tmp_path / "dfdc_train_part_0"
    for name, row in about.items():
        write_video(part / name, 50 if row["label"] == "REAL" else 200, count=4)
    (part / "metadata.json").write_text(json.dumps({**about, "gone.mp4": {"label": "REAL", "split": "train"}}))
    parts = data.load("dfdc", tmp_path, size=32)
    sides = sides_of(parts)
    assert sides.keys() == {f"r{index}" for index in range(12)}
    assert sum(map(len, parts)) == 24 * 4 and set(parts.test.kinds) == {"real", "DFDC"}
    assert reasons_of(parts) == {"gone": "in metadata.json, but there is no such video"}
    (part / "metadata.json").write_text(json.dumps({"r0.mp4": {"label": "MAYBE"}}))
    with pytest.raises(ValueError, match="REAL or FAKE, got 'MAYBE'"):
        data.load("dfdc", tmp_path, size=32)


def test_dfdc_takes_its_own_test_part(tmp_path):
    part, test = tmp_path / "train" / "dfdc_train_part_0", tmp_path / "test"
    about = {}
    for index in range(8):
        about[f"r{index}.mp4"] = {"label": "REAL", "split": "train"}
        about[f"f{index}.mp4"] = {"label": "FAKE", "split": "train", "original": f"r{index}.mp4"}
    for name in about:
        write_frames(part / "frames" / Path(name).stem, 50)
    (part / "metadata.json").write_text(json.dumps(about))
    write_frames(test / "frames" / "t0", 50)
    write_frames(test / "frames" / "t1", 50)
    (test / "labels.csv").write_text("filename,label\nt0.mp4,0\nt1.mp4,1\nt2.mp4,1\n")
    parts = data.load("dfdc", tmp_path, size=32)
    assert reasons_of(parts) == {"t2": "in labels.csv, but there is no such video"}
    assert set(parts.test.people) == {"t0", "t1"}
    assert len(set(parts.validation.people)) == 2 and len(set(parts.train.people)) == 6


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "labels.csv",
            "video,label\nt0.mp4,0\n",
            r"labels\.csv must have the columns filename, label, got video, label",
        ),
        ("labels.csv", "", r"labels\.csv must have the columns filename, label, got none"),
        ("metadata.json", '["r0.mp4"]', r"metadata\.json must be an object with an object for each video, got \["),
        ("metadata.json", '{"r0.mp4": "REAL"}', r"metadata\.json must be an object with an object for each video"),
        ("metadata.json", "{", r"metadata\.json is not JSON"),
    ],
)
def test_dfdc_refuses_a_table_that_is_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.load("dfdc", tmp_path, size=32)


def write_celebdf(root):
    """Eight people, each in a video of their own and with the face of each other."""
    for index in range(8):
        write_video(root / "Celeb-real" / f"id{index}_0000.mp4", 50, count=4)
        write_video(root / "YouTube-real" / f"{index:05}.mp4", 50, count=4)
        for other in set(range(8)) - {index}:
            write_video(root / "Celeb-synthesis" / f"id{index}_id{other}_0000.mp4", 200, count=4)


def test_celebdf_takes_its_own_test_list(tmp_path):
    write_celebdf(tmp_path)
    lines = ["1 Celeb-real/id0_0000.mp4", "1 YouTube-real/00003.mp4", "0 Celeb-synthesis/id0_id1_0000.mp4",
             "1 YouTube-real/00099.mp4", ""]  # fmt: skip
    (tmp_path / "List_of_testing_videos.txt").write_text("\n".join(lines))
    parts = data.load("celebdf", tmp_path, size=32)
    assert set(parts.test.people) == {"id0_0000", "YouTube-00003"} and len(parts.test) == 12
    reasons = reasons_of(parts)
    assert reasons.pop("00099") == "listed for the test, but there is no such video"
    assert reasons.keys() == {f"id0_id{other}_0000" for other in range(2, 8)}
    assert not set(parts.train.people) & set(parts.test.people)
    (tmp_path / "List_of_testing_videos.txt").write_text("Celeb-real/id0_0000.mp4\n")
    with pytest.raises(ValueError, match="a label and a path in each line"):
        data.load("celebdf", tmp_path, size=32)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "1 test/id0_0000.mp4\n1 test/id1_0000.mp4\n",
            r"List_of_testing_videos\.txt must list videos that are in .*, as Celeb-real/id0_0000, "
            r"got 2 others, as test/id0_0000",
        ),
        ("\n", r"List_of_testing_videos\.txt must list videos .* got 0 others"),
        ("0 Celeb-real/id0_0000.mp4\n", r"must label Celeb-real/id0_0000 1, for it is in Celeb-real"),
        ("1 Celeb-synthesis/id0_id1_0000.mp4\n", r"must label Celeb-synthesis/id0_id1_0000 0, for it is in Celeb-syn"),
    ],
)
def test_celebdf_refuses_a_list_of_other_videos(tmp_path, lines, message):
    for video in ("Celeb-real/frames/id0_0000", "Celeb-synthesis/frames/id0_id1_0000"):
        write_frames(tmp_path / video, 50, count=1)
    (tmp_path / "List_of_testing_videos.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        data.load("celebdf", tmp_path, size=32)


def test_celebdf_without_a_list_splits_people_and_leaves_out_fakes_of_two_sides(tmp_path):
    write_celebdf(tmp_path)
    parts = data.load("celebdf", tmp_path, size=32)
    sides = sides_of(parts)
    skipped = {Path(each.path).stem for each in parts.train.skipped}
    assert skipped
    for index in range(8):
        for other in set(range(8)) - {index}:
            apart = sides[f"id{index}"] != sides[f"id{other}"]
            assert apart == (f"id{index}_id{other}_0000" in skipped)


@pytest.mark.parametrize("inner", ["", "deepfake_in_the_wild"])
def test_wilddeepfake_splits_its_train_part_by_source_video(tmp_path, inner):
    tree = tmp_path / inner
    for video in range(14):
        write_frames(tree / "real_train" / str(video) / "real" / "131", 50)
        write_frames(tree / "fake_train" / str(video) / "fake" / "7", 200)
    for label, level in (("real", 50), ("fake", 200)):
        write_frames(tree / f"{label}_test" / "1" / label / "2", level)
        write_frames(tree / f"{label}_test" / "1" / label / "3", level)
    parts = data.load("wilddeepfake", tmp_path, size=32, seed=2)
    assert set(parts.test.people) == {"real_test/1", "fake_test/1"} and len(parts.test) == 16
    assert len(set(parts.train.people)) == 24 and len(set(parts.validation.people)) == 4
    assert not set(parts.train.people) & set(parts.validation.people)


def test_a_source_without_videos_says_so(tmp_path):
    for source in ("faceforensics", "dfdc", "celebdf", "wilddeepfake"):
        with pytest.raises(FileNotFoundError, match="holds no video or frames of"):
            data.load(source, tmp_path, size=32)


def test_videos_are_read_again_only_when_they_changed(tmp_path):
    write_faceforensics(tmp_path, write_frames, "", "frames")
    first = FaceForensics(tmp_path).fingerprint("HQ")
    assert FaceForensics(tmp_path).fingerprint("HQ") == first
    write_frames(tmp_path / "original_sequences" / "youtube" / "c23" / "frames" / "020", 50)
    assert FaceForensics(tmp_path).fingerprint("HQ") != first


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000))
def test_frames_are_taken_evenly(count):
    taken = evenly(count)
    assert len(taken) == min(count, 4) == len(set(taken))
    assert all(0 <= index < count for index in taken)
    if count >= 4:
        gaps = np.diff(taken)
        assert gaps.max() - gaps.min() <= 1


# The photographs


@needs_photographs
@pytest.mark.parametrize("quality", data.QUALITIES)
@pytest.mark.parametrize("size", [64, 128])
def test_file_statistics_tell_nothing_of_the_photographs(monkeypatch, quality, size):
    files, kinds, people = files_of(monkeypatch, Path(PHOTOGRAPHS), quality, size)
    check_file_statistics(files, kinds, people)


@needs_photographs
def test_the_photographs_give_every_person():
    parts = data.load("landmarked", Path(PHOTOGRAPHS), size=64, people=12)
    assert 6 <= len(sides_of(parts)) <= 14
    assert not any(each.skipped for each in parts)
    assert all(0.05 < each.masks[each.labels == 1].float().mean() < 0.6 for each in parts)
