/* The portable path: vectors of four; the fma of the processor, else of libm, which is exact. */

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
#define ROWS 6
#define WIDTH 16

INLINE V NAME(zero)(void) { return (V){0, 0, 0, 0}; }
INLINE V NAME(splat)(float x) { return (V){x, x, x, x}; }
INLINE V NAME(load)(const float *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE V NAME(fma)(V a, V b, V c) {
#ifdef __aarch64__
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return (V){fmaf(a[0], b[0], c[0]), fmaf(a[1], b[1], c[1]), fmaf(a[2], b[2], c[2]),
               fmaf(a[3], b[3], c[3])};
#endif
}
#define LANEWISE(KIND, DTYPE)                                                                    \
    KIND void NAME(load_##DTYPE)(const void *p, int64_t i, V *x, V *y) {                       \
        for (int lane = 0; lane < LANES; lane++) {                                               \
            (*x)[lane] = load_##DTYPE(p, i + lane);                                              \
            (*y)[lane] = load_##DTYPE(p, i + LANES + lane);                                      \
        }                                                                                        \
    }                                                                                            \
    KIND void NAME(store_##DTYPE)(void *p, int64_t i, V x, V y) {                              \
        for (int lane = 0; lane < LANES; lane++) {                                               \
            store_##DTYPE(p, i + lane, x[lane]);                                                 \
            store_##DTYPE(p, i + LANES + lane, y[lane]);                                         \
        }                                                                                        \
    }
/* Those of f16 are long: unrolled for a whole tile they took half of the compiler's time. */
#define APART __attribute__((noinline)) static
LANEWISE(INLINE, f32) LANEWISE(INLINE, bf16) LANEWISE(APART, f16)
#undef APART
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
