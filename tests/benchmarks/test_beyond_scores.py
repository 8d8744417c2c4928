"""Measures of maps and of anti-spoofing, and the folders of real data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("benchmarks.beyond", reason="runs from a checkout, where benchmarks/ is")
pytest.importorskip("cv2", reason="the extra 'reproduction' is not installed")
pytest.importorskip("sklearn", reason="the extra 'reproduction' is not installed")
pytest.importorskip("timm", reason="the extra 'reproduction' is not installed")

import cv2
from sklearn.metrics import roc_auc_score

from benchmarks.beyond import maps, segmentation, spoofing, trees
from benchmarks.reproduction.data.faces import REAL
from benchmarks.reproduction.scores import Predictions

SCORES = ("S", "E", "weighted F", "MAE")


def drawn(seed: int, height: int = 24, width: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Return a map and a mask that are correlated."""
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 3)
    mask = smooth > np.quantile(smooth, rng.uniform(0.5, 0.9))
    found = cv2.GaussianBlur(rng.random((height, width)) + mask * rng.uniform(0, 2), (0, 0), 1)
    return np.round(255 * (found - found.min()) / np.ptp(found)) / 255, mask


# Computed by PySODMetrics 1.6.2, which follows the authors' code, on the same maps.
GOLDEN = {
    0: [0.3498274502, 0.3439843042, 0.2749059713, 0.5214324619],
    1: [0.8118960282, 0.6196022436, 0.7084226459, 0.2533714597],
    2: [0.7105220607, 0.5319255828, 0.5501379721, 0.2820479303],
    3: [0.8581376349, 0.7513918159, 0.7576552159, 0.1679847495],
}


@pytest.mark.parametrize("seed", GOLDEN)
def test_measures_of_camouflage_agree_with_the_toolbox_of_the_field(seed: int) -> None:
    assert list(maps.camouflage(*drawn(seed)).values()) == pytest.approx(GOLDEN[seed], abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_mask_itself_is_the_best_map_and_its_opposite_the_worst(seed: int) -> None:
    found, mask = drawn(seed)
    scores, best, worst = (maps.camouflage(each, mask) for each in (found, mask.astype(float), 1 - mask.astype(float)))
    assert best == pytest.approx({"S": 1, "E": 1, "weighted F": 1, "MAE": 0}, abs=5e-3)  # E counts one threshold of 0
    for name in SCORES:
        low, high = sorted((best[name], worst[name]))
        assert low - 1e-9 <= scores[name] <= high + 2e-3, name
    assert (maps.f1(mask * 1.0, mask), maps.iou(mask * 1.0, mask), maps.pixel_auc(mask * 1.0, mask)) == (1, 1, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9), st.floats(0.0, 0.1))
def test_measures_of_camouflage_ignore_scale(seed: int, scale: float, offset: float) -> None:
    found, mask = drawn(seed)
    assert maps.camouflage(scale * found + offset, mask) == pytest.approx(maps.camouflage(found, mask), abs=5e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_pixel_figures_match_the_counts(seed: int, threshold: float) -> None:
    found, mask = drawn(seed)
    above = found > threshold
    hits, alarms, misses = (above & mask).sum(), (above & ~mask).sum(), (~above & mask).sum()
    f1, iou = maps.f1(found, mask, threshold), maps.iou(found, mask, threshold)
    assert f1 == pytest.approx(2 * hits / (2 * hits + alarms + misses))
    assert iou == pytest.approx(hits / (hits + alarms + misses)) and f1 == pytest.approx(2 * iou / (1 + iou))
    assert maps.pixel_auc(found, mask) == pytest.approx(roc_auc_score(mask.ravel(), found.ravel()))
    assert maps.flagged(found, threshold) == pytest.approx((hits + alarms) / mask.size)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 of 12"):
        maps.camouflage(np.zeros((3, 4)), np.zeros((3, 4), bool))


def test_errors_of_anti_spoofing_by_hand() -> None:
    kinds = (REAL,) * 4 + ("print",) * 4 + ("screen",) * 2
    logits = [-1, -2, -3, 1, 1, 1, 1, -1, -1, -1]  # one live face is rejected; a quarter of prints and all screens pass
    found = Predictions.from_lists([int(k != REAL) for k in kinds], logits, [str(i) for i in range(10)], list(kinds))
    ones = np.ones((1, 10))
    assert spoofing.classification_error(found, ones) == pytest.approx([(0.25 + 1.0) / 2])
    assert spoofing.half_total_error(found, ones) == pytest.approx([(0.25 + 0.5) / 2])
    without_screens = np.array([[1.0] * 8 + [0.0] * 2])
    assert np.isnan(spoofing.classification_error(found, without_screens))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=12), st.lists(st.integers(-20, 20), min_size=1, max_size=12))
def test_the_threshold_is_that_of_equal_errors(live: list[int], attacks: list[int]) -> None:
    logits = np.array([*live, *attacks], np.float64)
    labels = np.array([0] * len(live) + [1] * len(attacks))

    def gap(threshold: float) -> float:
        passed, refused = (logits[labels == 1] <= threshold).mean(), (logits[labels == 0] > threshold).mean()
        return abs(float(passed - refused))

    found = spoofing.equal_error_threshold(logits, labels)
    assert gap(found) == pytest.approx(min(gap(level) for level in np.arange(-21, 22, 0.5)))
    if max(live) < min(attacks):
        assert gap(found) == 0 and max(live) < found < min(attacks)


def test_differences_are_paired_by_photograph_and_seed() -> None:
    """A photograph that is hard for all networks makes each figure uncertain, but not their difference."""
    rows = [
        {"network": name, "seed": str(seed), "kind": "splice", "condition": "JPEG 75", "group": f"{group}",
         "F1": str(group / 10 + more + 0.01 * seed)}
        for name, more in (("bare", 0.0), ("SIA", 0.05)) for seed in range(5) for group in range(6)
    ]  # fmt: skip
    bare, sia = segmentation.table(rows, ("F1",), {"all": lambda row: True})
    assert bare["F1"] == pytest.approx(0.27) and bare["F1 high"] - bare["F1 low"] > 0.1
    assert [sia[f"F1 - bare{end}"] for end in ("", " low", " high")] == pytest.approx([0.05] * 3)
    assert sia["seeds"] == "0 1 2 3 4" and "F1 - bare" not in bare


def picture(path: Path, value: int = 128, mask: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((20, 30, 3), 0 if mask else value, np.uint8)
    pixels[5:15, 10:20] = 255 if mask else 40
    assert cv2.imwrite(str(path), pixels)


def pair(image: Path, mask: Path) -> None:
    picture(image)
    picture(mask, mask=True)


def test_the_folders_of_camouflage(tmp_path: Path) -> None:
    for part, count in (("Train", 3), ("Test", 2)):
        for index in range(count):
            stem = f"COD10K-CAM-1-Aquatic-1-BatFish-{part}{index}"
            tree = tmp_path / "COD10K-v3" / part
            pair(tree / "Image" / f"{stem}.jpg", tree / "GT_Object" / f"{stem}.png")
            picture(tree / "GT_Edge" / f"{stem}.png")
    empty = "COD10K-NonCAM-1-Aquatic-9-Other-1"
    picture(tmp_path / f"COD10K-v3/Test/Image/{empty}.jpg")
    cv2.imwrite(str(tmp_path / f"COD10K-v3/Test/GT_Object/{empty}.png"), np.zeros((20, 30), np.uint8))
    camo = tmp_path / "CAMO-V.1.0-CVIU2019"
    pair(camo / "Images/Train/camourflage_00001.jpg", camo / "GT/camourflage_00001.png")
    pair(camo / "Images/Test/camourflage_00012.jpg", camo / "GT/camourflage_00012.png")
    pair(tmp_path / "CHAMELEON/Imgs/animal-1.jpg", tmp_path / "CHAMELEON/GT/animal-1.png")
    picture(tmp_path / "CHAMELEON/Imgs/without-a-mask.jpg")
    found = trees.camouflage_pairs(tmp_path)
    counted = {
        (each.data, each.part): sum(x.data == each.data and x.part == each.part for x in found) for each in found
    }
    assert counted == {
        ("COD10K-v3", "train"): 3, ("COD10K-v3", "test"): 3, ("CAMO-V.1.0-CVIU2019", "train"): 1,
        ("CAMO-V.1.0-CVIU2019", "test"): 1, ("CHAMELEON", "test"): 1,
    }  # fmt: skip
    parts = trees.camouflage(tmp_path, 24)
    assert len(parts.train) == 4 and len(parts.test) == 4  # the picture without an object is skipped
    assert set(parts.test.conditions) == {"COD10K-v3", "CAMO-V.1.0-CVIU2019", "CHAMELEON"}
    assert parts.test.images.shape == (4, 3, 24, 24)
    assert parts.test.masks.float().mean().item() == pytest.approx(1 / 6, abs=0.03)
    with pytest.raises(FileNotFoundError, match="for the train part"):
        trees.camouflage(tmp_path / "CHAMELEON", 24)


def test_the_collections_of_camouflage(tmp_path: Path) -> None:
    for tree, image in (("TrainDataset", "Imgs"), ("TestDataset/CAMO", "Imgs"), ("TestDataset/CHAMELEON", "Image")):
        pair(tmp_path / tree / image / "a.jpg", tmp_path / tree / "GT/a.png")
    found = {(each.part, each.data) for each in trees.camouflage_pairs(tmp_path)}
    assert found == {("train", tmp_path.name), ("test", "CAMO"), ("test", "CHAMELEON")}


def described(root: Path) -> set[tuple[str, str, str, str | None]]:
    return {
        (each.file.relative_to(root).as_posix(), each.kind, each.person, each.part)
        for each in trees.spoofing_files(root)
    }


@pytest.mark.parametrize(
    ("path", "kind", "person", "part"),
    [
        ("Train_files/1_1_01_1.avi", REAL, "01", "train"),  # OULU-NPU
        ("Dev_files/6_3_35_3.avi", "print", "35", "validation"),
        ("Test_files/2_2_55_5.avi", "video", "55", "test"),
        ("train_release/7/HR_1.avi", REAL, "train-7", "train"),  # CASIA-FASD
        ("test_release/7/5.avi", "cut", "test-7", "test"),
        ("train/real/client001_session01_webcam_authenticate_adverse_1.mov", REAL, "client001", "train"),
        (
            "devel/attack/fixed/attack_print_client003_session01_highdef_photo_adverse.mov",
            "print", "client003", "validation",
        ),
        ("scene01/attack/attack_client001_android_SD_ipad_video_scene01.mp4", "video", "client001", None),  # MSU-MFSD
        ("Data/train/4980/live/494405.png", REAL, "4980", "train"),  # CelebA-Spoof
        ("Data/test/5000/spoof/494406.png", "spoof", "5000", "test"),
        ("ImposterRaw/0001/0001_00_00_01_0.jpg", "spoof", "0001_00_00_01_0", None),  # NUAA
        ("LCC_FASD_evaluation/real/real_01.png", REAL, "real_01", None),
    ],
)  # fmt: skip
def test_labels_from_anti_spoofing_folders(tmp_path: Path, path: str, kind: str, person: str, part: str | None) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.touch()
    (tmp_path / "readme.png").touch()  # no folder labels it
    assert described(tmp_path) == {(path, kind, person, part)}


@pytest.mark.parametrize("named", [("train", "dev", "test"), ("train", "test"), ()])
def test_the_parts_of_anti_spoofing_share_no_person(tmp_path: Path, named: tuple[str, ...]) -> None:
    for person in range(12):
        part = named[person % len(named)] if named else "all"
        for kind in ("live", "spoof"):
            picture(tmp_path / part / f"{person}" / kind / f"{kind}.png", 20 * person)
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / "train/live").mkdir(exist_ok=True)
    (tmp_path / "train/live/broken.png").write_bytes(b"none")
    parts = trees.spoofing(tmp_path, 16, seed=0)
    people = [set(part.groups) for part in parts if part is not None]
    assert sum(map(len, people)) == len(set().union(*people)) == 12
    assert all(set(part.kinds) == {REAL, "spoof"} and part.images.shape[1:] == (3, 16, 16) for part in parts if part)


def test_a_part_without_attacks_is_refused(tmp_path: Path) -> None:
    for person in range(8):
        picture(tmp_path / f"{person}/live/a.png")
    with pytest.raises(FileNotFoundError, match="lacks live faces or attacks for the train part"):
        trees.spoofing(tmp_path, 16, seed=0)
