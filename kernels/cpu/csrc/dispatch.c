/* The exported functions: each calls the kernel for the requested instruction set. */

#include "common.h"

int sia_abi(int32_t sizes[4])
{
    sizes[0] = sizeof(sia_map);
    sizes[1] = sizeof(sia_options);
    sizes[2] = sizeof(sia_layout);
    sizes[3] = sizeof(sia_layer);
    return SIA_ABI;
}

int sia_best_level(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return SIA_AVX512_LEVEL;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return SIA_AVX2_LEVEL;
#endif
    return SIA_BASELINE;
}

static const sia_kernels *kernels_of(int level)
{
#if defined(__x86_64__)
    if (level >= SIA_AVX512_LEVEL)
        return &sia_kernels_avx512;
    if (level == SIA_AVX2_LEVEL)
        return &sia_kernels_avx2;
#endif
    (void)level;
    return &sia_kernels_baseline;
}

int sia_forward(const sia_options *options, const sia_map *x, float *scale, const sia_map *info, const sia_map *gated,
                float *mean, int32_t channel)
{
    return kernels_of(options->level)->forward(options, x, scale, info, gated, mean, channel);
}

int sia_backward(const sia_options *options, const sia_map *grad, const sia_map *x, const float *scale,
                 const sia_map *grad_x)
{
    return kernels_of(options->level)->backward(options, grad, x, scale, grad_x);
}

int sia_channel_mean(const sia_layout *layout, const void *info, float *mean, int32_t channel)
{
    return kernels_of(layout->level)->channel_mean(layout, info, mean, channel);
}

int sia_channel_mean_backward(const sia_layout *layout, const float *grad, const void *info, void *grad_info,
                              int32_t channel)
{
    return kernels_of(layout->level)->channel_mean_backward(layout, grad, info, grad_info, channel);
}

int sia_gate(const sia_layout *layout, const void *x, const void *info, const float *channel_gate, const float *gain,
             const void *base, void *y)
{
    return kernels_of(layout->level)->gate(layout, x, info, channel_gate, gain, base, y);
}

int sia_gate_backward(const sia_layout *layout, const void *grad, const void *x, const void *info,
                      const float *channel_gate, const float *gain, const void *base, void *grad_x, void *grad_info,
                      float *grad_channel_gate, float *grad_gain, void *grad_base)
{
    return kernels_of(layout->level)
        ->gate_backward(layout, grad, x, info, channel_gate, gain, base, grad_x, grad_info, grad_channel_gate,
                        grad_gain, grad_base);
}

int sia_attend(const sia_options *options, const sia_map *x, const sia_layer *layer, void *y)
{
    return kernels_of(options->level)->attend(options, x, layer, y);
}

#if defined(_WIN32)
/* Linking an extension on Windows requires an entry point for Python, although ctypes loads the library. */
SIA_EXPORT void *PyInit__sia_cpu(void) { return 0; }
#endif
