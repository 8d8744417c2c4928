/* Call every exported kernel on random sizes, strides, dtypes, options, instruction sets and thread counts.
 *
 * Buffers come from malloc and have exactly the bytes that a map spans, so that a sanitizer detects any access outside
 * them. It also fills new memory with 0xff, a NaN in every dtype, which exposes elements that are never written. The
 * kernels' own memory comes from here as well: allocations are counted, and some of them fail.
 *
 * Usage: sanitize_driver SEED ROUNDS; on failure it prints a line to stderr and exits with code 1. */

#include "sia_cpu.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;
static atomic_int held, calls_until_refusal;
static char about[256]; /* the current call */

static uint64_t draw(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 16) % below;
}

static int64_t between(int64_t least, int64_t most) { return least + (int64_t)draw((uint64_t)(most - least + 1)); }

/* AddressSanitizer calls this before it reports. */
void __asan_on_error(void);
void __asan_on_error(void) { fprintf(stderr, "%s:\n", about); }

static void complain(const char *what)
{
    fprintf(stderr, "%s: %s\n", about, what);
    exit(1);
}

/* The kernels call these instead of malloc, calloc and free. */
static void *counted(void *memory)
{
    if (memory)
        atomic_fetch_add(&held, 1);
    return memory;
}

static int refused(void) { return atomic_fetch_sub(&calls_until_refusal, 1) == 1; }

void *tested_malloc(size_t size) { return refused() ? NULL : counted(malloc(size)); }

void *tested_calloc(size_t count, size_t size) { return refused() ? NULL : counted(calloc(count, size)); }

void tested_free(void *memory)
{
    if (memory)
        atomic_fetch_sub(&held, 1);
    free(memory);
}

static size_t size_of(int dtype) { return dtype == SIA_FLOAT32 ? 4 : 2; }

static float value_at(const void *data, int64_t index, int dtype)
{
    if (dtype == SIA_FLOAT32)
        return ((const float *)data)[index];
    uint16_t bits = ((const uint16_t *)data)[index];
    if (dtype == SIA_BFLOAT16) {
        uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31)
        return mantissa ? NAN : INFINITY;
    return ldexpf((float)(exponent ? mantissa | 1024 : mantissa), (exponent ? exponent : 1) - 25);
}

/* Values of magnitude 1/8 to 2, and rarely a special one, such as NaN or infinity. */
static void fill(void *data, int64_t count, int dtype, int wild)
{
    static const uint16_t least[] = {0, 0x3e00, 0x3000}, range[] = {0, 0x0200, 0x1000};
    static const uint32_t strange[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 0x00000001};
    for (int64_t i = 0; i < count; i++) {
        if (dtype == SIA_FLOAT32) {
            float value = (float)draw(4096) / 1024 - 2;
            if (wild && draw(16) == 0)
                memcpy(&value, &strange[draw(5)], sizeof value);
            ((float *)data)[i] = value;
        } else {
            uint16_t bits = (uint16_t)(least[dtype] + draw(range[dtype]) + 0x8000 * draw(2));
            ((uint16_t *)data)[i] = wild && draw(16) == 0 ? (uint16_t)draw(65536) : bits;
        }
    }
}

static void *floats(int64_t count, int fresh)
{
    float *data = malloc((size_t)count * sizeof *data);
    if (fresh)
        return data;
    fill(data, count, SIA_FLOAT32, 0);
    return data;
}

enum { CONTIGUOUS, CHANNELS_LAST, TRANSPOSED, STEPPED, STEPPED_CHANNELS_LAST, EXPANDED, LAYOUTS };

static sia_map new_map(const int64_t size[4], int layout, int dtype)
{
    static const int orders[LAYOUTS][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}, {2, 3, 1, 0},
                                           {3, 2, 1, 0}, {1, 3, 2, 0}, {3, 2, 1, 0}};
    const int expanded = layout == EXPANDED ? (int)draw(4) : -1;
    sia_map map = {.dtype = dtype};
    int64_t step = layout == STEPPED ? between(1, 3) : 1, span = 1;
    for (int i = 0; i < 4; i++) {
        const int axis = orders[layout][i];
        map.stride[axis] = axis == expanded ? 0 : step;
        span += map.stride[axis] * (size[axis] - 1);
        if (axis != expanded)
            step = step * size[axis] + (layout == STEPPED || layout == STEPPED_CHANNELS_LAST ? between(0, 3) : 0);
    }
    map.data = malloc((size_t)span * size_of(dtype));
    return map;
}

static sia_map input(const int64_t size[4], int dtype, int wild)
{
    sia_map map = new_map(size, (int)draw(LAYOUTS), dtype);
    int64_t span = 1;
    for (int i = 0; i < 4; i++)
        span += map.stride[i] * (size[i] - 1);
    fill(map.data, span, dtype, wild);
    return map;
}

/* Check that every value of a map that the kernels wrote is finite; such a map has no gaps. */
static void check(const void *data, int64_t count, int dtype, int wild, const char *name)
{
    for (int64_t i = 0; data && !wild && i < count; i++)
        if (!isfinite(value_at(data, i, dtype)))
            complain(name);
}

static void finish(int status, int may_fail)
{
    if (status != SIA_OK && !(may_fail && status == SIA_NO_MEMORY))
        complain("failed");
    if (atomic_load(&held))
        complain("memory was not freed");
}

static void run_self_information(const int64_t size[4], int dtype, int threads, int level, int wild, int failing)
{
    const int distance = draw(2) == 1, layout = draw(2) ? CONTIGUOUS : CHANNELS_LAST, channel = (int)draw(3);
    const int64_t count = size[0] * size[1] * size[2] * size[3], planes = size[0] * size[1];
    sia_options options = {.kernel_size = 2 * (int32_t)draw(6) + 1,
                           .padding_mode = (int32_t)draw(4),
                           .estimator = distance ? SIA_DISTANCE : SIA_KDE,
                           .adaptive = (int32_t)draw(2),
                           .inter_weight = 0.5f,
                           .fixed_scale = 0.5f,
                           .square_bandwidth = 1,
                           .threads = threads,
                           .level = level};
    memcpy(options.size, size, sizeof options.size);
    options.inter_channels = (int32_t)between(0, size[1] - 1 < 7 ? size[1] - 1 : 7);
    while (options.padding_mode == SIA_REFLECT &&
           (options.kernel_size / 2 >= size[2] || options.kernel_size / 2 >= size[3]))
        options.kernel_size -= 2;

    sia_map x = input(size, dtype, wild), grad = input(size, dtype, wild), absent = {0};
    sia_map info = draw(4) ? new_map(size, layout, dtype) : absent,
            gated = draw(2) ? new_map(size, layout, dtype) : absent;
    sia_map grad_x = new_map(size, layout, SIA_FLOAT32);
    const int64_t scales = distance ? size[0] : 2 * planes;
    float *scale = floats(scales, 1), *mean = channel ? floats(planes, 1) : NULL, *before = floats(scales, 1);
    snprintf(about, sizeof about,
             "self-information of %d x %d x %d x %d, dtype %d, strides %d %d %d %d, gradient's %d %d %d %d, K %d, "
             "padding %d, estimator %d, adaptive %d, S %d, threads %d, level %d",
             (int)size[0], (int)size[1], (int)size[2], (int)size[3], dtype, (int)x.stride[0], (int)x.stride[1],
             (int)x.stride[2], (int)x.stride[3], (int)grad.stride[0], (int)grad.stride[1], (int)grad.stride[2],
             (int)grad.stride[3], options.kernel_size, options.padding_mode, options.estimator, options.adaptive,
             options.inter_channels, threads, level);

    atomic_store(&calls_until_refusal, failing ? (int)between(1, 4) : 0);
    int status = sia_forward(&options, &x, scale, &info, &gated, mean, channel);
    finish(status, failing);
    if (status == SIA_OK) {
        check(scale, scales, SIA_FLOAT32, wild, "the scale was not written, or is no number");
        check(info.data, count, dtype, wild, "I was not written, or is no number");
        check(gated.data, count, dtype, wild, "the gated map was not written, or is no number");
        check(mean, planes, SIA_FLOAT32, wild, "the mean was not written, or is no number");
        memcpy(before, scale, (size_t)scales * sizeof *scale);
        atomic_store(&calls_until_refusal, failing ? (int)between(1, 4) : 0);
        status = sia_backward(&options, &grad, &x, scale, &grad_x);
        finish(status, failing);
        if (status == SIA_OK)
            check(grad_x.data, count, SIA_FLOAT32, wild, "the gradient was not written, or is no number");
        if (memcmp(before, scale, (size_t)scales * sizeof *scale))
            complain("the backward pass wrote to the scale");
    }
    void *all[] = {x.data, grad.data, info.data, gated.data, grad_x.data, scale, mean, before};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void *dense(int64_t count, int dtype, int fresh, int wild)
{
    void *data = malloc((size_t)count * size_of(dtype));
    if (!fresh)
        fill(data, count, dtype, wild);
    return data;
}

static void run_gates(const int64_t size[4], int dtype, int threads, int level, int wild)
{
    const int64_t planes = size[0] * size[1], count = planes * size[2] * size[3];
    const sia_layout layout = {size[0], size[1], size[2] * size[3], (int32_t)draw(2), dtype, threads, level};
    const int channel = draw(2) ? SIA_EXCITE : SIA_MEAN, spatial = draw(2) == 1;
    snprintf(about, sizeof about, "gates of %d x %d x %d, dtype %d, channels last %d, threads %d, level %d",
             (int)size[0], (int)size[1], (int)layout.pixels, dtype, layout.channels_last, threads, level);
    void *x = dense(count, dtype, 0, wild), *info = spatial ? dense(count, dtype, 0, wild) : NULL;
    void *grad = dense(count, dtype, 0, wild), *base = draw(2) ? dense(count, dtype, 0, wild) : NULL;
    void *y = dense(count, dtype, 1, 0), *grad_x = dense(count, dtype, 1, 0),
         *grad_mean_info = dense(count, dtype, 1, 0);
    float *channel_gate = draw(2) ? floats(planes, 0) : NULL, *gain = draw(2) ? floats(1, 0) : NULL;
    float *mean = floats(planes, 1), *grad_mean = floats(planes, 0);
    void *grad_info = spatial && draw(2) ? dense(count, dtype, 1, 0) : NULL;
    float *grad_gate = channel_gate ? floats(planes, 1) : NULL, *grad_gain = gain ? floats(planes, 1) : NULL;
    void *grad_base = gain && base ? dense(count, dtype, 1, 0) : NULL;

    finish(sia_channel_mean(&layout, x, mean, channel), 0);
    check(mean, planes, SIA_FLOAT32, wild, "the mean was not written, or is no number");
    finish(sia_channel_mean_backward(&layout, grad_mean, x, grad_mean_info, channel), 0);
    check(grad_mean_info, count, dtype, wild, "the mean's gradient was not written, or is no number");
    finish(sia_gate(&layout, x, info, channel_gate, gain, base, y), 0);
    check(y, count, dtype, wild, "the gated map was not written, or is no number");
    finish(sia_gate_backward(&layout, grad, x, info, channel_gate, gain, base, grad_x, grad_info, grad_gate, grad_gain,
                             grad_base),
           0);
    check(grad_x, count, dtype, wild, "the gradient of x was not written, or is no number");
    check(grad_info, count, dtype, wild, "the gradient of I was not written, or is no number");
    check(grad_gate, planes, SIA_FLOAT32, wild, "the channel gate's gradient was not written, or is no number");
    check(grad_gain, planes, SIA_FLOAT32, wild, "the gain's gradient was not written, or is no number");
    check(grad_base, count, dtype, wild, "the gradient of the base was not written, or is no number");
    void *all[] = {x,    info, grad,      base,      y,         grad_x,    grad_mean_info, channel_gate,
                   gain, mean, grad_mean, grad_info, grad_gate, grad_gain, grad_base};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void run_layer(const int64_t size[4], int dtype, int threads, int level, int wild, int failing)
{
    const int64_t planes = size[0] * size[1], count = planes * size[2] * size[3], hidden = between(1, 20);
    const int distance = draw(2) == 1;
    sia_options options = {.kernel_size = 2 * (int32_t)draw(3) + 1,
                           .padding_mode = SIA_EXCLUDE,
                           .estimator = distance ? SIA_DISTANCE : SIA_KDE,
                           .adaptive = 1,
                           .inter_channels = (int32_t)between(0, size[1] - 1 < 5 ? size[1] - 1 : 5),
                           .inter_weight = 0.5f,
                           .fixed_scale = 0.5f,
                           .square_bandwidth = 1,
                           .threads = threads,
                           .level = level};
    memcpy(options.size, size, sizeof options.size);
    sia_layer layer = {
        .hidden = hidden, .spatial = (int32_t)draw(2), .channel = (int32_t)draw(3), .channels_last = (int32_t)draw(2)};
    const int format = layer.channels_last ? CHANNELS_LAST : CONTIGUOUS;
    sia_map x = layer.spatial ? input(size, dtype, wild) : new_map(size, format, dtype);
    if (!layer.spatial)
        fill(x.data, count, dtype, wild);
    float *first = floats(hidden * size[1], 0), *second = floats(hidden * size[1], 0),
          *gain = draw(2) ? floats(1, 0) : NULL;
    void *base = gain ? dense(count, dtype, 0, wild) : NULL, *y = dense(count, dtype, 1, 0);
    if (layer.channel == SIA_EXCITE)
        layer.first = first, layer.second = second;
    layer.gain = gain, layer.base = base;
    snprintf(about, sizeof about,
             "layer of %d x %d x %d x %d, dtype %d, hidden %d, spatial %d, channel %d, channels last %d, gain %d, "
             "threads %d, "
             "level %d",
             (int)size[0], (int)size[1], (int)size[2], (int)size[3], dtype, (int)hidden, layer.spatial, layer.channel,
             layer.channels_last, gain != NULL, threads, level);
    atomic_store(&calls_until_refusal, failing ? (int)between(1, 5) : 0);
    const int status = sia_attend(&options, &x, &layer, y);
    finish(status, failing);
    if (status == SIA_OK && (layer.spatial || layer.channel || gain))
        check(y, count, dtype, wild, "the map was not written, or is no number");
    void *all[] = {x.data, first, second, gain, base, y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    state = 0x9e3779b97f4a7c15u ^ strtoull(argv[1], NULL, 10);
    const long rounds = strtol(argv[2], NULL, 10);
    for (long round = 0; round < rounds; round++) {
        static const int64_t most[4] = {3, 40, 24, 40};
        int64_t size[4];
        for (int i = 0; i < 4; i++)
            size[i] = draw(4) ? between(1, most[i] / 3) : between(1, most[i]);
        const int dtype = (int)draw(3), threads = (int)between(1, 3), level = (int)between(0, sia_best_level());
        const int wild = draw(6) == 0;
        run_self_information(size, dtype, threads, level, wild, draw(8) == 0);
        run_gates(size, dtype, threads, level, wild);
        run_layer(size, dtype, threads, level, wild, draw(8) == 0);
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
