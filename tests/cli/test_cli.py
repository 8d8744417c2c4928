"""The command line, end to end on a photograph, and everything that it refuses."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import sia_layers
from sia_layers import use_backend
from sia_layers.__main__ import main
from sia_layers.kernels import backends, reference
from sia_layers.kernels.options import Options

pytest.importorskip("matplotlib")
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from matplotlib.figure import Figure  # noqa: E402

from sia_layers import photo as reading  # noqa: E402


@pytest.fixture(autouse=True)
def _backend() -> Iterator[None]:
    """Use the reference unless a test names another backend: the default here may be Triton's interpreter."""
    with use_backend("reference"):
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photo_file(folder: Path) -> Path:
    """Write a small colour picture."""
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "photo.png")
    return Path("photo.png")


def table(printed: str) -> dict[str, list[float]]:
    """Return the rows of numbers that the map command prints, by their first word."""
    lines = printed.partition("maximum\n")[2].partition("\n\n")[0].splitlines()
    return {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in lines}


# The map command on a photograph.


def test_map_of_a_photograph(folder: Path) -> None:
    data = pytest.importorskip("skimage.data")
    values = data.astronaut()[40:300, 60:400]
    Image.fromarray(values).save(folder / "face.png")
    command = [sys.executable, "-W", "ignore:sia_layers", "-m", "sia_layers"]  # in case of no C compiler
    command += ["map", "face.png", "-o", "map.png", "--kernel-size", "5"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(os.listdir()) == ["face.png", "map.png"]
    with Image.open("map.png") as figure:
        assert figure.format == "PNG"
        assert min(figure.size) > 1000
        assert len(figure.convert("RGB").getcolors(maxcolors=figure.width * figure.height)) > 1000
    assert "face.png, 340 x 260 pixels, red green blue" in done.stdout
    pixels = torch.from_numpy(values).permute(2, 0, 1)[None].double() / 255
    info, _ = reference.self_information(pixels, Options(kernel_size=5))
    rows = table(done.stdout)
    assert list(rows) == ["red", "green", "blue", "all"]
    for row, plane in zip(rows.values(), [*info[0], info[0].mean(0)], strict=True):
        expected = [float(plane.mean()), float(plane.min()), float(plane.median()), float(plane.max())]
        assert row == pytest.approx(expected, abs=1e-4)


def test_map_without_a_photo_takes_the_astronaut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    assert main(["map", "--kernel-size", "3", "--dpi", "40"]) == 0
    assert os.listdir() == ["sia_map.png"]
    assert "astronaut, 512 x 512 pixels, red green blue" in capsys.readouterr().out


def test_options_reach_the_computation(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = Options(5, 0.5, False, "kde", 1, 0.25, "reflect")
    words = (
        "--kernel-size 5 --bandwidth 0.5 --no-adaptive --inter-channels 1 --inter-weight 0.25 --padding-mode reflect"
    )
    assert main(["map", str(photo_file), *words.split(), "--backend", "reference"]) == 0
    printed = capsys.readouterr().out
    info, _ = reference.self_information(reading.read(photo_file).pixels, given)
    assert table(printed)["green"][0] == pytest.approx(info[0, 1].mean().item(), abs=1e-4)
    assert "backend   reference, on device cpu" in printed
    assert main(["map", str(photo_file), "--estimator", "distance"]) == 0
    info, _ = reference.self_information(reading.read(photo_file).pixels, Options(7, estimator="distance"))
    assert table(capsys.readouterr().out)["blue"][3] == pytest.approx(info[0, 2].max().item(), rel=1e-3)


def test_map_of_blocks(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "photo.png", "--domain", "frequency", "-o", "blocks.png"]) == 0
    printed = capsys.readouterr().out
    info = sia_layers.frequency_self_information(reading.read(photo_file).pixels)
    assert Path("blocks.png").is_file() and "kernel_size 3" in printed
    assert table(printed)["all"][0] == pytest.approx(info.mean().item(), abs=1e-4)  # 24 x 32 pixels: whole blocks


def test_blocks_of_a_model(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "photo.png", "--domain", "frequency", "--model", "test_resnet", "--image-size", "64"]) == 0
    assert "2 x 2" in capsys.readouterr().out and Path("sia_map.png").is_file()


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg", "JPG"])
def test_figure_formats(photo_file: Path, suffix: str) -> None:
    assert main(["map", str(photo_file), "-o", f"map.{suffix}", "--dpi", "50"]) == 0
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "JPG": b"\xff\xd8"}
    assert Path(f"map.{suffix}").read_bytes().startswith(starts[suffix])


def test_figure_replaces_the_older_one(photo_file: Path) -> None:
    Path("older.png").write_text("older")
    Path("older.png").chmod(0o640)
    Path("link.png").symlink_to("older.png")
    assert main(["map", str(photo_file), "-o", "link.png", "--dpi", "50"]) == 0
    assert Path("link.png").is_symlink()
    assert Path("older.png").stat().st_mode & 0o777 == 0o640
    assert Path("older.png").read_bytes().startswith(b"\x89PNG")


def test_names_that_are_not_text(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9 \n$x_1$ \xe5\x86\x99.png")
    photo_file.rename(name)
    assert main(["map", name, "-o", f"map of {name}", "--dpi", "50"]) == 0
    assert "photo     caf? ?$x_1$ 写.png, 32 x 24 pixels" in capsys.readouterr().out


# What it refuses: one line, exit code 2, and no file created or changed.


def no_photo(name: str) -> Callable[[Path], None]:
    return lambda photo: Path(name).write_text("no image") and None  # type: ignore[func-returns-value]


def truncate(photo: Path) -> None:
    Path("cut.png").write_bytes(photo.read_bytes()[:-900])


def nothing(photo: Path) -> None:
    pass


REFUSED = {
    "missing photo": (nothing, "missing.png", "missing.png: No such file or directory"),
    "empty folder": (lambda photo: Path("empty").mkdir(), "empty", "neither empty nor its subfolders hold a file"),
    "figure for a folder": (nothing, ". -o map.png", ". is a folder, so map.png must be a folder"),
    "figures into the folder": (nothing, ". -o .", ". is the folder of the photographs; choose another"),
    "figures into no folder": (nothing, ". -o no/maps", "there is no folder no"),
    "no image": (no_photo("text.png"), "text.png", "text.png is not an image that Pillow can read"),
    "empty file": (lambda photo: Path("empty.png").touch(), "empty.png", "empty.png is not an image"),
    "truncated": (truncate, "cut.png", "cut.png"),
    "missing folder": (nothing, "photo.png -o no/map.png", "there is no folder no"),
    "figure is a folder": (lambda photo: Path("map.png").mkdir(), "photo.png -o map.png", "not a regular file"),
    "unknown format": (nothing, "photo.png -o map.txt", "its name must end in one of .png, .jpg"),
    "no suffix": (nothing, "photo.png -o map", "its name must end in one of"),
    "over the photo": (nothing, "photo.png -o ./photo.png", "photo.png is the photograph itself"),
    "link to the photo": (
        lambda photo: Path("link.png").symlink_to(photo),
        "photo.png -o link.png",
        "is the photograph itself",
    ),
    "even kernel": (nothing, "photo.png --kernel-size 4", "kernel_size must be a positive odd number"),
    "kernel no number": (nothing, "photo.png --kernel-size wide", "invalid int value: 'wide'"),
    "bandwidth": (nothing, "photo.png --bandwidth -1", "bandwidth must be greater than 0, got -1.0"),
    "bandwidth nan": (nothing, "photo.png --bandwidth nan", "bandwidth must be finite"),
    "channels": (nothing, "photo.png --inter-channels -2", "inter_channels must be 0 (off) or more"),
    "reflect": (nothing, "photo.png --kernel-size 99 --padding-mode reflect", "needs a map larger than 49 pixels"),
    "dpi": (nothing, "photo.png --dpi 0", "dpi must be from 20 to 1200, got 0"),
    "backend": (nothing, "photo.png --backend fast", "argument --backend: invalid choice: 'fast'"),
    "device": (nothing, "photo.png --device toaster", "toaster"),
    "option": (nothing, "photo.png --widow 3", "unrecognized arguments: --widow 3"),
    "two photos": (nothing, "photo.png photo.png", "unrecognized arguments: photo.png"),
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a refused command prints."""
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("python -m sia_layers")
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, arguments, message = REFUSED[case]
    prepare(photo_file)
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert message in refused(["map", *arguments.split()], capsys)
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


@pytest.mark.parametrize("limit", [500, 300], ids=["warned of", "refused by Pillow"])
def test_too_many_pixels(
    limit: int, photo_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # the photo has 768
    assert f"photo.png has more than the {limit} pixels" in refused(["map", "photo.png"], capsys)
    assert os.listdir() == ["photo.png"]


@pytest.mark.parametrize("arguments", [[], ["draw"], ["info", "more"]])
def test_unknown_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(arguments, capsys)


def test_backend_that_cannot_serve(
    photo_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backends.load("cpu"), "unavailable", lambda: None)
    monkeypatch.setattr(backends.load("cpu"), "refuses", lambda x: "it is switched off")
    assert "cannot serve this tensor: it is switched off" in refused(["map", "photo.png", "--backend", "cpu"], capsys)


@pytest.mark.parametrize(("missing", "extra"), [("skimage", "demo"), ("matplotlib", "viz"), ("PIL", "viz")])
def test_missing_extra(
    missing: str, extra: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("photo", "visualize"):
        monkeypatch.delitem(sys.modules, f"sia_layers.{name}")
        monkeypatch.delattr(sia_layers, name)
    monkeypatch.setitem(sys.modules, missing, None)
    message = refused(["map"], capsys)
    assert missing in message
    assert f'pip install "sia-layers[{extra}]"' in message


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2), (KeyboardInterrupt(), 130)]
)
def test_an_interrupted_write(
    error: BaseException,
    code: int,
    photo_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def savefig(self: Figure, file: object, **options: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(Figure, "savefig", savefig)
    Path("map.png").write_text("older")
    assert main(["map", "photo.png", "-o", "map.png"]) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(os.listdir()) == ["map.png", "photo.png"]
    assert Path("map.png").read_text() == "older"


# Info.


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__.partition("+")[0] in printed
    for name in backends.BACKENDS:
        assert any(line.startswith(f"{name} ") and "available" in line for line in printed.splitlines())
        assert any(line.startswith(f"{name}: ") for line in printed.splitlines())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_an_output_that_cannot_be_written_is_reported() -> None:
    """Python flushes again at exit, which must not fail either."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "sia_layers", "info"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "python -m sia_layers info: the output cannot be written: No space left on device\n"
