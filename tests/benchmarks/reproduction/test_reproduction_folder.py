"""The reproduction's data set ``folder``: your own pictures, real and fake."""

import pytest
import torch

EXTRA = "pip install 'sia-layers[reproduction]'"
np = pytest.importorskip("numpy", reason=EXTRA)
cv2 = pytest.importorskip("cv2", reason=EXTRA)
Image = pytest.importorskip("PIL.Image", reason=EXTRA)
for module in ("scipy", "sklearn", "tqdm"):
    pytest.importorskip(module, reason=EXTRA)

from drawn_faces import reasons_of, same, sides_of, write_pictures  # noqa: E402

from benchmarks.reproduction import data  # noqa: E402

PLAIN = {"real": 12, "fake": 12}
SPLIT = {"train/real": 8, "train/fake": 8, "test/real": 4, "test/fake": 4}


def load(root, **given):
    return data.load("folder", root, **{"size": 32, **given})


def write_groups(root, groups, header="picture,group"):
    (root / "groups.csv").write_text("\n".join([header, *(f"{name},{group}" for name, group in groups)]) + "\n")


@pytest.fixture
def plain(tmp_path):
    return write_pictures(tmp_path / "plain", PLAIN)


@pytest.fixture
def parted(tmp_path):
    return write_pictures(tmp_path / "parted", SPLIT)


def test_two_folders_are_split_with_both_classes_in_each_part(plain):
    parts = load(plain)
    assert sum(map(len, parts)) == 24 and len(sides_of(parts)) == 24
    for part in parts:
        assert part.images.shape == (len(part), 3, 32, 32) and part.images.dtype == torch.uint8
        assert part.labels.tolist() == [kind == "fake" for kind in part.kinds]
        assert part.kinds == tuple(person.partition("/")[0] for person in part.people)
        assert set(part.kinds) == {"real", "fake"} and not part.masks.any()
    assert [len(part) for part in parts] == [14, 4, 6]
    assert same(load(plain, seed=3), load(plain, seed=3)) and sides_of(load(plain, seed=3)) != sides_of(parts)


@pytest.mark.parametrize("seed", range(8))
def test_fewer_groups_leave_both_classes_in_each_part(plain, seed):
    parts = load(plain, seed=seed, people=14)
    assert sides_of(parts).items() <= sides_of(load(plain, seed=seed)).items()
    assert 12 <= len(sides_of(parts)) <= 16
    assert all(set(part.kinds) == {"real", "fake"} for part in parts)


def test_the_central_square_is_cropped(tmp_path):
    root = write_pictures(tmp_path / "set", {"real": 8, "fake": 8})
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 200
    Image.fromarray(picture).save(root / "real" / "real000.png")
    (image,) = (
        image for part in load(root) for image, who in zip(part.images, part.people, strict=True) if "real000" in who
    )
    assert image.min() > 190


def test_pictures_may_be_in_subfolders_with_capital_suffixes(plain):
    (plain / "fake" / "swaps").mkdir()
    (plain / "fake" / "fake000.png").rename(plain / "fake" / "swaps" / "one.PNG")
    (plain / "fake" / "notes.txt").write_text("not a picture, and not taken for one")
    assert {"fake/swaps/one.PNG", "fake/fake001.png"} <= sides_of(load(plain)).keys()


def test_a_given_split_is_kept(parted):
    write_pictures(parted, {"val/real": 2, "val/fake": 2})
    parts = load(parted)
    assert [len(part) for part in parts] == [16, 4, 8]
    for part, name in zip(parts, ("train", "val", "test"), strict=True):
        assert all(person.startswith(f"{name}/") for person in part.people)


def test_validation_is_split_off_train_if_missing(parted):
    parts = load(parted)
    assert len(parts.test) == 8 and {person.partition("/")[0] for person in parts.test.people} == {"test"}
    assert len(parts.train) + len(parts.validation) == 16 and len(parts.validation) >= 4
    assert {person.partition("/")[0] for person in parts.validation.people} == {"train"}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_stays_in_one_part(plain, seed):
    rows = [(f"{label}/{label}{index:03}.png", f"g{index // 2}") for label in PLAIN for index in range(12)]
    write_groups(plain, rows)
    parts = load(plain, seed=seed)
    assert sides_of(parts).keys() == {f"g{index}" for index in range(6)}
    assert sum(len(set(part.people)) for part in parts) == 6
    assert all(part.people.count(person) == 4 for part in parts for person in part.people)


def test_pictures_without_a_row_are_reported_and_form_their_own_groups(plain):
    write_groups(plain, [("real/real000.png", "a"), ("fake/fake000.png", "a")])
    with pytest.warns(UserWarning, match=r"22 of 24 pictures have no row in .*groups\.csv"):
        parts = load(plain)
    assert len(sides_of(parts)) == 23


@pytest.mark.filterwarnings("ignore:.*have no row")
def test_groups_that_leak_between_given_parts_are_refused(parted):
    rows = [(f"{part}/real/real{index:03}.png", "anna" if index < 2 else f"{part}{index}")
            for part in ("train", "test") for index in range(4)]  # fmt: skip
    write_groups(parted, rows)
    with pytest.raises(ValueError, match=r"1 groups of .*groups\.csv are in more than one .*: anna; move each"):
        load(parted)


@pytest.mark.parametrize(
    ("groups", "header", "message"),
    [
        (
            [("real/nobody.png", "a"), ("fake/none.png", "b")],
            "picture,group",
            r"names 2 pictures .*: real/nobody\.png, ",
        ),
        ([("real/real000.png", "a"), ("real/real000.png", "b")], "picture,group", "is in two groups, 'a' and 'b'"),
        ([("real/real000.png", "")], "picture,group", "row 2: picture and group must not be empty"),
        (
            [("real/real000.png", "a")],
            "file,person",
            r"must have the columns picture and group, got \['file', 'person'",
        ),
    ],
)
def test_a_wrong_table_of_groups_is_refused(plain, groups, header, message):
    write_groups(plain, groups, header)
    with pytest.raises(ValueError, match=message):
        load(plain)


def test_names_in_both_classes_are_warned_of(plain):
    for index in range(3):
        (plain / "fake" / f"fake{index:03}.png").rename(plain / "fake" / f"real{index:03}.png")
    with pytest.warns(UserWarning, match=r"3 names occur in both real and fake: real000, real001, real002\. If"):
        load(plain)


def test_unreadable_pictures_are_counted_named_and_skipped(plain):
    (plain / "real" / "real003.png").write_bytes(b"no picture")
    (plain / "fake" / "fake004.png").write_bytes((plain / "fake" / "fake004.png").read_bytes()[:300])
    with pytest.warns(
        UserWarning, match=r"2 of 24 pictures can't be read and are left out: .*real003\.png \(not a pic"
    ):
        parts = load(plain)
    assert sum(map(len, parts)) == 22 and reasons_of(parts).keys() == {"real003", "fake004"}


@pytest.mark.filterwarnings("ignore:.*can't be read")
def test_no_readable_photographs_is_an_error(plain):
    for path in (plain / "fake").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no fake picture for the train part; skipped there: .*not a picture"):
        load(plain)


def test_an_empty_class_is_an_error(plain):
    for path in (plain / "fake").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"fake holds no picture; files must end in \.bmp"):
        load(plain)
    (plain / "fake").rmdir()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*fake"):
        load(plain)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"pictures": 1}, "must hold the folders real and fake, or train and test .* neither"),
        ({"train/real": 1, "train/fake": 1}, "holds only train; a split needs the folders train and test"),
    ],
)
def test_a_folder_laid_out_otherwise_is_refused(tmp_path, classes, message):
    with pytest.raises(FileNotFoundError, match=message):
        load(write_pictures(tmp_path / "set", classes))


def test_both_layouts_at_once_are_refused(parted):
    write_pictures(parted, {"real": 1})
    with pytest.raises(ValueError, match="holds both real and train, test; keep either"):
        load(parted)


def test_the_cache_is_rebuilt_when_pictures_or_groups_change(plain, tmp_path):
    before = load(plain, cache=tmp_path / "kept")
    assert same(before, load(plain, cache=tmp_path / "kept"))
    write_groups(plain, [(f"real/real{index:03}.png", f"g{index // 2}") for index in range(12)])
    with pytest.warns(UserWarning, match="have no row"):
        assert not same(before, load(plain, cache=tmp_path / "kept"))
    assert len(list((tmp_path / "kept").iterdir())) == 2
