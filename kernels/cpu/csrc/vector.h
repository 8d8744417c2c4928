/* Vectors of VL floats, their exponential, logarithm and conversions. Included once for each instruction set.
 *
 * Only GNU vector arithmetic, so that one text serves SSE2, AVX2, AVX-512 and NEON; the exponential alone has an
 * AVX-512 form. The file must not be compiled with -ffast-math: it breaks the range reductions. */

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

/* 2^t for t < 127, relative error 1e-7; nearly 0 below -126, NaN stays NaN. Exactly 1 at 0. */
INLINE vf exp2_of(vf t)
{
#ifdef SIA_AVX512
    vf f = (vf)_mm512_reduce_ps((__m512)t, 1); /* t - floor(t), in [0, 1) */
    vf p = splat(1.8793186e-3f);
    p = p * f + 8.9909951e-3f;
    p = p * f + 5.5818676e-2f;
    p = p * f + 2.4015927e-1f;
    p = p * f + 6.9315174e-1f;
    p = p * f + 1.0f;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)t); /* p * 2^floor(t) */
#else
    const float magic = 12583039.0f; /* 1.5 * 2^23 + 127: leaves n + 127 in the low bits */
    t = choose(t < splat(-126.0f), splat(-126.0f), t);
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

/* log(x) for normal x > 0, absolute error 1e-7 times max(1, |log x|); NaN stays NaN. Exactly 0 at 1. */
INLINE vf log_positive(vf x)
{
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
}

INLINE vf exp_minus(vf x)
{
    vf t = x * -LOG2_E;
    return exp2_of(choose(t > splat(126.0f), splat(126.0f), t));
}

INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp_minus(x)); }
INLINE vf at_least_zero(vf a) { return choose(a < splat(0), splat(0), a); }
INLINE vf sign(vf a) { return choose(a > splat(0), splat(1), choose(a < splat(0), splat(-1), a)); }
INLINE vf absolute(vf a) { return (vf)((vi)a & 0x7fffffff); }

/* a, with all but its first `count` elements 0. */
INLINE vf keep_first(vf a, int64_t count)
{
    if (count == VL)
        return a;
    float kept[VL];
    store(kept, a);
    for (int64_t i = count; i < VL; i++)
        kept[i] = 0;
    return load(kept);
}

INLINE vf bf16_to_float(vh a) { return (vf)(__builtin_convertvector(a, vu) << 16); }

INLINE vh float_to_bf16(vf a)
{
    vu u = (vu)a;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu nan = (u >> 16) | 0x40;
    vu is_nan = (vu)(a != a);
    return __builtin_convertvector((nan & is_nan) | (rounded & ~is_nan), vh);
}

INLINE vf half_to_float(vh a)
{
    vu u = __builtin_convertvector(a, vu);
    vu magnitude = (u & 0x7fff) << 13;
    vu special = (vu)(magnitude >= (vu)splat_int(0x0f800000));
    vf scaled = (vf)magnitude * 5.192296858534828e33f; /* 2^112: moves the exponent's bias */
    return (vf)((vu)scaled | ((u & 0x8000) << 16) | (special & 0x7f800000));
}

INLINE vh float_to_half(vf a)
{
    vu u = (vu)a & 0x7fffffff, sign = ((vu)a >> 16) & 0x8000;
    vu normal = (u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13;
    vu small = (vu)((vf)u + 0.5f) - 0x3f000000;
    vu is_small = (vu)((vi)u < splat_int(0x38800000)), is_large = (vu)((vi)u >= splat_int(0x477ff000));
    vu is_nan = (vu)((vi)u > splat_int(0x7f800000));
    vu h = (small & is_small) | (normal & ~is_small);
    h = (h & ~is_large) | (0x7c00 & is_large) | (0x200 & is_nan);
    return __builtin_convertvector(h | sign, vh);
}

/* VL neighbouring elements of a map, as floats. */
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

/* The first `count` of VL elements `stride` elements apart; the others are 0. */
INLINE vf load_some(const char *p, int64_t stride, int64_t count, int dtype)
{
    if (stride == 1 && count == VL)
        return load_as(p, dtype);
    char bits[VL * 4] = {0};
    int64_t size = size_of(dtype);
    for (int64_t i = 0; i < count; i++)
        if (size == 4)
            memcpy(bits + i * 4, p + i * stride * 4, 4);
        else
            memcpy(bits + i * 2, p + i * stride * 2, 2);
    return load_as(bits, dtype);
}

INLINE void store_some(char *p, int64_t stride, int64_t count, vf a, int dtype)
{
    if (stride == 1 && count == VL) {
        store_as(p, a, dtype);
        return;
    }
    char bits[VL * 4];
    int64_t size = size_of(dtype);
    store_as(bits, a, dtype);
    for (int64_t i = 0; i < count; i++)
        if (size == 4)
            memcpy(p + i * stride * 4, bits + i * 4, 4);
        else
            memcpy(p + i * stride * 2, bits + i * 2, 2);
}

INLINE float sum_of(vf a)
{
    float total = 0;
    for (int i = 0; i < VL; i++)
        total += a[i];
    return total;
}

/* Transpose VL vectors in place: log2 VL rounds, each swapping blocks of 1, 2, 4 ... between pairs of rows. */
#define SWAP_BLOCKS(step, low, high)                                                                                   \
    _Pragma("GCC unroll 16") for (int i = 0; i < VL; i++) if (!(i & (step)))                                            \
    {                                                                                                                  \
        vf a = row[i], b = row[i + (step)];                                                                            \
        row[i] = SHUFFLE(a, b, low);                                                                                   \
        row[i + (step)] = SHUFFLE(a, b, high);                                                                         \
    }

INLINE void transpose(vf row[VL])
{
#if VL == 4
    SWAP_BLOCKS(1, LIST(0, 4, 2, 6), LIST(1, 5, 3, 7))
    SWAP_BLOCKS(2, LIST(0, 1, 4, 5), LIST(2, 3, 6, 7))
#elif VL == 8
    SWAP_BLOCKS(1, LIST(0, 8, 2, 10, 4, 12, 6, 14), LIST(1, 9, 3, 11, 5, 13, 7, 15))
    SWAP_BLOCKS(2, LIST(0, 1, 8, 9, 4, 5, 12, 13), LIST(2, 3, 10, 11, 6, 7, 14, 15))
    SWAP_BLOCKS(4, LIST(0, 1, 2, 3, 8, 9, 10, 11), LIST(4, 5, 6, 7, 12, 13, 14, 15))
#else
    SWAP_BLOCKS(1, LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30), LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    SWAP_BLOCKS(2, LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29), LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    SWAP_BLOCKS(4, LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27), LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    SWAP_BLOCKS(8, LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23), LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#endif
}

#undef SWAP_BLOCKS
