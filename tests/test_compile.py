"""torch.compile(fullgraph=True), in training and in inference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import Backend
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from sia_layers import SIAggregation, SIAttention, average_self_information, self_information, use_backend
from sia_layers.kernels import backends

SIZES = ((2, 8, 9, 7), (3, 8, 6, 10))
LAYERS: list[dict[str, Any]] = [
    {},
    {"detach": False, "gain": 0.5, "channel": "mean"},
    {"backend": "reference", "estimator": "distance", "detach": False},
]


@pytest.fixture(autouse=True)
def _start_anew() -> None:
    torch.compiler.reset()
    counters.clear()


def compiled(function: Any, backend: Any = "aot_eager", **keywords: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend=backend, **keywords)


def steps(model: nn.Module, sizes: tuple[tuple[int, ...], ...] = SIZES) -> list[Tensor]:
    """Return the outputs, the gradients of the inputs and the final parameters of some training steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if list(model.parameters()) else None
    results = []
    for seed, size in enumerate(sizes):
        x = torch.randn(size, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        y = model(x)
        y.square().mean().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        assert x.grad is not None
        results += [y.detach(), x.grad]
    return results + [parameter.detach() for parameter in model.parameters()]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("keywords", LAYERS, ids=str)
def test_training(keywords: dict[str, Any]) -> None:
    layer = SIAttention(8, **keywords)
    expected = steps(copy.deepcopy(layer))
    assert_same(steps(compiled(layer)), expected)
    with torch.no_grad():
        x = torch.randn(SIZES[0])
        torch.testing.assert_close(compiled(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


def test_training_with_inductor() -> None:
    """One layer uses operators, and the compiler may fuse the other."""
    layers = nn.Sequential(SIAttention(8, detach=False), SIAttention(8, 1, backend="reference", inter_channels=1))
    expected = steps(copy.deepcopy(layers), SIZES[:1])
    assert_same(steps(compiled(layers, "inductor"), SIZES[:1]), expected, 1e-4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = SIAttention(8, gain=0.5), SIAttention(4, detach=False)
        self.conv, self.aggregation = nn.Conv2d(8, 4, 3, 2, 1), SIAggregation([8], 4)

    def forward(self, x: Tensor) -> Tensor:
        x, info = self.early.attend(x)
        x = self.conv(x)
        return self.late(x, self.aggregation([info], x.shape[2:]))  # type: ignore[no-any-return]


def test_training_of_a_network() -> None:
    net = Net()
    assert_same(steps(compiled(copy.deepcopy(net))), steps(net))


def test_one_graph_serves_every_size() -> None:
    layer = compiled(SIAttention(8), dynamic=True)
    layer(torch.randn(2, 8, 4, 7, requires_grad=True)).sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in range(5, 9):
            layer(torch.randn(rows - 2, 8, rows, rows + 3, requires_grad=True)).sum().backward()


def test_the_graph_holds_the_operators() -> None:
    def graph_of(layer: SIAttention) -> str:
        counter = CompileCounterWithBackend("eager")
        compiled(layer, counter)(torch.randn(SIZES[0], requires_grad=True))
        (graph,) = counter.graphs
        return str(graph.graph)

    x = torch.zeros(SIZES[0])
    if backends.select(x) != "reference":
        text = graph_of(SIAttention(8))
        assert all(f"sia_layers.{name}" in text for name in ("self_information", "channel_mean", "gate"))
    assert "sia_layers." not in graph_of(SIAttention(8, backend="reference"))


def test_each_backend(backend: Backend) -> None:
    """Everything that a backend checks about a tensor can be traced."""
    x = torch.randn(1, 2, 3, 2, device=backend.device, requires_grad=True)
    function = compiled(lambda x: self_information(x, backend=backend.name))
    found, expected = function(x), self_information(x, backend=backend.name)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(info.square().sum(), x)[0] for info in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_a_compiled_function_follows_use_backend() -> None:
    counter = CompileCounterWithBackend("eager")
    function, x = compiled(self_information, counter), torch.rand(1, 2, 4, 4)
    plain = function(x)
    with use_backend("reference"):
        named = function(x)
        again = function(x)
    torch.testing.assert_close(plain, named, atol=1e-5, rtol=1e-5)
    assert torch.equal(named, again) and torch.equal(function(x), plain)
    assert counter.frame_count == 2
    assert "sia_layers." not in str(counter.graphs[1].graph)


def test_use_backend_inside_a_compiled_function() -> None:
    def function(x: Tensor) -> Tensor:
        with use_backend("reference"):
            inner = self_information(x)
        return inner + average_self_information(x)[:, None, None, None]

    x = torch.rand(1, 2, 4, 4)
    torch.testing.assert_close(compiled(function)(x), function(x), atol=1e-5, rtol=1e-5)
    assert backends._ambient.names == ()


def test_options_that_change_from_call_to_call() -> None:
    function, x = compiled(self_information), torch.rand(1, 2, 8, 8)
    for kernel_size, bandwidth in ((3, 1.0), (5, 1.0), (3, 0.5), (3, 0.25)):
        expected = self_information(x, kernel_size, bandwidth=bandwidth)
        torch.testing.assert_close(function(x, kernel_size, bandwidth=bandwidth), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_memory_format_and_dtype_are_kept(backend: str | None) -> None:
    layer = SIAttention(8, gain=0.5, backend=backend)
    x = torch.randn(SIZES[0]).contiguous(memory_format=torch.channels_last).bfloat16()
    y = compiled(layer)(x)
    assert y.dtype == x.dtype and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x), atol=0.05, rtol=0.05)


def test_autocast_within() -> None:
    net, x = Net(), torch.randn(SIZES[0])

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)  # type: ignore[no-any-return]

    torch.testing.assert_close(compiled(forward)(x), forward(x), atol=0.05, rtol=0.05)


def test_function_transforms_within() -> None:
    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: self_information(x).square().sum())(x)  # type: ignore[no-any-return]

    x = torch.rand(1, 2, 4, 4)
    torch.testing.assert_close(compiled(gradient)(x), gradient(x), atol=1e-4, rtol=1e-4)
    x = torch.rand(2, 1, 2, 4, 4)
    torch.testing.assert_close(compiled(torch.vmap(self_information))(x), torch.vmap(self_information)(x))


def test_errors_are_those_of_the_layer() -> None:
    with pytest.raises(Exception, match="x must have 8 channels"):
        compiled(SIAttention(8))(torch.zeros(1, 4, 5, 5))
