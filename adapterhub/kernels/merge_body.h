/* The kernel itself, compiled once for each path.
 *
 * The including file defines NAME(x) and TARGET; LANES, the floats in a vector; WIDTH, the columns
 * that the inner loop keeps in registers beside BLOCK rows; the types V and BITS; and on them
 *     zero splat load store fma            as one expects
 *     load_DTYPE store_DTYPE(p, i, …)      LANES elements from element i, unaligned
 *     largest(m, v), exceeds(m, limit)     the largest bits without sign, per lane; any > limit?
 *
 * Each output is one chain of fma over k in ascending order, as the contract demands: k is not
 * split, and what is blocked are rows and columns, which cannot change a bit.
 */

/* t[i,q] of `rows` rows by WIDTH columns; t has PANEL columns. */
INLINE TARGET void NAME(product)(int rows, const float *row, const float *column, int64_t rank,
                                 float *t) {
    V sum[BLOCK][WIDTH / LANES];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < WIDTH / LANES; v++) sum[i][v] = NAME(zero)();
    for (int64_t k = 0; k < rank; k++, row += BLOCK, column += WIDTH) {
        V right[WIDTH / LANES];
        for (int v = 0; v < WIDTH / LANES; v++) right[v] = NAME(load)(column + v * LANES);
        for (int i = 0; i < rows; i++) {
            V left = NAME(splat)(row[i]);
            for (int v = 0; v < WIDTH / LANES; v++)
                sum[i][v] = NAME(fma)(left, right[v], sum[i][v]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < WIDTH / LANES; v++) NAME(store)(t + i * PANEL + v * LANES, sum[i][v]);
}

/* The same for a whole panel; a constant number of rows keeps the sums in registers. */
TARGET static void NAME(panel)(int rows, const float *row, const float *column, int64_t rank,
                               float *t) {
    for (int q = 0; q < PANEL; q += WIDTH, column += WIDTH * rank, t += WIDTH) {
        switch (rows) {
            case 1: NAME(product)(1, row, column, rank, t); break;
            case 2: NAME(product)(2, row, column, rank, t); break;
            case 3: NAME(product)(3, row, column, rank, t); break;
            case 4: NAME(product)(4, row, column, rank, t); break;
            case 5: NAME(product)(5, row, column, rank, t); break;
            default: NAME(product)(6, row, column, rank, t);
        }
    }
}

/* One row of a panel: out = round(fma(scale, t, in)). `in` and `out` may be the same. Where a
 * result exceeds the limit, nothing is written but `seen`, the results as fp32, and 1 returned. */
#define ROW(IN, OUT)                                                                             \
    TARGET static int NAME(row_##IN##_##OUT)(const void *in, void *out, const float *t,          \
                                             float scale, int32_t limit, float *seen) {          \
        V acc[PANEL / LANES], c = NAME(splat)(scale);                                            \
        BITS size = NAME(none)();                                                                \
        _Pragma("GCC unroll 16") for (int v = 0; v < PANEL / LANES; v++) {                       \
            acc[v] = NAME(fma)(c, NAME(load)(t + v * LANES), NAME(load_##IN)(in, v * LANES));    \
            size = NAME(largest)(size, acc[v]);                                                  \
        }                                                                                        \
        if (__builtin_expect(NAME(exceeds)(size, limit), 0)) {                                   \
            _Pragma("GCC unroll 16") for (int v = 0; v < PANEL / LANES; v++)                     \
                NAME(store)(seen + v * LANES, acc[v]);                                           \
            return 1;                                                                            \
        }                                                                                        \
        _Pragma("GCC unroll 16") for (int v = 0; v < PANEL / LANES; v++)                         \
            NAME(store_##OUT)(out, v * LANES, acc[v]);                                           \
        return 0;                                                                                \
    }
ROW(f32, f32) ROW(f32, f16) ROW(f32, bf16)
ROW(f16, f32) ROW(f16, f16) ROW(f16, bf16)
ROW(bf16, f32) ROW(bf16, f16) ROW(bf16, bf16)
#undef ROW

static const RowKernel NAME(row)[DTYPES][DTYPES] = {
    {NAME(row_f32_f32), NAME(row_f32_f16), NAME(row_f32_bf16)},
    {NAME(row_f16_f32), NAME(row_f16_f16), NAME(row_f16_bf16)},
    {NAME(row_bf16_f32), NAME(row_bf16_f16), NAME(row_bf16_bf16)},
};

TARGET static void NAME(tile)(const Work *work, int64_t block, int64_t panel) {
    float t[BLOCK * PANEL] __attribute__((aligned(64)));
    float acc[BLOCK * PANEL] __attribute__((aligned(64)));
    const Plan *plan = work->plan;
    int64_t first = block * BLOCK, top, end;
    rows_of_tile(work, block, panel, &top, &end);
    for (int32_t n = 0; n < work->count && top < end; n++) {
        const Term *term = work->terms + n;
        const float *direct = term->columns + panel * PANEL * work->step;
        if (term->rank >= 0) {
            NAME(panel)((int)(end - top), term->rows + first * term->rank + (top - first),
                        term->columns + panel * PANEL * term->rank, term->rank, t);
            direct = 0;
        }
        int last = n + 1 == work->count;
        RowKernel kernel = NAME(row)[n ? F32 : plan->in][last ? plan->out : F32];
        for (int64_t i = 0; i < end - top; i++) {
            Row row = {work, top + i, panel, acc + i * PANEL, direct ? direct : t + i * PANEL};
            do_row(&row, kernel, term->scale, n == 0, last);
        }
    }
}

/* Columns outside, rows inside, in groups of panels whose factors stay in a near cache. */
TARGET static void NAME(run)(const Work *work) {
    int64_t panels = (work->plan->columns + PANEL - 1) / PANEL;
    for (int64_t group = 0; group < panels; group += work->group)
        for (int64_t block = work->top / BLOCK; block * BLOCK < work->end; block++)
            for (int64_t p = group; p < smaller(group + work->group, panels); p++)
                NAME(tile)(work, block, p);
}

#undef NAME
#undef TARGET
#undef LANES
#undef WIDTH
#undef V
#undef BITS
