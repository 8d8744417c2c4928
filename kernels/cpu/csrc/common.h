/* What every C file here shares. */
#ifndef SIA_COMMON_H
#define SIA_COMMON_H

#include "sia_cpu.h"

#include <float.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))
#define LOG2_E 1.44269504f
#define LARGEST_SCALE 1e38

typedef void (*sia_task)(void *context, int64_t index);

/* Calls task(context, i) for i in 0 .. count - 1, in any order, on up to `threads` threads. */
void sia_parallel_for(int64_t count, int threads, sia_task task, void *context);

/* The entries of one instruction set, with the signatures of the exported functions. */
typedef struct {
    int (*forward)(const sia_options *, const sia_map *, float *, const sia_map *, const sia_map *, float *, int32_t);
    int (*backward)(const sia_options *, const sia_map *, const sia_map *, const float *, const sia_map *);
    int (*channel_mean)(const sia_layout *, const void *, float *, int32_t);
    int (*channel_mean_backward)(const sia_layout *, const float *, const void *, void *, int32_t);
    int (*gate)(const sia_layout *, const void *, const void *, const float *, const float *, const void *, void *);
    int (*gate_backward)(const sia_layout *, const void *, const void *, const void *, const float *, const float *,
                         const void *, void *, void *, float *, float *, void *);
} sia_kernels;

extern const sia_kernels sia_kernels_baseline;
#if defined(__x86_64__)
extern const sia_kernels sia_kernels_avx2, sia_kernels_avx512;
#endif

#endif
