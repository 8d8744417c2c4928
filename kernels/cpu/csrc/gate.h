/* Channel means and gates. A task walks along the pixels of one channel of a contiguous sample, or pixel by pixel
 * through VL channels of a channels_last one. Either way, no sum is shared between tasks. */
#ifndef SIA_GATE_H
#define SIA_GATE_H

#include "tile.h"

typedef struct {
    const sia_layout *layout;
    const void *x, *info, *base, *grad;
    void *y, *grad_x, *grad_info, *grad_base;
    const float *channel_gate, *gain, *grad_mean;
    float *mean, *grad_channel_gate, *grad_gain;
    int channel;
} gate_call;

typedef struct {
    int64_t first, step, steps; /* elements before the first vector and between vectors; number of vectors */
    int64_t last;               /* elements of the last vector; every other one has `some` */
    int64_t some;
    int64_t plane, planes; /* index of the first plane, n C + k, and number of planes in a vector: 1, or VL */
} walk;

INLINE int64_t walks(const sia_layout *layout)
{
    return layout->samples * (layout->channels_last ? divide_up(layout->channels, VL) : layout->channels);
}

INLINE walk make_walk(const sia_layout *layout, int64_t index)
{
    const int64_t c = layout->channels, pixels = layout->pixels;
    if (!layout->channels_last)
        return (walk){index * pixels, VL, divide_up(pixels, VL), (pixels - 1) % VL + 1, VL, index, 1};
    const int64_t blocks = divide_up(c, VL), n = index / blocks, k = index % blocks * VL, some = smaller(VL, c - k);
    return (walk){n * c * pixels + k, c, pixels, some, some, n * c + k, some};
}

INLINE int64_t elements(const walk *w, int64_t step) { return step == w->steps - 1 ? w->last : w->some; }

INLINE vf fetch(const void *map, const walk *w, int64_t step, int dtype)
{
    return load_some((const char *)map + (w->first + step * w->step) * size_of(dtype), 1, elements(w, step), dtype);
}

INLINE void put(void *map, const walk *w, int64_t step, vf value, int dtype)
{
    store_some((char *)map + (w->first + step * w->step) * size_of(dtype), 1, elements(w, step), value, dtype);
}

/* Load, or store, one value per plane of the walk. */
INLINE vf of_planes(const float *values, const walk *w)
{
    return w->planes == 1 && w->step == VL ? splat(values[w->plane])
                                           : load_some((const char *)(values + w->plane), 1, w->planes, SIA_FLOAT32);
}

INLINE void to_planes(float *values, const walk *w, const double sums[VL], double factor)
{
    double total = 0;
    for (int64_t l = 0; l < VL; l++)
        total += sums[l];
    for (int64_t l = 0; l < w->planes; l++)
        values[w->plane + l] = (float)(factor * (w->planes == 1 ? total : sums[l]));
}

/* Flush a float sum of up to FLUSH steps into a double. */
enum { FLUSH = 256 };

INLINE void flush(double sums[VL], vf *sum, int64_t step, int64_t steps)
{
    if (step % FLUSH != FLUSH - 1 && step != steps - 1)
        return;
    for (int64_t l = 0; l < VL; l++)
        sums[l] += (*sum)[l];
    *sum = splat(0);
}

INLINE void run_channel_mean(const gate_call *call, const walk *w, int dtype)
{
    double sums[VL] = {0};
    vf sum = splat(0);
    for (int64_t i = 0; i < w->steps; i++) {
        vf value = fetch(call->info, w, i, dtype);
        if (call->channel == SIA_MEAN)
            value = -log_positive(exp_minus(value) + 0.1f);
        sum += keep_first(value, elements(w, i));
        flush(sums, &sum, i, w->steps);
    }
    to_planes(call->mean, w, sums, 1.0 / (double)call->layout->pixels);
}

INLINE void run_channel_mean_backward(const gate_call *call, const walk *w, int dtype)
{
    const vf grad = of_planes(call->grad_mean, w) / (float)call->layout->pixels;
    for (int64_t i = 0; i < w->steps; i++) {
        vf factor = splat(1);
        if (call->channel == SIA_MEAN) {
            vf density = exp_minus(fetch(call->info, w, i, dtype));
            factor = density / (density + 0.1f);
        }
        put(call->grad_info, w, i, grad * factor, dtype);
    }
}

INLINE void run_gate(const gate_call *call, const walk *w, int dtype)
{
    const vf channel_gate = call->channel_gate ? of_planes(call->channel_gate, w) : splat(1);
    for (int64_t i = 0; i < w->steps; i++) {
        vf x = fetch(call->x, w, i, dtype), y = x * channel_gate;
        if (call->info)
            y *= 1.0f + sigmoid(fetch(call->info, w, i, dtype));
        if (call->gain) {
            vf base = call->base ? fetch(call->base, w, i, dtype) : x;
            y = base + *call->gain * (y - base);
        }
        put(call->y, w, i, y, dtype);
    }
}

INLINE void run_gate_backward(const gate_call *call, const walk *w, int dtype)
{
    const vf channel_gate = call->channel_gate ? of_planes(call->channel_gate, w) : splat(1);
    const float gain = call->gain ? *call->gain : 1;
    double gate_sums[VL] = {0}, gain_sums[VL] = {0};
    vf gate_sum = splat(0), gain_sum = splat(0);
    for (int64_t i = 0; i < w->steps; i++) {
        const vf grad = fetch(call->grad, w, i, dtype), x = fetch(call->x, w, i, dtype), grad_gated = gain * grad;
        const vf bell = call->info ? sigmoid(fetch(call->info, w, i, dtype)) : splat(0);
        const vf spatial = call->info ? 1.0f + bell : splat(1), base = call->base ? fetch(call->base, w, i, dtype) : x;
        vf grad_x = grad_gated * spatial * channel_gate;
        if (call->gain && !call->base)
            grad_x += (1 - gain) * grad;
        put(call->grad_x, w, i, grad_x, dtype);
        if (call->grad_info)
            put(call->grad_info, w, i, grad_gated * x * channel_gate * bell * (1.0f - bell), dtype);
        if (call->grad_base)
            put(call->grad_base, w, i, (1 - gain) * grad, dtype);
        gate_sum += keep_first(grad_gated * x * spatial, elements(w, i));
        gain_sum += keep_first(grad * (x * spatial * channel_gate - base), elements(w, i));
        flush(gate_sums, &gate_sum, i, w->steps);
        flush(gain_sums, &gain_sum, i, w->steps);
    }
    if (call->grad_channel_gate)
        to_planes(call->grad_channel_gate, w, gate_sums, 1);
    if (call->grad_gain)
        to_planes(call->grad_gain, w, gain_sums, 1);
}

#define TASK(name)                                        \
    static void name##_task(void *context, int64_t index) \
    {                                                     \
        const gate_call *call = context;                  \
        const walk w = make_walk(call->layout, index);    \
        if (call->layout->dtype == SIA_FLOAT32)           \
            run_##name(call, &w, SIA_FLOAT32);            \
        else if (call->layout->dtype == SIA_BFLOAT16)     \
            run_##name(call, &w, SIA_BFLOAT16);           \
        else                                              \
            run_##name(call, &w, SIA_FLOAT16);            \
    }
TASK(channel_mean)
TASK(channel_mean_backward)
TASK(gate)
TASK(gate_backward)
#undef TASK

static int run_walks(gate_call *call, sia_task task)
{
    const sia_layout *layout = call->layout;
    const double work = (double)(layout->samples * layout->channels) * (double)layout->pixels / 50e3;
    sia_parallel_for(walks(layout), work < layout->threads ? (int)work + 1 : layout->threads, task, call);
    return SIA_OK;
}

static int channel_mean(const sia_layout *layout, const void *info, float *mean, int32_t channel)
{
    gate_call call = {.layout = layout, .info = info, .mean = mean, .channel = channel};
    return run_walks(&call, channel_mean_task);
}

static int channel_mean_backward(const sia_layout *layout, const float *grad, const void *info, void *grad_info,
                                 int32_t channel)
{
    gate_call call = {.layout = layout, .grad_mean = grad, .info = info, .grad_info = grad_info, .channel = channel};
    return run_walks(&call, channel_mean_backward_task);
}

static int gate(const sia_layout *layout, const void *x, const void *info, const float *channel_gate, const float *gain,
                const void *base, void *y)
{
    gate_call call = {
        .layout = layout, .x = x, .info = info, .channel_gate = channel_gate, .gain = gain, .base = base, .y = y};
    return run_walks(&call, gate_task);
}

static int gate_backward(const sia_layout *layout, const void *grad, const void *x, const void *info,
                         const float *channel_gate, const float *gain, const void *base, void *grad_x, void *grad_info,
                         float *grad_channel_gate, float *grad_gain, void *grad_base)
{
    gate_call call = {.layout = layout,
                      .grad = grad,
                      .x = x,
                      .info = info,
                      .channel_gate = channel_gate,
                      .gain = gain,
                      .base = base,
                      .grad_x = grad_x,
                      .grad_info = grad_info,
                      .grad_channel_gate = grad_channel_gate,
                      .grad_gain = grad_gain,
                      .grad_base = grad_base};
    return run_walks(&call, gate_backward_task);
}

#endif
