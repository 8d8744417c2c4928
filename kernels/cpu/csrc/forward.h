/* Forward pass: the sums behind the scale, then the map and what is asked of it. One task is one tile. */

enum { SUM_SQUARES, SUM_DISTANCES, SUM_PRODUCTS, EMIT };

typedef struct {
    plan p;
    const sia_map *x, *info, *gated, *grad; /* data is NULL where a map is not asked for */
    float *scale;
    double (*sums)[2]; /* two sums for every lane of every sample; what they sum depends on the pass */
    int pass, mode, channel;
    atomic_int failed;
} forward_call;

/* Up to VL neighbouring pixels of a lane, or lanes of a pixel, and where they lie in each map. */
typedef struct {
    const char *x, *grad;
    char *info, *gated;
    int64_t count, axis; /* how many, and along which dimension of the map they lie: 1 or 3 */
    vf scale, exponent;  /* of the distance form; of the inter-channel densities */
} place;

INLINE vf add_channel(int mode, vf sum, vf d, vf exponent)
{
    return sum + (mode == DENSITIES ? exp2_of(d * exponent * d) : mode == SQUARES ? d * d : d);
}

/* Combines what came from within the channel and from the following channels, and uses it. */
INLINE void take(const forward_call *call, int mode, const place *at, vf x, vf within, vf sum, vf totals[2])
{
    const sia_options *options = call->p.options;
    if (mode == SQUARES) {
        totals[0] += keep_first(within, at->count);
        totals[1] += keep_first(sum, at->count);
        return;
    }
    vf value = within;
    if (mode == DIFFERENCES)
        value = absolute(within) + options->inter_weight * absolute(sum);
    else if (call->p.neighbours)
        value += options->inter_weight * at_least_zero(log_positive(splat((float)(call->p.neighbours + 1))) - log_positive(sum));
    if (call->pass != EMIT) {
        vi finite = value - value == splat(0);
        vf grad = splat(1);
        if (call->pass == SUM_PRODUCTS)
            grad = load_some(at->grad, call->grad->stride[at->axis], at->count, call->grad->dtype);
        totals[0] += keep_first(choose(finite, value * grad, splat(0)), at->count);
        totals[1] += keep_first(choose(finite, splat(1), splat(0)), at->count);
        return;
    }
    if (mode == DIFFERENCES)
        value *= at->scale;
    if (at->info)
        store_some(at->info, call->info->stride[at->axis], at->count, value, call->info->dtype);
    if (at->gated)
        store_some(at->gated, call->gated->stride[at->axis], at->count, x * (1.0f + sigmoid(value)), call->gated->dtype);
    if (call->channel == SIA_MEAN)
        value = -log_positive(exp_minus(value) + 0.1f);
    if (call->channel != SIA_NO_MEAN)
        totals[0] += keep_first(value, at->count);
}

/* A lane's finished pixels, which follow each other in memory `stride[3]` apart. */
INLINE void take_pixels(const forward_call *call, int mode, const tile *t, int64_t lane, int64_t row, int64_t pixels,
                        const float *within, int dtype)
{
    const plan *p = &call->p;
    const int64_t k = t->plane[lane], planes = p->n * p->c, index = t->sample * p->c + k;
    const int64_t size = size_of(dtype), stride = call->x->stride[3];
    place at = {.axis = 3, .scale = splat(0), .exponent = splat(0)};
    if (mode == DENSITIES)
        at.exponent = splat(-call->scale[planes + index] * LOG2_E);
    else if (call->pass == EMIT)
        at.scale = splat(call->scale[t->sample]);
    vf totals[2] = {{0}, {0}};
    for (int64_t i = 0; i < pixels; i += VL) {
        at.count = smaller(VL, pixels - i);
        at.x = column(call->x, pixel(call->x, t->sample, k, row), i);
        at.info = column(call->info, pixel(call->info, t->sample, k, row), i);
        at.gated = column(call->gated, pixel(call->gated, t->sample, k, row), i);
        at.grad = column(call->grad, pixel(call->grad, t->sample, k, row), i);
        vf x = load_some(at.x, stride, at.count, dtype), sum = splat(mode == DENSITIES ? 1.0f : 0.0f);
        for (int64_t s = 1; s <= p->neighbours; s++) {
            int64_t skip = (k + s < p->c ? s : s - p->c) * call->x->stride[1] * size;
            sum = add_channel(mode, sum, x - load_some(at.x + skip, stride, at.count, dtype), at.exponent);
        }
        take(call, mode, &at, x, load(within + i), sum, totals);
    }
    t->sums[lane][0] += sum_of(totals[0]);
    t->sums[lane][1] += sum_of(totals[1]);
}

/* The same for by_channel: a vector is a pixel's lanes, and each pixel's channels are first laid out with those that
 * follow, cyclically, as floats. */
INLINE void take_channels(const forward_call *call, int mode, const tile *t, int64_t row, int64_t pixels,
                          const float *within, int dtype)
{
    const plan *p = &call->p;
    const int64_t index = t->sample * p->c + t->first, planes = p->n * p->c, reach = VL + p->neighbours;
    const int64_t size = size_of(dtype), step = call->x->stride[3] * size, direct = smaller(t->count + p->neighbours, p->c - t->first);
    for (int64_t i = 0; i < pixels; i++) {
        const char *from = pixel(call->x, t->sample, 0, row) + i * step;
        float *to = t->scratch + i * reach;
        for (int64_t j = 0; j < direct; j += VL)
            store(to + j, load_some(from + (t->first + j) * size, 1, smaller(VL, direct - j), dtype));
        for (int64_t j = direct; j < t->count + p->neighbours; j++)
            to[j] = load_some(from + (j - direct) * size, 1, 1, dtype)[0];
    }
    place at = {.axis = 1, .count = t->count, .scale = splat(0), .exponent = splat(0)};
    if (mode == DENSITIES)
        at.exponent = load_some((const char *)(call->scale + planes + index), 1, t->count, SIA_FLOAT32) * -LOG2_E;
    else if (call->pass == EMIT)
        at.scale = splat(call->scale[t->sample]);
    vf totals[2] = {{0}, {0}};
    for (int64_t i = 0; i < pixels; i++) {
        const float *channels = t->scratch + i * reach;
        at.info = column(call->info, pixel(call->info, t->sample, t->first, row), i);
        at.gated = column(call->gated, pixel(call->gated, t->sample, t->first, row), i);
        at.grad = column(call->grad, pixel(call->grad, t->sample, t->first, row), i);
        vf x = load(channels), sum = splat(mode == DENSITIES ? 1.0f : 0.0f);
        for (int64_t s = 1; s <= p->neighbours; s++)
            sum = add_channel(mode, sum, x - load(channels + s), at.exponent);
        take(call, mode, &at, x, load(within + i * VL), sum, totals);
    }
    for (int64_t l = 0; l < t->count; l++) {
        t->sums[l][0] += totals[0][l];
        t->sums[l][1] += totals[1][l];
    }
}

/* Pixels of the window that count, of every lane's pixel in this row and column. */
INLINE vf window_size(const tile *t, int64_t row, int64_t column)
{
    const plan *p = t->p;
    float size[VL];
    int64_t across = smaller(column + p->radius, p->w - 1) - larger(column - p->radius, 0) + 1;
    for (int l = 0; l < VL; l++) {
        int64_t at = smaller(t->start[l] + row - p->halo, p->h - 1);
        int64_t down = smaller(at + p->radius, p->h - 1) - larger(at - p->radius, 0) + 1;
        size[l] = (float)(down * across);
    }
    return load(size);
}

/* Turns a row's sums of densities into I_intra. */
INLINE void densities_to_information(const tile *t, int64_t row)
{
    const plan *p = t->p;
    const float full = (float)(p->options->kernel_size * p->options->kernel_size);
    const vf log_full = log_positive(splat(full));
    const int excluding = p->options->padding_mode == SIA_EXCLUDE;
    float *e = t->e + ring_offset(t, row) + p->pad * VL;
    int inside = 1;
    for (int l = 0; l < t->count; l++) {
        int64_t at = t->start[l] + row - p->halo;
        inside &= at >= p->radius && at < p->h - p->radius;
    }
    for (int64_t j = 0; j < p->w; j++) {
        vf log_size = log_full;
        if (excluding && !(inside && j >= p->radius && j < p->w - p->radius))
            log_size = log_positive(window_size(t, row, j));
        store(e + j * VL, at_least_zero(log_size - log_positive(load(e + j * VL))));
    }
}

/* Whether the squares within channels are summed at once, and the tile's sums per pixel stay 0. */
INLINE int sums_alone(const plan *p, int mode) { return mode == SQUARES && p->halo == 0; }

/* Hands on rows from .. to - 1 of the tile, whose sums are complete. */
INLINE void finish_rows(const forward_call *call, int mode, tile *t, int64_t from, int64_t to, int dtype)
{
    const plan *p = &call->p;
    const int at_once = p->halo == 0 && is_flat(call->x, p->w) && is_flat(call->info, p->w) &&
                        is_flat(call->gated, p->w) && is_flat(call->grad, p->w);
    for (int64_t row = from; mode == DENSITIES && row < to; row++)
        densities_to_information(t, row);
    for (int64_t row = from; row < to; row = at_once ? to : row + 1) {
        const int64_t pixels = at_once ? (to - row) * p->w : p->w, length = p->chunk * p->width + VL;
        const float *within = t->e + ring_offset(t, row) + p->pad * VL;
        if (p->by_channel) {
            take_channels(call, mode, t, row - p->halo, pixels, within, dtype);
            continue;
        }
        if (!sums_alone(p, mode))
            lanes_to_rows(t->scratch, length, within, pixels);
        for (int64_t l = 0; l < t->count; l++)
            if (t->start[l] + row - p->halo < p->h)
                take_pixels(call, mode, t, l, t->start[l] + row - p->halo, pixels, sums_alone(p, mode) ? within : t->scratch + l * length, dtype);
    }
}

INLINE void clear_rows(const tile *t, int64_t from, int64_t to, float value)
{
    if (from >= to)
        return;
    float *e = t->e + ring_offset(t, from);
    for (int64_t i = 0; i < (to - from) * t->p->width; i++)
        store(e + i * VL, splat(value));
}

INLINE void set_exponents(tile *t, const float *scale)
{
    for (int64_t l = 0; l < VL; l++)
        t->exponent[l] = l < t->count ? -scale[t->sample * t->p->c + t->plane[l]] * LOG2_E : 0;
}

INLINE void run_tile(const forward_call *call, int mode, tile *t, int dtype)
{
    const plan *p = &call->p;
    int64_t loaded = 0;
    if (mode == DENSITIES)
        set_exponents(t, call->scale);
    for (int64_t from = 0; from < p->rows; from += p->chunk) {
        const int64_t to = smaller(from + p->chunk, p->rows), ahead = smaller(to + p->chunk, p->rows);
        while (loaded < ahead) {
            const int64_t end = smaller(loaded + p->chunk, p->rows);
            load_rows(t, call->x, loaded, end, dtype);
            clear_rows(t, loaded, end, mode == DENSITIES ? 1.0f : 0.0f);
            loaded = end;
        }
        vf squares = splat(0);
        for (int64_t row = from; row < smaller(to, p->halo + p->strip_rows); row++)
            if (sums_alone(p, mode))
                squares += sum_squares(t, row);
            else
                visit(mode, t, row);
        for (int64_t l = 0; l < t->count; l++)
            t->sums[l][0] += 2 * squares[l];
        finish_rows(call, mode, t, larger(from, p->halo), smaller(to, p->halo + p->strip_rows), dtype);
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
#define RUN(dtype)                                                                                                     \
    if (call->mode == SQUARES)                                                                                         \
        run_tile(call, SQUARES, &t, dtype);                                                                            \
    else if (call->mode == DENSITIES)                                                                                  \
        run_tile(call, DENSITIES, &t, dtype);                                                                          \
    else                                                                                                               \
        run_tile(call, DIFFERENCES, &t, dtype);
    if (call->x->dtype == SIA_FLOAT32) {
        RUN(SIA_FLOAT32)
    } else if (call->x->dtype == SIA_BFLOAT16) {
        RUN(SIA_BFLOAT16)
    } else {
        RUN(SIA_FLOAT16)
    }
#undef RUN
    free(t.memory);
}

static void run_pass(forward_call *call, int pass, int mode)
{
    call->pass = pass;
    call->mode = mode;
    memset(call->sums, 0, (size_t)(call->p.n * call->p.lanes) * sizeof *call->sums);
    sia_parallel_for(call->p.n * call->p.groups, useful_threads(&call->p), forward_task, call);
}

/* One of a plane's two sums, its strips added up. */
INLINE double plane_sum(const forward_call *call, int64_t plane, int which)
{
    double total = 0;
    for (int64_t strip = 0; strip < call->p.strips; strip++)
        total += call->sums[plane * call->p.strips + strip][which];
    return total;
}

/* 1 / (2 b^2 spread), and 0 where the spread is 0. */
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

/* Mean of a plane's finite squared differences, pixel by pixel: for planes where the quick sum is not finite. */
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

/* Pairs of neighbouring positions along an axis, each counted from both ends, with every position's pair with itself. */
INLINE double pairs_along(int64_t size, int64_t radius)
{
    double pairs = 0;
    for (int64_t shift = -radius; shift <= radius; shift++)
        pairs += (double)larger(0, size - (shift < 0 ? -shift : shift));
    return pairs;
}

static void find_scales(forward_call *call)
{
    const plan *p = &call->p;
    const sia_options *options = p->options;
    const int64_t planes = p->n * p->c;
    const double pixels = (double)p->h * (double)p->w, k = options->kernel_size;
    double pairs = pixels * (k * k - 1);
    if (options->padding_mode == SIA_EXCLUDE)
        pairs = pairs_along(p->h, p->radius) * pairs_along(p->w, p->radius) - pixels;
    run_pass(call, SUM_SQUARES, SQUARES);
    for (int64_t i = 0; i < planes; i++)
        for (int across = 0; across < 2; across++) {
            const double count = across ? pixels * (double)p->neighbours : pairs;
            double mean = count > 0 ? plane_sum(call, i, across) / count : 0;
            if (mean - mean != 0)
                mean = careful_mean_square(call, i / p->c, i % p->c, across);
            call->scale[across * planes + i] = scale_of(options, mean);
        }
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
                         const sia_map *gated, float *mean, int channel)
{
    static const sia_map absent = {0};
    forward_call call = {.p = make_plan(options, x, 0), .x = x, .info = info, .gated = gated, .grad = &absent};
    const plan *p = &call.p;
    const int64_t scales = options->estimator == SIA_KDE ? 2 * p->n * p->c : p->n;
    call.scale = scale;
    call.channel = channel;
    call.sums = malloc((size_t)(p->n * p->lanes) * sizeof *call.sums);
    if (!call.sums)
        return SIA_NO_MEMORY;
    if (!options->adaptive)
        for (int64_t i = 0; i < scales; i++)
            scale[i] = options->fixed_scale;
    else if (options->estimator == SIA_KDE)
        find_scales(&call);
    else
        find_distance_scales(&call);
    run_pass(&call, EMIT, options->estimator == SIA_KDE ? DENSITIES : DIFFERENCES);
    for (int64_t i = 0; mean && i < p->n * p->c; i++)
        mean[i] = (float)(plane_sum(&call, i, 0) / ((double)p->h * (double)p->w));
    free(call.sums);
    return atomic_load(&call.failed) ? SIA_NO_MEMORY : SIA_OK;
}
