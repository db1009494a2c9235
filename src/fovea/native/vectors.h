/* What the native kernels share: numbers, vectors of the widest kind that the CPU has, and threads.
 *
 * Numbers in memory are float32 or bfloat16, arithmetic is float32. All memory belongs to the caller and is contiguous.
 * Which thread takes which part changes no result. NaN of the input reaches the output.
 */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX2__) && !defined(FOVEA_PORTABLE)
#include <immintrin.h>
#define HAS_INTRINSICS
#endif
#if LANES == 16 && defined(HAS_INTRINSICS)
#if defined(__AVX512BF16__)
#define HAS_BF16_UNITS
#endif
#if defined(__AVX512VNNI__)
#define HAS_INT8_UNITS
#endif
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t int_vec __attribute__((vector_size(4 * LANES)));
typedef int32_t loose_int_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t bits_vec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t byte_vec __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint8_t pixel_vec __attribute__((vector_size(LANES), aligned(1), may_alias));

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

INLINE int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE float wide(uint16_t bits) { return float_of((int32_t)((uint32_t)bits << 16)); }

INLINE uint16_t narrowed(float x) { /* to the nearest, ties to even */
    const uint32_t whole = (uint32_t)bits_of(x);
    const uint32_t even = (whole + 0x7fff + ((whole >> 16) & 1)) >> 16;
    return (whole & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : even;
}

INLINE float exponential(float x) { /* of x <= 88, relative error below 1e-6; NaN stays (Cephes, expf) */
    x = x < -87.0f ? -87.0f : x;
    const float n = __builtin_rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * float_of((int32_t)((uint32_t)((int32_t)n + 127) << 23));
}

INLINE vec from_float(const float *at) { return *(const loose_vec *)at; }

/* Widened by instructions where there are any: of conversions of vectors gcc 12 makes one scalar after the other. */
#if defined(HAS_INTRINSICS) && LANES == 16
INLINE bits_vec wide_halves(const uint16_t *at) {
    return (bits_vec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at));
}
INLINE int_vec wide_bytes(const int8_t *at) {
    return (int_vec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)at));
}
INLINE int_vec wide_pixels(const uint8_t *at) {
    return (int_vec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)at));
}
#elif defined(HAS_INTRINSICS) && LANES == 8
INLINE bits_vec wide_halves(const uint16_t *at) {
    return (bits_vec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)at));
}
INLINE int_vec wide_bytes(const int8_t *at) {
    return (int_vec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)at));
}
INLINE int_vec wide_pixels(const uint8_t *at) {
    return (int_vec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)at));
}
#else
INLINE bits_vec wide_halves(const uint16_t *at) {
    return __builtin_convertvector(*(const half_vec *)at, bits_vec);
}
INLINE int_vec wide_bytes(const int8_t *at) { return __builtin_convertvector(*(const byte_vec *)at, int_vec); }
INLINE int_vec wide_pixels(const uint8_t *at) { return __builtin_convertvector(*(const pixel_vec *)at, int_vec); }
#endif

INLINE vec from_bf16(const uint16_t *at) { return (vec)(wide_halves(at) << 16); }

INLINE vec from_int8(const int8_t *at) { return __builtin_convertvector(wide_bytes(at), vec); }

#if defined(HAS_INTRINSICS) && LANES == 16
INLINE float sum_of(vec x) { return _mm512_reduce_add_ps((__m512)x); }
#else
INLINE float sum_of(vec x) {
    float each[LANES];
    memcpy(each, &x, sizeof each);
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) each[i] += each[i + n];
    return each[0];
}
#endif

#if defined(HAS_INTRINSICS) && LANES == 16
INLINE __m512 halves_added(__m512 a, __m512 b) { /* of pairs of 128 bits: a's sums and b's beside each other */
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/* The sums of 16 vectors' numbers, in their order. */
INLINE __m512 sums_of(__m512 v[16]) {
    __m512 four[4];
    UNROLL for (int i = 0; i < 4; i++) {
        const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[i], v[i + 4]), _mm512_unpackhi_ps(v[i], v[i + 4]));
        const __m512 c = v[i + 8], d = v[i + 12];
        const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        four[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee)); /* i, i+4, i+8, i+12 */
    }
    const __m512 all = halves_added(halves_added(four[0], four[1]), halves_added(four[2], four[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, all);
}
#endif

/* Values of an array of either type. */
INLINE float value_at(const void *base, int64_t at, int narrow) {
    return narrow ? wide(((const uint16_t *)base)[at]) : ((const float *)base)[at];
}

INLINE void widen(const void *base, int64_t at, int64_t n, int narrow, float *restrict to) {
    if (narrow)
        for (int64_t i = 0; i < n; i++) to[i] = wide(((const uint16_t *)base + at)[i]);
    else
        memcpy(to, (const float *)base + at, n * sizeof(float));
}

INLINE void store(void *base, int64_t at, const float *restrict from, int64_t n, int narrow) {
    if (narrow)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)base + at)[i] = narrowed(from[i]);
    else
        memcpy((float *)base + at, from, n * sizeof(float));
}

INLINE vec vec_at(const void *base, int64_t at, int narrow) {
    return narrow ? from_bf16((const uint16_t *)base + at) : from_float((const float *)base + at);
}

INLINE float product_of(const void *a, int64_t at, const void *b, int64_t b_at, int64_t n, int narrow) {
    vec sums = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += vec_at(a, at + i, narrow) * vec_at(b, b_at + i, narrow);
    float sum = sum_of(sums);
    for (; i < n; i++) sum += value_at(a, at + i, narrow) * value_at(b, b_at + i, narrow);
    return sum;
}

#ifdef HAS_INT8_UNITS
INLINE __m512i int_halves_added(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

INLINE __m512i int_sums_of(int_vec sums[16]) {
    const __m512i *v = (const __m512i *)sums;
    __m512i four[4];
    UNROLL for (int i = 0; i < 4; i++) {
        const __m512i c = v[i], d = v[i + 4], e = v[i + 8], f = v[i + 12];
        const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(e, f), _mm512_unpackhi_epi32(e, f));
        four[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    const __m512i all = int_halves_added(int_halves_added(four[0], four[1]), int_halves_added(four[2], four[3]));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), all);
}
#endif

typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

/* `run` is GOMP_parallel of the OpenMP runtime that torch has loaded, whose threads wait there anyway; or null. */
typedef struct {
    parallel run;
    int64_t threads;
} Crew;

INLINE void spread(const Crew *crew, void (*work)(void *), void *job, int64_t parts) {
    const int64_t threads = crew->threads < parts ? crew->threads : parts;
    if (crew->run && threads > 1)
        crew->run(work, job, (unsigned)threads, 0);
    else
        work(job);
}

INLINE int64_t taken(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }
