"""Sums over the window and over the following channels, for one tile: the terms of the self-information.

The centre of the window needs no exponential. A window is its middle row and then a loop over the other rows, which
is unrolled for K = 3 alone, so that registers, code and compile time stay small for every K.

Pads need no branch either. A position beyond the border reads the nearest pixel, which is in the window anyway, and
is left out of the sum by a selection. (Multiplying by 0 would not do: the nearest pixel may be infinite.)

MASKED requires unit column stride: a lane whose position is a pad loads nothing and takes a value that adds nothing.
The columns of a row are then at constant distances from one address, which NVIDIA's loads add at no cost, whereas
the address of a column that is moved back into the map takes three more instructions per pixel.
"""

# mypy: allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from sia_layers.kernels.triton.common import LOG2E, channel_at, cyclic, extent, pixel_at, reach, sight

UNROLLED_WINDOW = tl.constexpr(3)
UNROLLED_CHANNELS = tl.constexpr(8)
SELECTED_WINDOW = tl.constexpr(7)  # largest K whose CAREFUL sums select rows: multiplying by 0 spills on sm_86 at K = 5


@triton.jit
def other_row(r, K: tl.constexpr):
    """Return the r-th of the K - 1 rows of the window other than its middle row, relative to the middle."""
    return tl.where(r < K // 2, r - K // 2, r - K // 2 + 1)


@triton.jit
def masked(base, q: tl.constexpr, inside, other):
    """Load the pixels q columns from ``base``, with ``other`` for pads."""
    return tl.load(base + q, inside > 0, other=other) if q != 0 else tl.load(base)


@triton.jit
def row_sum(
    total, x, far, planes, h, w, p, H, W, sh, sw, factor,
    CENTRE: tl.constexpr, DISTANCE: tl.constexpr, K: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr,
    UINT32: tl.constexpr,
):  # fmt: skip
    """Add row p of the window to ``total``; with CENTRE, the middle row, without x itself."""
    rows, row_inside = reach(h, p, H, CENTRE, PADDING)
    row, line = rows * sh, tl.zeros(x.shape, tl.float32)
    for q in tl.static_range(-(K // 2), K // 2 + 1):
        if q != 0 or not CENTRE:
            columns, column_inside = reach(w, q, W, q == 0, PADDING)
            if MASKED:
                pixel = masked(planes + (row + w), q, column_inside, far).to(tl.float32)
            else:
                pixel = tl.load(pixel_at(planes, row + columns * sw, UINT32)).to(tl.float32)
            if PADDING == "zeros":
                pixel = tl.where(row_inside * column_inside > 0, pixel, 0.0)
            part = x - pixel
            if not DISTANCE:
                part = tl.exp2(part * part * factor)
            line += tl.where(column_inside > 0, part, 0.0) if PADDING == "exclude" and not MASKED else part
    return total + (tl.where(row_inside > 0, line, 0.0) if PADDING == "exclude" else line)


@triton.jit
def window_sum(
    x, planes, h, w, H, W, sh, sw, factor,
    DISTANCE: tl.constexpr, K: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr, UINT32: tl.constexpr,
):  # fmt: skip
    """Sum exp2((x_i - x_j)^2 factor) over the window, with 1 for the centre; with DISTANCE, sum x_i - x_j."""
    mask: tl.constexpr = MASKED and not DISTANCE
    total = tl.full(x.shape, 0.0 if DISTANCE else 1.0, tl.float32)
    far = x
    if mask:
        # Pads are infinitely far, so their exponential is 0. If factor is 0 that would be NaN: each pad then adds 1,
        # which is subtracted here.
        far = tl.where(factor < 0, tl.where(x > 0, -float("inf"), float("inf")), x)
        pads = extent(h, H, K // 2) * (K - extent(w, W, K // 2))
        total -= tl.where(factor < 0, 0.0, pads)
    total = row_sum(total, x, far, planes, h, w, 0, H, W, sh, sw, factor, True, DISTANCE, K, PADDING, mask, UINT32)
    for r in tl.range(0, K - 1, loop_unroll_factor=2 if K == UNROLLED_WINDOW else 1):
        p = other_row(r, K)
        total = row_sum(total, x, far, planes, h, w, p, H, W, sh, sw, factor, False, DISTANCE, K, PADDING, mask, UINT32)
    return total


@triton.jit
def channel_sum(
    x, sample, c, spot, C, sc, factor, DISTANCE: tl.constexpr, S: tl.constexpr, CHANNELS_LAST: tl.constexpr
):  # fmt: skip
    """Sum the same over the S following channels."""
    total = tl.full(x.shape, 0.0 if DISTANCE else 1.0, tl.float32)
    for s in tl.range(1, S + 1, loop_unroll_factor=S if S <= UNROLLED_CHANNELS else 1):
        part = x - tl.load(channel_at(sample, c + s, C, sc, spot, CHANNELS_LAST)).to(tl.float32)
        total += part if DISTANCE else tl.exp2(part * part * factor)
    return total


@triton.jit
def row_square(
    total, count, x, planes, h, w, p, H, W, sh, sw,
    CENTRE: tl.constexpr, CAREFUL: tl.constexpr, K: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr,
    UINT32: tl.constexpr,
):  # fmt: skip
    """Add the squared differences of row p of the window; with CENTRE, of the right half of the middle row."""
    rows, row_inside = reach(h, p, H, CENTRE, "exclude")
    row, line, line_count = rows * sh, tl.zeros(x.shape, tl.float32), tl.zeros(x.shape, tl.float32)
    for q in tl.static_range(1 if CENTRE else -(K // 2), K // 2 + 1):
        columns, times = reach(w, q, W, q == 0, "exclude")
        if MASKED:
            pixel = masked(planes + (row + w), q, times, x).to(tl.float32)
        else:
            pixel = tl.load(pixel_at(planes, row + columns * sw, UINT32)).to(tl.float32)
        difference = x - pixel
        square = difference * difference
        if PADDING == "replicate" or PADDING == "reflect":
            seen = sight(rows, h, H, K // 2, PADDING) * sight(columns, w, W, K // 2, PADDING)
            times *= seen + sight(h, rows, H, K // 2, PADDING) * sight(w, columns, W, K // 2, PADDING)
        elif PADDING == "zeros":
            times *= 2.0
        if CAREFUL:
            finite = square < float("inf")
            square, times = tl.where(finite, square, 0.0), tl.where(finite, times, 0.0)
        line += square if MASKED else square * times
        line_count += times
    if CAREFUL and K <= SELECTED_WINDOW:
        line = tl.where(row_inside > 0, line, 0.0)
    else:
        line *= row_inside
    return total + line, count + line_count * row_inside


@triton.jit
def window_square(
    x, planes, h, w, H, W, sh, sw,
    CAREFUL: tl.constexpr, K: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr, UINT32: tl.constexpr,
):  # fmt: skip
    """Sum (x_i - x_j)^2 over the window, and count the terms; with CAREFUL, only the finite ones.

    Each unordered pair is computed once, at its upper or left pixel, and weighted by how often the two windows contain
    it. For "exclude" both sums are halved.
    """
    total, count = tl.zeros(x.shape, tl.float32), tl.zeros(x.shape, tl.float32)
    total, count = row_square(total, count, x, planes, h, w, 0, H, W, sh, sw, True, CAREFUL, K, PADDING, MASKED, UINT32)
    for p in tl.range(1, K // 2 + 1):
        total, count = row_square(
            total, count, x, planes, h, w, p, H, W, sh, sw, False, CAREFUL, K, PADDING, MASKED, UINT32
        )
    if not CAREFUL and (PADDING == "exclude" or PADDING == "zeros"):
        count = tl.minimum(W - 1 - w, K // 2) + tl.minimum(H - 1 - h, K // 2) * extent(w, W, K // 2)
        count *= 2.0 if PADDING == "zeros" else 1.0
    if PADDING == "zeros":
        square = x * x
        times = K * K - extent(h, H, K // 2) * extent(w, W, K // 2)
        if CAREFUL:
            finite = square < float("inf")
            square, times = tl.where(finite, square, 0.0), tl.where(finite, times, 0.0)
        total += square * times
        count += times
    elif PADDING != "exclude":
        own = sight(h, h, H, K // 2, PADDING) * sight(w, w, W, K // 2, PADDING) - 1.0
        count += tl.where(tl.abs(x) < float("inf"), own, 0.0)
    return total, count


@triton.jit
def channel_square(
    x, sample, c, spot, C, sc, CAREFUL: tl.constexpr, S: tl.constexpr, CHANNELS_LAST: tl.constexpr
):  # fmt: skip
    """Sum and count the same over the S following channels."""
    total, count = tl.zeros(x.shape, tl.float32), tl.zeros(x.shape, tl.float32)
    for s in tl.range(1, S + 1, loop_unroll_factor=S if S <= UNROLLED_CHANNELS else 1):
        difference = x - tl.load(channel_at(sample, c + s, C, sc, spot, CHANNELS_LAST)).to(tl.float32)
        square = difference * difference
        if CAREFUL:
            finite = square < float("inf")
            total += tl.where(finite, square, 0.0)
            count += tl.where(finite, 1.0, 0.0)
        else:
            total += square
    return total, count if CAREFUL else tl.full(x.shape, S, tl.float32)


@triton.jit
def row_pull(
    total, x, share, planes, shares, h, w, p, H, W, sh, sw, uh, uw, factor,
    CENTRE: tl.constexpr, K: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr, UINT32: tl.constexpr,
):  # fmt: skip
    """Add row p of the sum of :func:`window_pull`."""
    rows, row_inside = reach(h, p, H, CENTRE, "exclude")
    row, share_row, line = rows * sh, rows * uh, tl.zeros(x.shape, tl.float32)
    for q in tl.static_range(-(K // 2), K // 2 + 1):
        if q != 0 or not CENTRE:
            columns, column_inside = reach(w, q, W, q == 0, "exclude")
            if MASKED:
                pixel = masked(planes + (row + w), q, column_inside, x).to(tl.float32)
                weight = masked(shares + (share_row + w), q, column_inside, 0.0)
            else:
                pixel = tl.load(pixel_at(planes, row + columns * sw, UINT32)).to(tl.float32)
                weight = tl.load(pixel_at(shares, share_row + columns * uw, UINT32))
            if PADDING == "exclude":
                weight += share
            elif PADDING == "zeros":
                inside = row_inside * column_inside > 0
                pixel, weight = tl.where(inside, pixel, 0.0), share + tl.where(inside, weight, 0.0)
            else:
                weight *= sight(h, rows, H, K // 2, PADDING) * sight(w, columns, W, K // 2, PADDING)
                weight += share * sight(rows, h, H, K // 2, PADDING) * sight(columns, w, W, K // 2, PADDING)
            difference = x - pixel
            part = weight * difference * tl.exp2(difference * difference * factor)
            line += part if PADDING == "zeros" or MASKED else part * column_inside
    return total + (line if PADDING == "zeros" else line * row_inside)


@triton.jit
def window_pull(
    x, share, planes, shares, h, w, H, W, sh, sw, uh, uw, scale,
    K: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr, UINT32: tl.constexpr,
):  # fmt: skip
    """Sum a_ij (u_i + u_j) over the window, each u as often as its own pixel's window contains the other pixel."""
    total, factor = tl.zeros(x.shape, tl.float32), -scale * LOG2E
    total = row_pull(
        total, x, share, planes, shares, h, w, 0, H, W, sh, sw, uh, uw, factor, True, K, PADDING, MASKED, UINT32
    )
    for r in tl.range(0, K - 1, loop_unroll_factor=2 if K == UNROLLED_WINDOW else 1):
        p = other_row(r, K)
        total = row_pull(
            total, x, share, planes, shares, h, w, p, H, W, sh, sw, uh, uw, factor, False, K, PADDING, MASKED, UINT32
        )
    return total * (2.0 * scale)


@triton.jit
def window_share(share, shares, h, w, H, W, uh, uw, K: tl.constexpr, PADDING: tl.constexpr):
    """Differentiate the window's sum of x_i - x_j: add u_i for each neighbour, subtract u_j for each window with i."""
    if PADDING == "exclude":
        total = share * (extent(h, H, K // 2) * extent(w, W, K // 2) - 1.0)
    else:
        total = share * (K * K - sight(h, h, H, K // 2, PADDING) * sight(w, w, W, K // 2, PADDING))
    for p in tl.range(-(K // 2), K // 2 + 1):
        rows, row_inside = reach(h, p, H, False, "exclude")
        row, line = rows * uh, tl.zeros(share.shape, tl.float32)
        for q in tl.static_range(-(K // 2), K // 2 + 1):
            if q != 0 or p != 0:
                columns, column_inside = reach(w, q, W, q == 0, "exclude")
                line += tl.load(shares + (row + columns * uw)) * column_inside * sight(w, columns, W, K // 2, PADDING)
        total -= line * row_inside * sight(h, rows, H, K // 2, PADDING)
    return total


@triton.jit
def channel_pull(
    x, share, sample, shares, scales, c, spot, share_spot, C, sc, uc, S: tl.constexpr, CHANNELS_LAST: tl.constexpr
):  # fmt: skip
    """Differentiate the inter-channel term: add the terms of the following channels and of the preceding ones."""
    scale = tl.load(scales + c)
    own, other = tl.zeros(x.shape, tl.float32), tl.zeros(x.shape, tl.float32)
    for s in tl.range(1, S + 1):
        difference = x - tl.load(channel_at(sample, c + s, C, sc, spot, CHANNELS_LAST)).to(tl.float32)
        own += difference * tl.exp2(difference * difference * (-scale * LOG2E))
        before = c + (C - s)
        pull = tl.load(scales + cyclic(before, C))
        difference = x - tl.load(channel_at(sample, before, C, sc, spot, CHANNELS_LAST)).to(tl.float32)
        part = difference * tl.exp2(difference * difference * (-pull * LOG2E)) * (2.0 * pull)
        other += part * tl.load(channel_at(shares, before, C, uc, share_spot, CHANNELS_LAST))
    return own * (2.0 * scale) * share + other


@triton.jit
def channel_share(share, shares, c, share_spot, C, uc, S: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Differentiate the sum of x_k - x_{k+s} over the following channels."""
    total = share * S
    for s in tl.range(1, S + 1, loop_unroll_factor=S if S <= UNROLLED_CHANNELS else 1):
        total -= tl.load(channel_at(shares, c + (C - s), C, uc, share_spot, CHANNELS_LAST))
    return total
