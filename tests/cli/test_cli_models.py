"""Commands on models: maps at a model's sites, profiles of its layers, checkpoints, and everything refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sia_layers import capture_self_information, inject_sia, profile_self_information, sia_modules, use_backend
from sia_layers.__main__ import main
from sia_layers.cli import models

pytest.importorskip("matplotlib")
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
timm = pytest.importorskip("timm")

SMALL = ["--model", "test_resnet", "--image-size", "64"]


@pytest.fixture(autouse=True)
def _backend() -> Iterator[None]:
    with use_backend("reference"):
        yield


@pytest.fixture
def photo_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a picture that is wider than high to an empty working folder."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(values).save("photo.png")
    return Path("photo.png")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a refused command prints."""
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("python -m sia_layers")
    return printed.err


def seeded(**options: object) -> nn.Module:
    """Return the model as the commands create it without a checkpoint."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", **options)
    return model.eval()


def as_seen(path: Path, side: int = 64) -> torch.Tensor:
    """Return the centre of a picture, resized with another library, as the model receives it."""
    with Image.open(path) as image:
        width, height = image.size
        part = min(width, height)
        left, top = (width - part) // 2, (height - part) // 2
        small = image.convert("RGB").crop((left, top, left + part, top + part)).resize((side, side), Image.BICUBIC)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor(models.IMAGENET_MEAN), torch.tensor(models.IMAGENET_STD)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def table(printed: str, head: str) -> dict[str, list[str]]:
    """Return the rows below a header, by their first word."""
    lines = printed.partition(head)[2].partition("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_map_of_a_model(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "photo.png", *SMALL, "-o", "sites.png", "--dpi", "50"]) == 0
    printed = capsys.readouterr().out
    assert "photo.png, 120 x 80 pixels, seen as 64 x 64" in printed
    assert "timm test_resnet, random weights" in printed
    model = inject_sia(seeded(), aggregate=False)
    with torch.no_grad(), capture_self_information(model) as maps:
        model(as_seen(photo_file))
    rows = table(printed, "\nsite")
    assert list(rows) == ["layer1.0", "layer2.0", "layer3.0"]
    for cells, info in zip(rows.values(), maps.values(), strict=True):
        assert cells[:4] == [str(info.shape[1]), str(info.shape[3]), "x", str(info.shape[2])]
        assert float(cells[4]) == pytest.approx(info.mean().item(), abs=0.01)
    with Image.open("sites.png") as figure:
        assert figure.width > 2 * figure.height > 200
        assert len(figure.convert("RGB").getcolors(maxcolors=figure.width * figure.height)) > 500
    assert sorted(os.listdir()) == ["photo.png", "sites.png"]


def test_stages_options_and_torchvision(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    words = "--model torchvision/resnet18 --image-size 48 --stages layer1 8 --kernel-size 5 --dpi 30"
    assert main(["map", "photo.png", *words.split()]) == 0
    printed = capsys.readouterr().out
    assert "torchvision resnet18" in printed
    assert list(table(printed, "\nsite")) == ["layer1.1", "layer2.1"]


def test_a_grey_photograph(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(photo_file) as image:
        image.convert("L").save("grey.png")
    assert main(["map", "grey.png", *SMALL, "--dpi", "30"]) == 0
    assert "grey.png, 120 x 80 pixels" in capsys.readouterr().out


def test_profile(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    for seed in range(3):
        values = np.random.default_rng(seed).integers(0, 256, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(values).save(f"folder/{seed}.png")
    Path("folder/notes.txt").write_text("no picture")
    arguments = ["profile", "photo.png", "folder", *SMALL, "--batch-size", "3", "--layers", "layer?", "conv1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "photos    4" in printed
    files = [photo_file, *sorted(Path("folder").glob("*.png"))]
    layers = ["layer1", "layer2", "layer3", "layer4", "conv1"]
    expected = profile_self_information(seeded(), [as_seen(file) for file in files], layers, progress=False)
    rows = table(printed, "\nlayer")
    assert list(rows) == layers
    for name, (mean, deviation) in rows.items():
        assert float(mean) == pytest.approx(expected[name].mean, abs=0.01)
        assert float(deviation) == pytest.approx(expected[name].std, abs=0.01)


def saved(model: nn.Module, path: str) -> None:
    """Save a state dict in one of the formats of training scripts."""
    state = model.state_dict()
    if path.endswith(".safetensors"):
        pytest.importorskip("safetensors.torch").save_file(state, path)
    elif "wrapped" in path:
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        torch.save(state, path)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("path", ["plain.pth", "wrapped.pth", "model.safetensors"])
def test_checkpoints(path: str, photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(7)
    model = timm.create_model("test_resnet", num_classes=2).eval()
    saved(model, path)
    assert main(["map", "photo.png", *SMALL, "--checkpoint", path, "--dpi", "30"]) == 0
    printed = capsys.readouterr().out
    assert f"weights of {path}{' (state_dict)' if path == 'wrapped.pth' else ''}\n" in printed
    with torch.no_grad(), capture_self_information(inject_sia(model, aggregate=False)) as maps:
        model(as_seen(photo_file))
    rows = table(printed, "\nsite")
    for cells, info in zip(rows.values(), maps.values(), strict=True):
        assert float(cells[4]) == pytest.approx(info.mean().item(), abs=0.01)


@pytest.mark.parametrize(
    ("stages", "options"),
    [(None, {}), (["layer2.0", "layer4.0"], {}), (None, {"aggregate": False, "identity_init": False})],
)
def test_checkpoints_that_hold_sia(
    stages: list[str] | None, options: dict[str, bool], photo_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = inject_sia(seeded(), stages, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    saved(model, "sia.pth")
    assert main(["map", "photo.png", *SMALL, "--checkpoint", "sia.pth", "--dpi", "30"]) == 0
    printed = capsys.readouterr().out
    with torch.no_grad(), capture_self_information(model) as maps:
        model(as_seen(photo_file))
    rows = table(printed, "\nsite")
    assert [f"{name}.sia" for name in rows] == list(sia_modules(model))
    for cells, info in zip(rows.values(), maps.values(), strict=True):
        assert float(cells[4]) == pytest.approx(info.mean().item(), abs=0.02)


def test_options_beside_a_checkpoint_that_holds_sia(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(inject_sia(seeded()), "sia.pth")
    for option in (["--stages", "layer1"], ["--kernel-size", "3"], ["--domain", "spatial"], ["--no-adaptive"]):
        message = refused(["map", "photo.png", *SMALL, "--checkpoint", "sia.pth", *option], capsys)
        assert f"leave {option[0].replace('--no-', '--')} out" in message


class Evil:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("taken",)


def test_checkpoints_run_no_code(photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Evil()}, "evil.pth")
    assert "holds more than tensors" in refused(["map", "photo.png", *SMALL, "--checkpoint", "evil.pth"], capsys)
    assert not Path("taken").exists()


def truncated() -> None:
    torch.save({"a": torch.ones(1000)}, "cut.pth")
    Path("cut.pth").write_bytes(Path("cut.pth").read_bytes()[:800])


def altered(change: str) -> None:
    state = dict(seeded().state_dict())
    if change == "more":
        state["layer1.0.conv9.weight"] = torch.ones(1)
    elif change == "less":
        del state["layer1.0.conv1.weight"]
    else:
        state["layer1.0.conv1.weight"] = torch.ones(3)
    torch.save(state, "altered.pth")


CHECKPOINTS = {
    "missing": (lambda: None, "no.pth", "there is no such file"),
    "folder": (lambda: Path("folder.pth").mkdir(), "folder.pth", "it is not a file"),
    "no checkpoint": (lambda: Path("a.pth").write_text("text"), "a.pth", "a.pth"),
    "truncated": (truncated, "cut.pth", "cut.pth"),
    "broken safetensors": (lambda: Path("b.safetensors").write_text("text"), "b.safetensors", "b.safetensors"),
    "a tensor": (lambda: torch.save(torch.ones(3), "c.pth"), "c.pth", "holds a Tensor, not a state dict"),
    "no tensors": (lambda: torch.save({"epoch": 3}, "d.pth"), "d.pth", "no tensors by name"),
    "unknown key": (lambda: altered("more"), "altered.pth", "which the model does not have; did you mean 'layer1.0"),
    "missing key": (lambda: altered("less"), "altered.pth", "lacks 'layer1.0.conv1.weight'"),
    "shape": (lambda: altered("shape"), "altered.pth", "the model of (32, 32, 3, 3)"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_refused_checkpoints(case: str, photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, name, message = CHECKPOINTS[case]
    prepare()
    before = sorted(os.listdir())
    assert message in refused(["map", "photo.png", *SMALL, "--checkpoint", name], capsys)
    assert sorted(os.listdir()) == before


REFUSED = {
    "map photo.png --model resnet10": "no model is called 'resnet10'; did you mean",
    "map photo.png --model timm/alexnet": "no model is called 'timm/alexnet'",
    "map photo.png --checkpoint a.pth": "--checkpoint needs a model; name one with --model",
    "map photo.png --stages layer1": "--stages needs a model",
    "map photo.png --model test_resnet --stages layer9": "no module 'layer9'; did you mean 'layer",
    "map photo.png --model test_resnet --stages 3": "no stage has the reduction 3",
    "map photo.png --model test_resnet --image-size 0": "image-size must be 1 or more, got 0",
    "map photo.png --model test_vit --image-size 100": "choose another --image-size",
    "map photo.png --model test_resnet --image-size 10000000": "allocate",
    "map photo.png --model test_resnet --stages layer2.0.bn2": "does not decide the model's output",
    "map photo.png --model test_resnet --pretrained --checkpoint a.pth": "not allowed with argument",
    "map photo.png --model test_resnet --kernel-size 4": "kernel_size must be a positive odd number",
    "map no.png --model test_resnet": "cannot read no.png",
    "profile photo.png": "the following arguments are required: --model",
    "profile --model test_resnet": "the following arguments are required: PHOTO",
    "profile no.png --model test_resnet": "cannot read no.png",
    "profile . --model test_resnet --layers layer9": "no module 'layer9'",
    "profile empty --model test_resnet": "neither empty nor its subfolders hold a file with the suffix of an image",
    "profile photo.png --model test_resnet --batch-size 0": "batch-size must be 1 or more, got 0",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused(line: str, photo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    message = (
        refused(line.split(), capsys) if "no.png" not in line or "map" in line else last_line(line.split(), capsys)
    )
    assert REFUSED[line] in message
    assert sorted(os.listdir()) == ["empty", "photo.png"]


def last_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message that follows an unfinished progress bar."""
    assert main(arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]
