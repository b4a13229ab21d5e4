/* The kernel itself, compiled once for each path.
 *
 * The including file defines NAME(x) and TARGET; LANES, the floats in a vector; ROWS and WIDTH, the
 * tile whose sums stay in registers; the types V and BITS; and on them
 *     zero splat load fma                   as one expects
 *     load_DTYPE(p, i, &x, &y)              2·LANES elements from element i, unaligned
 *     store_DTYPE(p, i, x, y)               likewise; finite results only
 *     largest(m, v), exceeds(m, limit)      the largest bits without sign, per lane; any > limit?
 * Which of the 2·LANES columns are in x and which in y is the path's choice: packing follows it.
 *
 * Each output is one chain of fma over k in ascending order, as the contract demands: k is not
 * split, and what is blocked are rows and columns, which cannot change a bit.
 */

#define VECTORS (WIDTH / LANES)
#define EACH_ROW _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)
#define EACH_PAIR _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v += 2)

/* t of a tile; `column` is its part of the packed columns. */
INLINE TARGET void NAME(product)(const Strip *strip, const float *column, V sum[ROWS][VECTORS]) {
    const float *row[ROWS];
    EACH_ROW row[i] = strip->row[i];
    EACH_ROW EACH_VECTOR sum[i][v] = NAME(zero)();
    for (int64_t k = 0; k < strip->rank; k++, column += WIDTH) {
        V right[VECTORS];
        EACH_VECTOR right[v] = NAME(load)(column + v * LANES);
        EACH_ROW {
            V left = NAME(splat)(row[i][k]);
            EACH_VECTOR sum[i][v] = NAME(fma)(left, right[v], sum[i][v]);
        }
    }
}

/* The tiles of a strip from left to right: out = round(fma(scale, t, in)). Returns `stop`, or the
 * first column of a tile with a result over the limit, of which only `seen` is written, as fp32.
 * `in` and `out` may be the same. */
#define KERNEL(IN, OUT)                                                                          \
    TARGET static int64_t NAME(IN##_##OUT)(const Strip *strip) {                                 \
        V scale = NAME(splat)(strip->scale);                                                     \
        for (int64_t q = strip->start; q < strip->stop; q += WIDTH) {                            \
            V sum[ROWS][VECTORS];                                                                \
            BITS size = NAME(none)();                                                            \
            if (strip->rank >= 0)                                                                \
                NAME(product)(strip, strip->column + q * strip->rank, sum);                      \
            else                                                                                 \
                EACH_ROW EACH_PAIR NAME(load_f32)(strip->row[i], q + v * LANES, &sum[i][v],      \
                                                  &sum[i][v + 1]);                               \
            const char *in = strip->in + q * SIZE_##IN;                                          \
            EACH_ROW EACH_PAIR {                                                                 \
                V x, y;                                                                          \
                NAME(load_##IN)(in + i * strip->in_step, v * LANES, &x, &y);                     \
                sum[i][v] = NAME(fma)(scale, sum[i][v], x);                                      \
                sum[i][v + 1] = NAME(fma)(scale, sum[i][v + 1], y);                              \
                size = NAME(largest)(NAME(largest)(size, sum[i][v]), sum[i][v + 1]);             \
            }                                                                                    \
            if (__builtin_expect(NAME(exceeds)(size, strip->limit), 0)) {                        \
                EACH_ROW EACH_PAIR NAME(store_f32)(strip->seen + i * PANEL, v * LANES,           \
                                                   sum[i][v], sum[i][v + 1]);                    \
                return q;                                                                        \
            }                                                                                    \
            char *out = strip->out + q * SIZE_##OUT;                                             \
            EACH_ROW EACH_PAIR NAME(store_##OUT)(out + i * strip->out_step, v * LANES,           \
                                                 sum[i][v], sum[i][v + 1]);                      \
        }                                                                                        \
        return strip->stop;                                                                      \
    }
KERNEL(f32, f32) KERNEL(f32, f16) KERNEL(f32, bf16)
KERNEL(f16, f32) KERNEL(f16, f16) KERNEL(f16, bf16)
KERNEL(bf16, f32) KERNEL(bf16, f16) KERNEL(bf16, bf16)
#undef KERNEL

/* See adapterhub_merge_pack. */
TARGET static void NAME(pack)(const float *source, int64_t rank, int64_t columns, int64_t k_step,
                              int64_t q_step, float *packed) {
    for (int64_t left = 0; left < columns_padded(columns); left += WIDTH)
        for (int64_t k = 0; k < rank; k++, packed += WIDTH) {
            const float *from = source + k * k_step + left * q_step;
            float part[WIDTH];
            if (q_step != 1 || left + WIDTH > columns) {
                for (int64_t i = 0; i < WIDTH; i++)
                    part[i] = left + i < columns ? from[i * q_step] : 0;
                from = part;
            }
            EACH_PAIR {
                V x, y;
                NAME(load_f32)(from, v * LANES, &x, &y);
                memcpy(packed + v * LANES, &x, sizeof x);
                memcpy(packed + v * LANES + LANES, &y, sizeof y);
            }
        }
}

static const Path NAME(path) = {
    ROWS, WIDTH, NAME(pack),
    {{NAME(f32_f32), NAME(f32_f16), NAME(f32_bf16)},
     {NAME(f16_f32), NAME(f16_f16), NAME(f16_bf16)},
     {NAME(bf16_f32), NAME(bf16_f16), NAME(bf16_bf16)}},
};

#undef VECTORS
#undef EACH_ROW
#undef EACH_VECTOR
#undef EACH_PAIR
#undef NAME
#undef TARGET
#undef LANES
#undef ROWS
#undef WIDTH
#undef V
#undef BITS
