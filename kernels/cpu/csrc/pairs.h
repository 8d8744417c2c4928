/* Visit every unordered pair of neighbouring pixels once, and add its contribution at both ends.
 *
 * With d = x_i - x_j, the pair contributes
 *     DENSITIES    exp(-scale d^2)                       to both
 *     DIFFERENCES  d                                     to i, -d to j
 *     PULLS        d exp(-scale d^2) (u_i + u_j)         to i, and its negative to j
 * SQUARES, d^2, are only summed over all pairs. */
#ifndef SIA_PAIRS_H
#define SIA_PAIRS_H

#include "tile.h"

enum { SQUARES, DENSITIES, DIFFERENCES, PULLS };

INLINE vf pair_value(int mode, vf d, vf exponent, vf ui, const float *u)
{
    if (mode == DIFFERENCES)
        return d;
    vf density = exp2_of(d * exponent * d);
    return mode == DENSITIES ? density : d * density * (ui + load(u));
}

/* Visit the pairs of one pixel with the pixels `left` to `right` columns away in one row. Return the sum for the pixel
 * itself; add to the others in memory. */
INLINE vf visit_pairs(int mode, int masked, const float *x, const float *u, float *e, int64_t left, int64_t right,
                      vf xi, vf ui, vf mask, vf exponent)
{
    vf total = splat(0);
#pragma GCC unroll 7
    for (int64_t shift = left; shift <= right; shift++) {
        vf value = pair_value(mode, xi - load(x + shift * VL), exponent, ui, u + shift * VL);
        if (masked)
            value *= mask;
        const vf there = load(e + shift * VL);
        store(e + shift * VL, mode == DENSITIES ? there + value : there - value);
        total = shift == left ? value : total + value;
    }
    return total;
}

/* Visit the pairs of one pixel with the pixels after it in reading order, `left` to `right` columns and `first` to `below`
 * rows away. t->offset and t->x_offset hold the offsets of those rows in the ring buffers. */
INLINE void visit_pixel(int mode, int masked, const tile *t, int64_t row, int64_t column, int64_t left, int64_t right,
                        int64_t first, int64_t below, vf exponent)
{
    const int64_t at = column * VL;
    const float *xs = t->x + at, *us = mode == PULLS ? t->u + at : xs;
    float *es = t->e + at, *home = es + t->offset[0];
    const vf xi = load(xs + t->x_offset[0]), ui = mode == PULLS ? load(us + t->offset[0]) : xi;
    vf total = load(home), mask = splat(1);
    if (first == 0) {
        if (masked)
            mask = load(t->mask + row * VL) * load(t->mask + row * VL);
        total += visit_pairs(mode, masked, xs + t->x_offset[0], us + t->offset[0], home, larger(1, left), right, xi, ui,
                             mask, exponent);
    }
    for (int64_t down = larger(1, first); down <= below; down++) {
        if (masked)
            mask = load(t->mask + row * VL) * load(t->mask + (row + down) * VL);
        total += visit_pairs(mode, masked, xs + t->x_offset[down], us + t->offset[down], es + t->offset[down], left,
                             right, xi, ui, mask, exponent);
    }
    store(home, total);
}

/* Call visit_pixel for a whole row; a constant `radius` lets the compiler unroll the window. Two padded pixels are no pair. */
INLINE void visit_columns(int mode, int masked, const tile *t, int64_t row, int64_t first, int64_t below,
                          int64_t radius, vf exponent)
{
    const int64_t width = t->p->width, start = smaller(radius, width), end = larger(start, width - radius),
                  pad = t->p->pad;
    for (int64_t j = 0; j < start; j++)
        visit_pixel(mode, masked, t, row, j, pad - j, smaller(radius, width - 1 - j), first, below, exponent);
    for (int64_t j = start; j < end; j++)
        visit_pixel(mode, masked, t, row, j, -radius, radius, first, below, exponent);
    for (int64_t j = end; j < width; j++)
        visit_pixel(mode, masked, t, row, j, -smaller(radius, j), width - 1 - pad - j, first, below, exponent);
}

/* visit_columns for radius 1 and one row below, with the sums of three neighbouring pixels in registers. */
INLINE void visit_narrow(int mode, const tile *t, vf exponent)
{
    const int64_t width = t->p->width;
    const float *x0 = t->x + t->x_offset[0], *x1 = t->x + t->x_offset[1], *u0 = x0, *u1 = x1;
    float *e0 = t->e + t->offset[0], *e1 = t->e + t->offset[1];
    if (mode == PULLS) {
        u0 = t->u + t->offset[0];
        u1 = t->u + t->offset[1];
    }
    vf x = load(x0), total = load(e0), x_left = load(x1), x_under = x_left, left = splat(0), under = load(e1);
#define GIVE(sum, value) sum = mode == DENSITIES ? sum + value : sum - value
    for (int64_t j = 0; j < width; j++) {
        const vf u = load(u0 + j * VL);
        vf x_next = x, next = total, x_right = x_under, right = under;
        vf value = pair_value(mode, x - x_under, exponent, u, u1 + j * VL);
        total += value;
        GIVE(under, value);
        if (j > 0) {
            value = pair_value(mode, x - x_left, exponent, u, u1 + (j - 1) * VL);
            total += value;
            GIVE(left, value);
            store(e1 + (j - 1) * VL, left);
        }
        if (j + 1 < width) {
            x_next = load(x0 + (j + 1) * VL);
            x_right = load(x1 + (j + 1) * VL);
            next = load(e0 + (j + 1) * VL);
            right = load(e1 + (j + 1) * VL);
            value = pair_value(mode, x - x_next, exponent, u, u0 + (j + 1) * VL);
            total += value;
            GIVE(next, value);
            value = pair_value(mode, x - x_right, exponent, u, u1 + (j + 1) * VL);
            total += value;
            GIVE(right, value);
        }
        store(e0 + j * VL, total);
        x = x_next, total = next, x_left = x_under, x_under = x_right, left = under, under = right;
    }
#undef GIVE
    store(e1 + (width - 1) * VL, left);
}

/* Visit the pairs of a row with itself and the rows below it; skip pairs of two rows of the halo. */
INLINE void visit_row(int mode, tile *t, int64_t row)
{
    const int64_t radius = t->p->radius, below = smaller(radius, t->p->rows - 1 - row);
    const int64_t first = larger(0, t->p->halo - row);
    const vf exponent = load(t->exponent);
    int masked = 0;
    for (int64_t down = 0; down <= below; down++) {
        t->offset[down] = ring_offset(t, row + down);
        t->x_offset[down] = x_ring_offset(t, row + down);
        masked |= !t->whole[row + down];
    }
    if (masked)
        visit_columns(mode, 1, t, row, first, below, radius, exponent);
    else if (radius == 1 && below == 1 && first == 0)
        visit_narrow(mode, t, exponent);
    else if (radius == 2)
        visit_columns(mode, 0, t, row, first, below, 2, exponent);
    else if (radius == 3)
        visit_columns(mode, 0, t, row, first, below, 3, exponent);
    else
        visit_columns(mode, 0, t, row, first, below, radius, exponent);
}

static NOINLINE void visit_densities(tile *t, int64_t row) { visit_row(DENSITIES, t, row); }
static NOINLINE void visit_differences(tile *t, int64_t row) { visit_row(DIFFERENCES, t, row); }
static NOINLINE void visit_pulls(tile *t, int64_t row) { visit_row(PULLS, t, row); }

static void visit(int mode, tile *t, int64_t row)
{
    if (mode == DENSITIES)
        visit_densities(t, row);
    else if (mode == DIFFERENCES)
        visit_differences(t, row);
    else
        visit_pulls(t, row);
}

/* Add the squares of one pixel's pairs with the pixels `left` to `right` columns away in one row. */
INLINE void add_squares(const float *here, const float *there, int64_t left, int64_t right, vf total[2])
{
    const vf x = load(here);
#pragma GCC unroll 7
    for (int64_t shift = left; shift <= right; shift++) {
        const vf d = x - load(there + shift * VL);
        total[shift & 1] += d * d;
    }
}

/* Sum add_squares over a row; a constant `radius` lets the compiler unroll the window. */
INLINE vf squares_along(const float *here, const float *there, int64_t left, int64_t width, int64_t radius)
{
    const int64_t start = smaller(radius, width), end = larger(start, width - radius);
    vf total[2] = {{0}};
    for (int64_t j = 0; j < start; j++)
        add_squares(here + j * VL, there + j * VL, larger(left, -j), smaller(radius, width - 1 - j), total);
    for (int64_t j = start; j < end; j++)
        add_squares(here + j * VL, there + j * VL, left, radius, total);
    for (int64_t j = end; j < width; j++)
        add_squares(here + j * VL, there + j * VL, larger(left, -j), width - 1 - j, total);
    return total[0] + total[1];
}

/* Sum the squares of a row's pairs with the row `down` rows below, or with itself (0), each pair once. */
INLINE vf squares_between(const float *here, const float *there, int64_t down, int64_t width, int64_t radius)
{
    if (radius == 2)
        return down ? squares_along(here, there, -2, width, 2) : squares_along(here, there, 1, width, 2);
    if (radius == 3)
        return down ? squares_along(here, there, -3, width, 3) : squares_along(here, there, 1, width, 3);
    return squares_along(here, there, down ? -radius : 1, width, radius);
}

/* Do so at radius 1 for the row itself, to[0], and the row below, to[1], loading every pixel once. */
INLINE void squares_narrow(const float *here, const float *there, int64_t width, vf to[2])
{
    vf total[4] = {{0}}, x = load(here), under = load(there), d = x - under;
    total[0] = d * d;
    for (int64_t j = 1; j < width; j++) {
        const vf next = load(here + j * VL), right = load(there + j * VL);
        const vf along = next - x, down = next - right, back = next - under, forth = x - right;
        total[0] += down * down;
        total[1] += along * along;
        total[2] += back * back;
        total[3] += forth * forth;
        x = next;
        under = right;
    }
    to[0] = total[1];
    to[1] = total[0] + (total[2] + total[3]);
}

/* Sum the squares of pixels from .. to - 1 of a row with the pixels `shift` columns further in another row. */
INLINE vf squares_of(const float *here, const float *there, int64_t shift, int64_t from, int64_t to)
{
    vf total = splat(0);
    for (int64_t j = from; j < to; j++) {
        const vf d = load(here + j * VL) - load(there + (j + shift) * VL);
        total += d * d;
    }
    return total;
}

/* Return 1 in the lanes whose strip and plane contain the row, 0 in the others. */
INLINE vf counts_in_strip(const tile *t, int64_t row)
{
    const plan *p = t->p;
    if (p->strips == 1 || row < p->halo || row >= p->halo + p->strip_rows)
        return splat(in_strip(p, row) ? 1.0f : 0.0f);
    float counts[VL];
    for (int64_t l = 0; l < VL; l++)
        counts[l] = t->start[l] + row - p->halo < p->h ? 1.0f : 0.0f;
    return load(counts);
}

/* SQUARES: sum over the pairs of a row with itself and the rows below, counting a pair once for each end that lies in the
 * strip and not in the padding. */
static vf sum_squares(const tile *t, int64_t row)
{
    const plan *p = t->p;
    const int64_t below = smaller(p->radius, p->rows - 1 - row), first = larger(0, p->halo - row), w = p->w,
                  pad = p->pad;
    const float *here = t->x + x_ring_offset(t, row) + pad * VL;
    const vf counts = counts_in_strip(t, row);
    vf sum = splat(0), narrow[2];
    const int is_narrow = p->radius == 1 && below == 1;
    if (is_narrow)
        squares_narrow(here, t->x + x_ring_offset(t, row + 1) + pad * VL, w, narrow);
    for (int64_t down = first; down <= below; down++) {
        const float *there = t->x + x_ring_offset(t, row + down) + pad * VL;
        const vf counts_there = counts_in_strip(t, row + down);
        vf pairs = is_narrow ? narrow[down] : squares_between(here, there, down, w, p->radius);
        if (!t->whole[row] || !t->whole[row + down])
            pairs *= load(t->mask + row * VL) * load(t->mask + (row + down) * VL);
        sum += pairs * (counts + counts_there);
        for (int64_t shift = down ? -pad : 1; pad && shift <= pad;
             shift++) { /* pairs with one end in the row's padding */
            const int64_t ahead = smaller(w, larger(0, shift)), behind = smaller(w, larger(0, -shift));
            const vf after = squares_of(here, there, shift, w - ahead, w),
                     before = squares_of(here, there, shift, 0, behind);
            const vf from_before = squares_of(here, there, shift, -shift, ahead - shift);
            const vf from_after = squares_of(here, there, shift, w - behind - shift, w - shift);
            sum += (after + before) * counts + (from_before + from_after) * counts_there;
        }
    }
    return sum;
}

#endif
