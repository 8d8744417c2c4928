"""FrequencySIAttention: its formula computed in float64, and its behaviour as a module."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from conftest import Backend
from frequency_oracle import CHANNELS, GATES, SIZES, defined, made
from torch.export import Dim

from sia_layers import (
    FrequencySIAttention,
    SIAggregation,
    SIAttention,
    frequency,
    frequency_self_information,
    use_backend,
)
from sia_layers.frequency import inverse_block_transform

# --- The layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("gates", GATES, ids=str)
def test_both_paths_follow_the_formula(gates: tuple[bool, str | None], size: tuple[int, ...]) -> None:
    layer, x, aggregate = made(gates, gain=0.7, detach=False), torch.randn(size), torch.rand(size)
    for extra in (None, aggregate):
        expected = defined(layer, x.double().numpy(), None if extra is None else extra.double().numpy())
        with torch.no_grad():
            oracle.assert_near(layer(x, extra), expected, 2e-5)
        oracle.assert_near(layer(x.clone().requires_grad_(), extra), expected, 2e-5)
        exact = copy.deepcopy(layer).double()
        oracle.assert_near(exact(x.double(), None if extra is None else extra.double()), expected, 1e-10)


def test_every_backend(backend: Backend) -> None:
    layer = made(block=2, gain=0.5, detach=False, backend=backend.name).to(backend.device)
    x = torch.randn(1, CHANNELS, 4, 6, device=backend.device).requires_grad_()
    y, (grad,) = layer(x), torch.autograd.grad(layer(x).square().sum(), x)
    with use_backend("reference"):
        layer.backend = None
        expected = layer(x)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), x)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_gain_of_zero_is_the_identity_and_learns(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    layer = made(gain=0.0)
    x = (torch.randn(size) * (4e4 if dtype == torch.float16 else 1)).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    y = layer(x, torch.rand(size, dtype=dtype) if dtype != torch.float16 else None)
    assert torch.equal(y, x) and y.dtype == dtype
    y.float().mean().backward()
    assert layer.gain is not None and layer.gain.grad is not None and layer.gain.grad.isfinite().all()
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("gates", GATES, ids=str)
def test_gradients(gates: tuple[bool, str | None]) -> None:
    spatial, channel = gates
    layer = FrequencySIAttention(
        2, 2, spatial=spatial, channel=channel, rd_channels=2, gain=0.5, detach=False, adaptive=False
    ).double()
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer.detach = True  # I is then a constant, and the layer is otherwise linear in the map
    y, info = layer.attend(x)
    assert not info.requires_grad
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(y.sum(), [x, *layer.parameters()]))


def test_the_map_that_gated_it() -> None:
    layer, x = made(), torch.randn(2, CHANNELS, 20, 17)
    y, info = layer.attend(x)
    assert info.shape == (2, CHANNELS * 64, 3, 3) and torch.equal(info, frequency_self_information(x))
    torch.testing.assert_close(y, layer(x), atol=1e-6, rtol=1e-6)
    handed_on = SIAggregation([CHANNELS], 3)([info.unflatten(1, (CHANNELS, -1)).mean(2)], (2, 2))
    assert handed_on.shape == (2, 3, 2, 2)


@pytest.mark.parametrize("size", [(2, CHANNELS, 16, 24), (1, CHANNELS, 13, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("gates", [GATES[0], GATES[2], GATES[4]], ids=str)
def test_every_dtype_in_both_memory_formats(
    gates: tuple[bool, str | None], dtype: torch.dtype, size: tuple[int, ...]
) -> None:
    x = torch.randn(size, dtype=dtype)
    for gain in (None, 0.5):
        layer = made(gates, gain=gain)
        with torch.no_grad():
            expected = copy.deepcopy(layer).double()(x.double())
        for memory_format in (torch.contiguous_format, torch.channels_last):
            leaf = x.clone(memory_format=memory_format).requires_grad_()
            results = [layer(leaf), layer.attend(leaf)[0], layer(leaf.detach())]
            assert torch.autograd.grad(results[0].sum(), leaf)[0].dtype == dtype
            for y in results:
                assert y.dtype == dtype and y.is_contiguous(memory_format=memory_format)
                oracle.assert_near(y, expected, 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_transform_in_float32(dtype: torch.dtype) -> None:
    layer, x = made((True, "mean"), gain=0.5), torch.randn(SIZES[0])
    with torch.autocast("cpu", dtype):
        y = layer(x.requires_grad_())
        with torch.no_grad():
            inferring = layer(x)
    assert y.dtype == torch.float32 and torch.equal(y, layer(x))
    with torch.no_grad():
        assert torch.equal(inferring, layer(x))


def test_a_map_without_pixels() -> None:
    for size in ((0, CHANNELS, 8, 8), (2, CHANNELS, 0, 8)):
        y, info = made(gain=0.5).attend(torch.zeros(size))
        assert y.shape == size and info.shape == (size[0], CHANNELS * 64, -(-size[2] // 8), 1)


# --- As a module ---------------------------------------------------------------------------------------------------


def test_copies_and_names() -> None:
    layer, x = made(block=4, gain=0.5, bandwidth=0.5), torch.randn(SIZES[0])
    fresh = made(block=4, gain=0.1, bandwidth=0.5)
    fresh.load_state_dict(SIAttention(CHANNELS, rd_channels=4, gain=0.0).state_dict())
    fresh.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == ["gain", "fc1.weight", "fc2.weight"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.equal(other(x), layer(x))
    assert repr(pickle.loads(pickle.dumps(layer))) == repr(layer)
    assert repr(made((True, None), block=4)) == (
        "FrequencySIAttention('dct', block=4, channels=6, kernel_size=3, channel=None)"
    )


def test_function_transforms() -> None:
    layer, x = made(gain=0.5), torch.randn(3, 2, CHANNELS, 9, 16)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(one) for one in x]), atol=1e-5, rtol=1e-5)


def test_after_inference_mode_it_learns() -> None:
    """Tensors that are kept between calls are not inference tensors."""
    with torch.inference_mode():
        FrequencySIAttention(2, 16)(torch.randn(1, 2, 16, 16))
    x = torch.randn(1, 2, 16, 16, requires_grad=True)
    FrequencySIAttention(2, 16)(x).sum().backward()
    assert x.grad is not None


def test_meta_device() -> None:
    layer = FrequencySIAttention(32, device="meta", gain=0.5)
    assert layer(torch.empty(1, 32, 9, 8, device="meta")).shape == (1, 32, 9, 8)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_training(dynamic: bool) -> None:
    torch.compiler.reset()
    layer, x = made(gain=0.5, detach=False), torch.randn(2, CHANNELS, 13, 18, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    found, expected = (
        torch.autograd.grad(one(x).square().sum(), [x, *layer.parameters()]) for one in (compiled, layer)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    if dynamic:
        with torch.compiler.set_stance("fail_on_recompile"):
            for rows in (12, 17, 20):  # sizes of whole blocks have a separate graph
                y = torch.randn(3, CHANNELS, rows, rows + 3, requires_grad=True)
                torch.testing.assert_close(compiled(y), layer(y), atol=1e-5, rtol=1e-5)


def test_layers_with_different_blocks_are_compiled_together() -> None:
    torch.compiler.reset()
    layers = torch.nn.Sequential(made(gain=0.5), made(gain=0.5, transform="haar")).eval()
    x = torch.randn(1, CHANNELS, 8, 12)
    with torch.no_grad():
        compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layers(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported_for_one_size_that_blocks_do_not_divide(strict: bool) -> None:
    layer, x = made(gain=0.5, inter_channels=1).eval(), torch.randn(2, CHANNELS, 13, 18)
    program = torch.export.export(layer, (x,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert targets and all(target.startswith("aten.") for target in targets)
    torch.testing.assert_close(program.module()(x), layer(x), atol=1e-5, rtol=1e-5)


OTHER_SIZES = ((2, CHANNELS, 12, 16), (3, CHANNELS, 21, 9))


def any_number_of_blocks() -> tuple[FrequencySIAttention, tuple[tuple[int, ...], ...], dict[int, Any]]:
    """A layer, sizes of maps, and what torch.export is told of them."""
    dynamic = {0: Dim("samples"), 2: 8 * Dim("rows", min=2, max=20), 3: 8 * Dim("columns", min=2, max=20)}
    return made(gain=0.5, inter_channels=1).eval(), ((2, CHANNELS, 24, 16), (3, CHANNELS, 16, 32)), dynamic


def test_exported_for_any_number_of_blocks() -> None:
    layer, sizes, dynamic = any_number_of_blocks()
    program = torch.export.export(layer, (torch.randn(sizes[0]),), dynamic_shapes=(dynamic,))
    targets = {str(node.target) for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert targets and all(target.startswith("aten.") for target in targets)
    for size in sizes:
        x = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_onnx_for_any_number_of_blocks(tmp_path: Path) -> None:
    layer, sizes, dynamic = any_number_of_blocks()
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(
        layer, (torch.randn(sizes[0]),), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=(dynamic,), verbose=False
    )
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for size in sizes:
        x = torch.randn(size)
        with torch.no_grad():
            expected = layer(x)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)


def test_first_use_within_functionalize_leaves_nothing_behind() -> None:
    layer, x = made(block=4, gain=0.5).eval(), torch.randn(1, CHANNELS, 8, 8)
    expected = layer(x)
    frequency._kept_values.cache_clear()
    torch.testing.assert_close(torch.func.functionalize(layer)(x), expected)
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (x,))[0], expected)


def test_traced() -> None:
    layer = made(gain=0.5).eval()
    frequency._kept_values.cache_clear()  # so that this is the first use
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(layer, torch.randn(OTHER_SIZES[0]))
    assert all(node.kind().startswith(("aten::", "prim::")) for node in traced.inlined_graph.nodes())
    for size in OTHER_SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(traced(x), layer(x), atol=1e-5, rtol=1e-5)


# --- What is refused -----------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"transform": "fft"}, ValueError, "transform must be one of 'dct', 'haar', got 'fft'"),
    ({"block": 3}, ValueError, "block must be 2, 4, 8 or 16 for transform='dct', got 3"),
    ({"block": 8.0}, TypeError, "block must be an int, got float 8.0"),
    ({"block": 8, "transform": "haar"}, ValueError, "block must be 2 for transform='haar', got 8"),
    ({"tranform": "dct"}, TypeError, "FrequencySIAttention has no argument 'tranform'; did you mean 'transform'"),
    ({"bandwith": 1}, TypeError, "FrequencySIAttention has no argument 'bandwith'; did you mean 'bandwidth'"),
    ({"kernel_size": 4}, ValueError, "kernel_size must be a positive odd number"),
]


@pytest.mark.parametrize(("keywords", "error", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_arguments(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FrequencySIAttention(CHANNELS, **keywords)


def test_bad_maps() -> None:
    with pytest.raises(ValueError, match=r"x must have 6 channels, .* got shape \(1, 2, 8, 8\)"):
        made()(torch.zeros(1, 2, 8, 8))
    with pytest.raises(TypeError, match="x must be of a floating dtype"):
        frequency_self_information(torch.zeros(1, 2, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"of 9x8 pixels in blocks of 8 must be of shape \(N, C \* 64, 2, 1\)"):
        inverse_block_transform(torch.zeros(1, 64, 1, 1), 9, 8)
