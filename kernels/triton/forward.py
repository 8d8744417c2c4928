"""Kernels of the forward pass: measure the bandwidth, then compute the self-information and apply the spatial gate."""

# mypy: allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sia_layers.kernels.triton.common import (
    DISTANCE_REGISTERS,
    LN2,
    LOG2E,
    extent,
    finished,
    kernel,
    locate,
    pixels,
    place,
    plane,
    register_limit,
    sample,
    stride,
    tile_sum,
)
from sia_layers.kernels.triton.window import channel_square, channel_sum, window_square, window_sum


@triton.jit
def distance(
    x, samples, planes, c, h, w, C, H, W, sc, sh, sw, weight,
    K: tl.constexpr, S: tl.constexpr, PADDING: tl.constexpr, UINT32: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Compute d of the "distance" estimator."""
    total = tl.abs(window_sum(x, planes, h, w, H, W, sh, sw, 0.0, True, K, PADDING, False, UINT32))
    if S:
        total += weight * tl.abs(channel_sum(x, samples, c, h * sh + w * sw, C, sc, 0.0, True, S, CHANNELS_LAST))
    return total


@triton.jit
def squares(
    samples, planes, c, present, part, C, H, W, sc, sh, sw,
    CAREFUL: tl.constexpr, K: tl.constexpr, S: tl.constexpr, PADDING: tl.constexpr, PER: tl.constexpr,
    MASKED: tl.constexpr, UINT32: tl.constexpr, CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    TC: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Add up squared differences over PER tiles and count them, in the window and over the channels."""
    shape: tl.constexpr = (TH * TW, TC) if CHANNELS_LAST else (TH, TW)
    intra, intra_count = tl.zeros(shape, tl.float32), tl.zeros(shape, tl.float32)
    inter, inter_count = tl.zeros(shape, tl.float32), tl.zeros(shape, tl.float32)
    for tile in range(part * PER, tl.minimum(part * PER + PER, tl.cdiv(H, TH) * tl.cdiv(W, TW))):
        h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
        centre = tl.load(planes + (h * sh + w * sw)).to(tl.float32)
        if K > 1:
            # The CAREFUL variant has no registers to spare for masks.
            masked: tl.constexpr = MASKED and not CAREFUL
            total, count = window_square(centre, planes, h, w, H, W, sh, sw, CAREFUL, K, PADDING, masked, UINT32)
            intra += tl.where(valid, total, 0.0)
            intra_count += tl.where(valid, count, 0.0)
        if S:
            total, count = channel_square(centre, samples, c, h * sh + w * sw, C, sc, CAREFUL, S, CHANNELS_LAST)
            inter += tl.where(valid, total, 0.0)
            inter_count += tl.where(valid, count, 0.0)
    return (
        tile_sum(intra, CHANNELS_LAST), tile_sum(intra_count, CHANNELS_LAST),
        tile_sum(inter, CHANNELS_LAST), tile_sum(inter_count, CHANNELS_LAST),
    )  # fmt: skip


@kernel(windowed=True)
def spread(
    x, out, counts, N, C, H, W, parts, xn, xc, xh, xw, fixed,
    WHOLE: tl.constexpr, K: tl.constexpr, S: tl.constexpr, PADDING: tl.constexpr, PER: tl.constexpr,
    MASKED: tl.constexpr, UINT32: tl.constexpr, CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    TC: tl.constexpr, VECTOR: tl.constexpr, INT64: tl.constexpr,
):  # fmt: skip
    """Add up the squared differences of the "kde" estimator over PER tiles of a plane, and count them.

    The sums and counts are (parts, 2, N, C). If the tiles are the WHOLE plane, write the scale instead.
    """
    n, c, part, present = locate(C, parts, CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    samples, planes = sample(x, n, xn, VECTOR), plane(x, n, c, xn, xc, CHANNELS_LAST, VECTOR)
    sh, sw = stride(xh, VECTOR, INT64), stride(xw, VECTOR, INT64)
    intra, intra_count, inter, inter_count = squares(
        samples, planes, c, present, part, C, H, W, xc, sh, sw,
        False, K, S, PADDING, PER, MASKED, UINT32, CHANNELS_LAST, TH, TW, TC, VECTOR,
    )  # fmt: skip
    # Leave out differences that are not finite: if there was any, compute the sums again, carefully.
    everything = intra + inter
    if CHANNELS_LAST:
        everything = tl.sum(tl.sum(tl.where(present, everything, 0.0), 1), 0)
    if not everything < float("inf"):
        intra, intra_count, inter, inter_count = squares(
            samples, planes, c, present, part, C, H, W, xc, sh, sw,
            True, K, S, PADDING, PER, MASKED, UINT32, CHANNELS_LAST, TH, TW, TC, VECTOR,
        )  # fmt: skip
    slot = (2 * tl.cast(part, tl.int64) * N + n) * C + c
    if WHOLE:
        tl.store(out + slot, finished(intra, intra_count, 1.0, fixed, True, True), present)
        tl.store(out + slot + N * C, finished(inter, inter_count, 1.0, fixed, True, True), present)
    else:
        tl.store(out + slot, intra, present)
        tl.store(counts + slot, intra_count, present)
        tl.store(out + slot + N * C, inter, present)
        tl.store(counts + slot + N * C, inter_count, present)


@kernel(windowed=True, registers=lambda arguments: DISTANCE_REGISTERS)
def distances(
    x, grad, out, counts, N, C, H, W, parts, xn, xc, xh, xw, gn, gc, gh, gw, weight,
    K: tl.constexpr, S: tl.constexpr, PADDING: tl.constexpr, PER: tl.constexpr, UINT32: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, TC: tl.constexpr, VECTOR: tl.constexpr,
    INT64: tl.constexpr,
):  # fmt: skip
    """Add up the finite d of the "distance" estimator, times ``grad`` if given, over PER tiles: (parts, C, N)."""
    n, c, part, present = locate(C, parts, CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    samples, planes = sample(x, n, xn, VECTOR), plane(x, n, c, xn, xc, CHANNELS_LAST, VECTOR)
    sh, sw = stride(xh, VECTOR, INT64), stride(xw, VECTOR, INT64)
    shape: tl.constexpr = (TH * TW, TC) if CHANNELS_LAST else (TH, TW)
    total, count = tl.zeros(shape, tl.float32), tl.zeros(shape, tl.float32)
    for tile in range(part * PER, tl.minimum(part * PER + PER, tl.cdiv(H, TH) * tl.cdiv(W, TW))):
        h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
        centre = tl.load(planes + (h * sh + w * sw)).to(tl.float32)
        value = distance(
            centre, samples, planes, c, h, w, C, H, W, xc, sh, sw, weight, K, S, PADDING, UINT32, CHANNELS_LAST
        )
        finite = valid & (tl.abs(value) < float("inf"))
        if grad is not None:
            offset = place(h, w, gh, gw, CHANNELS_LAST, VECTOR, INT64)
            value *= tl.load(plane(grad, n, c, gn, gc, CHANNELS_LAST, VECTOR) + offset).to(tl.float32)
        total += tl.where(finite, value, 0.0)
        count += tl.where(finite, 1.0, 0.0)
    slot = (tl.cast(part, tl.int64) * C + c) * N + n
    tl.store(out + slot, tile_sum(total, CHANNELS_LAST), present)
    tl.store(counts + slot, tile_sum(count, CHANNELS_LAST), present)


@triton.jit
def log2(value, NVIDIA: tl.constexpr):
    """Compute the logarithm of a normal number in one instruction; Triton's own takes twenty-five."""
    if NVIDIA:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [value], tl.float32, True, 1)
    else:
        return tl.log2(value)


@triton.jit
def surprise(total, count, NVIDIA: tl.constexpr):
    """Compute log2(count / total), which is never negative, and exactly 0 if the two are equal."""
    bits = tl.maximum(log2(count, NVIDIA) - log2(total, NVIDIA), 0.0)
    return tl.where(total < count, bits, total - count)


@kernel(windowed=True, registers=register_limit({(5, torch.float32): 96}))
def information(
    x, scales, info, gated, means, N, C, H, W, xn, xc, xh, xw, yn, yc, yh, yw, weight,
    DISTANCE: tl.constexpr, WHOLE: tl.constexpr, MEAN: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
    PADDING: tl.constexpr, NVIDIA: tl.constexpr, MASKED: tl.constexpr, UINT32: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, TC: tl.constexpr, VECTOR: tl.constexpr,
    INT64: tl.constexpr,
):  # fmt: skip
    """Compute the self-information I of one tile, and write to ``info``, ``gated`` and ``means``, whichever exist.

    ``info`` takes I, ``gated`` takes x (1 + sigmoid(I)), and ``means`` (tiles, N, C) the sum over the tile of I, or
    of -log(exp(-I) + 0.1) for MEAN == "mean", divided by the size of the plane if the tile is the WHOLE plane.
    """
    tiles = tl.cdiv(H, TH) * tl.cdiv(W, TW)
    n, c, tile, present = locate(C, tiles, CHANNELS_LAST, TC, VECTOR)
    if n >= N:
        return
    h, w, valid = pixels(tile, H, W, present, CHANNELS_LAST, TH, TW, VECTOR)
    samples, planes = sample(x, n, xn, VECTOR), plane(x, n, c, xn, xc, CHANNELS_LAST, VECTOR)
    sh, sw = stride(xh, VECTOR, INT64), stride(xw, VECTOR, INT64)
    spot = h * sh + w * sw
    centre = tl.load(planes + spot).to(tl.float32)
    if DISTANCE:
        value = distance(
            centre, samples, planes, c, h, w, C, H, W, xc, sh, sw, weight, K, S, PADDING, UINT32, CHANNELS_LAST
        )
        value *= tl.load(scales + n)
    else:
        value = tl.zeros(centre.shape, tl.float32)
        scales += n * C + c
        if K > 1:
            factor = -tl.load(scales) * LOG2E
            total = window_sum(centre, planes, h, w, H, W, sh, sw, factor, False, K, PADDING, MASKED, UINT32)
            count = tl.full(centre.shape, K * K, tl.float32)
            if PADDING == "exclude":
                count = extent(h, H, K // 2) * extent(w, W, K // 2)
            value += surprise(total, count, NVIDIA)
        if S:
            factor = -tl.load(scales + N * C) * LOG2E
            total = channel_sum(centre, samples, c, spot, C, xc, factor, False, S, CHANNELS_LAST)
            value += weight * surprise(total, tl.full(centre.shape, S + 1, tl.float32), NVIDIA)
        value *= LN2
    offset = place(h, w, yh, yw, CHANNELS_LAST, VECTOR, INT64)
    if info is not None:
        tl.store(plane(info, n, c, yn, yc, CHANNELS_LAST, VECTOR) + offset, value, valid)
    if gated is not None:
        value_gated = centre + centre / (1.0 + tl.exp2(-value * LOG2E))
        tl.store(plane(gated, n, c, yn, yc, CHANNELS_LAST, VECTOR) + offset, value_gated, valid)
    if means is not None:
        if MEAN == "mean":
            value = -LN2 * log2(tl.exp2(-value * LOG2E) + 0.1, NVIDIA)
        total = tile_sum(tl.where(valid, value, 0.0), CHANNELS_LAST)
        if WHOLE:
            total = total / (tl.cast(H, tl.float32) * W)
        tl.store(means + ((tl.cast(tile, tl.int64) * N + n) * C + c), total, present)


@kernel(windowed=False)
def finish(
    sums, counts, out, out_counts, entries, rows, divisor, fixed,
    COUNTED: tl.constexpr, SCALE: tl.constexpr, WHOLE: tl.constexpr, PER: tl.constexpr, TE: tl.constexpr,
    TR: tl.constexpr,
):  # fmt: skip
    """Add up PER entries of (entries, rows) sums and of their counts; if those are all, write the mean or scale."""
    blocks = tl.cdiv(rows, TR)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    part = program // blocks
    if part * PER >= entries:
        return
    row = program % blocks * TR + tl.arange(0, TR)[None, :]
    present = row < rows
    total, count = tl.zeros((TE, TR), tl.float32), tl.zeros((TE, TR), tl.float32)
    for start in range(part * PER, tl.minimum(part * PER + PER, entries), TE):
        entry = start + tl.arange(0, TE)[:, None]
        slot, valid = tl.cast(entry, tl.int64) * rows + row, (entry < entries) & present
        total += tl.load(sums + slot, valid, other=0.0)
        if COUNTED:
            count += tl.load(counts + slot, valid, other=0.0)
    total, count = tl.sum(total, 0, keep_dims=True), tl.sum(count, 0, keep_dims=True)
    slot = tl.cast(part, tl.int64) * rows + row
    if WHOLE:
        tl.store(out + slot, finished(total, count, divisor, fixed, COUNTED, SCALE), present)
    else:
        tl.store(out + slot, total, present)
        if COUNTED:
            tl.store(out_counts + slot, count, present)
