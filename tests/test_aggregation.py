"""Pooling maps to the size of a later one: what torch's own adaptive pooling gives, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

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
