"""The loaders of video data sets, on tiny folders with the same structure."""

import json
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

from drawn_faces import reasons_of, sides_of  # noqa: E402

from benchmarks.reproduction import data  # noqa: E402
from benchmarks.reproduction.data.clips import evenly  # noqa: E402
from benchmarks.reproduction.data.forensics import FORGERIES, FaceForensics  # noqa: E402


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
    """Write twelve source videos and six pairs of fakes, each pair in both directions."""
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


def test_only_skipped_videos_is_an_error_that_says_why(tmp_path):
    write_frames(tmp_path / "manipulated_sequences" / "DeepFakeDetection" / "c23" / "frames" / "01_02__walking__A", 200)
    with pytest.raises(FileNotFoundError, match=r"1 skipped, the first is .*01_02__walking__A: DeepFakeDetection is"):
        data.load("faceforensics", tmp_path, size=32)


def deepfakebench(tmp_path):
    """Write DeepfakeBench's folders with its JSON, whose paths come from another machine."""
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
def test_dfdc_refuses_an_invalid_table(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.load("dfdc", tmp_path, size=32)


def write_celebdf(root):
    """Write eight people, each in a separate video and with the face of every other person."""
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
