/* Products of a few rows with a stretch of a weight's rows, which is read once for all of them.
 *
 * Dense weights and int8 (a scale for each row) are sums along the weight's row. int4 lies in blocks of rows side by
 * side, as int_weights.py says. Where the CPU multiplies bytes, the input becomes two int8 numbers for each value:
 * high + low / LOW_STEPS in steps of its row's largest / 127, also as int_weights.py has it.
 */
#include "kernels.h"

#define MOST_ROWS 32
#define MOST_NUMBERS (8 * 32768) /* of all rows, each with 64 zeros behind it */
#define LOW_STEPS 254.0f
#define GROUP 32
#define AHEAD 4 /* groups of int4 that are fetched before they are needed */
#define BLOCK 64 /* weight rows that are done together */

/* Rows of the input in the forms that products want, `stride` apart, with zeros behind them. */
typedef struct {
    int64_t count, stride;
    float numbers[MOST_NUMBERS];
    uint16_t halves[MOST_NUMBERS];
    int8_t high[MOST_NUMBERS], low[MOST_NUMBERS];
    float steps[MOST_ROWS];
    int32_t high_sums[MOST_ROWS], low_sums[MOST_ROWS];
    float group_sums[MOST_NUMBERS / GROUP]; /* rows stride / GROUP apart */
} Rows;

typedef float Results[MOST_ROWS][BLOCK];

INLINE vec weights_at(enum kind kind, const void *values, int64_t at) {
    if (kind == FLOAT32) return from_float((const float *)values + at);
    return kind == BFLOAT16 ? from_bf16((const uint16_t *)values + at) : from_int8((const int8_t *)values + at);
}

INLINE float weight_at(enum kind kind, const void *values, int64_t at) {
    return kind == INT8 ? ((const int8_t *)values)[at] : value_at(values, at, kind == BFLOAT16);
}

/* `nw` rows of the weight from `row` on by `nx` rows of the input from `m` on, in floats. */
INLINE void plain_tile(enum kind kind, int nw, int nx, const Weight *w, int64_t row, const Rows *x, int m, int column,
                       Results out) {
    vec sums[4][4];
    int64_t k = 0;
    UNROLL for (int i = 0; i < nw; i++) UNROLL for (int j = 0; j < nx; j++) sums[i][j] = (vec){0};
    for (; k + LANES <= w->width; k += LANES) UNROLL for (int i = 0; i < nw; i++) {
            const vec some = weights_at(kind, w->values, (row + i) * w->width + k);
            UNROLL for (int j = 0; j < nx; j++) sums[i][j] += some * from_float(x->numbers + (m + j) * x->stride + k);
        }
    UNROLL for (int i = 0; i < nw; i++) UNROLL for (int j = 0; j < nx; j++) {
            float sum = sum_of(sums[i][j]);
            for (int64_t at = k; at < w->width; at++)
                sum += weight_at(kind, w->values, (row + i) * w->width + at) * x->numbers[(m + j) * x->stride + at];
            out[m + j][column + i] = kind == INT8 ? sum * wide(((const uint16_t *)w->scales)[row + i]) : sum;
        }
}

#ifdef HAS_BF16_UNITS
INLINE void bf16_add(int nw, int nx, const __m512i some[8], const Rows *x, int m, int64_t k, __m512 sums[16]) {
    UNROLL for (int j = 0; j < nx; j++) {
        const __m512bh its = (__m512bh)_mm512_loadu_si512(x->halves + (m + j) * x->stride + k);
        UNROLL for (int i = 0; i < nw; i++)
            sums[i * nx + j] = _mm512_dpbf16_ps(sums[i * nx + j], (__m512bh)some[i], its);
    }
}

INLINE void bf16_tile(int nw, int nx, const Weight *w, int64_t row, const Rows *x, int m, int column, Results out) {
    const uint16_t *values = (const uint16_t *)w->values + row * w->width;
    const int64_t width = w->width;
    __m512 sums[16];
    __m512i some[8];
    int64_t k = 0;
    UNROLL for (int i = 0; i < 16; i++) sums[i] = _mm512_setzero_ps();
    for (; k + 32 <= width; k += 32) {
        UNROLL for (int i = 0; i < nw; i++) {
            some[i] = _mm512_loadu_si512(values + i * width + k);
            _mm_prefetch((const char *)(values + (i + nw) * width + k), _MM_HINT_T0);
        }
        bf16_add(nw, nx, some, x, m, k, sums);
    }
    if (k < width) {
        UNROLL for (int i = 0; i < nw; i++)
            some[i] = _mm512_maskz_loadu_epi16(~0u >> (32 - (width - k)), values + i * width + k);
        bf16_add(nw, nx, some, x, m, k, sums);
    }
    float all[16];
    _mm512_storeu_ps(all, sums_of(sums));
    UNROLL for (int i = 0; i < nw; i++) UNROLL for (int j = 0; j < nx; j++) out[m + j][column + i] = all[i * nx + j];
}
#endif

#ifdef HAS_INT8_UNITS
/* In this type, because of the intrinsic's own gcc 12 copies every sum from register to register. */
INLINE int_vec byte_products(int_vec sums, __m512i weights, __m512i input) {
    return (int_vec)_mm512_dpbusd_epi32((__m512i)sums, weights, input);
}

INLINE void int8_add(int nw, int nx, const __m512i some[8], const Rows *x, int m, int64_t k, int_vec sums[16]) {
    UNROLL for (int j = 0; j < nx; j++) {
        const __m512i high = _mm512_loadu_si512(x->high + (m + j) * x->stride + k);
        const __m512i low = _mm512_loadu_si512(x->low + (m + j) * x->stride + k);
        UNROLL for (int i = 0; i < nw; i++) {
            sums[i * nx + j] = byte_products(sums[i * nx + j], some[i], high);
            sums[(nw + i) * nx + j] = byte_products(sums[(nw + i) * nx + j], some[i], low);
        }
    }
}

/* Weights are made unsigned by adding 128, which the sums of the input take out again. Behind `high` sums are those of
 * `low`. */
INLINE void int8_tile(int nw, int nx, const Weight *w, int64_t row, const Rows *x, int m, int column, Results out) {
    const int8_t *values = (const int8_t *)w->values + row * w->width;
    const __m512i shift = _mm512_set1_epi8((char)0x80);
    const int64_t width = w->width;
    const int low = nw * nx;
    int_vec sums[16];
    __m512i some[8];
    int64_t k = 0;
    UNROLL for (int i = 0; i < 16; i++) sums[i] = (int_vec){0};
    for (; k + 64 <= width; k += 64) {
        UNROLL for (int i = 0; i < nw; i++) {
            some[i] = _mm512_xor_si512(_mm512_loadu_si512(values + i * width + k), shift);
            _mm_prefetch((const char *)(values + (i + nw) * width + k), _MM_HINT_T0);
        }
        int8_add(nw, nx, some, x, m, k, sums);
    }
    if (k < width) {
        const __mmask64 there = ~0ull >> (64 - (width - k));
        UNROLL for (int i = 0; i < nw; i++)
            some[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, values + i * width + k), shift);
        int8_add(nw, nx, some, x, m, k, sums);
    }
    int32_t all[16];
    _mm512_storeu_si512(all, int_sums_of(sums));
    UNROLL for (int i = 0; i < nw; i++) UNROLL for (int j = 0; j < nx; j++) {
            const float scale = wide(((const uint16_t *)w->scales)[row + i]) * x->steps[m + j];
            const float of_high = all[i * nx + j] - 128 * x->high_sums[m + j];
            const float of_low = all[low + i * nx + j] - 128 * x->low_sums[m + j];
            out[m + j][column + i] = (of_high + of_low / LOW_STEPS) * scale;
        }
}

INLINE __m512 scale_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
INLINE __m512 zero_of(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* Scales lie far apart, where the CPU expects none: those of 64 rows from value k on, or of the next 64 rows. */
INLINE void fetch_scales(const Weight *w, int64_t row, int64_t k) {
    if (k >= w->width) k -= w->width, row += BLOCK;
    const char *pairs = (const char *)((const uint16_t *)w->scales + (k / GROUP * w->rows + row) * 2);
    UNROLL for (int i = 0; i < 4; i++) _mm_prefetch(pairs + 64 * i, _MM_HINT_T0);
}

/* A group of 64 weight rows side by side, four values of each row together. Unpacking bytes leaves rows in the order
 * 0-3 16-19 4-7 20-23, 8-11 24-27 12-15 28-31, and the same of the later 32. */
INLINE void unpack(const uint8_t *values, __m512i some[GROUP / 4][4]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    UNROLL for (int i = 0; i < GROUP / 4; i++) {
        const __m256i *from = (const __m256i *)(values + i * 128);
        _mm_prefetch((const char *)(values + AHEAD * GROUP * 32 + i * 128), _MM_HINT_T0);
        _mm_prefetch((const char *)(values + AHEAD * GROUP * 32 + i * 128 + 64), _MM_HINT_T0);
        const __m256i a = _mm256_loadu_si256(from), b = _mm256_loadu_si256(from + 1);
        const __m256i c = _mm256_loadu_si256(from + 2), d = _mm256_loadu_si256(from + 3);
        const __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
        const __m256i ab_late = _mm256_unpackhi_epi8(a, b), cd_late = _mm256_unpackhi_epi8(c, d);
        const __m512i early = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_unpacklo_epi16(ab, cd)),
                                                 _mm256_unpackhi_epi16(ab, cd), 1);
        const __m512i late = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_unpacklo_epi16(ab_late, cd_late)),
                                                _mm256_unpackhi_epi16(ab_late, cd_late), 1);
        some[i][0] = _mm512_and_si512(early, nibble);
        some[i][1] = _mm512_and_si512(late, nibble);
        some[i][2] = _mm512_and_si512(_mm512_srli_epi16(early, 4), nibble);
        some[i][3] = _mm512_and_si512(_mm512_srli_epi16(late, 4), nibble);
    }
}

INLINE int_vec four_bytes(const int8_t *at) {
    int32_t four;
    memcpy(&four, at, 4);
    return (int_vec)_mm512_set1_epi32(four);
}

/* An unpacked group by `nx` rows of the input, added to their totals. */
INLINE void int4_add(int nx, __m512i some[GROUP / 4][4], const __m512 scales[4], const __m512 zeros[4], const Rows *x,
                     int m, int64_t k, __m512 (*totals)[4]) {
    int_vec high[4][2], low[4][2];
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < nx; j++) high[i][j] = low[i][j] = (int_vec){0};
    UNROLL for (int at = 0; at < GROUP / 4; at++) UNROLL for (int j = 0; j < nx; j++) {
            const int_vec its_high = four_bytes(x->high + (m + j) * x->stride + k + 4 * at);
            const int_vec its_low = four_bytes(x->low + (m + j) * x->stride + k + 4 * at);
            UNROLL for (int i = 0; i < 4; i++) {
                high[i][j] = byte_products(high[i][j], some[at][i], (__m512i)its_high);
                low[i][j] = byte_products(low[i][j], some[at][i], (__m512i)its_low);
            }
        }
    UNROLL for (int j = 0; j < nx; j++) {
        const __m512 step = _mm512_set1_ps(x->steps[m + j]);
        const __m512 group_sum = _mm512_set1_ps(x->group_sums[(m + j) * x->stride / GROUP + k / GROUP]);
        UNROLL for (int i = 0; i < 4; i++) {
            __m512 sum = _mm512_cvtepi32_ps((__m512i)high[i][j]);
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)low[i][j]), _mm512_set1_ps(1 / LOW_STEPS), sum);
            sum = _mm512_fmadd_ps(_mm512_mul_ps(sum, step), scales[i], totals[m + j][i]);
            totals[m + j][i] = _mm512_fmadd_ps(zeros[i], group_sum, sum);
        }
    }
}

/* 64 weight rows side by side by all rows of the input. */
static void int4_block(const Weight *w, int64_t row, const Rows *x, Results out) {
    const uint8_t *values = (const uint8_t *)w->values + row * w->width / 2;
    const __m512i early = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i late = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    __m512 totals[MOST_ROWS][4], scales[4], zeros[4];
    __m512i some[GROUP / 4][4];
    for (int m = 0; m < x->count; m++) UNROLL for (int i = 0; i < 4; i++) totals[m][i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < w->width; k += GROUP) {
        fetch_scales(w, row, k + AHEAD * GROUP);
        unpack(values + k * 32, some);
        const uint16_t *pairs = (const uint16_t *)w->scales + (k / GROUP * w->rows + row) * 2;
        UNROLL for (int i = 0; i < 4; i++) {
            const __m512i one = _mm512_loadu_si512(pairs + i / 2 * 64);
            const __m512i two = _mm512_loadu_si512(pairs + i / 2 * 64 + 32);
            const __m512i pair = _mm512_permutex2var_epi32(one, i % 2 ? late : early, two);
            scales[i] = scale_of(pair);
            zeros[i] = _mm512_fnmadd_ps(_mm512_set1_ps(8), scales[i], zero_of(pair));
        }
        int m = 0;
        for (; m + 2 <= x->count; m += 2) int4_add(2, some, scales, zeros, x, m, k, totals);
        for (; m < x->count; m++) int4_add(1, some, scales, zeros, x, m, k, totals);
    }
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    const __m512i back = _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int m = 0; m < x->count; m++) UNROLL for (int i = 0; i < 4; i++) {
            const __m512 one = totals[m][i / 2 * 2], two = totals[m][i / 2 * 2 + 1];
            _mm512_storeu_ps(out[m] + 16 * i, _mm512_permutex2var_ps(one, i % 2 ? back : front, two));
        }
}
#endif

/* A block of int4 weight rows by one input row, in floats. */
INLINE void plain_int4(const Weight *w, int64_t row, const Rows *x, int m, int column, Results out) {
    const int64_t half = w->block / 2;
    const uint8_t *values = (const uint8_t *)w->values + row * w->width / 2;
    float totals[BLOCK] = {0};
    for (int64_t k = 0; k < w->width; k += GROUP) {
        float low[BLOCK / 2] = {0}, high[BLOCK / 2] = {0};
        for (int64_t at = k; at < k + GROUP; at++) {
            const float factor = x->numbers[m * x->stride + at];
            const uint8_t *from = values + at * half;
            for (int64_t i = 0; i < half; i++) low[i] += factor * (float)((int)(from[i] & 15) - 8);
            for (int64_t i = 0; i < half; i++) high[i] += factor * (float)((int)(from[i] >> 4) - 8);
        }
        const uint16_t *pairs = (const uint16_t *)w->scales + (k / GROUP * w->rows + row) * 2;
        const float sum = x->group_sums[m * x->stride / GROUP + k / GROUP];
        for (int64_t i = 0; i < half; i++) {
            totals[i] += low[i] * wide(pairs[2 * i]) + sum * wide(pairs[2 * i + 1]);
            totals[half + i] += high[i] * wide(pairs[2 * (half + i)]) + sum * wide(pairs[2 * (half + i) + 1]);
        }
    }
    memcpy(out[m] + column, totals, w->block * sizeof(float));
}

/* `count` weight rows by `nx` input rows, `nw` at a time. */
#define TILES(nw, nx, TILE)                                                                              \
    for (; m + nx <= x->count; m += nx) {                                                                \
        int64_t i = 0;                                                                                   \
        for (; i + nw <= count; i += nw) TILE(nw, nx, w, row + i, x, m, i, out);                         \
        for (; i < count; i++) TILE(1, nx, w, row + i, x, m, i, out);                                    \
    }
#define ROWS_BY(NAME, TILE, with_8, with_4, with_2, with_1)                                              \
    static void NAME(const Weight *w, int64_t row, int64_t count, const Rows *x, Results out) {          \
        int m = 0;                                                                                       \
        if (with_8) TILES(with_8, 8, TILE)                                                               \
        TILES(with_4, 4, TILE)                                                                           \
        TILES(with_2, 2, TILE)                                                                           \
        TILES(with_1, 1, TILE)                                                                           \
    }

#define FLOAT_TILE(...) plain_tile(FLOAT32, __VA_ARGS__)
ROWS_BY(float_rows, FLOAT_TILE, 0, 4, 4, 4)
#ifdef HAS_BF16_UNITS
ROWS_BY(bf16_rows, bf16_tile, 2, 4, 8, 8)
#else
#define BF16_TILE(...) plain_tile(BFLOAT16, __VA_ARGS__)
ROWS_BY(bf16_rows, BF16_TILE, 0, 4, 4, 4)
#endif
#ifdef HAS_INT8_UNITS
ROWS_BY(int8_rows, int8_tile, 0, 2, 4, 8)
#else
#define INT8_TILE(...) plain_tile(INT8, __VA_ARGS__)
ROWS_BY(int8_rows, INT8_TILE, 0, 4, 4, 4)
#endif

static void int4_rows(const Weight *w, int64_t row, int64_t count, const Rows *x, Results out) {
#ifdef HAS_INT8_UNITS
    if (w->block == BLOCK) {
        int4_block(w, row, x, out);
        return;
    }
#endif
    for (int m = 0; m < x->count; m++)
        for (int64_t column = 0; column < count; column += w->block) plain_int4(w, row + column, x, m, column, out);
}

/* At most BLOCK outputs of every row, from output `row` on. */
static void products(const Weight *w, int64_t row, int64_t count, const Rows *x, int narrow, Results out) {
    if (w->kind == FLOAT32) float_rows(w, row, count, x, out);
    if (w->kind == BFLOAT16) bf16_rows(w, row, count, x, out);
    if (w->kind == INT8) int8_rows(w, row, count, x, out);
    if (w->kind == INT4) int4_rows(w, row, count, x, out);
    if (!w->bias) return;
    for (int m = 0; m < x->count; m++)
        for (int64_t i = 0; i < count; i++) out[m][i] += value_at(w->bias, row + i, narrow);
}
