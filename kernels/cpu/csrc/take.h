/* What the forward pass does with finished sums of a window: adds the inter-channel term, and sums, stores or gates. */

enum { SUM_SQUARES, SUM_DISTANCES, SUM_PRODUCTS, EMIT };

typedef struct {
    plan p;
    const sia_map *x, *info, *gated, *grad; /* data is NULL where a map is not asked for */
    float *scale;
    double (*sums)[2]; /* two sums for every lane of every sample; what they sum depends on the pass */
    int pass, mode, channel;
    int scale_first; /* every tile holds whole planes and finds their scale before it makes the map */
    atomic_int failed;
} forward_call;

/* What is done with finished values, VL at a time, and where each map's next ones lie. A local copy of what the inner
 * loops need, so that no store through a map's pointer makes the compiler read it again. */
typedef struct {
    int pass, channel;
    int64_t neighbours;
    float weight;
    const char *x, *grad;
    char *info, *gated;
    int64_t x_stride, grad_stride, info_stride, gated_stride; /* between the elements of a vector, in elements */
    int64_t x_step, grad_step, info_step, gated_step;         /* from a vector to the next, in bytes */
    int grad_dtype;
    int half;                         /* the weight is 1/2: the logarithm of both terms' product serves them */
    vf scale, exponent;               /* of the distance form; of the inter-channel densities */
    vf log_one, log_count;            /* log(1), which rounds like any other, and log(S + 1) */
    vf totals[2];
} stream;

INLINE int64_t bytes_to_next(const sia_map *map, int axis)
{
    return map->stride[3] * size_of(map->dtype) * (axis == 3 ? VL : 1);
}

/* A stream along the pixels (axis 3) of a channel's row, or along the channels (axis 1) of its pixels. */
INLINE stream open_stream(const forward_call *call, int mode, int axis, int64_t n, int64_t k, int64_t row, int64_t lanes)
{
    const plan *p = &call->p;
    stream s = {.pass = call->pass, .channel = call->channel, .neighbours = p->neighbours};
    s.weight = p->options->inter_weight;
    s.half = s.weight == 0.5f && p->neighbours > 0;
    s.x = pixel(call->x, n, k, row);
    s.grad = pixel(call->grad, n, k, row);
    s.info = pixel(call->info, n, k, row);
    s.gated = pixel(call->gated, n, k, row);
    s.x_stride = call->x->stride[axis];
    s.grad_stride = call->grad->stride[axis];
    s.info_stride = call->info->stride[axis];
    s.gated_stride = call->gated->stride[axis];
    s.x_step = bytes_to_next(call->x, axis);
    s.grad_step = bytes_to_next(call->grad, axis);
    s.info_step = bytes_to_next(call->info, axis);
    s.gated_step = bytes_to_next(call->gated, axis);
    s.grad_dtype = call->grad->dtype;
    s.log_one = log_positive(splat(1));
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

/* I of the average density within the channel and the sum of those across. */
INLINE vf information_of(const stream *s, vf density, vf across)
{
    if (s->half)
        return 0.5f * at_least_zero(s->log_count - log_positive(density * density * across));
    const vf within = at_least_zero(s->log_one - log_positive(density));
    return s->neighbours ? within + s->weight * at_least_zero(s->log_count - log_positive(across)) : within;
}

/* Combines what came from within the channel and from the following channels, uses it, and moves on. */
INLINE void take(stream *s, int mode, vf x, vf within, vf sum, int64_t count, int dtype)
{
    vf value = within, extra = sum;
    if (mode == DIFFERENCES)
        value = absolute(within) + s->weight * absolute(sum);
    else if (mode == DENSITIES)
        value = information_of(s, within, sum);
    if (mode == DIFFERENCES && s->pass != EMIT) {
        vi finite = value - value == splat(0);
        if (s->pass == SUM_PRODUCTS) {
            value *= load_some(s->grad, s->grad_stride, count, s->grad_dtype);
            s->grad += s->grad_step;
        }
        value = choose(finite, value, splat(0));
        extra = choose(finite, splat(1), splat(0));
    } else if (mode != SQUARES) {
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

/* The part of a lane's row from pixel `from` on, in vectors of `count`; constants let the compiler unroll. */
INLINE void take_run(stream *s, int mode, const int64_t *to_channel, int64_t neighbours, const float *within,
                     int64_t from, int64_t to, int64_t count, int64_t stride, int dtype)
{
    for (int64_t i = from; i < to; i += VL) {
        vf x = load_some(s->x, stride, count, dtype), sum = splat(mode == DENSITIES ? 1.0f : 0.0f);
        for (int64_t step = 0; step < neighbours; step++)
            sum = add_channel(mode, sum, x - load_some(s->x + to_channel[step], stride, count, dtype), s->exponent);
        take(s, mode, x, within ? load(within + i) : splat(0), sum, count, dtype);
        s->x += s->x_step;
    }
}

/* A lane's finished pixels; without values from within the channel those are 0. */
INLINE void take_pixels(const forward_call *call, int mode, const tile *t, int64_t lane, int64_t row, int64_t pixels,
                        const float *within, int dtype)
{
    const plan *p = &call->p;
    const int64_t k = t->plane[lane], s_max = p->neighbours;
    stream s = open_stream(call, mode, 3, t->sample, k, row, 1);
    for (int64_t step = 0; step < s_max; step++)
        t->to_channel[step] = (k + step + 1 < p->c ? step + 1 : step + 1 - p->c) * call->x->stride[1] * size_of(dtype);
    const int64_t whole = s.x_stride == 1 ? pixels / VL * VL : 0;
    if (s_max == 5)
        take_run(&s, mode, t->to_channel, 5, within, 0, whole, VL, 1, dtype);
    else
        take_run(&s, mode, t->to_channel, s_max, within, 0, whole, VL, 1, dtype);
    for (int64_t i = whole; i < pixels; i += VL)
        take_run(&s, mode, t->to_channel, s_max, within, i, i + 1, smaller(VL, pixels - i), s.x_stride, dtype);
    t->sums[lane][0] += sum_of(s.totals[0]);
    t->sums[lane][1] += sum_of(s.totals[1]);
}

/* The same for by_channel: a vector is a pixel's lanes, and each pixel's channels are first laid out with those that
 * follow, cyclically, as floats. */
INLINE void take_channels(const forward_call *call, int mode, const tile *t, int64_t row, int64_t pixels,
                          const float *within, int dtype)
{
    const plan *p = &call->p;
    const int64_t reach = VL + p->neighbours, wanted = t->count + p->neighbours;
    const int64_t direct = smaller(wanted, p->c - t->first), size = size_of(dtype);
    stream s = open_stream(call, mode, 1, t->sample, t->first, row, t->count);
    for (int64_t i = 0; i < pixels; i++) {
        const char *start = s.x + i * s.x_step - t->first * size;
        float *to = t->scratch + i * reach;
        for (int64_t j = 0; j < direct; j += VL)
            store(to + j, load_some(start + (t->first + j) * size, 1, smaller(VL, direct - j), dtype));
        for (int64_t j = direct; j < wanted; j += VL)
            store(to + j, load_some(start + (j - direct) * size, 1, smaller(VL, wanted - j), dtype));
    }
    for (int64_t i = 0; i < pixels; i++) {
        const float *channels = t->scratch + i * reach;
        vf x = load(channels), sum = splat(mode == DENSITIES ? 1.0f : 0.0f);
        for (int64_t step = 1; step <= s.neighbours; step++)
            sum = add_channel(mode, sum, x - load(channels + step), s.exponent);
        take(&s, mode, x, within ? load(within + i * VL) : splat(0), sum, t->count, dtype);
    }
    for (int64_t l = 0; l < t->count; l++) {
        t->sums[l][0] += s.totals[0][l];
        t->sums[l][1] += s.totals[1][l];
    }
}
