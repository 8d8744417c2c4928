"""Handing maps on to later layers: the formula, and pooling as torch's own adaptive one, whatever the sizes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sia_layers import SIAggregation, SIAttention
from sia_layers.aggregation import max_pool_to, uniform_windows

sizes = st.integers(1, 40)


@given(sizes, sizes, sizes, sizes, st.booleans())
def test_as_torchs_own_pooling(height: int, width: int, rows: int, columns: int, channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(2, 3, height, width, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    assert torch.equal(max_pool_to(x, (rows, columns)), F.adaptive_max_pool2d(x, (rows, columns)))


@pytest.mark.parametrize(("size", "count"), [(95, 48), (95, 24), (48, 24), (64, 16), (75, 38), (75, 19), (38, 19)])
def test_windows_between_the_sites_of_backbones_are_uniform(size: int, count: int) -> None:
    assert uniform_windows(size, count) is not None


def test_the_gradient_goes_to_the_largest() -> None:
    x = torch.randn(2, 3, 19, 25, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, 10, 7, dtype=torch.float64)
    (found,) = torch.autograd.grad(max_pool_to(x, (10, 7)), x, grad)
    (expected,) = torch.autograd.grad(F.adaptive_max_pool2d(x, (10, 7)), x, grad)
    torch.testing.assert_close(found, expected)


def test_nan_and_infinities_stay() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[..., 0, 0], x[..., 4, 4], x[..., 8, 8] = torch.nan, torch.inf, -torch.inf
    assert torch.equal(max_pool_to(x, (5, 5)).isnan(), F.adaptive_max_pool2d(x, (5, 5)).isnan())
    assert max_pool_to(torch.full((1, 1, 5, 5), -torch.inf), (3, 3)).eq(-torch.inf).all()


def test_half_dtypes() -> None:
    x = torch.randn(1, 2, 9, 9).bfloat16()
    assert torch.equal(max_pool_to(x, (5, 5)), F.adaptive_max_pool2d(x, (5, 5)))


def test_aggregation_is_its_formula() -> None:
    torch.manual_seed(0)
    module = SIAggregation([3, 5], 4).eval()
    for projection in module.projections:
        nn.init.uniform_(projection[1].running_mean, -1, 1)  # type: ignore[index]
        nn.init.uniform_(projection[1].running_var, 0.5, 2)  # type: ignore[index]
    infos = [torch.rand(2, 3, 12, 9), torch.rand(2, 5, 6, 4)]
    expected = torch.zeros(2, 4, 3, 4)
    for info, (conv, norm, _) in zip(infos, module.projections, strict=True):  # type: ignore[misc]
        mapped = torch.einsum("nchw,dc->ndhw", info, conv.weight.flatten(1))  # type: ignore[has-type]
        shift, factor = norm.running_mean, (norm.running_var + norm.eps).rsqrt()  # type: ignore[has-type]
        mapped = ((mapped - shift[:, None, None]) * factor[:, None, None]).relu()
        for i, j in itertools.product(range(3), range(4)):
            (top, bottom), (left, right) = (
                (k * length // parts, -(-(k + 1) * length // parts))
                for k, length, parts in ((i, info.shape[2], 3), (j, info.shape[3], 4))
            )
            expected[:, :, i, j] += mapped[:, :, top:bottom, left:right].amax((2, 3))
    torch.testing.assert_close(module(infos, (3, 4)), expected, atol=1e-5, rtol=1e-5)


def test_aggregation_learns_from_the_later_layer() -> None:
    torch.manual_seed(0)
    early, late = SIAttention(4, detach=False), SIAttention(6)
    module = SIAggregation([4], 6)
    x = torch.randn(2, 4, 10, 8, requires_grad=True)
    _, info = early.attend(x)
    late(torch.randn(2, 6, 5, 4), module([info], (5, 4))).square().sum().backward()
    for tensor in (x, *module.parameters()):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 4), ValueError, r"in_channels must hold an int for each earlier map, got \[\]"),
        ((3, 4), TypeError, "in_channels must be a sequence, .*, got 3"),
        (([3, 0], 4), ValueError, r"in_channels\[1\] must be at least 1, got 0"),
        (([3], 0), ValueError, "channels must be at least 1, got 0"),
    ],
)
def test_bad_arguments_of_aggregation(arguments: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SIAggregation(*arguments)


def test_bad_maps_of_aggregation() -> None:
    module = SIAggregation([3, 5], 4)
    good = [torch.rand(1, 3, 4, 4), torch.rand(1, 5, 4, 4)]
    for infos, message in (
        (good[:1], r"infos must hold a map for each of in_channels=\[3, 5\], got 1 maps"),
        (good[::-1], r"infos\[0\] must have 3 channels, got shape \(1, 5, 4, 4\)"),
        ([good[0], good[1][0]], r"infos\[1\] must have 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            module(infos, (2, 2))
    with pytest.raises(ValueError, match=r"size must be the height and the width of the later map, got \(2, 2, 2\)"):
        module(good, (2, 2, 2))
    with pytest.raises(TypeError, match="SIAggregation has no argument 'channel'; did you mean 'channels'"):
        SIAggregation([3], channel=4)  # type: ignore[call-arg]
