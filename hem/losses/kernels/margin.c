/* High error margin and multi-margin losses on a CPU, forward and backward.
 *
 * For one sample with logits z[0..C), target y and margin m:
 *
 *     e_j       = max(0, (z_j - z_y) + m)    for j != y,    e_y = 0
 *     threshold = (sum_j e_j) / C            HEM, at most the largest e_j;    0 for the multi-margin loss
 *     kept_j    = e_j != 0 and not e_j < threshold          (a NaN is kept, so that it shows)
 *     loss      = sum_kept e_j / count       HEM, count = number of kept errors; / C for multi-margin
 *
 * The threshold is a constant to the derivative.  With upstream gradient g and a = g w_y / count (or / C),
 *
 *     dz_j = a for kept j,    dz_y = -a count,    0 elsewhere.
 *
 * The mean is sum w_y loss / mass: the mass of a sample is w_y where loss != 0 (HEM), 1 (multi-margin).
 * A sample leaves only its threshold and its count behind for the backward, which decides kept_j again,
 * from the same numbers in the same order.  Two layouts, told apart by `pixels`: (samples, C) when it is 1,
 * a class after the other; (images, C, pixels) otherwise, where a tile of pixels small enough for the cache
 * is swept class by class.  Either way the logits come from memory once, further sweeps find them in cache.
 *
 * The file reads itself once per number format: SCALAR is what is stored, REAL what is computed with.
 * Sums are in double, so that a threshold depends neither on the layout nor on the width of the vectors.
 */
#ifndef SCALAR

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct problem {                    /* mirrored by Arguments in native.py */
    int64_t images, classes, pixels;
    int64_t ignore_index;
    int64_t high;                   /* 1: HEM, 0: multi-margin */
    int64_t mean;                   /* 1: loss is the mean, 0: it is the sum, or each by itself */
    double margin;                  /* for all classes, unless margins is given */
    const void *margins, *weight;   /* REAL[classes] or NULL */
    const void *input;              /* SCALAR, as above */
    const int64_t *target;          /* [images * pixels] */
    void *threshold, *count;        /* REAL[images * pixels]: what forward leaves to backward */
    void *losses;                   /* forward: REAL[images * pixels] or NULL */
    void *loss, *mass;              /* REAL[1]: sum or mean, and the denominator of the mean */
    const void *upstream;           /* backward: REAL[images * pixels], or REAL[1] if upstream_step is 0 */
    void *grad;                     /* backward: SCALAR, laid out like input */
    int64_t upstream_step;
    int64_t threads;
};

enum {
    TILE = 256,                     /* most pixels in a tile: all that is known of them, and a few classes, stay in the first cache */
    GRAIN = 32768,                  /* logits in a block of work, and too few to wake a second thread */
    NONE = -1,                      /* label of an ignored sample */
};

/* A block of work: samples of one image (pixels > 1), or of all (pixels == 1). */
static int64_t block_length(const struct problem *p) {
    int64_t length = GRAIN / (p->classes ? p->classes : 1);
    if (p->pixels == 1) return length ? length : 1;
    length -= length % 64;
    return length < 64 ? 64 : length > TILE ? TILE : length;
}

static int team(const struct problem *p) {
    return p->images * p->pixels * p->classes > GRAIN ? (int)p->threads : 1;
}

/* Half precisions by arithmetic on their bits, which every compiler turns into vector instructions. */
static inline float as_float(uint32_t bits) {
    union { uint32_t bits; float value; } u = {bits};
    return u.value;
}

static inline uint32_t as_bits(float value) {
    union { float value; uint32_t bits; } u = {value};
    return u.bits;
}

static inline float from_bfloat16(uint16_t h) {
    return as_float((uint32_t)h << 16);
}

static inline uint16_t to_bfloat16(float value) {   /* to nearest, ties to even */
    uint32_t x = as_bits(value);
    return value != value ? 0x7fc0 : (uint16_t)((x + 0x7fff + (x >> 16 & 1)) >> 16);
}

static inline float from_float16(uint16_t h) {
    float magnitude = as_float((uint32_t)(h & 0x7fff) << 13) * 0x1p112f;    /* exponents start at -15, not -127 */
    uint32_t special = (h & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;             /* infinity or NaN */
    return as_float(as_bits(magnitude) | special | (uint32_t)(h & 0x8000) << 16);
}

static inline uint16_t to_float16(float value) {    /* to nearest, ties to even */
    uint32_t x = as_bits(value) & 0x7fffffff, sign = as_bits(value) >> 16 & 0x8000;
    if (x >= as_bits(0x1p16f)) x = x > 0x7f800000 ? 0x7e00 : 0x7c00;
    else if (x < as_bits(0x1p-14f)) x = as_bits(as_float(x) + 0.5f) - as_bits(0.5f);    /* subnormal */
    else x = (x - (112u << 23) + 0xfff + (x >> 13 & 1)) >> 13;
    return (uint16_t)(sign | x);
}

#define PASTE(a, b) a##_##b
#define JOIN(a, b) PASTE(a, b)
#define NAME(f) JOIN(f, FORMAT)

#define FORMAT float32
#define SCALAR float
#define REAL float
#define LOAD(x) (x)
#define STORE(x) (x)
#include "margin.c"

#define FORMAT float64
#define SCALAR double
#define REAL double
#define LOAD(x) (x)
#define STORE(x) (x)
#include "margin.c"

#define FORMAT bfloat16
#define SCALAR uint16_t
#define REAL float
#define LOAD(x) from_bfloat16(x)
#define STORE(x) to_bfloat16(x)
#include "margin.c"

#define FORMAT float16
#define SCALAR uint16_t
#define REAL float
#define LOAD(x) from_float16(x)
#define STORE(x) to_float16(x)
#include "margin.c"

#else /* SCALAR: the kernels of one number format */

static inline REAL NAME(error)(SCALAR z, REAL of_target, REAL margin) {
    REAL e = LOAD(z) - of_target + margin;
    return 0 > e ? 0 : e;           /* in this order a NaN stays */
}

static inline int NAME(kept)(REAL e, REAL threshold) {
    return !(e < threshold) & (e != 0);
}

static inline REAL NAME(margin)(const struct problem *p, int64_t y) {
    return p->margins && y != NONE ? ((const REAL *)p->margins)[y] : (REAL)p->margin;
}

static inline REAL NAME(threshold)(const struct problem *p, double sum) {
    REAL mean = (REAL)(sum / p->classes);
    return p->high || mean != mean ? mean : 0;
}

/* The largest error of a sample whose logits are `step` apart: the threshold where the sum of the errors overflows. */
static REAL NAME(largest)(const struct problem *p, const SCALAR *z, int64_t step, int64_t y, REAL zy, REAL m) {
    REAL most = 0;
    for (int64_t j = 0; j < p->classes; j++) {
        REAL e = j == y ? 0 : NAME(error)(z[j * step], zy, m);
        most = e > most ? e : most;
    }
    return most;
}

/* The label of sample s; a label that is none of the classes counts as ignored and is reported in *bad. */
static inline int64_t NAME(label)(const struct problem *p, int64_t s, int64_t *bad) {
    int64_t y = p->target[s];
    if (y == p->ignore_index) return NONE;
    if (y >= 0 && y < p->classes) return y;
    if (s < *bad) *bad = s;
    return NONE;
}

static inline REAL NAME(loss)(const struct problem *p, double kept, int32_t count) {
    return count ? (REAL)(kept / (p->high ? count : (int32_t)p->classes)) : 0;
}

/* Sample s is settled: save what the backward needs, add its share to the totals. */
static inline void NAME(settle)(const struct problem *p, int64_t s, int64_t y, REAL threshold, REAL loss,
                                int32_t count, double total[2]) {
    REAL w = y != NONE && p->weight ? ((const REAL *)p->weight)[y] : 1;
    if (y == NONE) loss = 0;        /* whatever its logits hold */
    ((REAL *)p->threshold)[s] = threshold;
    ((REAL *)p->count)[s] = y == NONE ? 0 : loss != loss ? loss : (REAL)count;
    if (p->losses) ((REAL *)p->losses)[s] = w * loss;
    if (y == NONE) return;
    total[0] += w * loss;
    total[1] += !p->high ? 1 : loss == 0 ? 0 : w;
}

/* What every kept logit of sample s gets; nothing of a sample without error, whatever the upstream gradient is. */
static inline REAL NAME(push)(const struct problem *p, int64_t s) {
    REAL count = ((const REAL *)p->count)[s], mass = p->mean ? *(const REAL *)p->mass : 1;
    int none = (count == 0) | (mass == 0);
    REAL g = ((const REAL *)p->upstream)[s * p->upstream_step] / mass;
    if (p->weight) g *= ((const REAL *)p->weight)[none ? 0 : p->target[s]];
    g /= p->high | (count != count) ? count : (REAL)p->classes;
    return none ? 0 : g;
}

/* ---- (samples, C) ---- */

static void NAME(forward_rows)(const struct problem *p, int64_t first, int64_t last, double total[2],
                               int64_t *bad) {
    const int32_t C = (int32_t)p->classes;
    for (int64_t s = first; s < last; s++) {
        const SCALAR *z = (const SCALAR *)p->input + s * C;
        const int32_t y = (int32_t)NAME(label)(p, s, bad);
        const REAL zy = y == NONE ? 0 : LOAD(z[y]), m = NAME(margin)(p, y);
        REAL threshold = 0;
        double sum = 0, kept = 0;
        int32_t count = 0;
        if (y != NONE) {
            #pragma omp simd reduction(+ : sum)
            for (int32_t j = 0; j < C; j++) sum += j == y ? 0 : NAME(error)(z[j], zy, m);
            threshold = NAME(threshold)(p, sum);
            if (threshold == INFINITY) threshold = NAME(largest)(p, z, 1, y, zy, m);
        }
        if (sum != 0) {
            #pragma omp simd reduction(+ : kept, count)
            for (int32_t j = 0; j < C; j++) {
                REAL e = j == y ? 0 : NAME(error)(z[j], zy, m);
                int keep = NAME(kept)(e, threshold);
                kept += keep ? e : 0;
                count += keep;
            }
        }
        NAME(settle)(p, s, y, threshold, NAME(loss)(p, kept, count), count, total);
    }
}

static void NAME(backward_rows)(const struct problem *p, int64_t first, int64_t last) {
    const int32_t C = (int32_t)p->classes;
    for (int64_t s = first; s < last; s++) {
        const SCALAR *z = (const SCALAR *)p->input + s * C;
        SCALAR *grad = (SCALAR *)p->grad + s * C;
        const REAL count = ((const REAL *)p->count)[s], threshold = ((const REAL *)p->threshold)[s];
        if (count == 0) {
            memset(grad, 0, C * sizeof(SCALAR));
            continue;
        }
        const int64_t y = p->target[s];
        const REAL zy = LOAD(z[y]), m = NAME(margin)(p, y), a = NAME(push)(p, s);
        const SCALAR up = STORE(a);
        #pragma omp simd
        for (int32_t j = 0; j < C; j++)
            grad[j] = NAME(kept)(NAME(error)(z[j], zy, m), threshold) ? up : (SCALAR)0;
        grad[y] = STORE(-a * count);
    }
}

/* ---- (images, C, pixels) ---- */

/* The logits and margins of a tile's targets; nothing is an error against the logit INFINITY, of ignored samples. */
static void NAME(of_targets)(const struct problem *p, const SCALAR *z, const int32_t *y, int width, REAL *zy, REAL *m) {
    const REAL *margins = p->margins;
    for (int t = 0; t < width; t++) {
        REAL of_target = LOAD(z[(y[t] == NONE ? 0 : y[t]) * p->pixels + t]);
        zy[t] = y[t] == NONE ? INFINITY : of_target;
    }
    for (int t = 0; t < width; t++) m[t] = margins ? margins[y[t] == NONE ? 0 : y[t]] : (REAL)p->margin;
}

static void NAME(forward_tile)(const struct problem *p, int64_t image, int64_t start, int width,
                               double total[2], int64_t *bad) {
    const int64_t C = p->classes, P = p->pixels, s = image * P + start, *target = p->target + s;
    const SCALAR *z = (const SCALAR *)p->input + image * C * P + start;
    const REAL *weight = p->weight;
    REAL *threshold = (REAL *)p->threshold + s, *count = (REAL *)p->count + s;
    int32_t y[TILE], k[TILE], wrong = 0;
    REAL zy[TILE], m[TILE], w[TILE], l[TILE];
    double sum[TILE], all = 0, sum_of_losses = 0, mass = 0;
    for (int t = 0; t < width; t++) {
        int ignored = target[t] == p->ignore_index, is_class = (target[t] >= 0) & (target[t] < C);
        y[t] = is_class & !ignored ? (int32_t)target[t] : NONE;
        wrong |= !is_class & !ignored;
        sum[t] = 0;
        k[t] = 0;
    }
    for (int t = 0; wrong && t < width; t++) NAME(label)(p, s + t, bad);
    NAME(of_targets)(p, z, y, width, zy, m);
    for (int t = 0; t < width; t++) w[t] = y[t] == NONE ? 0 : weight ? weight[y[t]] : 1;
    for (int32_t c = 0; c < C; c++) {
        #pragma omp simd
        for (int t = 0; t < width; t++) sum[t] += y[t] == c ? 0 : NAME(error)(z[c * P + t], zy[t], m[t]);
    }
    #pragma omp simd reduction(+ : all)
    for (int t = 0; t < width; t++) {
        threshold[t] = NAME(threshold)(p, sum[t]);
        all += sum[t];
        sum[t] = 0;
    }
    for (int t = 0; !(all < INFINITY) && t < width; t++)
        if (threshold[t] == INFINITY) threshold[t] = NAME(largest)(p, z + t, P, y[t], zy[t], m[t]);
    for (int32_t c = 0; all != 0 && c < C; c++) {
        #pragma omp simd
        for (int t = 0; t < width; t++) {
            REAL e = NAME(error)(z[c * P + t], zy[t], m[t]);
            int keep = NAME(kept)(e, threshold[t]) & (y[t] != c);
            sum[t] += keep ? e : 0;
            k[t] += keep;
        }
    }
    #pragma omp simd reduction(+ : sum_of_losses, mass)
    for (int t = 0; t < width; t++) {
        l[t] = y[t] == NONE ? 0 : NAME(loss)(p, sum[t], k[t]);
        count[t] = y[t] == NONE ? 0 : l[t] != l[t] ? l[t] : (REAL)k[t];
        sum_of_losses += w[t] * l[t];
        mass += !p->high ? y[t] != NONE : l[t] == 0 ? 0 : w[t];
    }
    for (int t = 0; p->losses && t < width; t++) ((REAL *)p->losses)[s + t] = w[t] * l[t];
    total[0] += sum_of_losses;
    total[1] += mass;
}

static void NAME(backward_tile)(const struct problem *p, int64_t image, int64_t start, int width) {
    const int64_t C = p->classes, P = p->pixels, s = image * P + start, *target = p->target + s;
    const SCALAR *z = (const SCALAR *)p->input + image * C * P + start;
    SCALAR *grad = (SCALAR *)p->grad + image * C * P + start;
    const REAL *threshold = (const REAL *)p->threshold + s, *count = (const REAL *)p->count + s;
    int32_t y[TILE];
    REAL zy[TILE], m[TILE];
    SCALAR up[TILE], down[TILE];
    for (int t = 0; t < width; t++) y[t] = count[t] == 0 ? NONE : (int32_t)target[t];
    NAME(of_targets)(p, z, y, width, zy, m);
    for (int t = 0; t < width; t++) {
        REAL a = NAME(push)(p, s + t);
        up[t] = STORE(a);
        down[t] = STORE(-a * count[t]);
    }
    for (int32_t c = 0; c < C; c++) {
        #pragma omp simd
        for (int t = 0; t < width; t++) {
            int keep = NAME(kept)(NAME(error)(z[c * P + t], zy[t], m[t]), threshold[t]);
            grad[c * P + t] = y[t] == c ? down[t] : keep ? up[t] : (SCALAR)0;
        }
    }
}

/* ---- entry points ---- */

/* Fills threshold, count, losses, loss and mass; returns the first sample whose label is no class, or -1; -2 if
 * there is no memory. */
int64_t NAME(forward)(const struct problem *p) {
    int rows = p->pixels == 1;
    int64_t length = block_length(p), span = rows ? p->images : p->pixels;
    int64_t blocks = (span + length - 1) / length, all = rows ? blocks : blocks * p->images, bad = INT64_MAX;
    double *totals = calloc(2 * all + 1, sizeof(double));
    if (!totals) return -2;
    #pragma omp parallel for num_threads(team(p)) schedule(dynamic) reduction(min : bad)
    for (int64_t b = 0; b < all; b++) {
        int64_t start = b % blocks * length, stop = start + length < span ? start + length : span;
        if (rows) NAME(forward_rows)(p, start, stop, totals + 2 * b, &bad);
        else NAME(forward_tile)(p, b / blocks, start, (int)(stop - start), totals + 2 * b, &bad);
    }
    double sum = 0, mass = 0;       /* in this order whatever the threads did: the same bits every time */
    for (int64_t b = 0; b < all; b++) sum += totals[2 * b], mass += totals[2 * b + 1];
    if (p->mean && sum != 0) sum /= mass;   /* nothing to push: the sum 0, not 0 / 0 */
    *(REAL *)p->loss = (REAL)sum;
    *(REAL *)p->mass = (REAL)mass;
    free(totals);
    return bad == INT64_MAX ? -1 : bad;
}

/* Fills grad; returns -1. */
int64_t NAME(backward)(const struct problem *p) {
    int rows = p->pixels == 1;
    int64_t length = block_length(p), span = rows ? p->images : p->pixels;
    int64_t blocks = (span + length - 1) / length, all = rows ? blocks : blocks * p->images;
    #pragma omp parallel for num_threads(team(p)) schedule(dynamic)
    for (int64_t b = 0; b < all; b++) {
        int64_t start = b % blocks * length, stop = start + length < span ? start + length : span;
        if (rows) NAME(backward_rows)(p, start, stop);
        else NAME(backward_tile)(p, b / blocks, start, (int)(stop - start));
    }
    return -1;
}

#undef FORMAT
#undef SCALAR
#undef REAL
#undef LOAD
#undef STORE
#endif
