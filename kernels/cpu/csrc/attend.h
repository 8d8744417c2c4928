/* A whole layer at inference: self-information, channel gate and gain in one call. */
#ifndef SIA_ATTEND_H
#define SIA_ATTEND_H

#include "forward.h"
#include "gate.h"

typedef struct {
    const sia_layer *layer;
    const float *mean;
    float *gates, *hidden;
    int64_t channels;
} channel_gate_call;

INLINE float dot(const float *a, const float *b, int64_t count)
{
    vf sum = splat(0);
    int64_t i = 0;
    for (; i + VL <= count; i += VL)
        sum += load(a + i) * load(b + i);
    if (i < count)
        sum += load_first((const char *)(a + i), count - i, SIA_FLOAT32) *
               load_first((const char *)(b + i), count - i, SIA_FLOAT32);
    return sum_of(sum);
}

/* Compute the channel gates of one sample. */
static void channel_gate_task(void *context, int64_t sample)
{
    const channel_gate_call *call = context;
    const sia_layer *layer = call->layer;
    const int64_t c = call->channels;
    const float *mean = call->mean + sample * c;
    float *gates = call->gates + sample * c, *hidden = call->hidden + sample * layer->hidden;
    if (layer->channel == SIA_MEAN) {
        for (int64_t k = 0; k < c; k++)
            gates[k] = 1 + mean[k];
        return;
    }
    for (int64_t j = 0; j < layer->hidden; j++) {
        const float value = dot(layer->first + j * c, mean, c);
        hidden[j] = value < 0 ? 0 : value; /* NaN stays NaN */
    }
    for (int64_t k = 0; k < c; k++)
        gates[k] = dot(layer->second + k * layer->hidden, hidden, layer->hidden);
    for (int64_t k = 0; k < c; k += VL) {
        const int64_t count = smaller(VL, c - k);
        char *place = (char *)(gates + k);
        store_some(place, 1, count, sigmoid(load_some(place, 1, count, SIA_FLOAT32)), SIA_FLOAT32);
    }
}

/* Return y, described as a map. */
INLINE sia_map map_of(const sia_layout *layout, const sia_options *options, void *y)
{
    const int64_t c = layout->channels, pixels = layout->pixels, w = options->size[3];
    if (layout->channels_last)
        return (sia_map){y, {pixels * c, 1, w * c, c}, layout->dtype};
    return (sia_map){y, {pixels * c, pixels, w, 1}, layout->dtype};
}

static int attend(const sia_options *options, const sia_map *x, const sia_layer *layer, void *y)
{
    static const sia_map absent = {0};
    const int64_t *size = options->size, planes = size[0] * size[1];
    const int64_t hidden = layer->channel == SIA_EXCITE ? size[0] * layer->hidden : 0;
    const sia_layout layout = {size[0],  size[1],          size[2] * size[3], layer->channels_last,
                               x->dtype, options->threads, options->level};
    const sia_map gated = map_of(&layout, options, y);
    /* The scale, then means, gates and hidden units. */
    float *scale = malloc((size_t)(4 * planes + hidden) * sizeof *scale);
    if (!scale)
        return SIA_NO_MEMORY;
    float *mean = scale + 2 * planes, *gates = mean + planes;
    int status = forward(options, x, scale, &absent, layer->spatial ? &gated : &absent, layer->channel ? mean : NULL,
                         layer->channel);
    if (status == SIA_OK && layer->channel) {
        channel_gate_call call = {layer, mean, gates, gates + planes, size[1]};
        const int worth_it = planes * layer->hidden > 50000;
        sia_parallel_for(size[0], worth_it ? options->threads : 1, channel_gate_task, &call);
    }
    if (status == SIA_OK && (layer->channel || layer->gain))
        status = gate(&layout, layer->spatial ? y : x->data, NULL, layer->channel ? gates : NULL, layer->gain,
                      layer->base, y);
    free(scale);
    return status;
}

#endif
