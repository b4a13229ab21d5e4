/* The merge arithmetic of DESIGN §4, compiled: the bits of reference.py, at the speed of memory.
 *
 * A plain C ABI without Python: ctypes calls it and releases the GIL meanwhile. Nothing here
 * allocates or keeps state, so any number of threads may run one plan at once.
 */

#include "merge.h"

#define ABI 2
#define EXPORT __attribute__((visibility("default")))

#include "merge_portable.h"
#ifdef __x86_64__
#include "merge_avx2.h"
#include "merge_avx512.h"
#endif

/* --- the float mode of the calling thread: nearest even, subnormals kept, no traps ------------ */

#if defined(__x86_64__)
typedef unsigned Mode;
static Mode set_default_mode(void) {
    Mode found = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return found;
}
static void restore_mode(Mode found) { _mm_setcsr(found); }
#elif defined(__aarch64__)
typedef uint64_t Mode;
static void restore_mode(Mode found) { __asm__ volatile("msr fpcr, %0" ::"r"(found) : "memory"); }
static Mode set_default_mode(void) {
    Mode found;
    __asm__ volatile("mrs %0, fpcr" : "=r"(found)::"memory");
    restore_mode(0);
    return found;
}
#else
#include <fenv.h>
typedef fenv_t Mode;
static Mode set_default_mode(void) {
    Mode found;
    fegetenv(&found);
    fesetenv(FE_DFL_ENV);
    return found;
}
static void restore_mode(Mode found) { fesetenv(&found); }
#endif

/* --- one plan on one range of elements -------------------------------------------------------- */

/* Packed columns of a group of panels, in bytes: at home in the second-level cache. */
enum { GROUP_BYTES = 128 * 1024 };

/* What is added where a plan only casts: fma(1, -0, x) is x for every x, -0 included. */
static const float MINUS_ZERO[PANEL] = {
    -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f,
    -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f,
    -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f,
    -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f, -0.f,
};
static const Term NOTHING = {MINUS_ZERO, 0, -1, 1.f};

/* The elements [first, last) of a plan. */
typedef struct {
    const Plan *plan;
    const Path *path;
    const char *source;
    char *target;
    int64_t first, last;
    Fault *fault;
} Work;

/* Rows of a tile's height from `row` on, in panels [panel, stop). */
typedef struct {
    const Work *work;
    int64_t row, panel, stop;
} Block;

/* The elements of the work in one row of one panel; `skip` columns of it come before. */
typedef struct {
    int64_t begin, count, skip;
} Span;

INLINE Span span_of(const Work *work, int64_t row, int64_t panel) {
    int64_t columns = work->plan->columns, start = row * columns + panel * PANEL;
    int64_t stop = start + smaller(PANEL, columns - panel * PANEL);
    int64_t begin = larger(start, work->first);
    return (Span){begin, smaller(stop, work->last) - begin, begin - start};
}

/* Look for what is not finite among the results of one row from `element` on. */
static int note(const Work *work, int64_t element, int64_t count, const float *seen) {
    const Plan *plan = work->plan;
    const char *source = work->source + (element - work->first) * SIZE[plan->in];
    Fault *fault = work->fault;
    int found = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t weight = (int32_t)(bits_of(load_any(plan->in, source, i)) & 0x7FFFFFFF);
        int32_t result = (int32_t)(bits_of(seen[i]) & 0x7FFFFFFF);
        if (weight > LIMIT[F32])
            fault->weight = smaller(fault->weight, element + i);
        else if (result > LIMIT[plan->out])
            fault->result = smaller(fault->result, element + i);
        else
            continue;
        found = 1;
    }
    return found;
}

/* The same in the tile whose first column is `left`; 1 if there was any. */
__attribute__((cold, noinline)) static int note_tile(const Block *block, int64_t left,
                                                     const float *seen) {
    int64_t panel = left / PANEL, low = left % PANEL, high = low + block->work->path->width;
    int found = 0;
    for (int64_t i = 0; i < block->work->path->rows; i++) {
        Span span = span_of(block->work, block->row + i, panel);
        int64_t begin = larger(low, span.skip), end = smaller(high, span.skip + span.count);
        if (begin < end)
            found |= note(block->work, span.begin + begin - span.skip, end - begin,
                          seen + i * PANEL + begin - low);
    }
    return found;
}

/* Run the kernel over a strip whose first column is `left`. A non-finite weight makes every later
 * sum non-finite, so the last term tells of both faults, and tells before a tile is written. */
static void run_strip(const Block *block, Kernel kernel, Strip *strip, int64_t left) {
    float seen[MOST_ROWS * PANEL];
    int64_t stop = strip->stop, width = block->work->path->width;
    int32_t limit = strip->limit;
    strip->seen = seen;
    for (; (strip->start = kernel(strip)) < stop; strip->start += width) {
        if (note_tile(block, left + strip->start, seen)) continue;
        /* It was beside the range, where a cut tile computes too, on zeros for weights. */
        strip->stop = strip->start + width;
        strip->limit = INT32_MAX;
        kernel(strip);
        strip->stop = stop;
        strip->limit = limit;
    }
}

/* Where one term finds its factors for a block. Rows beyond the last one repeat it. */
INLINE void aim(Strip *strip, const Term *term, const Block *block, int64_t panel) {
    const Plan *plan = block->work->plan;
    int64_t step = term->rank >= 0 ? term->rank : plan->count ? PANEL : 0;
    for (int64_t i = 0; i < block->work->path->rows; i++)
        strip->row[i] = term->rows + smaller(block->row + i, plan->rows - 1) * step;
    strip->column = term->rank > 0 ? term->columns + panel * PANEL * term->rank : 0;
    strip->rank = term->rank;
    strip->scale = term->scale;
}

/* Panels whose sums wait as fp32 between one term and the next, in the first-level cache. */
enum { WAITING = 4 };

/* All terms on whole tiles. */
static void run_block(const Block *block, const char *in, int64_t in_step, char *out,
                      int64_t out_step) {
    const Plan *plan = block->work->plan;
    const Term *terms = plan->count ? plan->terms : &NOTHING;
    int32_t last = plan->count ? plan->count - 1 : 0;
    int64_t panels = block->stop - block->panel, at_once = last ? WAITING : panels;
    int64_t sum_step = WAITING * PANEL * SIZE_f32;
    float sums[MOST_ROWS * WAITING * PANEL] __attribute__((aligned(64)));
    for (int64_t panel = block->panel; panel < block->stop; panel += at_once) {
        int64_t done = (panel - block->panel) * PANEL;
        for (int32_t n = 0; n <= last; n++) {
            Strip strip = {.in = (const char *)sums, .in_step = sum_step, .out = (char *)sums,
                           .out_step = sum_step, .limit = INT32_MAX,
                           .stop = smaller(at_once, block->stop - panel) * PANEL};
            aim(&strip, terms + n, block, panel);
            if (n == 0) strip.in = in + done * SIZE[plan->in], strip.in_step = in_step;
            if (n == last) {
                strip.out = out + done * SIZE[plan->out], strip.out_step = out_step;
                strip.limit = LIMIT[plan->out];
            }
            Kernel kernel =
                block->work->path->kernel[n ? F32 : plan->in][n == last ? plan->out : F32];
            run_strip(block, kernel, &strip, panel * PANEL);
        }
    }
}

/* Panels of which every row is in the matrix and in the work: where the weights are. */
static void run_whole(const Block *block) {
    const Work *work = block->work;
    const Plan *plan = work->plan;
    int64_t element = block->row * plan->columns + block->panel * PANEL - work->first;
    int64_t in = SIZE[plan->in], out = SIZE[plan->out];
    run_block(block, work->source + element * in, plan->columns * in, work->target + element * out,
              plan->columns * out);
}

/* One panel of which the work has a part: on a copy, padded with zeros. */
static void run_cut(const Block *block) {
    char in[MOST_ROWS * PANEL * 4] = {0}, out[MOST_ROWS * PANEL * 4] = {0};
    const Work *work = block->work;
    int64_t in_size = SIZE[work->plan->in], out_size = SIZE[work->plan->out], found = 0;
    Span spans[MOST_ROWS];
    for (int64_t i = 0; i < work->path->rows; i++) {
        Span span = spans[i] = span_of(work, block->row + i, block->panel);
        if (span.count <= 0) continue;
        found = 1;
        memcpy(in + (i * PANEL + span.skip) * in_size,
               work->source + (span.begin - work->first) * in_size, (size_t)(span.count * in_size));
    }
    if (!found) return;
    run_block(block, in, PANEL * in_size, out, PANEL * out_size);
    for (int64_t i = 0; i < work->path->rows; i++)
        if (spans[i].count > 0)
            memcpy(work->target + (spans[i].begin - work->first) * out_size,
                   out + (i * PANEL + spans[i].skip) * out_size,
                   (size_t)(spans[i].count * out_size));
}

/* Cut tiles on the left, whole ones, cut tiles on the right. */
static void run_rows(const Work *work, int64_t row, int64_t panel, int64_t stop) {
    int64_t columns = work->plan->columns, bottom = row + work->path->rows - 1;
    int64_t before = larger(work->first - row * columns, 0);
    int64_t until = smaller(work->last - bottom * columns, columns);
    int64_t left = smaller(larger((before + PANEL - 1) / PANEL, panel), stop);
    int64_t right = larger(smaller(until / PANEL, stop), left);
    if (until <= 0) left = right = stop;
    for (int64_t p = panel; p < left; p++) run_cut(&(Block){work, row, p, p + 1});
    if (left < right) run_whole(&(Block){work, row, left, right});
    for (int64_t p = right; p < stop; p++) run_cut(&(Block){work, row, p, p + 1});
}

static int64_t panels_in_group(const Plan *plan) {
    int64_t ranks = 1;
    for (int32_t n = 0; n < plan->count; n++) ranks += larger(plan->terms[n].rank, 0);
    return larger(1, GROUP_BYTES / (ranks * PANEL * (int64_t)sizeof(float)));
}

/* Columns outside, rows inside, in groups of panels whose factors stay in a near cache. */
static void run(const Work *work) {
    int64_t columns = work->plan->columns, panels = columns_padded(columns) / PANEL;
    int64_t group = panels_in_group(work->plan);
    for (int64_t panel = 0; panel < panels; panel += group)
        for (int64_t row = work->first / columns; row * columns < work->last;
             row += work->path->rows)
            run_rows(work, row, panel, smaller(panel + group, panels));
}

/* --- what Python calls ------------------------------------------------------------------------ */

EXPORT int32_t adapterhub_merge_abi(void) { return ABI; }

static const Path *path_of(int32_t number) {
#ifdef __x86_64__
    if (number == AVX2) return &avx2_path;
    if (number == AVX512) return &avx512_path;
#endif
    return &portable_path;
}

/* Whether this machine can run a path. */
EXPORT int32_t adapterhub_merge_runs(int32_t path) {
#ifdef __x86_64__
    if (path == AVX2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
    if (path == AVX512) return HAS_AVX512;
#endif
    return path == PORTABLE;
}

/* Columns (rank, columns) for a path, as [tile][k][width], padded with zeros to whole panels; in
 * each pair of vectors as the path loads weights. Element k, q of the source is at
 * k * k_step + q * q_step. */
EXPORT void adapterhub_merge_pack(int32_t path, const float *source, int64_t rank, int64_t columns,
                                  int64_t k_step, int64_t q_step, float *packed) {
    path_of(path)->pack(source, rank, columns, k_step, q_step, packed);
}

/* Elements first … first+count-1, whose stored bytes are at `source`, to `target`, which is apart
 * or, where in and out are equally large, the same. On a fault the target is not to be used. */
EXPORT void adapterhub_merge_run(const Plan *plan, const char *source, char *target, int64_t first,
                                 int64_t count, Fault *fault) {
    fault->weight = fault->result = INT64_MAX;
    if (count <= 0) return;
    Work work = {plan, path_of(plan->path), source, target, first, first + count, fault};
    Mode found = set_default_mode();
    run(&work);
    restore_mode(found);
}
