"""Kernels of the backward pass: compute each pixel's share of the gradient, then gather the shares over the window.

A gather needs no atomics, so the gradient is bitwise the same from run to run and in any batch. Pads that copy a
pixel return their gradient to it: see ``common.sight``.
"""

# mypy: allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sia_layers.kernels.triton.common import LOG2E, kernel, locate, pixels, place, plane, register_limit, sample, stride
from sia_layers.kernels.triton.window import (
    channel_pull,
    channel_share,
    channel_sum,
    window_pull,
    window_share,
    window_sum,
)


@triton.jit
def sign(value):
    """Return -1, 0 or 1, and NaN for NaN."""
    return tl.where(value > 0, 1.0, tl.where(value < 0, -1.0, value))


@kernel(windowed=True, registers=register_limit({}))
def shares(
    grad, x, scales, along, intra, inter, N, C, H, W, gn, gc, gh, gw, xn, xc, xh, xw, un, uc, uh, uw, weight, double,
    DISTANCE: tl.constexpr, K: tl.constexpr, S: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr,
    UINT32: tl.constexpr, CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, TC: tl.constexpr,
    VECTOR: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    """Write u of the intra-channel and of the inter-channel term to ``intra`` and ``inter``, whichever exist.

    kde: u is the gradient over the sum of exponentials. distance: u is the gradient times the scale and the sign of
    the sum; ``along`` (N,), the mean of grad d, and ``double``, 2 b^2, carry the gradient of the scale.
    """
    n, c, tile, present = locate(C, tl.cdiv(H, TH) * tl.cdiv(W, TW), CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
    samples, planes = sample(x, n, xn, VECTOR), plane(x, n, c, xn, xc, CHANNELS_LAST, VECTOR)
    sh, sw = stride(xh, VECTOR, INT64), stride(xw, VECTOR, INT64)
    spot = h * sh + w * sw
    centre = tl.load(planes + spot).to(tl.float32)
    offset = place(h, w, gh, gw, CHANNELS_LAST, VECTOR, INT64)
    share = tl.load(plane(grad, n, c, gn, gc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
    offset = place(h, w, uh, uw, CHANNELS_LAST, VECTOR, INT64)
    if DISTANCE:
        scale = tl.load(scales + n)
        if along is not None:
            share -= double * scale * tl.load(along + n)
        share *= scale
    else:
        scales += n * C + c
    if intra is not None:
        factor = 0.0 if DISTANCE else -tl.load(scales) * LOG2E
        total = window_sum(centre, planes, h, w, H, W, sh, sw, factor, DISTANCE, K, PADDING, MASKED, UINT32)
        value = share * sign(total) if DISTANCE else share / total
        tl.store(plane(intra, n, c, un, uc, CHANNELS_LAST, VECTOR) + offset, value, valid)
    if inter is not None:
        factor = 0.0 if DISTANCE else -tl.load(scales + N * C) * LOG2E
        total = channel_sum(centre, samples, c, spot, C, xc, factor, DISTANCE, S, CHANNELS_LAST)
        value = weight * share * sign(total) if DISTANCE else weight * share / total
        tl.store(plane(inter, n, c, un, uc, CHANNELS_LAST, VECTOR) + offset, value, valid)


@kernel(windowed=True, registers=register_limit({(5, torch.bfloat16): 128}))
def gather(
    x, scales, intra, inter, out, N, C, H, W, xn, xc, xh, xw, un, uc, uh, uw, yn, yc, yh, yw,
    DISTANCE: tl.constexpr, K: tl.constexpr, S: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr,
    UINT32: tl.constexpr, CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, TC: tl.constexpr,
    VECTOR: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    """Write the gradient for x to ``out``, from the shares in ``intra`` and ``inter``."""
    n, c, tile, present = locate(C, tl.cdiv(H, TH) * tl.cdiv(W, TW), CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
    samples, planes = sample(x, n, xn, VECTOR), plane(x, n, c, xn, xc, CHANNELS_LAST, VECTOR)
    sh, sw = stride(xh, VECTOR, INT64), stride(xw, VECTOR, INT64)
    uh, uw = stride(uh, VECTOR, INT64), stride(uw, VECTOR, INT64)
    spot, share_spot = h * sh + w * sw, h * uh + w * uw
    centre = tl.load(planes + spot).to(tl.float32)
    total = tl.zeros(centre.shape, tl.float32)
    if intra is not None:
        shares = plane(intra, n, c, un, uc, CHANNELS_LAST, VECTOR)
        share = tl.load(shares + share_spot)
        if DISTANCE:
            total += window_share(share, shares, h, w, H, W, uh, uw, K, PADDING)
        else:
            scale = tl.load(scales + n * C + c)
            total += window_pull(
                centre, share, planes, shares, h, w, H, W, sh, sw, uh, uw, scale, K, PADDING, MASKED, UINT32
            )  # fmt: skip
    if inter is not None:
        shares = sample(inter, n, un, VECTOR)
        share = tl.load(plane(inter, n, c, un, uc, CHANNELS_LAST, VECTOR) + share_spot)
        if DISTANCE:
            total += channel_share(share, shares, c, share_spot, C, uc, S, CHANNELS_LAST)
        else:
            scales += (N + n) * C
            total += channel_pull(
                centre, share, samples, shares, scales, c, spot, share_spot, C, xc, uc, S, CHANNELS_LAST
            )
    offset = place(h, w, yh, yw, CHANNELS_LAST, VECTOR, INT64)
    tl.store(plane(out, n, c, yn, yc, CHANNELS_LAST, VECTOR) + offset, total, valid)
