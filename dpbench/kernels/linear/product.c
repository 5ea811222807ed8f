/* left^T right of one example after another, its norm, and the sum of all times a factor each. A product's sum over tokens stays in
   registers: it is written once and never read to be measured, and added to the sum while the next one's tile takes its place. */

#include <omp.h>
#include <stddef.h>
#include <string.h>

#include "../clipping.h"

#define INLINE static inline __attribute__((always_inline))

/* A tile of ROWS x COLUMNS sums lies in the vector registers of one core, beside one row of `right`. */
#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8, VECTORS = 3 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 6, VECTORS = 2 };
#elif defined(__aarch64__)
enum { LANES = 4, ROWS = 8, VECTORS = 2 };
#else
enum { LANES = 4, ROWS = 4, VECTORS = 2 };
#endif
enum { COLUMNS = LANES * VECTORS };
enum { LINE = 16 };                             /* floats of a cache line */
enum { WIDEST = 2048, RIGHT_ROOM = 512 * 1024 }; /* columns and floats of `right` that a thread packs at a time, at most */
enum { HIGHEST = 48, LEFT_ROOM = 48 * 1024 };    /* rows and floats of `left`: they stay in its cache */

enum { EARLY = 8 };                              /* parts of a tile's tokens: a row is fetched in each of the first ROWS */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum { KEEP, WRITE, ADD };           /* of the buffer's old content: nothing, sum = scale x it, sum += scale x it */
enum { NO_BIAS, OF_LEFT, OF_RIGHT }; /* the side whose sum over tokens is the bias' gradient */

INLINE size_t up(size_t value, size_t step) { return (value + step - 1) / step * step; }
INLINE size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* How many columns, or rows, of one side are packed at a time: full tiles, within `room` floats where one tile is not more. */
INLINE size_t span(size_t tokens, size_t count, size_t step, size_t most, size_t room) {
    size_t fits = room / (tokens ? tokens : 1) / step * step;
    return least(up(count, step), least(most, fits ? fits : step));
}

static size_t wide_span(size_t tokens, size_t columns) { return span(tokens, columns, COLUMNS, WIDEST / COLUMNS * COLUMNS, RIGHT_ROOM); }
static size_t high_span(size_t tokens, size_t rows) { return span(tokens, rows, ROWS, HIGHEST / ROWS * ROWS, LEFT_ROOM); }

/* Floats that one thread packs into. */
static size_t share(size_t tokens, size_t rows, size_t columns) {
    return up((wide_span(tokens, columns) + high_span(tokens, rows)) * tokens, LINE);
}

static size_t tiles(size_t rows, size_t columns) { return (up(rows, ROWS) / ROWS) * (up(columns, COLUMNS) / COLUMNS); }

/* Floats of room that a call of dpbench_products needs. */
size_t dpbench_products_room(size_t tokens, size_t rows, size_t columns, int threads) {
    return LINE + threads * share(tokens, rows, columns) + tiles(rows, columns) + (rows > columns ? rows : columns);
}

/* out[t][0..width) = from[t][0..count), then zeros. */
INLINE void pack(const float *from, size_t stride, size_t tokens, size_t count, size_t width, float *out) {
    for (size_t t = 0; t < tokens; t++, from += stride, out += width) {
        if (count >= width) {
            memcpy(out, from, width * sizeof *out);
        } else {
            memset(out, 0, width * sizeof *out);
            memcpy(out, from, count * sizeof *out);
        }
    }
}

/* sum += a^T b for tokens `from` to `to` of a [tokens][ROWS], b [tokens][COLUMNS]. */
INLINE void multiply(size_t from, size_t to, const float *restrict a, const float *restrict b, vec sum[ROWS][VECTORS]) {
    for (size_t t = from; t < to; t++) {
        vec row[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) row[j] = *(const vec *)(b + COLUMNS * t + LANES * j);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; j++) sum[i][j] += a[ROWS * t + i] * row[j];
    }
}

/* Sum of squares; what lies outside the product is zero. */
INLINE float squares(const vec tile[ROWS][VECTORS]) {
    vec sum = {0};
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) sum += tile[i][j] * tile[i][j];
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) sum[j] += sum[j + half];
    return sum[0];
}

INLINE void fetch(const float *row) {
    for (int j = 0; j < COLUMNS; j += LINE) __builtin_prefetch(row + j, 1);
}

/* The old content of the buffer goes to the weight, `tile` takes its place. */
INLINE void store(
    const vec tile[ROWS][VECTORS], float *buffer, float *weight, size_t stride, size_t high, size_t wide, float scale, int old
) {
    if (high == ROWS && wide == COLUMNS) {
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; j++) {
                loose *one = (loose *)(buffer + i * stride + LANES * j), *sum = (loose *)(weight + i * stride + LANES * j);
                if (old == ADD) *sum += scale * *one;
                if (old == WRITE) *sum = scale * *one;
                *one = tile[i][j];
            }
        return;
    }
    for (size_t i = 0; i < high; i++)
        for (size_t j = 0; j < wide; j++) {
            float *one = buffer + i * stride + j, *sum = weight + i * stride + j;
            if (old == ADD) *sum += scale * *one;
            if (old == WRITE) *sum = scale * *one;
            *one = tile[i][j / LANES][j % LANES];
        }
}

typedef struct {
    const float *left, *right; /* [tokens][rows], [tokens][columns] */
    size_t left_stride, right_stride, tokens, rows, columns;
    float *buffer, *weight; /* [rows][columns], or NULL where only norms are needed */
    float scale;
    int old, backward;
    float *parts; /* [tiles]: a squared norm each */
} task;

/* Rows from..to of the product, where `right` is packed for columns first..last. */
static void make(const task *t, size_t from, size_t to, size_t first, size_t last, float *lefts, const float *rights) {
    const size_t across = up(t->columns, COLUMNS) / COLUMNS;
    for (size_t row = from; row < to; row += ROWS)
        pack(t->left + row, t->left_stride, t->tokens, to - row, ROWS, lefts + (row - from) * t->tokens);
    for (size_t column = first; column < last; column += COLUMNS)
        for (size_t row = from; row < to; row += ROWS) {
            const size_t place = row * t->columns + column, high = least(to - row, ROWS), wide = least(last - column, COLUMNS);
            const float *a = lefts + (row - from) * t->tokens, *b = rights + (column - first) * t->tokens;
            vec tile[ROWS][VECTORS];
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
                for (int j = 0; j < VECTORS; j++) tile[i][j] = (vec){0};
            size_t done = 0;
            if (t->buffer)
                for (size_t i = 0; i < high; i++) { /* what the tile will meet is fetched bit by bit while it is formed */
                    fetch(t->buffer + place + i * t->columns);
                    if (t->old != KEEP) fetch(t->weight + place + i * t->columns);
                    multiply(done, t->tokens * (i + 1) / EARLY, a, b, tile);
                    done = t->tokens * (i + 1) / EARLY;
                }
            multiply(done, t->tokens, a, b, tile);
            t->parts[row / ROWS * across + column / COLUMNS] = squares((const vec(*)[VECTORS])tile);
            if (t->buffer)
                store((const vec(*)[VECTORS])tile, t->buffer + place, t->weight + place, t->columns, high, wide, t->scale, t->old);
        }
}

typedef struct {
    size_t from, to, first, last; /* rows, columns */
} area;

/* One thread's part, in the room of that thread. */
static void part(const task *t, area mine, float *room) {
    const size_t wide = wide_span(t->tokens, t->columns), high = high_span(t->tokens, t->rows);
    float *lefts = room + wide * t->tokens;
    for (size_t c = mine.first; c < mine.last; c += wide) {
        const size_t end = least(c + wide, mine.last), count = (mine.to - mine.from + high - 1) / high;
        for (size_t column = c; column < end; column += COLUMNS)
            pack(t->right + column, t->right_stride, t->tokens, end - column, COLUMNS, room + (column - c) * t->tokens);
        for (size_t n = 0; n < count; n++) {
            const size_t row = mine.from + (t->backward ? count - 1 - n : n) * high;
            make(t, row, least(row + high, mine.to), c, end, lefts, room);
        }
    }
}

/* Share `id` of `count` things, in full steps: where it begins. */
INLINE size_t begin(size_t count, size_t step, size_t id, size_t threads) {
    return least((count + step - 1) / step * id / threads * step, count);
}

/* A thread keeps its part of the sum from example to example, for its cache's sake. */
static area area_of(const task *t, size_t id, size_t threads) {
    if (t->columns > t->rows && t->columns >= 4 * COLUMNS * threads)
        return (area){0, t->rows, begin(t->columns, COLUMNS, id, threads), begin(t->columns, COLUMNS, id + 1, threads)};
    return (area){begin(t->rows, ROWS, id, threads), begin(t->rows, ROWS, id + 1, threads), 0, t->columns};
}

/* Adds what is pending; zero where nothing ever was. */
static void finish(const task *t, area mine, int written) {
    for (size_t row = mine.from; row < mine.to; row++) {
        float *restrict sum = t->weight + row * t->columns, *restrict one = t->buffer + row * t->columns;
        if (t->old == ADD)
            for (size_t c = mine.first; c < mine.last; c++) sum[c] += t->scale * one[c];
        else if (t->old == WRITE)
            for (size_t c = mine.first; c < mine.last; c++) sum[c] = t->scale * one[c];
        else if (!written)
            memset(sum + mine.first, 0, (mine.last - mine.first) * sizeof *sum);
    }
}

/* One example's bias gradient, this thread's part of it. */
static void sum_tokens(const float *from, size_t stride, size_t tokens, size_t first, size_t last, float *restrict sums) {
    memset(sums + first, 0, (last - first) * sizeof *sums);
    for (size_t t = 0; t < tokens; t++)
        for (size_t c = first; c < last; c++) sums[c] += from[t * stride + c];
}

/* norms[i] = sqrt(||left_i^T right_i||^2 + the bias gradient's) and, where there is a weight, weight (+)= sum_i factor_i left_i^T right_i.

   left [batch][tokens][rows], right [batch][tokens][columns]: strides are those of examples and of tokens. buffer, weight
   [rows][columns]; written: whether the weight holds a sum already. side: whose sum over tokens is the bias' gradient, in the same norm and
   added to `bias` likewise. An example whose norm is not finite is left out. The same result for any number of threads. */
void dpbench_products(
    const float *left, size_t left_example, size_t left_stride, const float *right, size_t right_example, size_t right_stride,
    size_t batch, size_t tokens, size_t rows, size_t columns, float *buffer, float *weight, int written, int side, float *bias,
    int function, double bound, double gamma, double (*other)(double), float *norms, float *room, int threads
) {
    room = (float *)up((size_t)room, sizeof *room * LINE);
    const clipping by = {function, bound, gamma, other};
    const size_t floats = share(tokens, rows, columns), team = threads, wide = side == OF_LEFT ? rows : columns;
    float *parts = room + team * floats, *sums = parts + tiles(rows, columns);
    task t = {left, right, left_stride, right_stride, tokens, rows, columns, buffer, weight, 0, KEEP, 0, parts};
#pragma omp parallel num_threads(threads)
    {
        const size_t first = omp_get_thread_num(), step = omp_get_num_threads(); /* fewer threads than asked for take several areas */
        for (size_t i = 0; i < batch; i++) {
            for (size_t id = first; id < team; id += step) {
                part(&t, area_of(&t, id, team), room + id * floats);
                if (side != NO_BIAS)
                    sum_tokens(
                        side == OF_LEFT ? t.left : t.right, side == OF_LEFT ? left_stride : right_stride, tokens,
                        begin(wide, LINE, id, team), begin(wide, LINE, id + 1, team), sums
                    );
            }
#pragma omp barrier
#pragma omp master
            {
                double squared = 0;
                for (size_t k = 0; k < tiles(rows, columns); k++) squared += parts[k];
                for (size_t c = 0; side != NO_BIAS && c < wide; c++) squared += (double)sums[c] * sums[c];
                const double norm = sqrt(squared);
                norms[i] = norm;
                if (weight) {
                    written = written || t.old == WRITE;
                    t.old = !isfinite(norm) ? KEEP : written ? ADD : WRITE;
                    t.scale = factor_of(norm, &by);
                    if (bias && t.old != KEEP)
                        for (size_t c = 0; c < wide; c++) bias[c] += t.scale * sums[c];
                }
                t.left += left_example;
                t.right += right_example;
                t.backward = !t.backward; /* begins with what the caches still hold */
            }
#pragma omp barrier
        }
        if (weight)
            for (size_t id = first; id < team; id += step) finish(&t, area_of(&t, id, team), written);
    }
}
