"""Graphs of layers (torch.export, ONNX, torch.jit.trace, torch.fx): ATen operations for export, and equal results."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from sia_layers import SelfInformation, SIAggregation, SIAttention, use_backend

SIZE, OTHER_SIZE = (2, 4, 12, 16), (3, 4, 16, 12)
DYNAMIC = {0: Dim("samples"), 2: 4 * Dim("rows", min=2, max=64), 3: 4 * Dim("columns", min=2, max=64)}


class Net(nn.Module):
    """Two layers of both kinds, the second with the first one's map aggregated."""

    def __init__(self) -> None:
        super().__init__()
        self.early = SIAttention(4, gain=0.5, inter_channels=1)
        self.conv = nn.Conv2d(4, 8, 3, 2, 1)
        self.aggregation = SIAggregation([4], 8)
        self.late = SIAttention(8, 1, detach=False, inter_channels=2)

    def forward(self, x: Tensor) -> Tensor:
        x, info = self.early.attend(x)
        x = self.conv(x)
        return self.late(x, self.aggregation([info], x.shape[2:]))  # type: ignore[no-any-return]


MAKERS = {
    "net": Net,
    "distance": lambda: SIAttention(4, estimator="distance", padding_mode="replicate", channel="mean"),
    "reflect": lambda: SIAttention(4, padding_mode="reflect", adaptive=False, spatial=False),
}


@pytest.fixture(params=MAKERS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return MAKERS[request.param]().eval()


def assert_same(found: Tensor, net: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), use_backend("reference"):
        torch.testing.assert_close(found, net(x), atol=1e-5, rtol=1e-5)


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """Return the operators in a graph, except those on sizes."""
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    return {str(target) for target in targets if isinstance(target, torch._ops.OpOverload)}


# --- torch.export --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(net: nn.Module, strict: bool) -> None:
    x = torch.rand(SIZE)
    program = torch.export.export(net, (x,), strict=strict)
    assert operators(program) and all(name.startswith("aten.") for name in operators(program))
    assert_same(program.module()(x), net, x)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("grad", [False, True])
def test_export_of_any_size(net: nn.Module, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        program = torch.export.export(net, (torch.rand(SIZE),), dynamic_shapes=(DYNAMIC,))
    assert all(name.startswith("aten.") for name in operators(program))
    for size in (SIZE, OTHER_SIZE):
        x = torch.rand(size)
        assert_same(program.module()(x), net, x)


def test_export_is_the_same_whatever_the_backend() -> None:
    x = torch.rand(SIZE)
    for layer in (SIAttention(4, backend="cpu"), SelfInformation(backend="triton")):
        program = torch.export.export(layer, (x,))
        assert all(name.startswith("aten.") for name in operators(program))


def test_exported_training_leaves_the_map_detached() -> None:
    """The exported graph learns like the layer."""
    layer, x = SIAttention(4, gain=0.5), torch.rand(SIZE)
    program = torch.export.export(layer, (x,)).module()
    gradients = []
    for module in (layer, program):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(module(leaf).square().sum(), leaf)[0])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_loading_needs_nothing_from_this_library(tmp_path: Path) -> None:
    net, x = Net().eval(), torch.rand(SIZE)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
    torch.save((x, net(x).detach()), tmp_path / "expected.pt")
    program = (
        "import sys, torch; sys.modules['sia_layers'] = None\n"
        "x, expected = torch.load('expected.pt')\n"
        "torch.testing.assert_close(torch.export.load('net.pt2').module()(x), expected, atol=1e-5, rtol=1e-5)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)


# --- ONNX ----------------------------------------------------------------------------------------------------------


def onnx_graph(net: nn.Module, path: Path, dynamic_shapes: Any = None) -> Any:
    """Return an ONNX Runtime session of the exported network, after checking that all its nodes are standard ONNX."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(net, (torch.rand(SIZE),), path, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.slow
def test_onnx(net: nn.Module, tmp_path: Path) -> None:
    x = torch.rand(SIZE)
    assert_same(run(onnx_graph(net, tmp_path / "net.onnx"), x), net, x)


@pytest.mark.slow
def test_onnx_of_any_size(tmp_path: Path) -> None:
    net = SIAttention(4, gain=0.5).eval()
    session = onnx_graph(net, tmp_path / "net.onnx", (DYNAMIC,))
    for size in (SIZE, OTHER_SIZE):
        x = torch.rand(size)
        assert_same(run(session, x), net, x)


# --- torch.jit.trace -----------------------------------------------------------------------------------------------


def test_trace(net: nn.Module, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(net, torch.rand(SIZE))
        traced.save(tmp_path / "net.pt")
        loaded = torch.jit.load(tmp_path / "net.pt")
    kinds = {node.kind() for node in loaded.inlined_graph.nodes()}
    assert kinds & {"aten::exp", "aten::exp_", "aten::abs"}
    assert all(kind.startswith(("aten::", "prim::")) for kind in kinds)
    for size in (SIZE, OTHER_SIZE):
        x = torch.rand(size)
        assert_same(loaded(x), net, x)


# --- torch.fx --------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.info, self.aggregation = SIAttention(4), SelfInformation(), SIAggregation([4], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x, self.aggregation([self.info(x)], x.shape[2:]))  # type: ignore[no-any-return]


def test_torch_fx_traces_each_layer_as_one_call() -> None:
    model, x = Layers().eval(), torch.rand(2, 4, 6, 5)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["info", "aggregation", "gate"]
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))
    with pytest.raises(TypeError, match=r"only within a model; put it into an nn\.Sequential first"):
        torch.fx.symbolic_trace(SIAttention(4))
