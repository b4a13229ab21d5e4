/* The merge arithmetic of DESIGN §4, compiled: the bits of reference.py, at the speed of memory.
 *
 * A plain C ABI without Python: ctypes calls it and releases the GIL meanwhile. Nothing here
 * allocates or keeps state, so any number of threads may run one plan at once.
 */

#include "merge.h"

#define ABI 1
#define EXPORT __attribute__((visibility("default")))

/* Factors of one group of panels, in bytes: with the tile, at home in the second-level cache. */
enum { GROUP_BYTES = 64 * 1024 };

typedef int (*RowKernel)(const void *in, void *out, const float *t, float scale, int32_t limit,
                         float *seen);

/* The elements [first, last) of a plan: rows top … end-1, of which the outer ones may be cut. */
typedef struct {
    const Plan *plan;
    const char *source;
    char *target;
    int64_t first, last, top, end, group;
    const Term *terms;
    int32_t count, step;
    Fault *fault;
} Work;

typedef struct {
    const Work *work;
    int64_t row, panel;
    float *acc;
    const float *t;
} Row;

/* Rows top … end-1 of a block are those with elements of the work in this panel. */
INLINE void rows_of_tile(const Work *work, int64_t block, int64_t panel, int64_t *top,
                         int64_t *end) {
    int64_t columns = work->plan->columns, left = panel * PANEL;
    int64_t right = smaller(left + PANEL, columns);
    *top = larger(block * BLOCK, work->top);
    *end = smaller(block * BLOCK + BLOCK, work->end);
    if (*top < *end && *top * columns + right <= work->first) ++*top;
    if (*top < *end && (*end - 1) * columns + left >= work->last) --*end;
}

/* Look for what is not finite in `count` results from `element` on; 1 if there was any. */
__attribute__((cold, noinline)) static int note(const Work *work, int64_t element, int64_t count,
                                                const float *seen) {
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

/* One term on one row of a tile: from the source or the sum so far, to the target or the sum.
 * A non-finite weight makes every later sum non-finite, so the last one tells of both faults,
 * and tells before the target, which may be the source, is written. */
INLINE void do_row(const Row *row, RowKernel kernel, float scale, int is_first, int is_last) {
    const Work *work = row->work;
    const Plan *plan = work->plan;
    int64_t start = row->row * plan->columns + row->panel * PANEL;
    int64_t stop = start + smaller(PANEL, plan->columns - row->panel * PANEL);
    int64_t begin = larger(start, work->first), end = smaller(stop, work->last);
    int64_t in = SIZE[plan->in], out = SIZE[plan->out], skip = begin - start;
    const char *source = work->source + (begin - work->first) * in;
    char *target = work->target + (begin - work->first) * out;
    float seen[PANEL] __attribute__((aligned(64)));
    char whole[PANEL * 4] __attribute__((aligned(64)));
    int is_cut = end - begin < PANEL;
    const void *from = is_first ? (const void *)source : row->acc;
    void *to = is_last ? (void *)target : row->acc;
    if (is_cut && is_first) {
        memset(whole, 0, sizeof whole);
        memcpy(whole + skip * in, source, (size_t)((end - begin) * in));
        from = whole;
    }
    if (is_cut && is_last) to = whole;
    int32_t limit = is_last ? LIMIT[plan->out] : INT32_MAX;
    if (__builtin_expect(kernel(from, to, row->t, scale, limit, seen), 0)) {
        if (note(work, begin, end - begin, seen + skip)) return;
        /* It was beside the range, where a cut row computes too, on zeros for weights. */
        kernel(from, to, row->t, scale, INT32_MAX, seen);
    }
    if (is_cut && is_last)
        memcpy(target, whole + skip * out, (size_t)((end - begin) * out));
}

/* --- portable: vectors of four; the fma of the processor, else of libm, which is exact -------- */

#ifdef __aarch64__
#include <arm_neon.h>
#endif

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
#define NAME(x) portable_##x
#define TARGET
#define V Float4
#define BITS Int4
#define LANES 4
#define WIDTH 16

INLINE V NAME(zero)(void) { return (V){0, 0, 0, 0}; }
INLINE V NAME(splat)(float x) { return (V){x, x, x, x}; }
INLINE V NAME(load)(const float *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void NAME(store)(float *p, V v) { memcpy(p, &v, sizeof v); }
INLINE V NAME(fma)(V a, V b, V c) {
#ifdef __aarch64__
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return (V){fmaf(a[0], b[0], c[0]), fmaf(a[1], b[1], c[1]), fmaf(a[2], b[2], c[2]),
               fmaf(a[3], b[3], c[3])};
#endif
}
#define LANEWISE(DTYPE)                                                                          \
    INLINE V NAME(load_##DTYPE)(const void *p, int i) {                                          \
        return (V){load_##DTYPE(p, i), load_##DTYPE(p, i + 1), load_##DTYPE(p, i + 2),           \
                   load_##DTYPE(p, i + 3)};                                                      \
    }                                                                                            \
    INLINE void NAME(store_##DTYPE)(void *p, int i, V v) {                                       \
        for (int lane = 0; lane < LANES; lane++) store_##DTYPE(p, i + lane, v[lane]);            \
    }
LANEWISE(f32) LANEWISE(f16) LANEWISE(bf16)
#undef LANEWISE
INLINE BITS NAME(none)(void) { return (BITS){0, 0, 0, 0}; }
INLINE BITS NAME(largest)(BITS size, V v) {
    BITS bits = (BITS)v & 0x7FFFFFFF, more = bits > size;
    return (bits & more) | (size & ~more);
}
INLINE int NAME(exceeds)(BITS size, int32_t limit) {
    return (size[0] > limit) | (size[1] > limit) | (size[2] > limit) | (size[3] > limit);
}

#include "merge_body.h"

#ifdef __x86_64__
#include <immintrin.h>

/* --- AVX2 with FMA and F16C: 6 rows by 16 columns in 12 registers ----------------------------- */

#define NAME(x) avx2_##x
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define V __m256
#define BITS __m256i
#define LANES 8
#define WIDTH 16

INLINE TARGET V NAME(zero)(void) { return _mm256_setzero_ps(); }
INLINE TARGET V NAME(splat)(float x) { return _mm256_set1_ps(x); }
INLINE TARGET V NAME(load)(const float *p) { return _mm256_loadu_ps(p); }
INLINE TARGET void NAME(store)(float *p, V v) { _mm256_storeu_ps(p, v); }
INLINE TARGET V NAME(fma)(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
INLINE TARGET V NAME(load_f32)(const void *p, int i) { return _mm256_loadu_ps((const float *)p + i); }
INLINE TARGET void NAME(store_f32)(void *p, int i, V v) { _mm256_storeu_ps((float *)p + i, v); }
INLINE TARGET __m128i NAME(load_16)(const void *p, int i) {
    return _mm_loadu_si128((const __m128i *)((const char *)p + 2 * i));
}
INLINE TARGET void NAME(store_16)(void *p, int i, __m128i v) {
    _mm_storeu_si128((__m128i *)((char *)p + 2 * i), v);
}
INLINE TARGET V NAME(load_bf16)(const void *p, int i) {
    __m256i wide = _mm256_cvtepu16_epi32(NAME(load_16)(p, i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE TARGET void NAME(store_bf16)(void *p, int i, V v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    __m256i kept = _mm256_srli_epi32(sum, 16);
    __m128i low = _mm256_castsi256_si128(kept), high = _mm256_extracti128_si256(kept, 1);
    NAME(store_16)(p, i, _mm_packus_epi32(low, high));
}
/* These conversions heed neither FTZ nor, in the default mode, DAZ: subnormals come out whole. */
INLINE TARGET V NAME(load_f16)(const void *p, int i) { return _mm256_cvtph_ps(NAME(load_16)(p, i)); }
INLINE TARGET void NAME(store_f16)(void *p, int i, V v) {
    NAME(store_16)(p, i, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE TARGET BITS NAME(none)(void) { return _mm256_setzero_si256(); }
INLINE TARGET BITS NAME(largest)(BITS size, V v) {
    __m256i bits = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7FFFFFFF));
    return _mm256_max_epi32(size, bits);
}
INLINE TARGET int NAME(exceeds)(BITS size, int32_t limit) {
    return _mm256_movemask_epi8(_mm256_cmpgt_epi32(size, _mm256_set1_epi32(limit)));
}

#include "merge_body.h"

/* --- AVX-512: 6 rows by 64 columns in 24 registers -------------------------------------------- */

#ifndef TARGET_AVX512 /* set, with HAS_AVX512, where the instructions are emulated for a test */
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")))
#define HAS_AVX512                                                                                \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                   \
     __builtin_cpu_supports("avx512vl"))
#endif

#define NAME(x) avx512_##x
#define TARGET TARGET_AVX512
#define V __m512
#define BITS __m512i
#define LANES 16
#define WIDTH 64

INLINE TARGET V NAME(zero)(void) { return _mm512_setzero_ps(); }
INLINE TARGET V NAME(splat)(float x) { return _mm512_set1_ps(x); }
INLINE TARGET V NAME(load)(const float *p) { return _mm512_loadu_ps(p); }
INLINE TARGET void NAME(store)(float *p, V v) { _mm512_storeu_ps(p, v); }
INLINE TARGET V NAME(fma)(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE TARGET V NAME(load_f32)(const void *p, int i) { return _mm512_loadu_ps((const float *)p + i); }
INLINE TARGET void NAME(store_f32)(void *p, int i, V v) { _mm512_storeu_ps((float *)p + i, v); }
INLINE TARGET __m256i NAME(load_16)(const void *p, int i) {
    return _mm256_loadu_si256((const __m256i *)((const char *)p + 2 * i));
}
INLINE TARGET void NAME(store_16)(void *p, int i, __m256i v) {
    _mm256_storeu_si256((__m256i *)((char *)p + 2 * i), v);
}
INLINE TARGET V NAME(load_bf16)(const void *p, int i) {
    __m512i wide = _mm512_cvtepu16_epi32(NAME(load_16)(p, i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
/* On integers, since vcvtneps2bf16 flushes subnormals. */
INLINE TARGET void NAME(store_bf16)(void *p, int i, V v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    NAME(store_16)(p, i, _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16)));
}
INLINE TARGET V NAME(load_f16)(const void *p, int i) { return _mm512_cvtph_ps(NAME(load_16)(p, i)); }
INLINE TARGET void NAME(store_f16)(void *p, int i, V v) {
    NAME(store_16)(p, i, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE TARGET BITS NAME(none)(void) { return _mm512_setzero_si512(); }
INLINE TARGET BITS NAME(largest)(BITS size, V v) {
    __m512i bits = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF));
    return _mm512_max_epi32(size, bits);
}
INLINE TARGET int NAME(exceeds)(BITS size, int32_t limit) {
    return _mm512_cmpgt_epi32_mask(size, _mm512_set1_epi32(limit)) != 0;
}

#include "merge_body.h"
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

/* --- what Python calls ------------------------------------------------------------------------ */

EXPORT int32_t adapterhub_merge_abi(void) { return ABI; }

/* Columns that the inner loop of a path keeps in registers, or 0 if this machine cannot run it. */
EXPORT int32_t adapterhub_merge_width(int32_t path) {
    if (path == PORTABLE) return 16;
#ifdef __x86_64__
    if (path == AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return 16;
    if (path == AVX512 && HAS_AVX512) return 64;
#endif
    return 0;
}

static int64_t panels_in_group(const Term *terms, int32_t count) {
    int64_t ranks = 1;
    for (int32_t n = 0; n < count; n++) ranks += larger(terms[n].rank, 0);
    return larger(1, GROUP_BYTES / (ranks * PANEL * (int64_t)sizeof(float)));
}

/* Elements first … first+count-1, whose stored bytes are at `source`, to `target`, which is apart
 * or, where in and out are equally large, the same. On a fault the target is not to be used. */
EXPORT void adapterhub_merge_run(const Plan *plan, const char *source, char *target, int64_t first,
                                 int64_t count, Fault *fault) {
    const Term *terms = plan->count ? plan->terms : &NOTHING;
    int32_t terms_count = plan->count ? plan->count : 1;
    fault->weight = fault->result = INT64_MAX;
    if (count <= 0) return;
    Work work = {plan, source, target, first, first + count, first / plan->columns,
                 (first + count - 1) / plan->columns + 1, panels_in_group(terms, terms_count),
                 terms, terms_count, plan->count ? 1 : 0, fault};
    Mode found = set_default_mode();
    switch (plan->path) {
#ifdef __x86_64__
        case AVX2: avx2_run(&work); break;
        case AVX512: avx512_run(&work); break;
#endif
        default: portable_run(&work);
    }
    restore_mode(found);
}
