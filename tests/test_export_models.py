"""Deployment of models at indivisible sizes: legacy ONNX, torch.export, AOTInductor, OpenVINO, TorchScript."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from sia_layers import SelfInformation, SIAggregation, SIAttention, inject_sia, use_backend

SIZE = (2, 3, 24, 20)
SIZES = (SIZE, (1, 3, 33, 21), (2, 3, 46, 57))  # the maps go from 33 to 17 to 9, 21 to 11 to 6, 46 to 23 to 12
PICTURES = ((1, 3, 64, 64), (2, 3, 96, 64), (1, 3, 80, 112))


class Net(nn.Module):
    """Three layers, each with all earlier maps aggregated, in both forms of aggregation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = SIAttention(3, gain=0.5, inter_channels=1), SIAttention(4, 1, inter_channels=1)
        self.third = SIAttention(5, 1, inter_channels=1, channel="mean")
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)])
        self.published, self.pooled = SIAggregation([3], 4), SIAggregation([3, 4], 5, form="pooled")

    def forward(self, x: Tensor) -> Tensor:
        x, early = self.first.attend(x)
        x = self.down[0](x)
        x, later = self.second.attend(x, self.published([early], x.shape[2:]))
        x = self.down[1](x)
        return self.third(x, self.pooled([early, later], x.shape[2:]))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture(scope="module", params=["vit_tiny_patch16_224", "resnet10t"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    timm = pytest.importorskip("timm")
    keywords = {"img_size": 64, "depth": 4} if request.param.startswith("vit") else {}
    torch.manual_seed(0)
    made = timm.create_model(request.param, num_classes=2, **keywords)
    return inject_sia(made, identity_init=False).eval()  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Ignore torch's warnings about its own exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assert_same(found: Tensor, net: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), use_backend("reference"):
        torch.testing.assert_close(found, net(x), atol=1e-5, rtol=1e-4)


def session_of(net: nn.Module, path: Path, size: tuple[int, ...], **keywords: Any) -> Any:
    """Return an ONNX Runtime session of an exported network that has only standard ONNX operators."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if keywords["dynamo"]:
        pytest.importorskip("onnxscript")
    torch.onnx.export(net, (torch.rand(size),), path, input_names=["x"], verbose=False, **keywords)
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded)
    assert {node.domain for node in loaded.graph.node} == {""}
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def assert_serves(session: Any, net: nn.Module, sizes: tuple[tuple[int, ...], ...]) -> None:
    for size in sizes:
        x = torch.rand(size)
        assert_same(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), net, x)


# --- ONNX ----------------------------------------------------------------------------------------------------------


def test_legacy_onnx_of_any_size(net: nn.Module, tmp_path: Path) -> None:
    axes = {"x": {0: "samples", 2: "rows", 3: "columns"}}
    session = session_of(net, tmp_path / "net.onnx", SIZE, dynamo=False, dynamic_axes=axes)
    assert_serves(session, net, SIZES)


def test_legacy_onnx_of_one_size(net: nn.Module, tmp_path: Path) -> None:
    assert_serves(session_of(net, tmp_path / "net.onnx", SIZES[1], dynamo=False), net, SIZES[1:2])


def test_legacy_onnx_of_a_model(model: nn.Module, tmp_path: Path) -> None:
    tokens = any(name.endswith("patch_embed") for name, _ in model.named_modules())
    axes = {0: "samples"} if tokens else {0: "samples", 2: "rows", 3: "columns"}
    session = session_of(model, tmp_path / "model.onnx", PICTURES[0], dynamo=False, dynamic_axes={"x": axes})
    assert_serves(session, model, ((3, 3, 64, 64),) if tokens else PICTURES)


def test_openvino(net: nn.Module, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    axes = {"x": {0: "samples", 2: "rows", 3: "columns"}}
    session_of(net, tmp_path / "net.onnx", SIZE, dynamo=False, dynamic_axes=axes)
    compiled = openvino.Core().compile_model(tmp_path / "net.onnx", "CPU")
    for size in SIZES:
        x = torch.rand(size)
        assert_same(torch.from_numpy(compiled(x.numpy())[0]), net, x)


# --- torch.export and what compiles it -----------------------------------------------------------------------------


def any_height_and_width(size: tuple[int, ...]) -> dict[int, Any]:
    return {2: Dim("rows", min=9, max=1024), 3: Dim("columns", min=9, max=1024)}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export_of_any_height_and_width(net: nn.Module, strict: bool) -> None:
    """The only guard on the sizes is the requested range."""
    x = torch.rand(SIZE)
    program = torch.export.export(net, (x,), dynamic_shapes=(any_height_and_width(SIZE),), strict=strict)
    for size in SIZES:
        x = torch.rand(2, *size[1:])
        assert_same(program.module()(x), net, x)


@pytest.mark.sampled(1)
def test_export_of_a_model_of_any_height_and_width(model: nn.Module) -> None:
    dynamic = {2: Dim.AUTO, 3: Dim.AUTO}
    tokens = any(name.endswith("patch_embed") for name, _ in model.named_modules())
    program = torch.export.export(model, (torch.rand(PICTURES[0]),), dynamic_shapes=None if tokens else (dynamic,))
    for size in PICTURES[:1] if tokens else PICTURES:
        x = torch.rand(1, *size[1:])
        assert_same(program.module()(x), model, x)


class Small(nn.Module):
    """One layer and one aggregation, with as few operations as possible."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.attention = SIAttention(2, kernel_size, inter_channels=int(kernel_size == 1))
        self.aggregation = SIAggregation([2], 2)
        self.down = nn.Conv2d(2, 2, 3, 2, 1)  # torch.export of 2.9 fixes the parity of sizes that are max-pooled

    def forward(self, x: Tensor) -> Tensor:
        x, info = self.attention.attend(x)
        small = self.down(x)
        return small + self.aggregation([info], small.shape[2:])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "channels"), [(lambda: Small(1), 2), pytest.param(Net, 3, marks=pytest.mark.slow)], ids=["small", "net"]
)
def test_onnx_of_any_size(make: Callable[[], nn.Module], channels: int, tmp_path: Path) -> None:
    net, (samples, _, rows, columns) = make().eval(), SIZE
    size = samples, channels, rows, columns
    session = session_of(net, tmp_path / "net.onnx", size, dynamo=True, dynamic_shapes=(any_height_and_width(size),))
    assert_serves(session, net, tuple((2, channels, *size[2:]) for size in SIZES))


@pytest.mark.slow  # it compiles C++ for a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler, and there is no g++")
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_aot_inductor_of_any_size(kernel_size: int, tmp_path: Path) -> None:
    net = Small(kernel_size).eval()
    with torch.no_grad():
        sizes = {2: Dim("rows", min=5, max=512), 3: Dim("columns", min=5, max=512)}
        program = torch.export.export(net, (torch.rand(1, 2, 12, 10),), dynamic_shapes=(sizes,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        package = torch._inductor.aoti_load_package(path)
        for size in ((1, 2, 12, 10), (1, 2, 9, 13), (1, 2, 30, 31)):
            x = torch.rand(size)
            assert_same(package(x), net, x)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_with_dynamic_sizes(backend: str) -> None:
    torch.compiler.reset()
    net = Small(3).eval()
    compiled = torch.compile(net, backend=backend, dynamic=True, fullgraph=True)
    with torch.no_grad():
        x = torch.rand(1, 2, 33, 21)
        assert_same(compiled(x), net, x)
        x = torch.rand(1, 2, 49, 37)
        with torch.compiler.set_stance("fail_on_recompile"):
            assert_same(compiled(x), net, x)


# --- TorchScript ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: SIAttention(4), lambda: SIAggregation([3], 4), SelfInformation, lambda: nn.Sequential(Net())]
)
def test_script_is_refused_with_advice(make: Any) -> None:
    with pytest.raises(
        RuntimeError, match=r"torch.jit.script cannot compile SI?.*; torch\.jit\.trace\(model, example\)"
    ):
        torch.jit.script(make())  # type: ignore[no-untyped-call]
