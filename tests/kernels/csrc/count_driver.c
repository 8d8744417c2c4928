/* Call a kernel of the library several times on one map, so that callgrind can count the instructions.
 * Arguments: the library, "forward" or "backward", kernel size, level, channels_last, dtype, times. */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sia_cpu.h"

enum { N = 2, C = 16, H = 32, W = 32, NUMBER = N * C * H * W };

/* Return the bits of a value from 2^-14 to 1 as bfloat16 or float16, rounded to zero. */
static uint16_t halved(float value, int dtype)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(dtype == SIA_BFLOAT16 ? bits >> 16 : (bits - (112u << 23)) >> 13);
}

int main(int count, char **arguments)
{
    static float x[NUMBER], out[NUMBER], scale[2 * N * C];
    static uint16_t half[NUMBER];
    if (count != 8)
        return 2;
    void *library = dlopen(arguments[1], RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 3;
    }
    sia_forward_kernel *forward;
    sia_backward_kernel *backward;
    *(void **)&forward = dlsym(library, "sia_forward");
    *(void **)&backward = dlsym(library, "sia_backward");
    const sia_options options = {.size = {N, C, H, W},
                                 .kernel_size = atoi(arguments[3]),
                                 .inter_channels = 5,
                                 .adaptive = 1,
                                 .inter_weight = 0.5f,
                                 .fixed_scale = 0.5f,
                                 .square_bandwidth = 1,
                                 .threads = 1,
                                 .level = atoi(arguments[4])};
    const int last = atoi(arguments[5]), dtype = atoi(arguments[6]), is_backward = !strcmp(arguments[2], "backward");
    sia_map map = {dtype == SIA_FLOAT32 ? (void *)x : half,
                   {C * H * W, last ? 1 : H * W, last ? C * W : W, last ? C : 1},
                   dtype},
            result = map, none = {0};
    result.data = out;
    uint32_t state = 1;
    for (int i = 0; i < NUMBER; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = 1.0f / 16384.0f + (float)(state >> 8) / 16777217.0f * 0.999f;
        half[i] = halved(x[i], dtype);
    }
    int failed = forward(&options, &map, scale, &result, &none, NULL, SIA_NO_MEAN);
    for (int i = 0; i < atoi(arguments[7]) && !failed; i++)
        failed = is_backward ? backward(&options, &map, &map, scale, &result)
                             : forward(&options, &map, scale, &result, &none, NULL, SIA_NO_MEAN);
    return failed;
}
