/* Every unordered pair of pixels in a window, visited once: what it gives is added at both its ends.
 *
 * With d = x_i - x_j the pair gives
 *     SQUARES      d^2                                   to both
 *     DENSITIES    exp(-scale d^2)                       to both
 *     DIFFERENCES  d                                     to i, -d to j
 *     PULLS        d exp(-scale d^2) (u_i + u_j)         to i, and its negative to j */

enum { SQUARES, DENSITIES, DIFFERENCES, PULLS };

INLINE vf pair_value(int mode, vf d, vf exponent, vf ui, const float *u)
{
    if (mode == SQUARES)
        return d * d;
    if (mode == DIFFERENCES)
        return d;
    vf density = exp2_of(d * exponent * d);
    return mode == DENSITIES ? density : d * density * (ui + load(u));
}

/* Adds the pairs of one pixel with those that follow it in reading order, `left` to `right` columns away and up to
 * `below` rows; `offset` leads from the rings' start to the pixel's column in each of these rows. */
INLINE void visit_pixel(int mode, int masked, const tile *t, int64_t row, int64_t column, int64_t left, int64_t right,
                        int64_t below, vf exponent)
{
    const int64_t home = t->offset[0] + column * VL;
    vf xi = load(t->x + home), ui = mode == PULLS ? load(t->u + home) : xi, total = load(t->e + home);
    for (int64_t down = 0; down <= below; down++) {
        const int64_t at = t->offset[down] + column * VL;
        const float *x = t->x + at, *u = mode == PULLS ? t->u + at : x;
        float *e = t->e + at;
        vf mask = masked ? load(t->mask + row * VL) * load(t->mask + (row + down) * VL) : xi;
        for (int64_t shift = down ? left : 1; shift <= right; shift++) {
            vf value = pair_value(mode, xi - load(x + shift * VL), exponent, ui, u + shift * VL);
            if (masked)
                value *= mask;
            total += value;
            vf there = load(e + shift * VL);
            store(e + shift * VL, mode == SQUARES || mode == DENSITIES ? there + value : there - value);
        }
    }
    store(t->e + home, total);
}

/* visit_pixel for a whole row; a constant `radius` lets the compiler unroll the window. */
INLINE void visit_columns(int mode, int masked, const tile *t, int64_t row, int64_t below, int64_t radius, vf exponent)
{
    const int64_t width = t->p->width, first = smaller(radius, width), last = larger(first, width - radius);
    for (int64_t j = 0; j < first; j++)
        visit_pixel(mode, masked, t, row, j, -j, smaller(radius, width - 1 - j), below, exponent);
    for (int64_t j = first; j < last; j++)
        visit_pixel(mode, masked, t, row, j, -radius, radius, below, exponent);
    for (int64_t j = last; j < width; j++)
        visit_pixel(mode, masked, t, row, j, -smaller(radius, j), width - 1 - j, below, exponent);
}

/* The pairs of a row with itself and the rows below. */
INLINE void visit_row(int mode, tile *t, int64_t row)
{
    const int64_t radius = t->p->radius, below = smaller(radius, t->p->rows - 1 - row);
    const vf exponent = load(t->exponent);
    int masked = 0;
    for (int64_t down = 0; down <= below; down++) {
        t->offset[down] = ring_offset(t, row + down);
        masked |= !t->whole[row + down];
    }
    if (masked)
        visit_columns(mode, 1, t, row, below, radius, exponent);
    else if (radius == 1)
        visit_columns(mode, 0, t, row, below, 1, exponent);
    else if (radius == 3)
        visit_columns(mode, 0, t, row, below, 3, exponent);
    else
        visit_columns(mode, 0, t, row, below, radius, exponent);
}

static void visit(int mode, tile *t, int64_t row)
{
    if (mode == SQUARES)
        visit_row(SQUARES, t, row);
    else if (mode == DENSITIES)
        visit_row(DENSITIES, t, row);
    else if (mode == DIFFERENCES)
        visit_row(DIFFERENCES, t, row);
    else
        visit_row(PULLS, t, row);
}

/* Sum over the pairs of a row with itself and the rows below of d^2, each pair once: SQUARES without the map. */
INLINE vf sum_squares(tile *t, int64_t row)
{
    const int64_t radius = t->p->radius, below = smaller(radius, t->p->rows - 1 - row), width = t->p->width;
    vf total[4] = {{0}};
    for (int64_t down = 0; down <= below; down++) {
        const float *here = t->x + ring_offset(t, row), *there = t->x + ring_offset(t, row + down);
        for (int64_t shift = down ? -smaller(radius, width - 1) : 1; shift <= smaller(radius, width - 1); shift++) {
            const int64_t from = larger(0, -shift), to = width - larger(0, shift);
            int64_t j = from;
            for (; j + 4 <= to; j += 4)
                for (int i = 0; i < 4; i++) {
                    vf d = load(here + (j + i) * VL) - load(there + (j + i + shift) * VL);
                    total[i] += d * d;
                }
            for (; j < to; j++) {
                vf d = load(here + j * VL) - load(there + (j + shift) * VL);
                total[0] += d * d;
            }
        }
    }
    return (total[0] + total[1]) + (total[2] + total[3]);
}
