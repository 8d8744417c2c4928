/* Declarations shared by all C files. */
#ifndef SIA_COMMON_H
#define SIA_COMMON_H

#include "sia_cpu.h"

#include <float.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))
#define NOINLINE __attribute__((noinline, unused))
#define LOG2_E 1.44269504f
#define LARGEST_SCALE 1e38

typedef void (*sia_task)(void *context, int64_t index);

/* Call task(context, i) for i in 0 .. count - 1, in any order, on up to `threads` threads. */
void sia_parallel_for(int64_t count, int threads, sia_task task, void *context);

/* The kernels of one instruction set. */
typedef struct {
    sia_forward_kernel *forward;
    sia_backward_kernel *backward;
    sia_channel_mean_kernel *channel_mean;
    sia_channel_mean_backward_kernel *channel_mean_backward;
    sia_gate_kernel *gate;
    sia_gate_backward_kernel *gate_backward;
    sia_attend_kernel *attend;
} sia_kernels;

extern const sia_kernels sia_kernels_baseline;
#if defined(__x86_64__)
extern const sia_kernels sia_kernels_avx2, sia_kernels_avx512;
#endif

#endif
