"""SIAttention at inference on a CPU: one C call for the whole layer, with the results of the separate operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_attention import CHANNELS, GATES, SIZE, made
from torch import Tensor, nn

from sia_layers import SIAttention, self_information
from sia_layers.kernels import backends, ops
from sia_layers.kernels.cpu import library

pytestmark = pytest.mark.skipif(
    backends.unavailable("cpu") is not None, reason=f"no cpu backend: {backends.unavailable('cpu')}"
)
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack([x, x], -1).flatten(3)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


def in_steps(layer: SIAttention, x: Tensor, aggregate: Tensor | None) -> Tensor:
    """Return the output of the separate operators, one per gate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "attend", lambda *arguments: None)
        return layer(x, aggregate)


def in_one_call(layer: SIAttention, x: Tensor, aggregate: Tensor | None = None) -> Tensor:
    """Return the output of the backend's own layer, and check that it was used."""
    outputs, attend = [], ops.attend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "attend", lambda *arguments: outputs.append(attend(*arguments)) or outputs[-1])
        y = layer(x, aggregate)
    assert y is outputs[0]
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gates", GATES, ids=str)
def test_one_call_is_the_operators(gates: tuple[bool, str | None], layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for channels, hidden, gain in ((37, 11, 0.7), (8, 16, None)):
        layer = SIAttention(channels, spatial=gates[0], channel=gates[1], rd_channels=hidden, gain=gain)
        x, other = (LAYOUTS[layout](torch.randn(2, channels, 5, 6, dtype=dtype)) for _ in range(2))
        with torch.no_grad():
            for aggregate in (None, other):
                if gain is not None and dtype == torch.float16:  # this overflows, and has a separate path
                    continue
                found, expected = in_one_call(layer, x, aggregate), in_steps(layer, x, aggregate)
                assert found.dtype == dtype and found.stride() == expected.stride()
                assert found.data_ptr() != x.data_ptr()
                torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("level", library.LEVELS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_call_gives_the_same_bits_in_any_batch_and_for_any_number_of_threads(level: str, layout: str) -> None:
    if library.LEVELS.index(level) > library.best_level():
        pytest.skip(f"this processor has no {level}")
    torch.manual_seed(0)
    layer, x = SIAttention(300, rd_channels=90, gain=0.5).eval(), LAYOUTS[layout](torch.randn(3, 300, 4, 5))
    with library.use_level(level), torch.no_grad():
        together = in_one_call(layer, x)
        assert torch.equal(torch.cat([in_one_call(layer, LAYOUTS[layout](one[None])) for one in x]), together)
        before = torch.get_num_threads()
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                assert torch.equal(in_one_call(layer, x), together)
        finally:
            torch.set_num_threads(before)


def test_one_call_keeps_to_what_is_no_number() -> None:
    layer, x = made((True, "excite"), gain=0.5), torch.randn(SIZE)
    x[0, 1, 2, 3] = torch.nan
    with torch.no_grad():
        found, expected = in_one_call(layer, x), in_steps(layer, x, None)
        assert torch.equal(found.isnan(), expected.isnan()) and not found[1].isnan().any()
        for size in ((0, CHANNELS, 5, 4), (2, CHANNELS, 0, 4)):
            assert in_one_call(layer, torch.empty(size)).shape == size


@pytest.mark.parametrize("change", ["hook", "activation", "bias"])
def test_a_changed_layer_is_called_by_its_modules(change: str) -> None:
    layer, x, seen = made((True, "excite")), torch.randn(SIZE), []
    if change == "hook":
        layer.fc2.register_forward_hook(lambda *_: seen.append("hook"))
    elif change == "activation":
        layer.act = nn.SiLU()
    else:
        layer.fc1.bias = nn.Parameter(torch.ones(4))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "attend", lambda *arguments: pytest.fail("the changed module was not called"))
        y = layer(x)
        mean = self_information(x).mean((2, 3), keepdim=True)
        expected = x * (1 + self_information(x).sigmoid()) * layer.gate(layer.fc2(layer.act(layer.fc1(mean))))
    assert bool(seen) == (change == "hook")
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)


def narrowed(layer: SIAttention) -> None:
    layer.fc1.weight = nn.Parameter(torch.randn(4, CHANNELS - 1, 1, 1))


def swapped(layer: SIAttention) -> None:
    layer.fc2.weight = nn.Parameter(torch.randn(CHANNELS, 5, 1, 1))


def one_gain_a_channel(layer: SIAttention) -> None:
    layer.gain = nn.Parameter(torch.ones(CHANNELS))


@pytest.mark.parametrize("change", [narrowed, swapped, one_gain_a_channel])
def test_parameters_of_the_wrong_shape_are_refused(change: Callable[[SIAttention], None]) -> None:
    """The kernel does not check bounds, so it must not get them."""
    layer = made((True, "excite"), gain=0.5)
    change(layer)
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError), match=r"shape"):
        layer(torch.randn(SIZE))


def by_columns(layer: SIAttention) -> None:
    weight = layer.fc1.weight.data
    layer.fc1.weight.data = weight.transpose(0, 1).contiguous().transpose(0, 1)
    assert not layer.fc1.weight.is_contiguous()


def in_half(layer: SIAttention) -> None:
    layer.bfloat16()


def with_a_wide_gain(layer: SIAttention) -> None:
    layer.gain = nn.Parameter(torch.full((1,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("change", [by_columns, in_half, with_a_wide_gain])
def test_parameters_of_another_layout_or_dtype_are_not_misread(change: Callable[[SIAttention], object]) -> None:
    layer, x = made((True, "excite"), gain=0.5), torch.randn(SIZE)
    change(layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), in_steps(layer, x, None), atol=0, rtol=0)
