/* A tile: VL planes (or strips of planes), interleaved pixel by pixel. One vector holds the same pixel of each plane, and
 * a shift within the map is a shift by whole vectors, so no lane is wasted at borders or on small maps. */
#ifndef SIA_TILE_H
#define SIA_TILE_H

#include "vector.h"

/* Pixels that are loaded, and later finished, together: enough to amortise the start-up cost, few enough for the cache. */
#define CHUNK_PIXELS 512

/* Pixels whose channels are laid out together: few enough for the fastest cache. */
#define LAID_OUT 64

/* Largest plane that is kept whole, so that its pixels are loaded once for both the scale and the map. */
#define KEPT_PIXELS 4096

typedef struct {
    const sia_options *options;
    int64_t n, c, h, w;
    int64_t radius;
    int64_t strips, strip_rows; /* planes are cut into strips of rows if there are few of them */
    int64_t lanes, groups;      /* strips of all planes of a sample, and groups of VL of them */
    int64_t halo, pad;          /* rows and columns around the strip that the tile also holds */
    int64_t rows, width;        /* of the tile, halo and pad included */
    int64_t chunk;              /* rows that are loaded, and later finished, together */
    int64_t kept;               /* rows of pixels held at a time: two chunks, or all */
    int64_t neighbours;         /* S of the inter-channel term */
    int by_channel;             /* the lanes are adjacent in memory (channels_last) */
    int copied;                 /* to sum across channels, pixels are first copied as adjacent floats */
} plan;

typedef struct {
    const plan *p;
    int64_t sample, first, count; /* lanes first .. first + count - 1 of the sample */
    int64_t plane[VL], start[VL]; /* of every lane: its channel, and the first row of its strip */
    float *x, *e, *u;             /* ring buffers of rows: pixels, sums, and weights of the backward pass */
    int64_t loaded;               /* rows of pixels loaded so far */
    float *mask;                  /* (rows, VL) of a ragged tile: 0 if the row lies beyond the plane, else 1 */
    int64_t *to_channel;          /* (S): distances to the following channels, in bytes */
    char *whole;                  /* (rows): no lane of the row is masked */
    float *scratch;               /* (VL, chunk * width + VL), or (LAID_OUT, VL + S) */
    float *across;                /* (chunk * width + VL): a lane's sums across channels */
    float *copy;                  /* (VL + S, copied_length()): pixels as adjacent floats, if they are copied */
    int64_t *offset, *x_offset; /* (radius + 1): offsets of a row and those below in the rings of sums and of pixels */
    float exponent[VL];         /* -scale log2(e) of every lane, within channels */
    double (*sums)[2];          /* the two sums of the pass, for every lane */
    void *memory;
} tile;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

/* Choose the number of strips per plane: few wasted lanes, little halo, and enough groups for many threads where that is
 * nearly free. The choice depends on the shape of the sample alone, so results depend neither on the batch nor on the
 * number of threads. */
static int64_t choose_strips(int64_t c, int64_t h, int64_t w, int64_t radius)
{
    const int64_t most = larger(1, h / larger(8, 4 * radius));
    const double wanted = h * w > KEPT_PIXELS ? 16 : 1, parted = h * w > KEPT_PIXELS ? 1.05 : 1.3;
    int64_t best = 1;
    double least = 0;
    for (int64_t strips = 1; strips <= most; strips++) {
        const double groups = (double)divide_up(c * strips, VL);
        const double rows = (double)divide_up(h, strips) + (strips > 1 ? (double)radius : 0);
        const double cost =
            groups * rows * (strips > 1 ? parted : 1) * (groups < wanted ? 1.25 - 0.25 * groups / wanted : 1);
        if (strips == 1 || cost < least) {
            least = cost;
            best = strips;
        }
    }
    return best;
}

static plan make_plan(const sia_options *options, const sia_map *x, int backward)
{
    plan p = {
        .options = options, .n = options->size[0], .c = options->size[1], .h = options->size[2], .w = options->size[3]};
    p.radius = options->kernel_size / 2;
    p.neighbours = larger(0, smaller(options->inter_channels, p.c - 1));
    p.by_channel = x->stride[1] == 1 && x->stride[3] != 1 && 2 * p.c > VL;
    p.copied = !backward && !p.by_channel && (x->dtype != SIA_FLOAT32 || x->stride[3] != 1);
    p.strips = backward || p.by_channel ? 1 : choose_strips(p.c, p.h, p.w, p.radius);
    p.strip_rows = divide_up(p.h, p.strips);
    p.lanes = p.c * p.strips;
    p.groups = divide_up(p.lanes, VL);
    p.pad = options->padding_mode == SIA_EXCLUDE ? 0 : p.radius;
    p.halo = options->padding_mode == SIA_EXCLUDE && p.strips == 1 ? 0 : p.radius;
    p.rows = p.strip_rows + 2 * p.halo;
    p.width = p.w + 2 * p.pad;
    p.chunk = backward ? p.rows : smaller(p.rows, larger(larger(1, p.radius), divide_up(CHUNK_PIXELS, p.width)));
    p.kept = smaller(p.rows, 2 * p.chunk);
    if (p.rows * p.width <= KEPT_PIXELS)
        p.kept = p.rows;
    return p;
}

/* Return the length of a row of copied pixels in floats. */
INLINE int64_t copied_length(const plan *p) { return round_up(p->chunk * p->w, VL); }

static int open_tile(tile *t, const plan *p, int64_t sample, int64_t group, int weights)
{
    const int64_t row = p->width * VL, x_ring = p->kept * row, ring = smaller(p->rows, 2 * p->chunk) * row;
    const int64_t ragged = p->strips > 1 && p->pad == 0; /* a lane may have rows beyond its plane */
    const int64_t masks = ragged ? p->rows * VL : 0, offsets = 2 * (p->radius + 1) + p->neighbours;
    const int64_t scratch = round_up(larger(VL * (p->chunk * p->width + VL), LAID_OUT * (VL + p->neighbours) + VL), VL);
    const int64_t across = round_up(p->chunk * p->width + VL, VL);
    const int64_t copy = p->copied ? (VL + p->neighbours) * copied_length(p) : 0;
    const int64_t floats = x_ring + ring * (weights ? 2 : 1) + masks + scratch + across + copy;
    *t = (tile){.p = p, .sample = sample, .first = group * VL};
    t->count = smaller(VL, p->lanes - t->first);
    t->memory = malloc((size_t)floats * sizeof(float) + (size_t)offsets * sizeof(int64_t) + (size_t)p->rows + 64);
    if (!t->memory)
        return SIA_NO_MEMORY;
    t->x = (float *)(((uintptr_t)t->memory + 63) & ~(uintptr_t)63);
    t->e = t->x + x_ring;
    t->u = t->e + ring;
    t->mask = t->u + (weights ? ring : 0);
    t->scratch = t->mask + masks;
    t->across = t->scratch + scratch;
    t->copy = t->across + across;
    t->offset = (int64_t *)(t->copy + copy);
    t->x_offset = t->offset + p->radius + 1;
    t->to_channel = t->x_offset + p->radius + 1;
    t->whole = (char *)(t->to_channel + p->neighbours);
    for (int64_t l = 0; l < VL; l++) {
        t->plane[l] = p->strips == 1 ? t->first + l : (t->first + l) / p->strips;
        t->start[l] = p->strips == 1 ? 0 : (t->first + l) % p->strips * p->strip_rows;
    }
    memset(t->whole, 1, (size_t)p->rows);
    for (int64_t i = 0; i < masks; i++) {
        const int64_t at = t->start[i % VL] + i / VL - p->halo;
        t->mask[i] = at >= 0 && at < p->h ? 1 : 0;
        t->whole[i / VL] &= (char)t->mask[i];
    }
    return SIA_OK;
}

/* Offset of a row in the rings of sums and weights, which hold two chunks, and in the ring of pixels. */
INLINE int64_t ring_offset(const tile *t, int64_t row) { return row % (2 * t->p->chunk) * t->p->width * VL; }
INLINE int64_t x_ring_offset(const tile *t, int64_t row) { return row % t->p->kept * t->p->width * VL; }

INLINE int in_strip(const plan *p, int64_t row) { return row >= p->halo && row < p->halo + p->strip_rows; }

/* Return the address of the pixel in column 0, or NULL for an absent map. */
INLINE char *pixel(const sia_map *map, int64_t n, int64_t c, int64_t h)
{
    return !map->data ? NULL
                      : (char *)map->data +
                            (n * map->stride[0] + c * map->stride[1] + h * map->stride[2]) * size_of(map->dtype);
}

/* Tell whether the rows of the map follow each other without gaps, so that they can be walked as one. */
INLINE int is_flat(const sia_map *map, int64_t width) { return !map->data || map->stride[2] == width * map->stride[3]; }

/* Map a position in a row (or column) of `size` to the pixel that padding puts there; -1 for nothing or zero. */
INLINE int64_t source_index(const plan *p, int64_t position, int64_t size)
{
    if (position >= 0 && position < size)
        return position;
    if (p->options->padding_mode <= SIA_ZEROS)
        return -1;
    if (p->options->padding_mode == SIA_REFLECT)
        position = position < 0 ? -position : 2 * (size - 1) - position;
    return position < 0 ? 0 : smaller(position, size - 1);
}

INLINE float value_at(const sia_map *map, int64_t n, int64_t c, int64_t h, int64_t w)
{
    return load_some(pixel(map, n, c, h) + w * map->stride[3] * size_of(map->dtype), 1, 1, map->dtype)[0];
}

/* Return the address `columns` further along a row that starts at `row`, which may be NULL. */
INLINE char *column(const sia_map *map, char *row, int64_t columns)
{
    return row ? row + columns * map->stride[3] * size_of(map->dtype) : NULL;
}

/* Load `pixels` pixels of `count` lanes, `stride` elements apart, starting at src[lane] (NULL: zeros), to to[pixel][lane].
 * The values of the lanes after `count` do not matter. */
INLINE void load_lanes(float *to, const char *const src[VL], int64_t pixels, int64_t stride, int64_t count,
                       int by_channel, int dtype)
{
    const int64_t step = stride * size_of(dtype);
    if (by_channel && src[0]) {
        for (int64_t i = 0; i < pixels; i++)
            store(to + i * VL, load_some(src[0] + i * step, 1, count, dtype));
        return;
    }
    const char *from[VL];
    int complete = stride == 1;
    for (int64_t l = 0; l < VL; l++) {
        from[l] = l < count ? src[l] : src[0];
        complete &= from[l] != NULL;
    }
    int64_t i = 0;
    for (; complete && i + VL <= pixels; i += VL) {
        vf row[VL];
        for (int l = 0; l < VL; l++)
            row[l] = load_as(from[l] + i * step, dtype);
        transpose(row);
        for (int j = 0; j < VL; j++)
            store(to + (i + j) * VL, row[j]);
    }
    for (; i < pixels; i += VL) {
        vf row[VL];
        const int64_t some = smaller(VL, pixels - i);
        for (int l = 0; l < VL; l++)
            row[l] = from[l] ? load_some(from[l] + i * step, stride, some, dtype) : splat(0);
        transpose(row);
        for (int64_t j = 0; j < some; j++)
            store(to + (i + j) * VL, row[j]);
    }
}

INLINE void copy_as(float *to, const char *from, int64_t stride, int64_t pixels, int dtype)
{
    int64_t i = 0;
    for (; stride == 1 && i + VL <= pixels; i += VL)
        store(to + i, load_as(from + i * size_of(dtype), dtype));
    for (; i < pixels; i += VL)
        store(to + i, load_some(from + i * stride * size_of(dtype), stride, smaller(VL, pixels - i), dtype));
}

/* Copy pixels `stride` elements apart as adjacent floats. The values up to the next multiple of VL become 0. */
static void copy_floats(float *to, const char *from, int64_t stride, int64_t pixels, int dtype)
{
    if (dtype == SIA_FLOAT32)
        copy_as(to, from, stride, pixels, SIA_FLOAT32);
    else if (dtype == SIA_BFLOAT16)
        copy_as(to, from, stride, pixels, SIA_BFLOAT16);
    else
        copy_as(to, from, stride, pixels, SIA_FLOAT16);
}

/* Fill the columns beyond the left and right borders of a row of the tile. */
INLINE void pad_columns(const plan *p, float *row)
{
    for (int64_t i = 0; i < p->pad; i++) {
        int64_t reach = p->pad - i, left = p->pad, right = p->pad + p->w - 1;
        vf before = splat(0), after = splat(0);
        if (p->options->padding_mode == SIA_REFLECT) {
            before = load(row + (left + reach) * VL);
            after = load(row + (right - reach) * VL);
        } else if (p->options->padding_mode == SIA_REPLICATE) {
            before = load(row + left * VL);
            after = load(row + right * VL);
        }
        store(row + i * VL, before);
        store(row + (right + reach) * VL, after);
    }
}

/* Tell whether rows from .. to - 1 of the tile are consecutive rows of the plane, in every lane and without padding. */
INLINE int all_whole(const tile *t, int64_t from, int64_t to)
{
    const plan *p = t->p;
    if (p->pad)
        return 0;
    for (int64_t row = from; row < to; row++)
        if (!t->whole[row])
            return 0;
    return 1;
}

/* Load rows from .. to - 1 of the tile. */
INLINE void load_rows_as(tile *t, const sia_map *map, int64_t from, int64_t to, int dtype)
{
    const plan *p = t->p;
    const char *src[VL];
    const int at_once = is_flat(map, p->w) && all_whole(t, from, to);
    for (int64_t row = from; row < to; row = at_once ? to : row + 1) {
        for (int l = 0; l < VL; l++) {
            int64_t at = source_index(p, t->start[l] + row - p->halo, p->h);
            src[l] = l < t->count && at >= 0 ? pixel(map, t->sample, t->plane[l], at) : NULL;
        }
        float *into = t->x + x_ring_offset(t, row);
        load_lanes(into + p->pad * VL, src, at_once ? (to - row) * p->w : p->w, map->stride[3], t->count, p->by_channel,
                   dtype);
        pad_columns(p, into);
    }
}

static void load_rows(tile *t, const sia_map *map, int64_t from, int64_t to)
{
    if (map->dtype == SIA_FLOAT32)
        load_rows_as(t, map, from, to, SIA_FLOAT32);
    else if (map->dtype == SIA_BFLOAT16)
        load_rows_as(t, map, from, to, SIA_BFLOAT16);
    else
        load_rows_as(t, map, from, to, SIA_FLOAT16);
}

/* Transpose from[pixel][lane] to to[lane * length + pixel]. The values after the last pixel, up to the next multiple of
 * VL, do not matter. */
static void lanes_to_rows(float *to, int64_t length, const float *from, int64_t pixels)
{
    for (int64_t i = 0; i < pixels; i += VL) {
        vf block[VL];
        if (i + VL <= pixels)
            for (int j = 0; j < VL; j++)
                block[j] = load(from + (i + j) * VL);
        else
            for (int j = 0; j < VL; j++)
                block[j] = load(from + smaller(i + j, pixels - 1) * VL);
        transpose(block);
        for (int l = 0; l < VL; l++)
            store(to + l * length + i, block[l]);
    }
}

/* Return how many threads are worth waking for this amount of work. */
static int useful_threads(const plan *p)
{
    const double window = (double)p->options->kernel_size * p->options->kernel_size / 2 + (double)p->neighbours;
    const double work = (double)(p->n * p->c) * (double)(p->h * p->w) * (window + 4) / 100e3;
    return work < p->options->threads ? (int)work + 1 : p->options->threads;
}

#endif
