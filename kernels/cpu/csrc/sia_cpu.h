/* Self-information kernels for CPUs: the functions that Python calls through ctypes.
 *
 * Maps are (N, C, H, W) with any strides, counted in elements. Every function returns SIA_OK or an error; after an error,
 * the outputs are undefined. All functions are thread-safe. */
#ifndef SIA_CPU_H
#define SIA_CPU_H

#include <stdint.h>

#if defined(_WIN32)
#define SIA_EXPORT __declspec(dllexport)
#else
#define SIA_EXPORT __attribute__((visibility("default")))
#endif

enum { SIA_ABI = 3 }; /* increment with every change below, together with ABI in library.py */
enum { SIA_OK = 0, SIA_NO_MEMORY = 1 };
enum { SIA_FLOAT32 = 0, SIA_BFLOAT16 = 1, SIA_FLOAT16 = 2 };
enum { SIA_BASELINE = 0, SIA_AVX2_LEVEL = 1, SIA_AVX512_LEVEL = 2 }; /* NEON is the baseline of arm64 */
enum { SIA_EXCLUDE = 0, SIA_ZEROS = 1, SIA_REPLICATE = 2, SIA_REFLECT = 3 };
enum { SIA_KDE = 0, SIA_DISTANCE = 1 };
enum { SIA_NO_MEAN = 0, SIA_EXCITE = 1, SIA_MEAN = 2 }; /* average of I (EXCITE), or of -log(e^-I + 0.1) (MEAN) */

typedef struct {
    void *data; /* NULL: absent */
    int64_t stride[4];
    int32_t dtype;
} sia_map;

typedef struct {
    int64_t size[4]; /* N, C, H, W, all positive */
    int32_t kernel_size, inter_channels, padding_mode, estimator, adaptive;
    float inter_weight, fixed_scale, square_bandwidth; /* lambda, 1 / 2b^2 and b^2 */
    int32_t threads, level;
} sia_options;

/* Size and memory format of a contiguous or channels_last map. */
typedef struct {
    int64_t samples, channels, pixels;
    int32_t channels_last, dtype, threads, level;
} sia_layout;

/* The gates of a layer. Its output, base and, unless spatial, x share one format: contiguous or channels_last. The
 * channel gate of SIA_EXCITE is sigmoid(second relu(first mean)). */
typedef struct {
    const float *first, *second; /* (hidden, C) and (C, hidden); SIA_EXCITE alone reads them */
    const float *gain;           /* one number, or NULL */
    const void *base;            /* the map that the gain interpolates from; NULL without a gain */
    int64_t hidden;
    int32_t spatial, channel, channels_last;
} sia_layer;

/* Self-information I of x. Writes scale: 2 N C floats (SIA_KDE) or N floats (SIA_DISTANCE); and, unless absent, info: I,
 * gated: x (1 + sigmoid(I)), and mean: N C floats, the plane means that `channel` names. */
typedef int sia_forward_kernel(const sia_options *, const sia_map *x, float *scale, const sia_map *info,
                               const sia_map *gated, float *mean, int32_t channel);

/* Compute grad_x (float32) from grad, the gradient of info, and x and scale of the forward pass. */
typedef int sia_backward_kernel(const sia_options *, const sia_map *grad, const sia_map *x, const float *scale,
                                const sia_map *grad_x);

typedef int sia_channel_mean_kernel(const sia_layout *, const void *info, float *mean, int32_t channel);
typedef int sia_channel_mean_backward_kernel(const sia_layout *, const float *grad, const void *info, void *grad_info,
                                             int32_t channel);

/* y = base + gain (x (1 + sigmoid(info)) channel_gate - base); every pointer but x may be NULL, base then is x. */
typedef int sia_gate_kernel(const sia_layout *, const void *x, const void *info, const float *channel_gate,
                            const float *gain, const void *base, void *y);
typedef int sia_gate_backward_kernel(const sia_layout *, const void *grad, const void *x, const void *info,
                                     const float *channel_gate, const float *gain, const void *base, void *grad_x,
                                     void *grad_info, float *grad_channel_gate, float *grad_gain, void *grad_base);

/* y = base + gain (gated - base), where gated is x with the gates of the layer. */
typedef int sia_attend_kernel(const sia_options *, const sia_map *x, const sia_layer *, void *y);

SIA_EXPORT sia_forward_kernel sia_forward;
SIA_EXPORT sia_backward_kernel sia_backward;
SIA_EXPORT sia_channel_mean_kernel sia_channel_mean;
SIA_EXPORT sia_channel_mean_backward_kernel sia_channel_mean_backward;
SIA_EXPORT sia_gate_kernel sia_gate;
SIA_EXPORT sia_gate_backward_kernel sia_gate_backward;
SIA_EXPORT sia_attend_kernel sia_attend;

SIA_EXPORT int sia_abi(int32_t sizes[4]); /* SIA_ABI, and the bytes of sia_map, sia_options, sia_layout and sia_layer */
SIA_EXPORT int sia_best_level(void);      /* the widest instruction set of this machine */
SIA_EXPORT void sia_share_threads(void *gomp_parallel); /* use this runtime's GOMP_parallel */

#endif
