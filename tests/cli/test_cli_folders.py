"""Folders of photographs: what is read, what is skipped, and what continues despite errors."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from sia_layers.__main__ import main
from sia_layers.cli.common import Refusal
from sia_layers.cli.folders import MOST_NAMED, Photos

pytest.importorskip("matplotlib")
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder that contains an empty one, ``photos``, and return it."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    return tmp_path


def picture(name: str, folder: str = "photos") -> None:
    """Write a small picture, a different one for each name."""
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, "PNG")


def damaged(name: str) -> None:
    picture(name)
    path = Path("photos", name)
    path.write_bytes(path.read_bytes()[:900])


def read(*paths: str, **options: Any) -> tuple[list[str], Photos]:
    """Return the names of the files that are read, in order, and the photos."""
    photos = Photos([Path(path) for path in paths], **options)
    return [path.as_posix() for path, _ in photos.read()], photos


def test_folders_of_folders_in_the_order_of_their_names() -> None:
    for name in ("b/2.png", "b/10.png", "a.png", "b/c/d.jpg", "z.PNG", "b.png"):
        picture(name)
    found, photos = read("photos")
    assert found == [f"photos/{name}" for name in ("a.png", "b/10.png", "b/2.png", "b/c/d.jpg", "b.png", "z.PNG")]
    assert photos.count == 6 and not photos.left_out
    picture("one.png", ".")
    assert read("one.png", "photos/b", "photos/a.png")[0] == ["one.png", *found[1:4], "photos/a.png"]


def test_hidden_files_are_passed_over() -> None:
    for name in ("a.png", ".b.png", "._a.png", ".git/c.png", "__MACOSX/d.png", "e/__MACOSX/._f.png"):
        picture(name)
    found, photos = read("photos")
    assert found == ["photos/a.png"] and not photos.left_out
    assert read("photos/.git")[0] == ["photos/.git/c.png"]  # if explicitly named


def test_links_lead_to_a_folder_once() -> None:
    picture("a/b/1.png")
    picture("2.png", "elsewhere")
    Path("photos/a/b/up").symlink_to(Path("photos").resolve())
    Path("photos/a/self").symlink_to("self")
    Path("photos/linked").symlink_to(Path("elsewhere").resolve())
    Path("photos/z").symlink_to("a")
    found, photos = read("photos")
    assert found == ["photos/a/b/1.png", "photos/linked/2.png"]
    assert list(photos.left_out) == [Path("photos/a/self")]


def test_a_folder_that_is_skipped() -> None:
    picture("a.png")
    picture("maps/a.png.png")
    assert read("photos", without=Path("photos/maps"))[0] == ["photos/a.png"]
    assert len(read("photos", without=Path("missing"))[0]) == 2


def test_unreadable_files_are_skipped_with_the_reason() -> None:
    picture("a.png")
    damaged("sub/cut.png")
    Path("photos/text.jpg").write_text("text")
    Path("photos/notes.txt").write_text("text")
    Path("photos/film.heic").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 40)
    Path("photos/gone.png").symlink_to("nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo("photos/pipe.png")
    found, photos = read("photos")
    assert found == ["photos/a.png"]
    reasons = {path.name: reason for path, reason in photos.left_out.items()}
    expected = {
        "cut.png": "photos/sub/cut.png",
        "text.jpg": "photos/text.jpg is not an image that Pillow can read",
        "notes.txt": "photos/notes.txt does not have the suffix of an image",
        "film.heic": "photos/film.heic is not an image",
        "gone.png": "photos/gone.png is not a regular file",
        "pipe.png": "photos/pipe.png is not a regular file",
    }
    assert reasons.keys() >= expected.keys() - {"pipe.png"}
    for name, reason in reasons.items():
        assert expected[name] in reason
    assert len(list(photos.read())) == 1 and len(photos.left_out) == len(reasons)  # read twice, but counted once


def test_a_folder_without_read_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(path: Path) -> list[str]:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    picture("a.png")
    picture("locked/b.png")
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", listdir)
    found, photos = read("photos")
    assert found == ["photos/a.png"]
    assert photos.left_out == {Path("photos/locked"): "cannot read photos/locked: Permission denied"}
    with pytest.raises(Refusal, match="cannot read photos/locked: Permission denied"):
        read("photos/locked")


def test_a_file_that_is_named_must_be_read() -> None:
    picture("a.png")
    damaged("cut.png")
    assert read("photos")[0] == ["photos/a.png"]
    with pytest.raises(Refusal, match=r"photos/cut\.png"):
        read("photos", "photos/cut.png")
    with pytest.raises(Refusal, match=r"cannot read photos/no\.png: No such file"):
        read("photos", "photos/no.png")


def test_nothing_at_all_is_refused() -> None:
    Path("photos/notes.txt").write_text("text")
    with pytest.raises(Refusal, match="neither photos nor its subfolders hold a file with the suffix of an image"):
        read("photos")
    for number in range(3):
        Path(f"photos/{number}.png").write_text("text")
    with pytest.raises(Refusal, match=r"none of the 3 photographs can be read; photos/0\.png is not an image"):
        read("photos")


# The commands.


def test_profile_continues_and_names_what_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    for name in ("a.png", "sub/b.png", "sub/d.png"):
        picture(name)
    model = ["--model", "test_resnet", "--image-size", "32", "--layers", "layer1", "--batch-size", "2"]
    assert main(["profile", "photos", *model]) == 0
    alone = capsys.readouterr().out
    assert "photos    3\n\n" in alone
    damaged("sub/c.png")
    for number in range(MOST_NAMED):
        Path(f"photos/text\n{number}.jpg").write_text("text")
    assert main(["profile", "photos", *model]) == 0
    printed = capsys.readouterr().out
    left = printed.partition(f"photos    3\nleft out  {MOST_NAMED + 1}\n")[2].partition("\n\n")[0].splitlines()
    assert len(left) == MOST_NAMED + 1
    assert "photos/sub/c.png" in left[0] and left[-1].strip() == "and 1 more"
    assert left[1].strip() == "photos/text?0.jpg is not an image that Pillow can read"
    assert printed.partition("\nlayer")[2] == alone.partition("\nlayer")[2]


def test_map_draws_each_photograph_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "a.jpg", "sub/b.png"):
        picture(name)
    damaged("sub/cut.png")
    for _ in range(2):  # the figures themselves are not read as photographs
        assert main(["map", ".", "--kernel-size", "3", "--dpi", "20"]) == 0
        printed = capsys.readouterr().out
        assert printed.count("nats ") == 3
        assert "photos    3\nleft out  1\n          " in printed
        figures = sorted(path.relative_to("sia_maps").as_posix() for path in Path("sia_maps").rglob("*.*"))
        assert figures == ["photos/a.jpg.png", "photos/a.png.png", "photos/sub/b.png.png"]
        assert Path("sia_maps/photos/a.jpg.png").read_bytes().startswith(b"\x89PNG")


def test_map_of_a_model_draws_each_photograph_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    picture("a.png")
    picture("b.png")
    words = "map photos -o figures --model test_resnet --image-size 64 --stages 4 --dpi 20"
    assert main(words.split()) == 0
    assert sorted(os.listdir("figures")) == ["a.png.png", "b.png.png"]
    assert capsys.readouterr().out.count("timm test_resnet, random weights") == 2


def test_no_folder_is_created_for_a_refused_command(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/a.png").write_text("text")
    assert main(["map", "photos", "-o", "figures"]) == 2
    assert "none of the 1 photographs can be read" in capsys.readouterr().err
    assert os.listdir() == ["photos"]
