/* Measure the limits of the machine for benchmarks/limit.py: seconds per multiply-add and per exponential on registers,
 * with the kernels' own exponential, and per pass over memory. VL and the instruction set come from the command line. */

#include "common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define HOLD "+v" /* in a vector register, to prevent hoisting and elimination */
#else
#define HOLD "+w"
#endif
#include "vector.h"

#include <time.h>

#define EXPORT __attribute__((visibility("default")))
/* Enough independent chains to hide the latency, few enough to fit into registers; arrays would not stay there. */
#define CHAINS(each) each(0) each(1) each(2) each(3) each(4) each(5) each(6) each(7)
enum { NUMBER = 8 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

EXPORT int vector_length(void) { return VL; }

/* Seconds of one vector's multiply-add. */
EXPORT double multiply_add(int64_t rounds)
{
    vf factor = splat(0.999f), term = splat(1e-3f);
    __asm__ volatile("" : HOLD(factor), HOLD(term));
#define BEGIN(i) vf a##i = splat((float)i);
#define STEP(i)                  \
    a##i = a##i * factor + term; \
    __asm__ volatile("" : HOLD(a##i));
    CHAINS(BEGIN)
    const double start = now();
    for (int64_t round = 0; round < rounds; round++) {
        CHAINS(STEP)
    }
    return (now() - start) / (double)(rounds * NUMBER);
#undef BEGIN
#undef STEP
}

/* Seconds of one vector's exponential. */
EXPORT double exponential(int64_t rounds)
{
#define BEGIN(i) vf t##i = splat(-0.3f - (float)i), e##i;
#define STEP(i)                        \
    __asm__ volatile("" : HOLD(t##i)); \
    e##i = exp2_of(t##i);
#define END(i) __asm__ volatile("" : HOLD(e##i));
    CHAINS(BEGIN)
    const double start = now();
    for (int64_t round = 0; round < rounds; round++) {
        CHAINS(STEP)
        CHAINS(END)
    }
    return (now() - start) / (double)(rounds * NUMBER);
#undef BEGIN
#undef STEP
#undef END
}

/* Seconds of reading one byte and writing it elsewhere, of a map of `count` floats to another. */
EXPORT double copy(const float *from, float *to, int64_t count)
{
    const double start = now();
    for (int64_t i = 0; i + VL <= count; i += VL)
        store(to + i, load(from + i) + 1.0f);
    return (now() - start) / (double)(4 * count);
}
