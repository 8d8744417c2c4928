"""Kernels that work pixel by pixel: the gate, the channel mean, and their gradients."""

# mypy: allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from sia_layers.kernels.triton.common import LN2, LOG2E, kernel, locate, pixels, place, plane, tile_sum


@triton.jit
def hand_on(total, valid, present, out, N, C, n, c, tile, divisor, WHOLE: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Store the sum over a tile in (tiles, N, C), or the mean if the tile is the WHOLE plane."""
    total = tile_sum(tl.where(valid, total, 0.0), CHANNELS_LAST)
    if WHOLE:
        total = total / divisor
    tl.store(out + ((tl.cast(tile, tl.int64) * N + n) * C + c), total, present)


@kernel(windowed=False)
def gate(
    x, info, channel_gate, gain, base, out, N, C, H, W,
    xn, xc, xh, xw, kn, kc, kh, kw, bn, bc, bh, bw, yn, yc, yh, yw,
    CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, TC: tl.constexpr, VECTOR: tl.constexpr,
    INT64: tl.constexpr,
):  # fmt: skip
    """Compute m = x (1 + sigmoid(I)) g and y = base + gain (m - base), with the factors that are given."""
    n, c, tile, present = locate(C, tl.cdiv(H, TH) * tl.cdiv(W, TW), CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
    offset = place(h, w, xh, xw, CHANNELS_LAST, VECTOR, INT64)
    start = tl.load(plane(x, n, c, xn, xc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
    value = start
    if info is not None:
        offset = place(h, w, kh, kw, CHANNELS_LAST, VECTOR, INT64)
        nats = tl.load(plane(info, n, c, kn, kc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
        value += value / (1.0 + tl.exp2(-nats * LOG2E))
    if channel_gate is not None:
        value *= tl.load(channel_gate + n * C + c).to(tl.float32)
    if gain is not None:
        if base is not None:
            offset = place(h, w, bh, bw, CHANNELS_LAST, VECTOR, INT64)
            start = tl.load(plane(base, n, c, bn, bc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
        value = start + tl.load(gain).to(tl.float32) * (value - start)
    offset = place(h, w, yh, yw, CHANNELS_LAST, VECTOR, INT64)
    tl.store(plane(out, n, c, yn, yc, CHANNELS_LAST, VECTOR) + offset, value, valid)


@kernel(windowed=False)
def gate_backward(
    grad, x, info, channel_gate, gain, base, grad_x, grad_info, grad_gate, grad_gain, grad_base, N, C, H, W,
    gn, gc, gh, gw, xn, xc, xh, xw, kn, kc, kh, kw, bn, bc, bh, bw, yn, yc, yh, yw, zn, zc, zh, zw, on, oc, oh, ow,
    WHOLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, TC: tl.constexpr,
    VECTOR: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the gate to whichever exist; those of the channel gate and the gain are sums by tile."""
    n, c, tile, present = locate(C, tl.cdiv(H, TH) * tl.cdiv(W, TW), CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
    offset = place(h, w, gh, gw, CHANNELS_LAST, VECTOR, INT64)
    slope = tl.load(plane(grad, n, c, gn, gc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
    offset = place(h, w, xh, xw, CHANNELS_LAST, VECTOR, INT64)
    start = tl.load(plane(x, n, c, xn, xc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
    value, factor, sigmoid = start, 1.0, 0.0
    if info is not None:
        offset = place(h, w, kh, kw, CHANNELS_LAST, VECTOR, INT64)
        nats = tl.load(plane(info, n, c, kn, kc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp2(-nats * LOG2E))
        factor = 1.0 + sigmoid
        value *= factor
    weight = 1.0
    if channel_gate is not None:
        weight = tl.load(channel_gate + n * C + c).to(tl.float32)
        factor *= weight
    pass_on = tl.zeros(slope.shape, tl.float32)
    inner = slope
    if gain is not None:
        strength = tl.load(gain).to(tl.float32)
        origin = start
        if base is not None:
            offset = place(h, w, bh, bw, CHANNELS_LAST, VECTOR, INT64)
            origin = tl.load(plane(base, n, c, bn, bc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
        total = slope * (value * weight - origin)
        hand_on(total, valid, present, grad_gain, N, C, n, c, tile, 1.0, WHOLE, CHANNELS_LAST)
        inner, pass_on = slope * strength, slope - slope * strength
        if base is not None:
            offset = place(h, w, oh, ow, CHANNELS_LAST, VECTOR, INT64)
            tl.store(plane(grad_base, n, c, on, oc, CHANNELS_LAST, VECTOR) + offset, pass_on, valid)
            pass_on = tl.zeros(slope.shape, tl.float32)
    if channel_gate is not None:
        hand_on(inner * value, valid, present, grad_gate, N, C, n, c, tile, 1.0, WHOLE, CHANNELS_LAST)
    if grad_info is not None:
        offset = place(h, w, zh, zw, CHANNELS_LAST, VECTOR, INT64)
        found = inner * start * weight * (sigmoid * (1.0 - sigmoid))
        tl.store(plane(grad_info, n, c, zn, zc, CHANNELS_LAST, VECTOR) + offset, found, valid)
    offset = place(h, w, yh, yw, CHANNELS_LAST, VECTOR, INT64)
    tl.store(plane(grad_x, n, c, yn, yc, CHANNELS_LAST, VECTOR) + offset, inner * factor + pass_on, valid)


@kernel(windowed=False)
def channel_mean(
    info, out, N, C, H, W, kn, kc, kh, kw, divisor,
    MEAN: tl.constexpr, WHOLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    TC: tl.constexpr, VECTOR: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    """Sum I over a tile, or -log(exp(-I) + 0.1) for MEAN == "mean", into (tiles, N, C)."""
    n, c, tile, present = locate(C, tl.cdiv(H, TH) * tl.cdiv(W, TW), CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
    offset = place(h, w, kh, kw, CHANNELS_LAST, VECTOR, INT64)
    value = tl.load(plane(info, n, c, kn, kc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
    if MEAN == "mean":
        value = -LN2 * tl.log2(tl.exp2(-value * LOG2E) + 0.1)
    hand_on(value, valid, present, out, N, C, n, c, tile, divisor, WHOLE, CHANNELS_LAST)


@kernel(windowed=False)
def channel_mean_backward(
    grad, info, out, N, C, H, W, kn, kc, kh, kw, yn, yc, yh, yw, divisor,
    MEAN: tl.constexpr, CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, TC: tl.constexpr,
    VECTOR: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the channel mean for I."""
    n, c, tile, present = locate(C, tl.cdiv(H, TH) * tl.cdiv(W, TW), CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
    offset = place(h, w, kh, kw, CHANNELS_LAST, VECTOR, INT64)
    value = tl.load(plane(info, n, c, kn, kc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
    share = tl.load(grad + n * C + c).to(tl.float32) / divisor
    if MEAN == "mean":
        part = tl.exp2(-value * LOG2E)
        found = share * (part / (part + 0.1))
    else:
        found = share + tl.zeros(value.shape, tl.float32)
    offset = place(h, w, yh, yw, CHANNELS_LAST, VECTOR, INT64)
    tl.store(plane(out, n, c, yn, yc, CHANNELS_LAST, VECTOR) + offset, found, valid)
