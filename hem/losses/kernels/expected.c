/* Margin losses of class probabilities on a CPU: their expectation over the classes, and its slope.
 *
 * For one sample with logits z[0..C), shares s[0..C) (probability times class weight) and margins m[0..C):
 *
 *     loss = sum_c s_c l_c,    l_c the loss of margin.c with target c
 *     slope_j = d loss / d z_j = sum_{c != j} s_c [j kept under c] / count_c  -  s_j [count_j > 0]     (HEM)
 *
 * Three ways, by what they cost.  One class after the other, 3 C operations each: for the few classes of mixed labels,
 * and wherever logits are so large that sums of them could overflow, or are none.  All classes of a block of samples
 * side by side, 3 C^2: for few classes, where vectors hold the samples.  All classes by one sort: in ascending order
 * u of the logits the errors of target c, u_j - a_c with a_c = z_c - m_c, are those from some place k on, and sum to
 *
 *     T_k - (C - k) a_c,    T_k = sum_{i >= k} u_i,    less the target's own, u_c - a_c = m_c, which is no error;
 *
 * and both places, where errors begin and where those begin that reach the mean, are found by halving, for vectors of
 * classes at a time.  What class c pushes is a step at its second place; the slopes are a running sum of the steps.
 *
 * The file reads itself once per number format.
 */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct expected {                   /* mirrored by Expected in native.py */
    int64_t images, classes, pixels;    /* as in margin.c: (samples, C) if pixels is 1, (images, C, pixels) otherwise */
    int64_t high;                   /* 1: HEM, 0: multi-margin */
    double margin;                  /* for all classes, unless margins is given */
    const void *margins;            /* REAL[classes] or NULL */
    const void *input, *shares;     /* REAL, laid out alike */
    void *losses;                   /* REAL[images * pixels] */
    void *slope;                    /* REAL, laid out like input */
    int64_t threads;
};

enum {
    FEW = 32,                       /* classes that are taken side by side */
    SIDE = 64,                      /* samples that are */
    MIXED = 6,                      /* classes of a sample, at most, that are taken one after the other */
    GRAIN = 8192,                   /* logits too few to wake a second thread */
};

#define PASTE(a, b) a##_##b
#define JOIN(a, b) PASTE(a, b)
#define NAME(f) JOIN(f, FORMAT)

#define FORMAT float32
#define REAL float
#define KEY uint32_t
#define CALM 1e30f                  /* logits beyond could overflow when summed */
#include "expected.c"

#define FORMAT float64
#define REAL double
#define KEY uint64_t
#define CALM 1e290
#include "expected.c"

#else /* REAL: the functions of one number format */

/* What a thread works in: one sample of many classes. */
struct NAME(room) {
    REAL *z, *share, *slope;        /* [C] */
    KEY *key, *other;               /* [C]; logits as whole numbers in the same order */
    int32_t *order, *swap;          /* [C] */
    REAL *u, *a;                    /* [2 C + 2] and [C]: logits in order, and what they are compared with */
    int32_t *start, *k;             /* [C] */
    double *tail, *step, *push, *self;  /* [C + 1] */
};

static int NAME(furnish)(struct NAME(room) *room, int64_t C, char **memory) {
    size_t n = (size_t)C + 1;
    char *at = *memory = malloc(n * (6 * sizeof(REAL) + 2 * sizeof(KEY) + 4 * sizeof(int32_t) + 4 * sizeof(double)));
    if (!at) return 0;
    room->tail = (double *)at, room->step = room->tail + n, room->push = room->step + n, room->self = room->push + n;
    room->key = (KEY *)(room->self + n), room->other = room->key + n;
    room->z = (REAL *)(room->other + n), room->share = room->z + n, room->slope = room->share + n;
    room->a = room->slope + n, room->u = room->a + n;
    room->order = (int32_t *)(room->u + 2 * n), room->swap = room->order + n;
    room->start = room->swap + n, room->k = room->start + n;
    return 1;
}

static inline REAL NAME(margin)(const struct expected *p, int64_t c) {
    return p->margins ? ((const REAL *)p->margins)[c] : (REAL)p->margin;
}

/* ---- one class after the other ---- */

/* Adds class y's share of the loss, and to slope what it pushes; the mathematics of margin.c, in its order. */
static double NAME(of_class)(const struct expected *p, const REAL *z, int32_t y, REAL share, REAL *slope) {
    const int32_t C = (int32_t)p->classes;
    const REAL zy = z[y], m = NAME(margin)(p, y);
    double sum = 0, kept = 0;
    REAL most = 0;
    int32_t count = 0;
    #pragma omp simd reduction(+ : sum) reduction(max : most)
    for (int32_t j = 0; j < C; j++) {
        REAL e = z[j] - zy + m;
        e = j == y || 0 > e ? 0 : e;
        sum += e;
        most = e > most ? e : most;
    }
    REAL threshold = (REAL)(sum / C);
    if (threshold > most) threshold = most;
    if (!p->high && threshold == threshold) threshold = 0;
    if (sum == 0) return 0;
    #pragma omp simd reduction(+ : kept, count)
    for (int32_t j = 0; j < C; j++) {
        REAL e = z[j] - zy + m;
        e = j == y || 0 > e ? 0 : e;
        int keep = !(e < threshold) & (e != 0);
        kept += keep ? e : 0;
        count += keep;
    }
    double loss = kept / (p->high ? count : C);
    REAL push = loss != loss ? (REAL)loss : share / (p->high ? count : C);
    #pragma omp simd
    for (int32_t j = 0; j < C; j++) {
        REAL e = z[j] - zy + m;
        e = 0 > e ? 0 : e;
        slope[j] += !(e < threshold) & (e != 0) & (j != y) ? push : 0;
    }
    slope[y] -= push * count;
    return share * loss;
}

/* ---- all classes by one sort ---- */

static inline KEY NAME(ascending)(REAL z) {
    union { REAL value; KEY bits; } u = {z + 0};    /* -0 is 0 */
    KEY sign = (KEY)1 << (8 * sizeof(KEY) - 1);
    return u.bits & sign ? ~u.bits : u.bits | sign;
}

/* The classes in ascending order of their logits, and their distances to the largest: by digits, the last
 * first. */
static void NAME(sort)(struct NAME(room) *room, int32_t C) {
    enum { MOST = 11, DIGITS = (8 * sizeof(KEY) + 7) / 8 };
    const unsigned bits = C < 256 ? 8 : MOST, digits = (8 * sizeof(KEY) + bits - 1) / bits, mask = (1u << bits) - 1;
    uint32_t counts[DIGITS][1 << MOST];
    for (unsigned d = 0; d < digits; d++) memset(counts[d], 0, sizeof(uint32_t) << bits);
    for (int32_t j = 0; j < C; j++) {
        KEY key = room->key[j] = NAME(ascending)(room->z[j]);
        room->order[j] = j;
        for (unsigned d = 0; d < digits; d++) counts[d][key >> bits * d & mask]++;
    }
    for (unsigned d = 0; d < digits; d++) {
        uint32_t *count = counts[d], place = 0;
        if (count[room->key[0] >> bits * d & mask] == (uint32_t)C) continue;    /* all alike */
        for (unsigned i = 0; i <= mask; i++) {
            uint32_t n = count[i];
            count[i] = place, place += n;
        }
        for (int32_t j = 0; j < C; j++) {
            uint32_t to = count[room->key[j] >> bits * d & mask]++;
            room->other[to] = room->key[j], room->swap[to] = room->order[j];
        }
        KEY *key = room->key;
        int32_t *order = room->order;
        room->key = room->other, room->other = key, room->order = room->swap, room->swap = order;
    }
    /* what all have in common would swallow the digits of sums */
    const REAL most = room->z[room->order[C - 1]];
    for (int32_t i = 0; i < C; i++) room->u[i] = room->z[room->order[i]] - most;
}

/* How many of the numbers u[0..C), in ascending order, are below each x, or (reached: 0) are not above it; behind them
 * stand C numbers that are greater than all. */
static void NAME(places)(const REAL *u, int32_t C, const REAL *x, int32_t *place, int reached) {
    int32_t half = 1;
    while (2 * half <= C) half *= 2;
    for (int32_t i = 0; i < C; i++) place[i] = 0;
    for (; half; half /= 2) {
        const REAL *far = u + half - 1;
        if (reached) {
            #pragma omp simd
            for (int32_t i = 0; i < C; i++) place[i] += far[place[i]] < x[i] ? half : 0;
        } else {
            #pragma omp simd
            for (int32_t i = 0; i < C; i++) place[i] += far[place[i]] <= x[i] ? half : 0;
        }
    }
}

static double NAME(by_sorting)(const struct expected *p, struct NAME(room) *room) {
    const int32_t C = (int32_t)p->classes;
    NAME(sort)(room, C);
    const int32_t *order = room->order;
    int32_t *start = room->start, *k = room->k;
    REAL *u = room->u, *a = room->a;
    double *tail = room->tail, *push = room->push, *self = room->self, loss = 0, running = 0;
    for (int32_t i = C; i < 2 * C; i++) u[i] = INFINITY;
    tail[C] = 0;
    for (int32_t i = C - 1; i >= 0; i--) tail[i] = running += u[i];
    if (p->margins) for (int32_t i = 0; i < C; i++) a[i] = u[i] - ((const REAL *)p->margins)[order[i]];
    else for (int32_t i = 0; i < C; i++) a[i] = u[i] - (REAL)p->margin;
    NAME(places)(u, C, a, start, 0);
    if (p->high) {
        #pragma omp simd
        for (int32_t i = 0; i < C; i++) {
            int own = u[i] > a[i];
            double sum = tail[start[i]] - (own ? u[i] : 0) - (C - start[i] - own) * (double)a[i];
            REAL bound = (REAL)(a[i] + sum / C), most = u[C - 1];
            room->slope[i] = bound > most ? most : bound;   /* a mean is no more than the largest; rounded it may be */
        }
        if (room->slope[C - 1] > u[C - 2]) room->slope[C - 1] = u[C - 2];   /* the largest has itself no error */
        NAME(places)(u, C, room->slope, k, 1);
    }
    #pragma omp simd reduction(+ : loss)
    for (int32_t i = 0; i < C; i++) {
        int32_t from = p->high && k[i] > start[i] ? k[i] : start[i];
        int own = (u[i] > a[i]) & (i >= from);
        int32_t count = C - from - own;
        double each = count > 0 ? 1.0 / (p->high ? count : C) : 0;
        double sum = tail[from] - (own ? u[i] : 0) - count * (double)a[i];
        start[i] = from;
        push[i] = each * room->share[order[i]];
        loss += push[i] * sum;
        self[i] = push[i] * (count + own);
    }
    memset(room->step, 0, (C + 1) * sizeof(double));
    for (int32_t i = 0; i < C; i++) room->step[start[i]] += push[i];
    running = 0;
    for (int32_t i = 0; i < C; i++) {
        running += room->step[i];
        room->slope[order[i]] = (REAL)(running - self[i]);
    }
    return loss;
}

/* One sample of any number of classes, in room->z and room->share; its slope is left in room->slope. */
static REAL NAME(one)(const struct expected *p, struct NAME(room) *room) {
    const int32_t C = (int32_t)p->classes;
    int32_t mixed = 0, calm = 1;
    for (int32_t j = 0; j < C; j++) {
        mixed += room->share[j] != 0;
        calm &= room->z[j] <= CALM && room->z[j] >= -CALM;
    }
    if (calm && mixed > MIXED) return (REAL)NAME(by_sorting)(p, room);
    double loss = 0;
    memset(room->slope, 0, C * sizeof(REAL));
    for (int32_t c = 0; c < C; c++)
        if (room->share[c] != 0) loss += NAME(of_class)(p, room->z, c, room->share[c], room->slope);
    return (REAL)loss;
}

/* ---- few classes: samples side by side ---- */

/* The losses of SIDE samples of few, calm logits; z, share and slope are (C, SIDE). */
static void NAME(side_by_side)(const struct expected *p, const REAL *z, const REAL *share, REAL *slope, REAL *losses) {
    const int C = (int)p->classes;
    for (int t = 0; t < SIDE; t++) losses[t] = 0;
    memset(slope, 0, C * SIDE * sizeof(REAL));
    for (int c = 0; c < C; c++) {
        const REAL m = NAME(margin)(p, c), *zy = z + c * SIDE, *s = share + c * SIDE;
        REAL threshold[SIDE], kept[SIDE], count[SIDE], push[SIDE], any = 0;
        #pragma omp simd reduction(max : any)
        for (int t = 0; t < SIDE; t++) any = s[t] != 0 ? 1 : any;
        if (any == 0) continue;
        for (int t = 0; t < SIDE; t++) threshold[t] = kept[t] = count[t] = 0;
        for (int j = 0; j < C; j++) {
            if (j == c) continue;
            #pragma omp simd
            for (int t = 0; t < SIDE; t++) {
                REAL e = z[j * SIDE + t] - zy[t] + m;
                threshold[t] += e > 0 ? e : 0;
            }
        }
        for (int t = 0; t < SIDE; t++) threshold[t] = p->high ? threshold[t] / C : 0;
        for (int j = 0; j < C; j++) {
            if (j == c) continue;
            #pragma omp simd
            for (int t = 0; t < SIDE; t++) {
                REAL e = z[j * SIDE + t] - zy[t] + m;
                int keep = (e >= threshold[t]) & (e > 0);
                kept[t] += keep ? e : 0;
                count[t] += keep ? 1 : 0;
            }
        }
        #pragma omp simd
        for (int t = 0; t < SIDE; t++) {
            REAL number = p->high ? count[t] : C;
            push[t] = count[t] > 0 ? s[t] / number : 0;
            losses[t] += push[t] * kept[t];
        }
        for (int j = 0; j < C; j++) {
            REAL *of_j = slope + j * SIDE;
            if (j == c) {
                for (int t = 0; t < SIDE; t++) of_j[t] -= push[t] * count[t];
                continue;
            }
            #pragma omp simd
            for (int t = 0; t < SIDE; t++) {
                REAL e = z[j * SIDE + t] - zy[t] + m;
                of_j[t] += (e >= threshold[t]) & (e > 0) ? push[t] : 0;
            }
        }
    }
}

/* ---- entry points ---- */

/* A block of at most SIDE samples, the first of which has its logits from `at` on: `next` from one sample to the
 * next, `step` from one class to the next. */
static void NAME(block)(const struct expected *p, struct NAME(room) *room, int64_t at, int64_t next, int64_t step,
                        int width, REAL *losses) {
    const int32_t C = (int32_t)p->classes;
    const REAL *z = (const REAL *)p->input + at, *share = (const REAL *)p->shares + at;
    REAL *slope = (REAL *)p->slope + at;
    if (C <= FEW) {
        REAL zs[FEW * SIDE], shares[FEW * SIDE], slopes[FEW * SIDE], loss[SIDE];
        int calm = 1;
        for (int32_t c = 0; c < C; c++) {
            for (int t = 0; t < SIDE; t++) {
                int inside = t < width;
                REAL value = zs[c * SIDE + t] = inside ? z[t * next + c * step] : 0;
                shares[c * SIDE + t] = inside ? share[t * next + c * step] : 0;
                calm &= value <= CALM && value >= -CALM;
            }
        }
        if (calm) {
            NAME(side_by_side)(p, zs, shares, slopes, loss);
            memcpy(losses, loss, width * sizeof(REAL));
            for (int32_t c = 0; c < C; c++)
                for (int t = 0; t < width; t++) slope[t * next + c * step] = slopes[c * SIDE + t];
            return;
        }
    }
    for (int t = 0; t < width; t++) {
        for (int32_t c = 0; c < C; c++) {
            room->z[c] = z[t * next + c * step];
            room->share[c] = share[t * next + c * step];
        }
        losses[t] = NAME(one)(p, room);
        for (int32_t c = 0; c < C; c++) slope[t * next + c * step] = room->slope[c];
    }
}

/* Fills losses and slope; returns -1, or -2 if there is no memory. */
int64_t NAME(expected)(const struct expected *p) {
    const int rows = p->pixels == 1;
    const int64_t C = p->classes, span = rows ? p->images : p->pixels, images = rows ? 1 : p->images;
    const int64_t length = C <= FEW ? SIDE : 16, blocks = (span + length - 1) / length;
    int64_t failed = 0;
    #pragma omp parallel num_threads(images * span * C > GRAIN ? (int)p->threads : 1) reduction(| : failed)
    {
        struct NAME(room) room;
        char *memory;
        failed = !NAME(furnish)(&room, C, &memory);
        #pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks * images; b++) {
            int64_t image = b / blocks, start = b % blocks * length;
            int64_t at = rows ? start * C : image * C * span + start;
            int width = (int)(start + length < span ? length : span - start);
            if (!failed)
                NAME(block)(p, &room, at, rows ? C : 1, rows ? 1 : span, width,
                            (REAL *)p->losses + image * span + start);
        }
        free(memory);
    }
    return failed ? -2 : -1;
}

/* What `expected` left as slope, times the upstream gradient of each sample; 0 stays 0 whatever is upstream;
 * returns -1. */
int64_t NAME(scaled)(const struct expected *p) {
    const int rows = p->pixels == 1;
    const int64_t C = p->classes, span = rows ? p->images : p->pixels, images = rows ? 1 : p->images;
    const REAL *slope = p->input, *upstream = p->shares;
    REAL *grad = p->slope;
    const int64_t lines = rows ? span : images * C;
    #pragma omp parallel for num_threads(images * span * C > GRAIN ? (int)p->threads : 1) schedule(static)
    for (int64_t line = 0; line < lines; line++) {
        const int64_t length = rows ? C : span, at = line * length;
        const REAL *up = rows ? upstream + line : upstream + line / C * span;
        if (rows) {
            #pragma omp simd
            for (int64_t i = 0; i < length; i++) grad[at + i] = slope[at + i] == 0 ? 0 : slope[at + i] * *up;
        } else {
            #pragma omp simd
            for (int64_t i = 0; i < length; i++) grad[at + i] = slope[at + i] == 0 ? 0 : slope[at + i] * up[i];
        }
    }
    return -1;
}

#undef FORMAT
#undef REAL
#undef KEY
#undef CALM
#endif
