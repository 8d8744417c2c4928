/* Backward pass of the self-information, into a float32 gradient: first the intra-channel part, tile by tile, then the
 * inter-channel part, added pixel by pixel. No two tasks write to the same place. */
#ifndef SIA_BACKWARD_H
#define SIA_BACKWARD_H

#include "forward.h"

typedef struct {
    plan p;
    const sia_map *x, *grad, *grad_x;
    const float *scale, *share; /* share: the correction for each sample's mean distance */
    atomic_int failed;
} backward_call;

/* Load the incoming gradient of a row, for every lane. */
INLINE void load_gradient(const backward_call *call, tile *t, int64_t row, float *to)
{
    const char *src[VL];
    for (int64_t l = 0; l < VL; l++)
        src[l] = l < t->count ? pixel(call->grad, t->sample, t->plane[l], row) : NULL;
    const int by_channel = call->p.by_channel && call->grad->stride[1] == 1;
    load_lanes(to, src, call->p.w, call->grad->stride[3], t->count, by_channel, call->grad->dtype);
}

/* Compute the weight u of every pixel of the tile: grad / sum of densities, or sign(sum of differences) * grad. */
INLINE void find_weights(const backward_call *call, int mode, tile *t)
{
    const plan *p = &call->p;
    for (int64_t i = 0; i < p->rows * p->width; i++)
        store(t->u + i * VL, splat(0));
    for (int64_t row = 0; row < p->h; row++) {
        const int64_t at = ring_offset(t, row + p->halo) + p->pad * VL;
        load_gradient(call, t, row, t->u + at);
        for (int64_t j = 0; j < p->w; j++) {
            vf grad = load(t->u + at + j * VL), sum = load(t->e + at + j * VL);
            if (mode == DENSITIES)
                grad /= sum;
            else
                grad = sign(sum) * (grad - call->share[t->sample]) * call->scale[t->sample];
            store(t->u + at + j * VL, grad);
        }
    }
}

/* Add the gradient of padded pixels to the pixels that they copy. */
INLINE void fold_padding(const plan *p, tile *t)
{
    if (p->options->padding_mode <= SIA_ZEROS)
        return;
    for (int64_t row = 0; row < p->rows; row++) {
        const int64_t to_row = source_index(p, row - p->halo, p->h) + p->halo;
        for (int64_t j = 0; j < p->width; j++) {
            const int64_t to_column = source_index(p, j - p->pad, p->w) + p->pad;
            if (to_row == row && to_column == j)
                continue;
            float *to = t->e + ring_offset(t, to_row) + to_column * VL;
            store(to, load(to) + load(t->e + ring_offset(t, row) + j * VL));
        }
    }
}

INLINE void store_gradient(const backward_call *call, tile *t, vf factor)
{
    const plan *p = &call->p;
    const sia_map *to = call->grad_x;
    for (int64_t row = 0; row < p->h; row++) {
        float *from = t->e + ring_offset(t, row + p->halo) + p->pad * VL;
        for (int64_t j = 0; j < p->w; j++)
            store(from + j * VL, load(from + j * VL) * factor);
        if (!p->by_channel)
            lanes_to_rows(t->scratch, p->w + VL, from, p->w);
        for (int64_t j = 0; p->by_channel && j < p->w; j++)
            store_some(column(to, pixel(to, t->sample, t->first, row), j), to->stride[1], t->count, load(from + j * VL),
                       SIA_FLOAT32);
        for (int64_t l = 0; !p->by_channel && l < t->count; l++)
            for (int64_t j = 0; j < p->w; j += VL)
                store_some(column(to, pixel(to, t->sample, t->plane[l], row), j), to->stride[3], smaller(VL, p->w - j),
                           load(t->scratch + l * (p->w + VL) + j), SIA_FLOAT32);
    }
}

static void window_task(void *context, int64_t index)
{
    backward_call *call = context;
    const plan *p = &call->p;
    const int kde = p->options->estimator == SIA_KDE;
    tile t;
    if (open_tile(&t, p, index / p->groups, index % p->groups, 1) != SIA_OK) {
        atomic_store(&call->failed, 1);
        return;
    }
    vf factor = splat(1);
    if (kde) {
        set_exponents(&t, call->scale);
        factor = load(t.exponent) * (-2.0f / LOG2_E);
    }
    load_rows(&t, call->x, 0, p->rows);
    clear_rows(&t, 0, p->rows, kde ? 1.0f : 0.0f);
    for (int64_t row = 0; row < p->rows; row++)
        visit(kde ? DENSITIES : DIFFERENCES, &t, row);
    find_weights(call, kde ? DENSITIES : DIFFERENCES, &t);
    clear_rows(&t, 0, p->rows, 0.0f);
    if (!kde) {
        float *values = t.x; /* the gradient of a sum of differences is a sum of differences of the weights */
        t.x = t.u;
        t.u = values;
    }
    for (int64_t row = 0; row < p->rows; row++)
        visit(kde ? PULLS : DIFFERENCES, &t, row);
    fold_padding(p, &t);
    store_gradient(call, &t, factor);
    free(t.memory);
}

/* Compute the inter-channel part at up to VL pixels of a row, for all channels, so that each density is computed once. */
INLINE void add_channel_gradient(const backward_call *call, int mode, int64_t n, int64_t row, int64_t from,
                                 int64_t count, float *memory)
{
    const plan *p = &call->p;
    const sia_map *x = call->x, *grad = call->grad, *to = call->grad_x;
    float *values = memory, *sums = memory + p->c * VL, *pulls = memory + 2 * p->c * VL;
    for (int64_t k = 0; k < p->c; k++) {
        store(values + k * VL, load_some(column(x, pixel(x, n, k, row), from), x->stride[3], count, x->dtype));
        store(sums + k * VL, splat(0));
    }
    for (int64_t k = 0; k < p->c; k++) {
        const float scale = mode == DENSITIES ? call->scale[(p->n + n) * p->c + k] : call->scale[n];
        const vf here = load(values + k * VL), exponent = splat(-scale * LOG2_E);
        vf mass = splat(mode == DENSITIES ? 1.0f : 0.0f), total = load(sums + k * VL);
        for (int64_t s = 1; s <= p->neighbours; s++) {
            vf d = here - load(values + (k + s) % p->c * VL);
            vf density = mode == DENSITIES ? exp2_of(d * exponent * d) : d;
            mass += density;
            store(pulls + s * VL, density * d);
        }
        vf share = load_some(column(grad, pixel(grad, n, k, row), from), grad->stride[3], count, grad->dtype);
        if (mode == DENSITIES)
            share = share / mass * (2 * scale * p->options->inter_weight);
        else
            share = (share - call->share[n]) * sign(mass) * (scale * p->options->inter_weight);
        for (int64_t s = 1; s <= p->neighbours; s++) {
            float *other = sums + (k + s) % p->c * VL;
            vf pull = mode == DENSITIES ? share * load(pulls + s * VL) : share;
            total += pull;
            store(other, load(other) - pull);
        }
        store(sums + k * VL, total);
    }
    for (int64_t k = 0; k < p->c; k++) {
        char *at = column(to, pixel(to, n, k, row), from);
        vf sum = load(sums + k * VL) + load_some(at, to->stride[3], count, SIA_FLOAT32);
        store_some(at, to->stride[3], count, sum, SIA_FLOAT32);
    }
}

static void channels_task(void *context, int64_t index)
{
    backward_call *call = context;
    const plan *p = &call->p;
    float *memory = malloc((size_t)(2 * p->c + p->neighbours + 1) * VL * sizeof(float));
    if (!memory) {
        atomic_store(&call->failed, 1);
        return;
    }
    for (int64_t from = 0; from < p->w; from += VL)
        add_channel_gradient(call, p->options->estimator == SIA_KDE ? DENSITIES : DIFFERENCES, index / p->h,
                             index % p->h, from, smaller(VL, p->w - from), memory);
    free(memory);
}

/* Compute the correction for each sample's mean distance: 2 b^2 scale times the mean of grad * d. */
static int find_shares(const sia_options *options, const sia_map *grad, const sia_map *x, float *scale, float *share)
{
    static const sia_map absent = {0};
    forward_call call = {
        .p = make_plan(options, x, 0), .x = x, .info = &absent, .gated = &absent, .grad = grad, .scale = scale};
    call.sums = malloc((size_t)(call.p.n * call.p.lanes) * sizeof *call.sums);
    if (!call.sums)
        return SIA_NO_MEMORY;
    run_pass(&call, SUM_PRODUCTS, DIFFERENCES);
    for (int64_t n = 0; n < call.p.n; n++) {
        double total = 0, count = 0;
        for (int64_t k = 0; k < call.p.c; k++) {
            total += plane_sum(&call, n * call.p.c + k, 0);
            count += plane_sum(&call, n * call.p.c + k, 1);
        }
        share[n] = (float)(count > 0 ? 2.0 * options->square_bandwidth * scale[n] * total / count : 0);
    }
    free(call.sums);
    return atomic_load(&call.failed) ? SIA_NO_MEMORY : SIA_OK;
}

static int backward(const sia_options *options, const sia_map *grad, const sia_map *x, const float *scale,
                    const sia_map *grad_x)
{
    backward_call call = {.p = make_plan(options, x, 1), .x = x, .grad = grad, .grad_x = grad_x, .scale = scale};
    const plan *p = &call.p;
    const int threads = useful_threads(p);
    float *share = calloc((size_t)p->n, sizeof *share);
    int failed = share ? SIA_OK : SIA_NO_MEMORY;
    if (!failed && options->estimator == SIA_DISTANCE && options->adaptive)
        failed = find_shares(options, grad, x, (float *)scale, share);
    call.share = share;
    if (!failed) {
        sia_parallel_for(p->n * p->groups, threads, window_task, &call);
        if (p->neighbours)
            sia_parallel_for(p->n * p->h, threads, channels_task, &call);
        failed = atomic_load(&call.failed) ? SIA_NO_MEMORY : SIA_OK;
    }
    free(share);
    return failed;
}

#endif
