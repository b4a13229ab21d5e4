/* What every path of the merge kernel shares: the plan, the fault, conversions on integers. */

#ifndef ADAPTERHUB_MERGE_H
#define ADAPTERHUB_MERGE_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "float must be evaluated as float"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weights are stored little-endian"
#endif
#ifdef __FAST_MATH__
#error "fast-math changes bits"
#endif

#define INLINE static inline __attribute__((always_inline))

/* Columns are padded to whole panels, which the tiles of every path divide. */
enum { PANEL = 64, MOST_ROWS = 6 };
enum { F32, F16, BF16, DTYPES };
enum { PORTABLE, AVX2, AVX512, PATHS };

/* One adapter's share: acc = fma(scale, t, acc).
 * rank >= 0: t is the chain over k of rows[p,k] * columns[k,q]. `rows` is (rows, rank) in C order;
 * `columns` is as adapterhub_merge_pack leaves it.
 * rank < 0: t is rows[p,q] itself; the plan has PANEL columns. */
typedef struct {
    const float *rows, *columns;
    int64_t rank;
    float scale;
} Term;

/* A stored matrix of `rows` by `columns`, C order. With no terms it is only cast. */
typedef struct {
    int32_t path, in, out, count;
    int64_t rows, columns;
    const Term *terms;
} Plan;

/* The first flat index in C order of a non-finite weight, and of a result that is not finite
 * although its weight is; INT64_MAX where there is none. */
typedef struct {
    int64_t weight, result;
} Fault;

enum { SIZE_f32 = 4, SIZE_f16 = 2, SIZE_bf16 = 2 };
static const int64_t SIZE[DTYPES] = {SIZE_f32, SIZE_f16, SIZE_bf16};

/* The largest bits, without sign, that still round to a finite number of the dtype. */
static const int32_t LIMIT[DTYPES] = {0x7F7FFFFF, 0x477FEFFF, 0x7F7F7FFF};

/* A path's tiles side by side, from column `start` to `stop`. All else counts from column 0: `row`
 * and `column` into the factors, `in` and `out` with so many bytes from row to row. */
typedef struct {
    const float *row[MOST_ROWS], *column;
    int64_t rank, start, stop, in_step, out_step;
    const char *in;
    char *out;
    float *seen;
    float scale;
    int32_t limit;
} Strip;

typedef int64_t (*Kernel)(const Strip *);

typedef void (*Pack)(const float *source, int64_t rank, int64_t columns, int64_t k_step,
                     int64_t q_step, float *packed);

/* A tile is `rows` by `width`. */
typedef struct {
    int64_t rows, width;
    Pack pack;
    Kernel kernel[DTYPES][DTYPES];
} Path;

INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
INLINE int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

INLINE int64_t columns_padded(int64_t columns) { return (columns + PANEL - 1) / PANEL * PANEL; }

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Element `i` of an array that may be unaligned. */
INLINE float load_f32(const void *p, int64_t i) {
    float x;
    memcpy(&x, (const char *)p + 4 * i, 4);
    return x;
}

INLINE uint16_t load_16(const void *p, int64_t i) {
    uint16_t x;
    memcpy(&x, (const char *)p + 2 * i, 2);
    return x;
}

INLINE float load_bf16(const void *p, int64_t i) { return float_of((uint32_t)load_16(p, i) << 16); }

INLINE float load_f16(const void *p, int64_t i) {
    uint32_t half = load_16(p, i);
    uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3FF;
    if (exponent == 0) return float_of(sign | bits_of((float)(int32_t)fraction * 0x1p-24f));
    return float_of(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

INLINE void store_f32(void *p, int64_t i, float x) { memcpy((char *)p + 4 * i, &x, 4); }
INLINE void store_16(void *p, int64_t i, uint32_t x) {
    uint16_t low = (uint16_t)x;
    memcpy((char *)p + 2 * i, &low, 2);
}

/* bits / 2^shift, ties to even. */
INLINE uint32_t shift_even(uint32_t bits, uint32_t shift) {
    return (bits + (1u << (shift - 1)) - 1 + (bits >> shift & 1)) >> shift;
}

/* Both take finite results only: what would not be finite is told by LIMIT before. */
INLINE void store_bf16(void *p, int64_t i, float x) { store_16(p, i, shift_even(bits_of(x), 16)); }

INLINE void store_f16(void *p, int64_t i, float x) {
    uint32_t sign = bits_of(x) >> 16 & 0x8000, size = bits_of(x) & 0x7FFFFFFF, half = 0;
    if (size >= 113u << 23) {
        half = shift_even(size - (112u << 23), 13);
    } else if (size >= 102u << 23) { /* subnormal as fp16; below, everything rounds to zero */
        half = shift_even((size & 0x7FFFFF) | 0x800000, 126 - (size >> 23));
    }
    store_16(p, i, sign | half);
}

INLINE float load_any(int32_t dtype, const void *p, int64_t i) {
    return dtype == F32 ? load_f32(p, i) : dtype == F16 ? load_f16(p, i) : load_bf16(p, i);
}

#endif
