"""The walk over the model zoo: it records outcomes, resumes where it stopped, and continues after failures."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sia_layers.injection.errors import OutputTypeError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def zoo() -> dict[str, Any]:
    script = ROOT / "benchmarks" / "zoo.py"
    if not script.exists():
        pytest.skip("runs from a checkout, where benchmarks/ is")
    return runpy.run_path(str(script), run_name="zoo")


def rows(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def test_injected_and_refused(
    zoo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "coverage.csv"
    assert zoo["main"](["--pattern", "resnet10t", "--output", str(output)]) == 0

    def refuses(model: nn.Module) -> None:
        raise OutputTypeError("'features.1' gives a list of 2")

    monkeypatch.setitem(zoo["main"].__globals__, "find_sites", refuses)  # no timm model is refused otherwise
    assert zoo["main"](["--pattern", "selecsls42", "--output", str(output)]) == 0
    found = rows(output)
    assert found["resnet10t"]["outcome"] == "injected" and found["resnet10t"]["hosts"] == "layer1.0 layer2.0 layer3.0"
    assert found["selecsls42"]["outcome"] == "refused" and "a list of 2" in found["selecsls42"]["reason"]
    table = output.with_suffix(".md").read_text()
    assert (
        "timm: 1 of 2 models injected, 1 refused, 0 failed." in table and "| timm | selecsls | 1 | 0 | 1 | 0 |" in table
    )
    assert "resnet10t" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "pattern", "needs", "layout", "family"),
    [
        ("transformers", "ResNetModel", "transformers", "NCHW", "modeling_resnet"),
        ("smp", "Unet/resnet18", "segmentation_models_pytorch", "NCHW", "model"),
        ("ultralytics", "yolov8n-cls.yaml", "ultralytics", "NCHW", "tasks"),
        ("open_clip", "ViT-S-16", "open_clip", "NLC", "model"),
        ("torchvision-video", "r3d_18", "torchvision", "NCTHW", "resnet"),
    ],
)
def test_other_libraries(
    zoo: dict[str, Any], tmp_path: Path, library: str, pattern: str, needs: str, layout: str, family: str
) -> None:
    pytest.importorskip(needs, reason=f"needs {needs}")
    output = tmp_path / "coverage.csv"
    assert zoo["main"](["--library", library, "--pattern", pattern, "--output", str(output)]) == 0
    row = rows(output)[pattern]
    assert (row["library"], row["outcome"], row["layout"], row["family"]) == (library, "injected", layout, family)
    assert row["sites"] == "3"


def test_an_interrupted_walk_resumes(zoo: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "coverage.csv"
    zoo["main"](["--pattern", "resnet10t", "--output", str(output)])
    capsys.readouterr()
    zoo["main"](["--pattern", "resnet1[04]t", "--output", str(output)])
    progress = capsys.readouterr().err
    assert "resnet14t" in progress and "resnet10t" not in progress
    assert sorted(rows(output)) == ["resnet10t", "resnet14t"]


def test_a_failure_is_recorded_and_retried(
    zoo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "coverage.csv"
    names = zoo["main"].__globals__

    def broken(library: str, name: str) -> nn.Module:
        raise OSError("no such weights")

    with monkeypatch.context() as patch:
        patch.setitem(names, "make", broken)
        assert zoo["main"](["--pattern", "resnet10t", "--output", str(output)]) == 1
    assert rows(output)["resnet10t"]["reason"] == "OSError: no such weights"
    assert zoo["main"](["--pattern", "resnet10t", "--output", str(output)]) == 0


def test_the_checks_can_fail(zoo: dict[str, Any]) -> None:
    from sia_layers.injection import inject_sia

    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    before = zoo["_shape_of"](model)
    inject_sia(model, "0", example_input=torch.empty(1, 3, 8, 8))
    assert zoo["_shape_of"](model) != before
    with pytest.raises(AssertionError, match="base keys changed"):
        zoo["_check_injected"](model, ["0.sia"], ["0.weight"])
    with pytest.raises(AssertionError, match="are not the sites"):
        zoo["_check_injected"](model, ["1.sia"], ["0.weight", "0.bias"])
