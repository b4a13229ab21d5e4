/* The path of AVX-512: 6 rows by 64 columns in 24 registers. */

#include <immintrin.h>

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
#define ROWS 6
#define WIDTH 64

INLINE TARGET V NAME(zero)(void) { return _mm512_setzero_ps(); }
INLINE TARGET V NAME(splat)(float x) { return _mm512_set1_ps(x); }
INLINE TARGET V NAME(load)(const float *p) { return _mm512_loadu_ps(p); }
INLINE TARGET V NAME(fma)(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }

/* Columns in order, a b, against even and odd ones, x y; of a lane's number, 16 means b or y. */
INLINE TARGET void NAME(part)(V a, V b, V *x, V *y) {
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    *x = _mm512_permutex2var_ps(a, even, b);
    *y = _mm512_permutex2var_ps(a, odd, b);
}
INLINE TARGET void NAME(join)(V x, V y, V *a, V *b) {
    __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    *a = _mm512_permutex2var_ps(x, low, y);
    *b = _mm512_permutex2var_ps(x, high, y);
}
INLINE TARGET void NAME(load_f32)(const void *p, int64_t i, V *x, V *y) {
    const float *from = (const float *)p + i;
    NAME(part)(_mm512_loadu_ps(from), _mm512_loadu_ps(from + LANES), x, y);
}
INLINE TARGET void NAME(store_f32)(void *p, int64_t i, V x, V y) {
    float *to = (float *)p + i;
    V a, b;
    NAME(join)(x, y, &a, &b);
    _mm512_storeu_ps(to, a);
    _mm512_storeu_ps(to + LANES, b);
}
INLINE TARGET void NAME(load_f16)(const void *p, int64_t i, V *x, V *y) {
    const __m256i *from = (const __m256i *)((const uint16_t *)p + i);
    NAME(part)(_mm512_cvtph_ps(_mm256_loadu_si256(from)),
               _mm512_cvtph_ps(_mm256_loadu_si256(from + 1)), x, y);
}
INLINE TARGET void NAME(store_f16)(void *p, int64_t i, V x, V y) {
    __m256i *to = (__m256i *)((uint16_t *)p + i);
    V a, b;
    NAME(join)(x, y, &a, &b);
    _mm256_storeu_si256(to, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm256_storeu_si256(to + 1, _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE TARGET void NAME(load_bf16)(const void *p, int64_t i, V *x, V *y) {
    __m512i both = _mm512_loadu_si512((const uint16_t *)p + i);
    *x = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *y = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536)));
}
/* As for AVX2; on integers, since vcvtneps2bf16 flushes subnormals. */
INLINE TARGET void NAME(store_bf16)(void *p, int64_t i, V x, V y) {
    __m512i even = _mm512_castps_si512(x), odd = _mm512_castps_si512(y);
    __m512i kept = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(even, 16), odd);
    __m512i lost = _mm512_mask_blend_epi16(0xAAAAAAAA, even, _mm512_slli_epi32(odd, 16));
    __m512i tie = _mm512_andnot_si512(kept, _mm512_set1_epi16(1));
    __m512i more = _mm512_srli_epi16(_mm512_subs_epu16(lost, tie), 15);
    _mm512_storeu_si512((uint16_t *)p + i, _mm512_add_epi16(kept, more));
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
