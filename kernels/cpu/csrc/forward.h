/* Forward pass: the scale, then the map and the requested outputs. A task is a tile. */
#ifndef SIA_FORWARD_H
#define SIA_FORWARD_H

#include "take.h"

/* Count the positions of the window around `here` that lie inside the map, along one axis. */
INLINE int64_t inside_window(const plan *p, int64_t here, int64_t size)
{
    return smaller(here + p->radius, size - 1) - larger(here - p->radius, 0) + 1;
}

/* Return the logarithms of the window sizes, or NULL if there is no memory. */
static float *sizes_of(const plan *p)
{
    const int64_t pixels = p->h * p->w;
    const float all = (float)p->options->kernel_size * (float)p->options->kernel_size;
    const int exclude = p->options->padding_mode == SIA_EXCLUDE;
    float *size = malloc((size_t)(pixels + VL) * sizeof *size);
    for (int64_t row = 0; size && row < p->h; row++) {
        const float rows = (float)inside_window(p, row, p->h);
        for (int64_t c = 0; c < p->w; c++)
            size[row * p->w + c] = exclude ? rows * (float)inside_window(p, c, p->w) : all;
    }
    for (int64_t i = 0; size && i < VL; i++)
        size[pixels + i] = 1;
    for (int64_t i = 0; size && i < pixels; i += VL)
        store(size + i, log_of_sums(is_half(p), load(size + i), splat((float)(p->neighbours + 1))));
    return size;
}

/* Finish rows from .. to - 1 of the tile, whose sums are complete. */
INLINE void finish_rows_as(const forward_call *call, int mode, tile *t, int64_t from, int64_t to, int dtype)
{
    const plan *p = &call->p;
    const int flat =
        is_flat(call->x, p->w) && is_flat(call->info, p->w) && is_flat(call->gated, p->w) && is_flat(call->grad, p->w);
    const int at_once = flat && (all_whole(t, from, to) || (p->pad && p->strips == 1 && !p->by_channel));
    for (int64_t row = from; row < to; row = at_once ? to : row + 1) {
        const int64_t pixels = at_once ? (to - row) * p->w : p->w, length = p->chunk * p->width + VL;
        const float *within = mode == SQUARES ? NULL : t->e + ring_offset(t, row) + p->pad * VL;
        if (p->by_channel) {
            if (p->neighbours == 5 && t->count == VL)
                take_channels(call, mode, t, row - p->halo, pixels, within, 5, VL, dtype);
            else
                take_channels(call, mode, t, row - p->halo, pixels, within, p->neighbours, t->count, dtype);
            continue;
        }
        if (within && at_once && p->pad) /* drop the padding, so that the rows are contiguous */
            for (int64_t each = row; each < to; each++)
                lanes_to_rows(t->scratch + (each - row) * p->w, length, t->e + ring_offset(t, each) + p->pad * VL,
                              p->w);
        else if (within)
            lanes_to_rows(t->scratch, length, within, pixels);
        for (int64_t l = 0; l < t->count; l++)
            if (t->start[l] + row - p->halo < p->h)
                take_pixels(call, mode, t, l, t->start[l] + row - p->halo, pixels,
                            within ? t->scratch + l * length : NULL, dtype);
    }
}

/* One function for each mode and dtype: a single one takes compilers twice as long. */
#define DEFINE_AS(mode, dtype)                                                                                \
    static NOINLINE void finish_##mode##_##dtype(const forward_call *call, tile *t, int64_t from, int64_t to) \
    {                                                                                                         \
        finish_rows_as(call, mode, t, from, to, dtype);                                                       \
    }
#define DEFINE(mode) DEFINE_AS(mode, SIA_FLOAT32) DEFINE_AS(mode, SIA_BFLOAT16) DEFINE_AS(mode, SIA_FLOAT16)
DEFINE(SQUARES)
DEFINE(DENSITIES)
DEFINE(DIFFERENCES)
#undef DEFINE
#undef DEFINE_AS

static void finish_rows(const forward_call *call, int mode, tile *t, int64_t from, int64_t to)
{
#define OF(mode) [mode] = {finish_##mode##_SIA_FLOAT32, finish_##mode##_SIA_BFLOAT16, finish_##mode##_SIA_FLOAT16}
    static void (*const finish[][3])(const forward_call *, tile *, int64_t, int64_t) = {
        OF(SQUARES),
        OF(DENSITIES),
        OF(DIFFERENCES),
    };
#undef OF
    finish[mode][call->x->dtype](call, t, from, to);
}

INLINE void clear_rows(const tile *t, int64_t from, int64_t to, float value)
{
    if (from >= to)
        return;
    float *e = t->e + ring_offset(t, from), *end = e + (to - from) * t->p->width * VL;
    for (; e < end; e += VL)
        store(e, splat(value));
}

INLINE void set_exponents(tile *t, const float *scale)
{
    for (int64_t l = 0; l < VL; l++)
        t->exponent[l] = l < t->count ? -scale[t->sample * t->p->c + t->plane[l]] * LOG2_E : 0;
}

static void run_tile(const forward_call *call, int mode, tile *t)
{
    const plan *p = &call->p;
    int64_t cleared = 0;
    if (p->kept < p->rows)
        t->loaded = 0;
    if (mode == DENSITIES)
        set_exponents(t, call->scale);
    for (int64_t from = 0; from < p->rows; from += p->chunk) {
        const int64_t to = smaller(from + p->chunk, p->rows), ahead = smaller(to + p->chunk, p->rows);
        for (; t->loaded < ahead; t->loaded = smaller(t->loaded + p->chunk, p->rows))
            load_rows(t, call->x, t->loaded, smaller(t->loaded + p->chunk, p->rows));
        for (; cleared < ahead && mode != SQUARES; cleared = smaller(cleared + p->chunk, p->rows))
            clear_rows(t, cleared, smaller(cleared + p->chunk, p->rows), mode == DENSITIES ? 1.0f : 0.0f);
        vf squares = splat(0);
        for (int64_t row = from; row < smaller(to, p->halo + p->strip_rows); row++)
            if (mode == SQUARES)
                squares += sum_squares(t, row);
            else
                visit(mode, t, row);
        for (int64_t l = 0; l < t->count; l++)
            t->sums[l][0] += squares[l];
        if (mode != SQUARES || p->neighbours)
            finish_rows(call, mode, t, larger(from, p->halo), smaller(to, p->halo + p->strip_rows));
    }
}

/* Add up one of the two sums over the strips of a plane. */
INLINE double plane_sum(const forward_call *call, int64_t plane, int which)
{
    double total = 0;
    for (int64_t strip = 0; strip < call->p.strips; strip++)
        total += call->sums[plane * call->p.strips + strip][which];
    return total;
}

/* Return 1 / (2 b^2 spread), or 0 if the spread is 0. */
INLINE float scale_of(const sia_options *options, double spread)
{
    if (!((float)spread > FLT_MIN))
        return 0;
    double scale = (double)options->fixed_scale / (double)(float)spread;
    return (float)(scale < LARGEST_SCALE ? scale : LARGEST_SCALE);
}

INLINE void add_finite(double mean[2], float d)
{
    const float square = d * d;
    if (square - square == 0) {
        mean[0] += square;
        mean[1] += 1;
    }
}

/* Average the finite squared differences of a plane, pixel by pixel, if the fast sum is not finite. */
static double careful_mean_square(const forward_call *call, int64_t n, int64_t k, int across)
{
    const plan *p = &call->p;
    const sia_map *x = call->x;
    double mean[2] = {0};
    for (int64_t i = 0; i < p->h; i++)
        for (int64_t j = 0; j < p->w; j++) {
            const float here = value_at(x, n, k, i, j);
            for (int64_t s = 1; across && s <= p->neighbours; s++)
                add_finite(mean, here - value_at(x, n, (k + s) % p->c, i, j));
            for (int64_t at = 0; !across && at < p->options->kernel_size * p->options->kernel_size; at++) {
                const int64_t row = source_index(p, i + at / p->options->kernel_size - p->radius, p->h);
                const int64_t col = source_index(p, j + at % p->options->kernel_size - p->radius, p->w);
                const int inside = row >= 0 && col >= 0;
                if (at != p->options->kernel_size * p->options->kernel_size / 2 &&
                    (inside || p->options->padding_mode != SIA_EXCLUDE))
                    add_finite(mean, here - (inside ? value_at(x, n, k, row, col) : 0.0f));
            }
        }
    return mean[1] > 0 ? mean[0] / mean[1] : 0;
}

/* Count the ordered pairs of positions within the radius along one axis, including each position with itself. */
INLINE double pairs_along(int64_t size, int64_t radius)
{
    double pairs = 0;
    for (int64_t shift = -radius; shift <= radius; shift++)
        pairs += (double)larger(0, size - (shift < 0 ? -shift : shift));
    return pairs;
}

/* Compute the two scales of a plane from its sums of squares. */
static void find_scale(const forward_call *call, int64_t plane, double within, double across)
{
    const plan *p = &call->p;
    const sia_options *options = p->options;
    const double pixels = (double)p->h * (double)p->w, k = options->kernel_size, sums[2] = {within, across};
    double counts[2] = {pixels * (k * k - 1), pixels * (double)p->neighbours};
    if (options->padding_mode == SIA_EXCLUDE)
        counts[0] = pairs_along(p->h, p->radius) * pairs_along(p->w, p->radius) - pixels;
    for (int i = 0; i < 2; i++) {
        double mean = counts[i] > 0 ? sums[i] / counts[i] : 0;
        if (mean - mean != 0)
            mean = careful_mean_square(call, plane / p->c, plane % p->c, i);
        call->scale[i * p->n * p->c + plane] = scale_of(options, mean);
    }
}

static void forward_task(void *context, int64_t index)
{
    forward_call *call = context;
    tile t;
    if (open_tile(&t, &call->p, index / call->p.groups, index % call->p.groups, 0) != SIA_OK) {
        atomic_store(&call->failed, 1);
        return;
    }
    t.sums = call->sums + t.sample * call->p.lanes + t.first;
    if (call->scale_first) {
        run_tile(call, SQUARES, &t);
        for (int64_t l = 0; l < t.count; l++) {
            find_scale(call, t.sample * call->p.c + t.first + l, t.sums[l][0], t.sums[l][1]);
            t.sums[l][0] = t.sums[l][1] = 0;
        }
    }
    run_tile(call, call->mode, &t);
    free(t.memory);
}

static void run_pass(forward_call *call, int pass, int mode)
{
    call->pass = pass;
    call->mode = mode;
    memset(call->sums, 0, (size_t)(call->p.n * call->p.lanes) * sizeof *call->sums);
    sia_parallel_for(call->p.n * call->p.groups, useful_threads(&call->p), forward_task, call);
}

static void find_scales(forward_call *call)
{
    run_pass(call, SUM_SQUARES, SQUARES);
    for (int64_t i = 0; i < call->p.n * call->p.c; i++)
        find_scale(call, i, plane_sum(call, i, 0), plane_sum(call, i, 1));
}

static void find_distance_scales(forward_call *call)
{
    run_pass(call, SUM_DISTANCES, DIFFERENCES);
    for (int64_t n = 0; n < call->p.n; n++) {
        double total = 0, count = 0;
        for (int64_t k = 0; k < call->p.c; k++) {
            total += plane_sum(call, n * call->p.c + k, 0);
            count += plane_sum(call, n * call->p.c + k, 1);
        }
        call->scale[n] = scale_of(call->p.options, count > 0 ? total / count : 0);
    }
}

static int forward(const sia_options *options, const sia_map *x, float *scale, const sia_map *info,
                   const sia_map *gated, float *mean, int32_t channel)
{
    static const sia_map absent = {0};
    forward_call call = {.p = make_plan(options, x, 0), .x = x, .info = info, .gated = gated, .grad = &absent};
    const plan *p = &call.p;
    const int64_t scales = options->estimator == SIA_KDE ? 2 * p->n * p->c : p->n;
    call.scale = scale;
    call.channel = channel;
    call.sums = malloc((size_t)(p->n * p->lanes) * sizeof *call.sums);
    call.size = sizes_of(p);
    if (!call.sums || !call.size) {
        free(call.sums);
        free(call.size);
        return SIA_NO_MEMORY;
    }
    if (!options->adaptive)
        for (int64_t i = 0; i < scales; i++)
            scale[i] = options->fixed_scale;
    else if (options->estimator == SIA_KDE && p->strips == 1)
        call.scale_first = 1;
    else if (options->estimator == SIA_KDE)
        find_scales(&call);
    else
        find_distance_scales(&call);
    run_pass(&call, EMIT, options->estimator == SIA_KDE ? DENSITIES : DIFFERENCES);
    for (int64_t i = 0; mean && i < p->n * p->c; i++)
        mean[i] = (float)(plane_sum(&call, i, 0) / ((double)p->h * (double)p->w));
    free(call.sums);
    free(call.size);
    return atomic_load(&call.failed) ? SIA_NO_MEMORY : SIA_OK;
}

#endif
