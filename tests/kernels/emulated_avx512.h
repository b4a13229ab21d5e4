/* The AVX-512 intrinsics that merge.c uses, lane by lane as Intel's guide defines them, so that the
 * AVX-512 path is tested on machines without it. Included before merge.c. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define TARGET_AVX512 __attribute__((target("avx2,f16c")))
#define HAS_AVX512 1
#define EMULATED static inline __attribute__((always_inline, unused)) TARGET_AVX512
#define EACH for (int i = 0; i < 16; i++)

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

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
EMULATED Ints emulated_cvtepu16_epi32(__m256i v) {
    uint16_t lane[16];
    memcpy(lane, &v, 32);
    Ints r;
    EACH r[i] = lane[i];
    return r;
}
EMULATED __m256i emulated_cvtepi32_epi16(Ints v) {
    uint16_t lane[16];
    EACH lane[i] = (uint16_t)v[i]; /* truncates */
    __m256i r;
    memcpy(&r, lane, 32);
    return r;
}
EMULATED Ints emulated_slli_epi32(Ints v, int n) { Ints r; EACH r[i] = (int32_t)((uint32_t)v[i] << n); return r; }
EMULATED Ints emulated_srli_epi32(Ints v, int n) { Ints r; EACH r[i] = (int32_t)((uint32_t)v[i] >> n); return r; }
EMULATED Ints emulated_and_si512(Ints a, Ints b) { return a & b; }
EMULATED Ints emulated_add_epi32(Ints a, Ints b) {
    Ints r;
    EACH r[i] = (int32_t)((uint32_t)a[i] + (uint32_t)b[i]);
    return r;
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
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#define _mm512_slli_epi32 emulated_slli_epi32
#define _mm512_srli_epi32 emulated_srli_epi32
#define _mm512_and_si512 emulated_and_si512
#define _mm512_add_epi32 emulated_add_epi32
#define _mm512_max_epi32 emulated_max_epi32
#define _mm512_cmpgt_epi32_mask emulated_cmpgt_epi32_mask
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_ph emulated_cvtps_ph
#define _mm512_castsi512_ps(v) ((Floats)(v))
#define _mm512_castps_si512(v) ((Ints)(v))
