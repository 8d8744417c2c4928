"""ultralytics: the backbone of a YOLO, and what its trainer and exporter do with the model."""

from __future__ import annotations

import contextlib
import copy
import io
import os
from pathlib import Path

import pytest
import torch
from ecosystem_checks import channels, difference, shape_of
from torch import Tensor, nn

from sia_layers.injection import eject_sia, inject_sia, sia_modules, sia_parameters

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
pytest.importorskip("ultralytics", reason="needs ultralytics")


pytestmark = pytest.mark.sampled(1)


@pytest.fixture(scope="module")
def injected() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a YOLOv8 with active SIA, a picture, and the boxes that it predicts for it."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model, x = DetectionModel("yolov8n.yaml", nc=3, verbose=False).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)[0]
        before = shape_of(model)
        inject_sia(model)
        assert difference(model(x)[0], plain) == 0
        other = copy.deepcopy(model)
        assert shape_of(eject_sia(other)) == before and difference(other(x)[0], plain) == 0
        for parameter in sia_parameters(model):
            parameter.add_(0.1)
        return model, x, model(x)[0]


def test_the_backbone_is_selected(injected: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, _, boxes = injected
    assert list(sia_modules(model)) == ["model.2.sia", "model.4.sia", "model.6.sia"]
    assert channels(sia_modules(model)) == [32, 64, 128] and boxes.shape == (1, 7, 84)


def test_training(injected: tuple[nn.Module, Tensor, Tensor]) -> None:
    from ultralytics.utils.torch_utils import ModelEMA

    model, x, boxes = copy.deepcopy(injected[0]).train(), injected[1], injected[2]
    ema = ModelEMA(model)
    optimizer = torch.optim.SGD(sia_parameters(model), 1.0)
    torch.stack([value.square().mean() for value in model(x).values() if isinstance(value, Tensor)]).sum().backward()
    assert all(parameter.grad is not None for parameter in sia_parameters(model))
    optimizer.step()
    ema.update(model)
    assert len(sia_modules(ema.ema)) == 3 and torch.isfinite(ema.ema(x)[0]).all()
    with torch.no_grad():  # the boxes were computed without gradients too; with them other kernels run
        assert difference(injected[0](x)[0], boxes) == 0  # training the copy does not affect the original


def test_the_whole_model_is_pickled_as_the_trainer_does(injected: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, boxes = injected
    torch.save({"model": copy.deepcopy(model).half(), "ema": None}, file := io.BytesIO())
    torch.save(model, whole := io.BytesIO())
    for stored in (file, whole):
        stored.seek(0)
    half = torch.load(file, weights_only=False)["model"].float()
    assert len(sia_modules(half)) == 3 and torch.isfinite(half(x)[0]).all()
    with torch.no_grad():
        assert difference(torch.load(whole, weights_only=False)(x)[0], boxes) == 0


def test_fusing_keeps_sia(injected: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, boxes = injected
    fused = copy.deepcopy(model).fuse(verbose=False)
    assert list(sia_modules(fused)) == list(sia_modules(model))
    with torch.no_grad():
        assert torch.allclose(fused(x)[0], boxes, rtol=1e-4, atol=1e-3)
    eject_sia(fused)
    assert torch.isfinite(fused(x)[0]).all()


@pytest.mark.slow
def test_its_own_exporter_to_torchscript_and_onnx(
    injected: tuple[nn.Module, Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics import YOLO

    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        yolo = YOLO("yolov8n.yaml", verbose=False)
    inject_sia(yolo.model)
    yolo.save("injected.pt")
    again = YOLO("injected.pt")
    assert len(sia_modules(again.model)) == 3
    exported = torch.jit.load(again.export(format="torchscript", imgsz=64, verbose=False))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(exported(x), again.model.eval()(x)[0], rtol=1e-3, atol=1e-2)
        expected = again.model.eval()(x)[0]
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    path = again.export(format="onnx", imgsz=64, dynamic=True, simplify=False, verbose=False)  # with dynamo=False
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-2)
