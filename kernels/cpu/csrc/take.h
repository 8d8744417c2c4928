/* The last step of the forward pass: combine the sums of a window with the inter-channel term, then sum, store or gate. */
#ifndef SIA_TAKE_H
#define SIA_TAKE_H

#include "pairs.h"

enum { SUM_SQUARES, SUM_DISTANCES, SUM_PRODUCTS, EMIT };

typedef struct {
    plan p;
    const sia_map *x, *info, *gated, *grad; /* data is NULL for maps that are not requested */
    float *scale;
    float *size;       /* of every pixel: log_of_sums() of its window size, the sum of densities in a constant window */
    double (*sums)[2]; /* two sums for every lane of every sample; their meaning depends on the pass */
    int pass, mode, channel;
    int scale_first; /* tiles hold whole planes, and compute the scale before the map */
    atomic_int failed;
} forward_call;

/* What to do with finished values, VL at a time, and the position in each map. This is a local copy of what the inner
 * loops need, so that stores through the maps' pointers do not force the compiler to reload it. */
typedef struct {
    int pass, channel;
    int64_t neighbours;
    float weight;
    const char *grad;
    char *info, *gated;
    int64_t grad_stride, info_stride, gated_stride; /* between elements of a vector, in elements */
    int64_t grad_step, info_step, gated_step;       /* between vectors, in bytes */
    int grad_dtype;
    int half;           /* the weight is 1/2: one logarithm of a product serves both terms */
    vf scale, exponent; /* of the distance estimator; of the inter-channel densities */
    vf log_count;       /* log(S + 1) */
    vf totals[2];
} stream;

/* Tell whether the inter-channel weight is 1/2, which lets one logarithm serve both terms. */
INLINE int is_half(const plan *p) { return p->options->inter_weight == 0.5f && p->neighbours > 0; }

/* Take the logarithm of both sums, or of the intra-channel one. Equal pixels give the same value as the size of their
 * window does, so that I is exactly 0. */
INLINE vf log_of_sums(int half, vf within, vf across) { return log_positive(half ? within * within * across : within); }

INLINE int64_t bytes_to_next(const sia_map *map, int axis)
{
    return map->stride[3] * size_of(map->dtype) * (axis == 3 ? VL : 1);
}

/* Open a stream along the pixels of a row (axis 3), or along the channels of a pixel (axis 1). */
INLINE stream open_stream(const forward_call *call, int mode, int axis, int64_t n, int64_t k, int64_t row,
                          int64_t lanes)
{
    const plan *p = &call->p;
    stream s = {.pass = call->pass, .channel = call->channel, .neighbours = p->neighbours};
    s.weight = p->options->inter_weight;
    s.half = is_half(p);
    s.grad = pixel(call->grad, n, k, row);
    s.info = pixel(call->info, n, k, row);
    s.gated = pixel(call->gated, n, k, row);
    s.grad_stride = call->grad->stride[axis];
    s.info_stride = call->info->stride[axis];
    s.gated_stride = call->gated->stride[axis];
    s.grad_step = bytes_to_next(call->grad, axis);
    s.info_step = bytes_to_next(call->info, axis);
    s.gated_step = bytes_to_next(call->gated, axis);
    s.grad_dtype = call->grad->dtype;
    s.log_count = log_positive(splat((float)(p->neighbours + 1)));
    if (mode == DENSITIES) {
        const float *scale = call->scale + (p->n + n) * p->c + k;
        s.exponent = -LOG2_E * (axis == 3 ? splat(*scale) : load_some((const char *)scale, 1, lanes, SIA_FLOAT32));
    } else if (mode == DIFFERENCES && call->pass == EMIT) {
        s.scale = splat(call->scale[n]);
    }
    return s;
}

INLINE vf add_channel(int mode, vf sum, vf d, vf exponent)
{
    return sum + (mode == DENSITIES ? exp2_of(d * exponent * d) : mode == SQUARES ? d * d : d);
}

/* Compute I from the intra- and inter-channel sums of densities and the logarithm of the window size. */
INLINE vf information_of(const stream *s, int half, vf within, vf size, vf across)
{
    const vf info = at_least(0, size - log_of_sums(half, within, across));
    if (half)
        return 0.5f * info;
    return s->neighbours ? info + s->weight * at_least(0, s->log_count - log_positive(across)) : info;
}

/* Combine the intra- and inter-channel sums, use the result, and advance the stream. */
INLINE void take(stream *s, int mode, vf x, vf within, vf size, vf sum, int64_t count, int dtype)
{
    vf value = within, extra = sum;
    if (mode == DIFFERENCES)
        value = absolute(within) + s->weight * absolute(sum);
    else if (mode == DENSITIES)
        value = information_of(s, s->half, within, size, sum);
    if (mode == DIFFERENCES && s->pass != EMIT) {
        vi finite = value - value == splat(0);
        if (s->pass == SUM_PRODUCTS) {
            value *= load_some(s->grad, s->grad_stride, count, s->grad_dtype);
            s->grad += s->grad_step;
        }
        value = choose(finite, value, splat(0));
        extra = choose(finite, splat(1), splat(0));
    } else {
        if (mode == DIFFERENCES)
            value *= s->scale;
        if (s->info)
            store_some(s->info, s->info_stride, count, value, dtype);
        if (s->gated)
            store_some(s->gated, s->gated_stride, count, x * (1.0f + sigmoid(value)), dtype);
        if (s->channel == SIA_MEAN)
            value = -log_positive(exp_minus(value) + 0.1f);
        s->info += s->info ? s->info_step : 0;
        s->gated += s->gated ? s->gated_step : 0;
    }
    if (mode != DENSITIES || s->channel != SIA_NO_MEAN) {
        s->totals[0] += keep_first(value, count);
        s->totals[1] += keep_first(extra, count);
    }
}

/* Compute the inter-channel sums of the first `count` pixels of a vector. */
INLINE vf sum_following(int mode, const float *x, const int64_t *to_channel, int64_t neighbours, vf exponent,
                        int64_t count)
{
    const vf here = load_floats(x, count);
    vf sum = splat(mode == DENSITIES ? 1.0f : 0.0f);
#pragma GCC unroll 5
    for (int64_t step = 0; step < neighbours; step++)
        sum = add_channel(mode, sum, here - load_floats(x + to_channel[step], count), exponent);
    return sum;
}

/* Do so for all pixels of a lane: return the total of SQUARES, store the others. Constants let the compiler unroll. */
INLINE vf sum_across(int mode, const float *x, const int64_t *to_channel, int64_t neighbours, vf exponent,
                     float *across, int64_t pixels)
{
    vf total = splat(0), sum;
    int64_t i = 0;
#define TAKE(count)                                                            \
    sum = sum_following(mode, x + i, to_channel, neighbours, exponent, count); \
    if (mode == SQUARES)                                                       \
        total += sum;                                                          \
    else                                                                       \
        store(across + i, sum)
    for (; i + VL <= pixels; i += VL) {
        TAKE(VL);
    }
    if (i < pixels) {
        TAKE(pixels - i);
    }
#undef TAKE
    return total;
}

/* These loops are separate functions, so that each has all registers for its constants. */
#define ACROSS(name, mode)                                                                                         \
    static NOINLINE float name(const float *x, const int64_t *to_channel, int64_t neighbours, const vf *exponent,  \
                               float *across, int64_t pixels)                                                      \
    {                                                                                                              \
        const vf total = neighbours == 5 ? sum_across(mode, x, to_channel, 5, *exponent, across, pixels)           \
                                         : sum_across(mode, x, to_channel, neighbours, *exponent, across, pixels); \
        return mode == SQUARES ? sum_of(total) : 0;                                                                \
    }
ACROSS(densities_across, DENSITIES)
ACROSS(squares_across, SQUARES)
ACROSS(differences_across, DIFFERENCES)
#undef ACROSS

/* Tell whether I is the only output, with its next VL values adjacent in memory. */
INLINE int is_plain(const stream *s, int mode)
{
    return mode == DENSITIES && s->info && !s->gated && s->info_stride == 1 && s->channel == SIA_NO_MEAN;
}

/* Write I for as many whole vectors of pixels as there are, if is_plain(). Return the number of pixels. */
INLINE int64_t information_as(const stream *s, int half, const float *within, const float *size, const float *across,
                              int64_t pixels, int dtype)
{
    char *info = s->info;
    int64_t i = 0;
    for (; i + VL <= pixels; i += VL)
        store_as(info + i * size_of(dtype), information_of(s, half, load(within + i), load(size + i), load(across + i)),
                 dtype);
    return i;
}

static NOINLINE int64_t take_information(stream *s, const float *within, const float *size, const float *across,
                                         int64_t pixels, int dtype)
{
    const stream held = *s;
    int64_t taken;
#define TAKE(dtype)                                                                   \
    taken = held.half ? information_as(&held, 1, within, size, across, pixels, dtype) \
                      : information_as(&held, 0, within, size, across, pixels, dtype)
    if (dtype == SIA_FLOAT32)
        TAKE(SIA_FLOAT32);
    else if (dtype == SIA_BFLOAT16)
        TAKE(SIA_BFLOAT16);
    else
        TAKE(SIA_FLOAT16);
#undef TAKE
    s->info += taken * size_of(dtype);
    return taken;
}

/* Return the pixels of a lane as adjacent floats, and set t->to_channel to the distances from there to those of the S
 * channels that follow, cyclically. Pixels that are not adjacent floats are copied, those of whole planes once for all
 * lanes. */
static const float *adjacent_floats(const forward_call *call, const tile *t, int64_t lane, int64_t row, int64_t pixels)
{
    const plan *p = &call->p;
    const int64_t k = t->plane[lane], length = copied_length(p);
    if (!p->copied) {
        for (int64_t step = 1; step <= p->neighbours; step++)
            t->to_channel[step - 1] = (k + step < p->c ? step : step - p->c) * call->x->stride[1];
        return (const float *)pixel(call->x, t->sample, k, row);
    }
    const int together = p->strips == 1;
    const int64_t channels = (together ? t->count : 1) + p->neighbours;
    for (int64_t j = 0; (lane == 0 || !together) && j < channels; j++)
        copy_floats(t->copy + j * length, pixel(call->x, t->sample, (k + j) % p->c, row), call->x->stride[3], pixels,
                    call->x->dtype);
    for (int64_t step = 1; step <= p->neighbours; step++)
        t->to_channel[step - 1] = step * length;
    return t->copy + (together ? lane : 0) * length;
}

/* Finish the pixels of a lane; for SQUARES, only the inter-channel sum remains. */
INLINE void take_pixels(const forward_call *call, int mode, const tile *t, int64_t lane, int64_t row, int64_t pixels,
                        const float *within, int dtype)
{
    const plan *p = &call->p;
    const float *x = adjacent_floats(call, t, lane, row, pixels);
    const float *size = mode == DENSITIES ? call->size + row * p->w : t->across;
    stream s = open_stream(call, mode, 3, t->sample, t->plane[lane], row, 1);
    if (mode == SQUARES) {
        t->sums[lane][1] += squares_across(x, t->to_channel, p->neighbours, &s.exponent, NULL, pixels);
        return;
    }
    if (mode == DIFFERENCES)
        differences_across(x, t->to_channel, p->neighbours, &s.exponent, t->across, pixels);
    else if (p->neighbours)
        densities_across(x, t->to_channel, p->neighbours, &s.exponent, t->across, pixels);
    int64_t i = 0;
    if (is_plain(&s, mode))
        i = take_information(&s, within, size, t->across, pixels, dtype);
    for (; i + VL <= pixels; i += VL)
        take(&s, mode, load(x + i), load(within + i), load(size + i), load(t->across + i), VL, dtype);
    if (i < pixels)
        take(&s, mode, load_floats(x + i, pixels - i), load(within + i), load(size + i), load(t->across + i),
             pixels - i, dtype);
    t->sums[lane][0] += sum_of(s.totals[0]);
    t->sums[lane][1] += sum_of(s.totals[1]);
}

/* Copy the channels of some pixels as floats: the tile's own and the S that follow, cyclically. Where possible, copy two
 * whole vectors: what is too much is overwritten by the next pixel, or lies in the slack of the scratch. */
INLINE void lay_out_channels(const tile *t, const char *x, int64_t bytes, int64_t pixels, int64_t reach, int dtype)
{
    const int64_t c = t->p->c, wanted = t->count + t->p->neighbours, direct = smaller(wanted, c - t->first),
                  size = size_of(dtype), next = t->first + VL == c ? -t->first : VL;
    const int whole = t->count == VL && t->p->neighbours <= VL && t->first + next + VL <= c;
    float *to = t->scratch;
    for (int64_t i = 0; whole && i < pixels; i++, x += bytes, to += reach) {
        store(to, load_as(x, dtype));
        store(to + VL, load_as(x + next * size, dtype));
    }
    for (int64_t i = 0; !whole && i < pixels; i++, x += bytes, to += reach) {
        for (int64_t j = 0; j < direct; j += VL)
            store(to + j, load_some(x + j * size, 1, smaller(VL, direct - j), dtype));
        for (int64_t j = direct; j < wanted; j += VL)
            store(to + j, load_some(x + (j - direct - t->first) * size, 1, smaller(VL, wanted - j), dtype));
    }
}

/* take_pixels for by_channel, where a vector holds the lanes of one pixel. Constants let the compiler unroll. */
INLINE void take_channels(const forward_call *call, int mode, const tile *t, int64_t row, int64_t pixels,
                          const float *within, int64_t neighbours, int64_t count, int dtype)
{
    const plan *p = &call->p;
    const char *x = pixel(call->x, t->sample, t->first, row);
    const int64_t bytes = call->x->stride[3] * size_of(dtype);
    const float *size = mode == DENSITIES ? call->size + row * p->w : NULL;
    const int in_place = dtype == SIA_FLOAT32 && count == VL && t->first + VL + neighbours <= p->c;
    const int64_t reach = in_place ? call->x->stride[3] : VL + neighbours;
    stream s = open_stream(call, mode, 1, t->sample, t->first, row, count);
    const int plain = is_plain(&s, mode);
    for (int64_t from = 0; from < pixels; from += LAID_OUT) {
        const int64_t to = smaller(from + LAID_OUT, pixels);
        const float *channels = in_place ? (const float *)(x + from * bytes) : t->scratch;
        if (!in_place)
            lay_out_channels(t, x + from * bytes, bytes, to - from, reach, dtype);
        for (int64_t i = from; i < to; i++, channels += reach) {
            const vf here = load(channels);
            vf sum = splat(mode == DENSITIES ? 1.0f : 0.0f);
            for (int64_t step = 1; step <= neighbours; step++)
                sum = add_channel(mode, sum, here - load(channels + step), s.exponent);
            if (mode == SQUARES) {
                s.totals[1] += sum;
            } else if (plain) {
                const vf info = information_of(&s, s.half, load(within + i * VL), splat(size[i]), sum);
                store_some(s.info, 1, count, info, dtype);
                s.info += s.info_step;
            } else {
                take(&s, mode, here, load(within + i * VL), size ? splat(size[i]) : here, sum, count, dtype);
            }
        }
    }
    for (int64_t l = 0; l < count; l++) {
        t->sums[l][0] += s.totals[0][l];
        t->sums[l][1] += s.totals[1][l];
    }
}

#endif
