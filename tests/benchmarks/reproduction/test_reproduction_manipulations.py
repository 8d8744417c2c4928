"""The four manipulations, and the pipeline that processes real and fake pictures alike."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EXTRA = "pip install 'sia-layers[reproduction]'"
np = pytest.importorskip("numpy", reason=EXTRA)
cv2 = pytest.importorskip("cv2", reason=EXTRA)
Image = pytest.importorskip("PIL.Image", reason=EXTRA)
for module in ("scipy", "sklearn", "tqdm"):
    pytest.importorskip(module, reason=EXTRA)

from drawn_faces import drawn_face, forge, write_faces  # noqa: E402

from benchmarks.reproduction import data, giveaways  # noqa: E402
from benchmarks.reproduction.data import landmarks, manipulate, pipeline  # noqa: E402

PHOTOGRAPHS = os.environ.get("SIA_FACES")
needs_photographs = pytest.mark.skipif(not PHOTOGRAPHS, reason="SIA_FACES is not set to a folder of landmarked faces")


# Manipulations


def test_layouts_refer_to_existing_landmarks():
    for count, layout in landmarks.LAYOUTS.items():
        for group in (layout.face, layout.brows, *layout.eyes, layout.nose, layout.mouth):
            assert len(set(group)) == len(group) and set(group) <= set(range(count)) and set(group) <= set(layout.face)
    with pytest.raises(ValueError, match="189 or 68 a face, got 5"):
        landmarks.layout(np.zeros((5, 2)))


@pytest.mark.parametrize("kind", data.MANIPULATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_only_pixels_in_the_mask_are_changed(kind, seed):
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
def test_a_forgery_depends_only_on_its_seed(kind):
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


def test_a_swap_is_clipped_to_the_donors_picture():
    target, (picture, points) = drawn_face(1), drawn_face(2)
    half = picture[: picture.shape[0] // 2]
    inside = np.flatnonzero(points[:, 1] < len(half) - 1)
    assert 0 < len(inside) < len(points)
    _, mask = manipulate.face_swap(*target, half, points, np.random.default_rng(0))
    lowest = np.flatnonzero(mask.any(1)).max()
    assert lowest < target[1][:, 1].max() - 20


@pytest.mark.parametrize("seed", range(3))
def test_resynthesis_keeps_the_strength_but_not_the_structure_of_detail(seed):
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


def test_lower_quality_gives_a_smaller_and_less_accurate_file():
    picture = drawn_face(1)[0]
    files = {name: pipeline.encode(picture, quality) for name, quality in data.QUALITIES.items()}
    errors = {name: np.abs(pipeline.decode(file).astype(int) - picture).mean() for name, file in files.items()}
    assert len(files["LQ"]) < len(files["HQ"]) / 1.5
    assert errors["HQ"] < errors["LQ"]


def files_of(monkeypatch, root, quality, size):
    """Return the JPEG file of each picture as the pipeline writes it."""
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
    """Check the file statistics of each kind, and of all kinds together."""
    for some in (*((kind,) for kind in data.MANIPULATIONS), data.MANIPULATIONS):
        found = giveaways.auc_of(files, kinds, people, some)
        assert abs(found["file"] - 0.5) < found["margin"], f"{some}: AUC {found['file']:.3f} from file statistics"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("quality", data.QUALITIES)
def test_file_statistics_reveal_nothing(tmp_path, monkeypatch, quality):
    files, kinds, people = files_of(monkeypatch, write_faces(tmp_path / "set", 45, first=100), quality, 96)
    assert len(files) == len(kinds) == 45 * 5
    check_file_statistics(files, kinds, people)


def test_file_statistics_would_detect_a_difference():
    pictures = [drawn_face(seed)[0] for seed in range(30)]
    files = [pipeline.encode(picture, quality) for picture in pictures for quality in (90, 88)]
    found = giveaways.linear_auc(
        giveaways.file_statistics(files), [0, 1] * 30, [str(index // 2) for index in range(60)]
    )
    assert found > 0.95


def test_the_spread_of_colours_would_reveal_tinted_forgeries_of_grey_faces():
    found = []
    for grey_stays in (True, False):
        files = []
        for seed in range(24):
            picture, points = drawn_face(seed)
            grey = manipulate.without_colour(picture)
            made, _ = forge("self-blending", (grey, points), None, seed)
            files += [
                pipeline.encode(each, 90) for each in (grey, manipulate.without_colour(made) if grey_stays else made)
            ]
        people = [str(index // 2) for index in range(48)]
        found.append(giveaways.auc_of(files, ["real", "fake"] * 24, people, ["fake"])["colour"])
    assert found[0] == 0.5 and found[1] > 0.95


# The photographs


@needs_photographs
@pytest.mark.parametrize("quality", data.QUALITIES)
@pytest.mark.parametrize("size", [64, 128])
def test_file_statistics_reveal_nothing_about_the_photographs(monkeypatch, quality, size):
    files, kinds, people = files_of(monkeypatch, Path(PHOTOGRAPHS), quality, size)
    check_file_statistics(files, kinds, people)
