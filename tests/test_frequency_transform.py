"""The block transform and frequency_self_information: their formulas computed in float64, and their invariants."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from frequency_oracle import TRANSFORMS, coefficients, information, sizes, transforms
from hypothesis import given
from hypothesis import strategies as st

from sia_layers import FrequencySIAttention, frequency_self_information
from sia_layers.frequency import block_transform, inverse_block_transform, zigzag

# --- The transform -------------------------------------------------------------------------------------------------


@given(transforms, sizes, st.sampled_from((torch.float64, torch.float32, torch.bfloat16)))
def test_the_transform_is_scipys_and_its_inverse_undoes_it(
    drawn: tuple[str, int], size: tuple[int, ...], dtype: torch.dtype
) -> None:
    transform, block = drawn
    x = torch.randn(size).to(dtype)
    z = block_transform(x, block, transform=transform)
    assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Rounding errors of b^2 products of a wave and the difference of two pixels, and of the sum with the block's mean.
    error = (block**2 + 4) / 3 * torch.finfo(torch.float32).eps * 2 * x.double().abs().max().item()
    tolerance = 1e-12 if dtype == torch.float64 else error
    expected = coefficients(x.double().numpy(), block)
    oracle.assert_near(z, expected.reshape(z.shape), tolerance)
    back = inverse_block_transform(z, *size[2:], block, transform=transform)
    oracle.assert_near(back, x.to(z.dtype), tolerance)


@pytest.mark.parametrize(("transform", "block"), TRANSFORMS)
def test_the_transform_is_orthonormal(transform: str, block: int) -> None:
    basis = block_transform(
        torch.eye(block * block, dtype=torch.float64).reshape(-1, 1, block, block), block, transform=transform
    ).flatten(1)
    identity = torch.eye(block * block, dtype=torch.float64)
    torch.testing.assert_close(basis.T @ basis, identity, atol=1e-13, rtol=0)
    torch.testing.assert_close(basis @ basis.T, identity, atol=1e-13, rtol=0)
    x = torch.randn(2, 3, 2 * block, 3 * block, dtype=torch.float64)
    z = block_transform(x, block, transform=transform)
    torch.testing.assert_close(z.square().sum(), x.square().sum(), atol=0, rtol=1e-13)  # Parseval


@pytest.mark.parametrize(("transform", "block"), TRANSFORMS)
def test_rounding_errors_are_not_taken_for_coefficients(transform: str, block: int) -> None:
    """Ramps along one axis, exact in float32, have only its odd frequencies."""
    count = 20000
    slopes, starts = (torch.randint(-500, 500, (count, 1, 1, 1)) / 1024 for _ in range(2))
    ramps = slopes * torch.arange(block).view(block, 1) + starts
    for axis, x in enumerate((ramps.expand(-1, -1, -1, block), ramps.mT.expand(-1, -1, block, -1))):
        z = block_transform(x, block, transform=transform).reshape(count, -1)
        absent = [k for k, uv in enumerate(zigzag(block)) if k and (uv[1 - axis] or uv[axis] % 2 == 0)]
        assert not z[:, absent].any()


def test_the_wavelet_is_haars() -> None:
    (a, b), (c, d) = torch.randn(2, 2, dtype=torch.float64)
    z = block_transform(torch.stack([a, b, c, d]).reshape(1, 1, 2, 2), transform="haar").flatten()
    expected = torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]) / 2
    torch.testing.assert_close(z, expected, atol=1e-15, rtol=0)


def test_the_order_is_that_of_jpeg() -> None:
    assert zigzag(4) == [
        (0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2),
        (2, 1), (3, 0), (3, 1), (2, 2), (1, 3), (2, 3), (3, 2), (3, 3),
    ]  # fmt: skip


# --- The self-information ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"estimator": "distance"}, {"kernel_size": 5, "padding_mode": "zeros"}])
@pytest.mark.parametrize(("transform", "block", "size"), [("dct", 8, (2, 2, 20, 31)), ("haar", 2, (1, 2, 7, 6))])
def test_information_follows_the_formula(
    transform: str, block: int, size: tuple[int, ...], options: dict[str, Any]
) -> None:
    x = torch.randn(size, dtype=torch.float64)
    expected = information(coefficients(x.numpy(), block), **options)
    info = frequency_self_information(x, block=block, transform=transform, **options)
    oracle.assert_near(info, expected.reshape(info.shape), 1e-10)
    single = frequency_self_information(x.float(), block=block, transform=transform, **options)
    oracle.assert_near(single, expected.reshape(info.shape), 1e-3 if options.get("estimator") else 2e-5)


@given(transforms, sizes, st.floats(-3, 3).filter(lambda a: abs(a) > 0.1), st.floats(-100, 100))
def test_neither_factor_nor_offset_changes_it(
    drawn: tuple[str, int], size: tuple[int, ...], factor: float, offset: float
) -> None:
    """This holds for every sub-band, and for DC, since it is compared with no other. (A 1-pixel map has no others.)"""
    transform, block = drawn
    size = (*size[:2], size[2] + 1, size[3] + 1)
    x = torch.randn(size, dtype=torch.float64)
    first, second = (
        frequency_self_information(one, block=block, transform=transform) for one in (x, factor * x + offset)
    )
    # Sub-bands that are 0 contain only rounding, which is not invariant.
    felt = (block_transform(x, block, transform=transform).abs().amax((2, 3), keepdim=True) > 1e-9).expand_as(first)
    torch.testing.assert_close(first[felt], second[felt], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("transform", "block"), TRANSFORMS)
def test_a_constant_map_has_no_information(transform: str, block: int, dtype: torch.dtype) -> None:
    x = torch.tensor([3.7, -0.1, 1e3, 0.0], dtype=dtype)[None, :, None, None].expand(2, 4, 21, 18).clone()
    x.requires_grad_()
    info = frequency_self_information(x, block=block, transform=transform)
    assert torch.equal(info, torch.zeros_like(info))
    layer = FrequencySIAttention(4, block, transform=transform, channel=None, detach=False)
    y = layer(x)
    torch.testing.assert_close(y, 1.5 * x)  # 1 + sigmoid(0)
    y.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@given(transforms, sizes, st.sampled_from((torch.float32, torch.bfloat16, torch.float64)))
def test_batch_mates_change_no_bit(drawn: tuple[str, int], size: tuple[int, ...], dtype: torch.dtype) -> None:
    transform, block = drawn
    x = torch.randn(3, *size[1:]).to(dtype)
    layer = FrequencySIAttention(size[1], block, transform=transform, channel="mean", gain=0.7)
    with torch.no_grad():
        for result in (
            layer,
            lambda x: layer.attend(x)[1],
            lambda x: frequency_self_information(x, block=block, transform=transform),
        ):
            assert torch.equal(torch.cat([result(one[None]) for one in x]), result(x))


def test_a_nan_pixel_affects_only_the_blocks_around_it() -> None:
    x = torch.randn(1, 2, 40, 40)
    x[0, 0, 3, 3] = torch.nan
    info = frequency_self_information(x).unflatten(1, (2, -1))
    assert info[0, 0, :, :2, :2].isnan().all()
    assert info[0, 0, :, 2:].isfinite().all() and info[0, 0, :, :, 2:].isfinite().all() and info[0, 1].isfinite().all()


def test_rounding_carries_no_information() -> None:
    """Rows that are all equal have no vertical frequencies, and a ramp has no even ones."""
    for x in (
        torch.randn(1, 1, 1, 64).expand(1, 1, 48, 64),
        torch.linspace(-1, 2, 64, dtype=torch.float64).expand(1, 1, 48, 64),
    ):
        info = frequency_self_information(x, inter_channels=0)[0]
        assert all(torch.equal(info[k], torch.zeros_like(info[k])) for k, (u, _) in enumerate(zigzag(8)) if u)


def test_a_block_that_differs_from_its_neighbours_stands_out() -> None:
    x = torch.arange(48.0)[None, None, :, None] + torch.arange(64.0)
    x[:, :, 16:24, 32:40] += torch.randn(8, 8)
    info = frequency_self_information(x).mean(1)[0]
    assert info.argmax() == 2 * 8 + 4
