/* The AVX-512 intrinsics that merge.c uses, lane by lane as Intel's guide defines them, so that the
 * AVX-512 path is tested on machines without it. Included before merge.c. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define TARGET_AVX512 __attribute__((target("avx2,f16c")))
#define HAS_AVX512 1
#define EMULATED static __attribute__((noinline, unused)) TARGET_AVX512 /* compiles faster */
#define EACH for (int i = 0; i < 16; i++)

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(64)));

EMULATED Floats emulated_setzero_ps(void) { return (Floats){0}; }
EMULATED Ints emulated_setzero_si512(void) { return (Ints){0}; }
EMULATED Floats emulated_set1_ps(float x) { Floats r; EACH r[i] = x; return r; }
EMULATED Ints emulated_set1_epi32(int x) { Ints r; EACH r[i] = x; return r; }
EMULATED Floats emulated_loadu_ps(const void *p) { Floats r; memcpy(&r, p, 64); return r; }
EMULATED void emulated_storeu_ps(void *p, Floats v) { memcpy(p, &v, 64); }
EMULATED Floats emulated_fmadd_ps(Floats a, Floats b, Floats c) {
    Floats r;
    EACH r[i] = fmaf(a[i], b[i], c[i]);
    return r;
}
EMULATED Ints emulated_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j,
                                  int k, int l, int m, int n, int o, int p) {
    return (Ints){a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
EMULATED Ints emulated_loadu_si512(const void *p) { Ints r; memcpy(&r, p, 64); return r; }
EMULATED void emulated_storeu_si512(void *p, Ints v) { memcpy(p, &v, 64); }
EMULATED Floats emulated_permutex2var_ps(Floats a, Ints index, Floats b) {
    Floats r;
    EACH r[i] = index[i] & 16 ? b[index[i] & 15] : a[index[i] & 15];
    return r;
}
EMULATED Ints emulated_slli_epi32(Ints v, int n) { Ints r; EACH r[i] = (int32_t)((uint32_t)v[i] << n); return r; }
EMULATED Ints emulated_srli_epi32(Ints v, int n) { Ints r; EACH r[i] = (int32_t)((uint32_t)v[i] >> n); return r; }
EMULATED Ints emulated_and_si512(Ints a, Ints b) { return a & b; }
EMULATED Ints emulated_andnot_si512(Ints a, Ints b) { return ~a & b; }
#define EACH_HALF for (int i = 0; i < 32; i++)
EMULATED Ints emulated_set1_epi16(short x) { Halves r; EACH_HALF r[i] = (uint16_t)x; return (Ints)r; }
EMULATED Ints emulated_add_epi16(Ints a, Ints b) { return (Ints)((Halves)a + (Halves)b); }
EMULATED Ints emulated_srli_epi16(Ints v, int n) { return (Ints)((Halves)v >> n); }
EMULATED Ints emulated_subs_epu16(Ints a, Ints b) {
    Halves x = (Halves)a, y = (Halves)b, r;
    EACH_HALF r[i] = x[i] > y[i] ? x[i] - y[i] : 0;
    return (Ints)r;
}
EMULATED Ints emulated_mask_blend_epi16(uint32_t mask, Ints a, Ints b) {
    Halves x = (Halves)a, y = (Halves)b, r;
    EACH_HALF r[i] = mask >> i & 1 ? y[i] : x[i];
    return (Ints)r;
}
EMULATED Ints emulated_max_epi32(Ints a, Ints b) { Ints r; EACH r[i] = a[i] > b[i] ? a[i] : b[i]; return r; }
EMULATED uint16_t emulated_cmpgt_epi32_mask(Ints a, Ints b) {
    uint16_t r = 0;
    EACH r = (uint16_t)(r | (a[i] > b[i]) << i);
    return r;
}
EMULATED Floats emulated_cvtph_ps(__m256i v) {
    Floats r;
    __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(v));
    __m256 high = _mm256_cvtph_ps(_mm256_extractf128_si256(v, 1));
    memcpy(&r, &low, 32);
    memcpy((char *)&r + 32, &high, 32);
    return r;
}
EMULATED __m256i emulated_cvtps_ph(Floats v, int rounding) {
    (void)rounding;
    __m256 low, high;
    memcpy(&low, &v, 32);
    memcpy(&high, (char *)&v + 32, 32);
    return _mm256_set_m128i(_mm256_cvtps_ph(high, 8), _mm256_cvtps_ph(low, 8));
}

#define __m512 Floats
#define __m512i Ints
#define _mm512_setzero_ps emulated_setzero_ps
#define _mm512_setzero_si512 emulated_setzero_si512
#define _mm512_set1_ps emulated_set1_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_loadu_ps emulated_loadu_ps
#define _mm512_storeu_ps emulated_storeu_ps
#define _mm512_fmadd_ps emulated_fmadd_ps
#undef _mm512_setr_epi32 /* a macro of gcc */
#define _mm512_setr_epi32 emulated_setr_epi32
#define _mm512_loadu_si512 emulated_loadu_si512
#define _mm512_storeu_si512 emulated_storeu_si512
#define _mm512_permutex2var_ps emulated_permutex2var_ps
#define _mm512_slli_epi32 emulated_slli_epi32
#define _mm512_srli_epi32 emulated_srli_epi32
#define _mm512_and_si512 emulated_and_si512
#define _mm512_andnot_si512 emulated_andnot_si512
#define _mm512_set1_epi16 emulated_set1_epi16
#define _mm512_add_epi16 emulated_add_epi16
#define _mm512_srli_epi16 emulated_srli_epi16
#define _mm512_subs_epu16 emulated_subs_epu16
#define _mm512_mask_blend_epi16 emulated_mask_blend_epi16
#define _mm512_max_epi32 emulated_max_epi32
#define _mm512_cmpgt_epi32_mask emulated_cmpgt_epi32_mask
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_ph emulated_cvtps_ph
#define _mm512_castsi512_ps(v) ((Floats)(v))
#define _mm512_castps_si512(v) ((Ints)(v))
