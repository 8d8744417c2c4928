/* Vectors of VL floats, their exponential, logarithm and conversions. Included once for each instruction set.
 *
 * GNU vector arithmetic, so that one text serves SSE2, AVX2, AVX-512 and NEON; a few functions have a shorter form of
 * their own for x86. The file must not be compiled with -ffast-math: it breaks the range reductions. */
#ifndef SIA_VECTOR_H
#define SIA_VECTOR_H

#include "common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef VL /* so that the header can be opened by itself */
#define VL 4
#define NAME(function) function##_baseline
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef float vf_memory __attribute__((vector_size(VL * 4), aligned(2), may_alias));
typedef uint16_t vh_memory __attribute__((vector_size(VL * 2), aligned(2), may_alias));

INLINE vf splat(float a) { return a - (vf){0}; }
INLINE vi splat_int(int32_t a) { return a - (vi){0}; }
INLINE vf load(const float *p) { return *(const vf_memory *)p; }
INLINE void store(float *p, vf a) { *(vf_memory *)p = a; }
INLINE vf choose(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

/* Return the larger of the two; NaN in `a` stays NaN. */
INLINE vf at_least(float bound, vf a)
{
#if VL == 16 && defined(__x86_64__)
    return (vf)_mm512_max_ps((__m512)splat(bound), (__m512)a);
#elif VL == 8 && defined(__x86_64__)
    return (vf)_mm256_max_ps((__m256)splat(bound), (__m256)a);
#elif VL == 4 && defined(__x86_64__)
    return (vf)_mm_max_ps((__m128)splat(bound), (__m128)a);
#else
    return choose(a < splat(bound), splat(bound), a);
#endif
}

/* 2^t for t < 127; nearly 0 below -126, NaN stays NaN. Exactly 1 at 0. Largest relative error over [-126, 126], found by
 * steps of 1e-5: 1.3e-7 with the table (6.7e-8 absolute up to 0, where densities lie), 1.9e-7 in the last form. */
INLINE vf exp2_of(vf t)
{
#if VL == 16 && defined(__x86_64__)
    vf f = (vf)_mm512_reduce_ps((__m512)t, 1); /* t - floor(t), in [0, 1) */
    vf p = splat(1.8793186e-3f);
    p = p * f + 8.9909951e-3f;
    p = p * f + 5.5818676e-2f;
    p = p * f + 2.4015927e-1f;
    p = p * f + 6.9315174e-1f;
    p = p * f + 1.0f;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)t); /* p * 2^floor(t) */
#elif VL == 8 && defined(__x86_64__)
    /* The bits of 2^(j/8), less j << 20: what z << 20 adds beside the exponent. */
    const vi table = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
    const float magic = 1572864.0f; /* 1.5 * 2^20: leaves 8 t, rounded, in the low bits */
    t = at_least(-126.0f, t);
    vf z = t + magic;
    vf f = t - (z - magic); /* in [-1/16, 1/16] */
    vf power = (vf)((vi)_mm256_permutevar8x32_epi32((__m256i)table, (__m256i)z) + ((vi)z << 20));
    vf p = splat(5.5504109e-2f);
    p = p * f + 2.4025761e-1f;
    p = p * f + 6.9314718e-1f;
    return f * power * p + power;
#else
    const float magic = 12583039.0f; /* 1.5 * 2^23 + 127: leaves n + 127 in the low bits */
    t = at_least(-126.0f, t);
    vf z = t + magic;
    vf f = t - (z - magic); /* in [-1/2, 1/2] */
    vf p = splat(1.3264727e-3f);
    p = p * f + 9.6715127e-3f;
    p = p * f + 5.5507337e-2f;
    p = p * f + 2.4022242e-1f;
    p = p * f + 6.9314698e-1f;
    p = p * f + 1.0f;
    return p * (vf)((vi)z << 23);
#endif
}

/* log(x) for normal x > 0; NaN stays NaN. Largest absolute error over [1e-37, 1e37]: 1.2e-7 times max(1, |log x|). */
INLINE vf log_positive(vf x)
{
#if VL == 16 && defined(__x86_64__)
    vf f = (vf)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src) - 1.5f;
    vf p = splat(-6.29995145e-3f);
    p = p * f + 1.02438882e-2f;
    p = p * f + -1.42641037e-2f;
    p = p * f + 2.59673036e-2f;
    p = p * f + -4.94212177e-2f;
    p = p * f + 9.87917549e-2f;
    p = p * f + -2.22220788e-1f;
    p = p * f + 6.66666166e-1f;
    p = p * f + 4.05465099e-1f;
    return (vf)_mm512_getexp_ps((__m512)x) * 0.693147181f + p;
#else
    vi e = ((vi)x - splat_int(0x3f3504f3)) >> 23;
    vf f = (vf)((vi)x - (e << 23)) - 1.0f; /* x = 2^e (1 + f), 1 + f in [sqrt 1/2, sqrt 2) */
    vf p = splat(-1.00346184e-1f);
    p = p * f + 1.63356435e-1f;
    p = p * f + -1.73259942e-1f;
    p = p * f + 1.98882773e-1f;
    p = p * f + -2.49614652e-1f;
    p = p * f + 3.33352614e-1f;
    p = p * f + -5.00005844e-1f;
    vf y = f + f * f * p + __builtin_convertvector(e, vf) * 0.693147181f;
    return y + (x - x); /* the bits of a NaN would pass for a number */
#endif
}

INLINE vf exp_minus(vf x)
{
    vf t = x * -LOG2_E;
    return exp2_of(choose(t > splat(126.0f), splat(126.0f), t));
}

INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp_minus(x)); }

INLINE vf sign(vf a) { return choose(a > splat(0), splat(1), choose(a < splat(0), splat(-1), a)); }
INLINE vf absolute(vf a) { return (vf)((vi)a & 0x7fffffff); }

/* Return a mask of the first `count` elements. */
INLINE vi among_first(int64_t count)
{
    vi index;
    for (int i = 0; i < VL; i++)
        index[i] = i;
    return index < splat_int((int32_t)count);
}

INLINE vf keep_first(vf a, int64_t count) { return (vf)((vi)a & among_first(count)); }

/* Widen to 32 bits, and narrow values that fit into 16. GCC makes up to five instructions of __builtin_convertvector. */
INLINE vu widen(vh a)
{
#if VL == 16 && defined(__x86_64__)
    return (vu)_mm512_cvtepu16_epi32((__m256i)a);
#elif VL == 8 && defined(__x86_64__)
    return (vu)_mm256_cvtepu16_epi32((__m128i)a);
#else
    return __builtin_convertvector(a, vu);
#endif
}

INLINE vh narrow(vu a)
{
#if VL == 16 && defined(__x86_64__)
    return (vh)_mm512_cvtepi32_epi16((__m512i)a);
#elif VL == 8 && defined(__x86_64__)
    const __m256i packed = _mm256_packus_epi32((__m256i)a, (__m256i)a); /* within each half of the vector */
    return (vh)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(a, vh);
#endif
}

INLINE vf bf16_to_float(vh a) { return (vf)(widen(a) << 16); }

INLINE vh float_to_bf16(vf a)
{
    vu u = (vu)a;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu nan = (u >> 16) | 0x40;
    return narrow((vu)choose((vi)(a != a), (vf)nan, (vf)rounded));
}

INLINE vf half_to_float(vh a)
{
#if VL == 16 && defined(__x86_64__)
    return (vf)_mm512_cvtph_ps((__m256i)a);
#elif VL == 8 && defined(__x86_64__)
    return (vf)_mm256_cvtph_ps((__m128i)a);
#else
    vu u = widen(a);
    vu magnitude = (u & 0x7fff) << 13;
    vu special = (vu)(magnitude >= (vu)splat_int(0x0f800000));
    vf scaled = (vf)magnitude * 5.192296858534828e33f; /* 2^112: moves the exponent's bias */
    return (vf)((vu)scaled | ((u & 0x8000) << 16) | (special & 0x7f800000));
#endif
}

INLINE vh float_to_half(vf a)
{
#if VL == 16 && defined(__x86_64__)
    return (vh)_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT);
#elif VL == 8 && defined(__x86_64__)
    return (vh)_mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT);
#else
    vu u = (vu)a & 0x7fffffff, sign = ((vu)a >> 16) & 0x8000;
    vu normal = (u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13;
    vu small = (vu)((vf)u + 0.5f) - 0x3f000000;
    vu is_small = (vu)((vi)u < splat_int(0x38800000)), is_large = (vu)((vi)u >= splat_int(0x477ff000));
    vu is_nan = (vu)((vi)u > splat_int(0x7f800000));
    vu h = (small & is_small) | (normal & ~is_small);
    h = (h & ~is_large) | (0x7c00 & is_large) | (0x200 & is_nan);
    return narrow(h | sign);
#endif
}

/* Load VL adjacent elements of a map as floats. */
INLINE vf load_as(const char *p, int dtype)
{
    if (dtype == SIA_FLOAT32)
        return *(const vf_memory *)p;
    vh bits = *(const vh_memory *)p;
    return dtype == SIA_BFLOAT16 ? bf16_to_float(bits) : half_to_float(bits);
}

INLINE void store_as(char *p, vf a, int dtype)
{
    if (dtype == SIA_FLOAT32)
        *(vf_memory *)p = a;
    else
        *(vh_memory *)p = dtype == SIA_BFLOAT16 ? float_to_bf16(a) : float_to_half(a);
}

INLINE int64_t size_of(int dtype) { return dtype == SIA_FLOAT32 ? 4 : 2; }

/* Load the first `count` of VL adjacent elements, without touching the others, which become 0. */
INLINE vf load_first(const char *p, int64_t count, int dtype)
{
#if VL == 16 && defined(__x86_64__)
    const __mmask16 mask = (__mmask16)((1u << count) - 1);
    if (dtype == SIA_FLOAT32)
        return (vf)_mm512_maskz_loadu_ps(mask, p);
    vh half = (vh)_mm256_maskz_loadu_epi16(mask, p);
    return dtype == SIA_BFLOAT16 ? bf16_to_float(half) : half_to_float(half);
#else
#if VL == 8 && defined(__x86_64__)
    if (dtype == SIA_FLOAT32)
        return (vf)_mm256_maskload_ps((const float *)p, (__m256i)among_first(count));
#endif
    char bits[VL * 4] = {0};
    for (int64_t i = 0; i < count * size_of(dtype); i += 2)
        memcpy(bits + i, p + i, 2);
    return load_as(bits, dtype);
#endif
}

INLINE void store_first(char *p, int64_t count, vf a, int dtype)
{
#if VL == 16 && defined(__x86_64__)
    const __mmask16 mask = (__mmask16)((1u << count) - 1);
    if (dtype == SIA_FLOAT32)
        _mm512_mask_storeu_ps(p, mask, (__m512)a);
    else
        _mm256_mask_storeu_epi16(p, mask, (__m256i)(dtype == SIA_BFLOAT16 ? float_to_bf16(a) : float_to_half(a)));
#else
    char bits[VL * 4];
    store_as(bits, a, dtype);
    for (int64_t i = 0; i < count * size_of(dtype); i += 2)
        memcpy(p + i, bits + i, 2);
#endif
}

/* Load the first `count` of VL elements that lie `stride` elements apart; the others become 0. */
INLINE vf load_some(const char *p, int64_t stride, int64_t count, int dtype)
{
    if (stride == 1)
        return count == VL ? load_as(p, dtype) : load_first(p, count, dtype);
    char bits[VL * 4] = {0};
    for (int64_t i = 0; i < count; i++)
        memcpy(bits + i * size_of(dtype), p + i * stride * size_of(dtype), (size_t)size_of(dtype));
    return load_as(bits, dtype);
}

/* Load the first `count` floats at p. */
INLINE vf load_floats(const float *p, int64_t count) { return load_some((const char *)p, 1, count, SIA_FLOAT32); }

INLINE void store_some(char *p, int64_t stride, int64_t count, vf a, int dtype)
{
    if (stride == 1 && count == VL) {
        store_as(p, a, dtype);
    } else if (stride == 1) {
        store_first(p, count, a, dtype);
    } else {
        char bits[VL * 4];
        store_as(bits, a, dtype);
        for (int64_t i = 0; i < count; i++)
            memcpy(p + i * stride * size_of(dtype), bits + i * size_of(dtype), (size_t)size_of(dtype));
    }
}

INLINE float sum_of(vf a)
{
    float total = 0;
    for (int i = 0; i < VL; i++)
        total += a[i];
    return total;
}

/* Transpose VL vectors in place: first within 4x4 blocks, then the blocks. */
#if VL == 4
#define UNPACK_LOW 0, 4, 1, 5
#define UNPACK_HIGH 2, 6, 3, 7
#define PAIRS_LOW 0, 1, 4, 5
#define PAIRS_HIGH 2, 3, 6, 7
#elif VL == 8
#define UNPACK_LOW 0, 8, 1, 9, 4, 12, 5, 13
#define UNPACK_HIGH 2, 10, 3, 11, 6, 14, 7, 15
#define PAIRS_LOW 0, 1, 8, 9, 4, 5, 12, 13
#define PAIRS_HIGH 2, 3, 10, 11, 6, 7, 14, 15
#define BLOCKS_EVEN 0, 1, 2, 3, 8, 9, 10, 11
#define BLOCKS_ODD 4, 5, 6, 7, 12, 13, 14, 15
#elif VL == 16
#define UNPACK_LOW 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define UNPACK_HIGH 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define PAIRS_LOW 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define PAIRS_HIGH 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define BLOCKS_EVEN 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define BLOCKS_ODD 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#endif

INLINE void transpose(vf row[VL])
{
#pragma GCC unroll 16
    for (int i = 0; i < VL; i += 4) {
        const vf low01 = SHUFFLE(row[i], row[i + 1], UNPACK_LOW), high01 = SHUFFLE(row[i], row[i + 1], UNPACK_HIGH);
        const vf low23 = SHUFFLE(row[i + 2], row[i + 3], UNPACK_LOW),
                 high23 = SHUFFLE(row[i + 2], row[i + 3], UNPACK_HIGH);
        row[i] = SHUFFLE(low01, low23, PAIRS_LOW);
        row[i + 1] = SHUFFLE(low01, low23, PAIRS_HIGH);
        row[i + 2] = SHUFFLE(high01, high23, PAIRS_LOW);
        row[i + 3] = SHUFFLE(high01, high23, PAIRS_HIGH);
    }
#if VL == 8
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const vf a = row[i], b = row[i + 4];
        row[i] = SHUFFLE(a, b, BLOCKS_EVEN);
        row[i + 4] = SHUFFLE(a, b, BLOCKS_ODD);
    }
#elif VL == 16
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const vf even01 = SHUFFLE(row[i], row[i + 4], BLOCKS_EVEN), odd01 = SHUFFLE(row[i], row[i + 4], BLOCKS_ODD);
        const vf even23 = SHUFFLE(row[i + 8], row[i + 12], BLOCKS_EVEN),
                 odd23 = SHUFFLE(row[i + 8], row[i + 12], BLOCKS_ODD);
        row[i] = SHUFFLE(even01, even23, BLOCKS_EVEN);
        row[i + 4] = SHUFFLE(odd01, odd23, BLOCKS_EVEN);
        row[i + 8] = SHUFFLE(even01, even23, BLOCKS_ODD);
        row[i + 12] = SHUFFLE(odd01, odd23, BLOCKS_ODD);
    }
#endif
}

#undef UNPACK_LOW
#undef UNPACK_HIGH
#undef PAIRS_LOW
#undef PAIRS_HIGH
#undef BLOCKS_EVEN
#undef BLOCKS_ODD

#endif
