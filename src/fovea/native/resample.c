/* One pass of Pillow's 8-bit resize, to the bit: see resample_table.py. */
#include "vectors.h"

#define PRECISION_BITS 22
#define HALF (1 << (PRECISION_BITS - 1))
#define TAPS (LANES / 3) /* pixels of three channels in a vector */

INLINE int_vec clipped(int_vec sums) {
    int_vec values = sums >> PRECISION_BITS;
    values &= values > 0;
    return (values & (values < 255)) | ((values >= 255) & 255);
}

INLINE void store_bytes(uint8_t *to, int_vec values) {
#if defined(HAS_INTRINSICS) && LANES == 16
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)values));
#else
    for (int i = 0; i < LANES; i++) to[i] = (uint8_t)values[i];
#endif
}

/* Along columns: rows [old, width] bytes to [new, width]. table [new, 1 + taps]: the first row and weights. */
void fovea_resample_columns(const uint8_t *pixels, uint8_t *out, const int32_t *table, int64_t old, int64_t new_rows,
                            int64_t taps, int64_t width) {
    const int_vec half = (int_vec){0} + HALF;
    for (int64_t y = 0; y < new_rows; y++) {
        const int32_t *weights = table + y * (taps + 1) + 1, first = weights[-1];
        const int64_t there = taps < old - first ? taps : old - first; /* the others weigh nothing */
        const uint8_t *rows = pixels + first * width;
        int64_t x = 0;
        for (; x + 4 * LANES <= width; x += 4 * LANES) {
            int_vec sums[4] = {half, half, half, half};
            for (int64_t k = 0; k < there; k++) UNROLL for (int i = 0; i < 4; i++)
                sums[i] += wide_pixels(rows + k * width + x + i * LANES) * weights[k];
            UNROLL for (int i = 0; i < 4; i++) store_bytes(out + y * width + x + i * LANES, clipped(sums[i]));
        }
        for (; x < width; x++) {
            int32_t sum = HALF;
            for (int64_t k = 0; k < there; k++) sum += rows[k * width + x] * weights[k];
            sum >>= PRECISION_BITS;
            out[y * width + x] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
        }
    }
}

/* The three channels of a pixel from products in the order of taps: 0 1 2 of the first, 3 4 5 of the second ... */
INLINE void store_pixel(uint8_t *to, int_vec products) {
#if defined(HAS_INTRINSICS) && LANES == 16
    const __m512i all = (__m512i)products, none = _mm512_setzero_si512();
    const __m512i pairs = _mm512_add_epi32(all, _mm512_alignr_epi32(none, all, 6)); /* 0 + 2, 1 + 3 */
    const __m512i four = _mm512_add_epi32(pairs, _mm512_alignr_epi32(none, pairs, 3));
    const __m512i five = _mm512_add_epi32(four, _mm512_alignr_epi32(none, all, 12));
    const int_vec values = clipped((int_vec)_mm512_add_epi32(five, _mm512_set1_epi32(HALF)));
    const uint32_t three = (uint32_t)_mm_cvtsi128_si32(_mm512_cvtepi32_epi8((__m512i)values));
    to[0] = (uint8_t)three, to[1] = (uint8_t)(three >> 8), to[2] = (uint8_t)(three >> 16);
#else
    int32_t each[LANES];
    memcpy(each, &products, sizeof each);
    for (int c = 0; c < 3; c++) {
        int32_t sum = HALF;
        for (int i = 0; i < TAPS; i++) sum += each[3 * i + c];
        sum >>= PRECISION_BITS;
        to[c] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
    }
#endif
}

/* Along rows: pixels [rows, old, 3] to [rows, new, 3]. `spread`: room for LANES weights of every TAPS taps of every new
 * pixel; `row`: for a row of pixels and as much behind it as is read with no weight. */
void fovea_resample_rows(const uint8_t *pixels, uint8_t *out, const int32_t *table, int64_t rows, int64_t old,
                         int64_t new_columns, int64_t taps, int32_t *spread, uint8_t *row) {
    const int64_t steps = (taps + TAPS - 1) / TAPS;
    memset(spread, 0, new_columns * steps * LANES * sizeof(int32_t));
    for (int64_t x = 0; x < new_columns; x++)
        for (int64_t k = 0; k < taps; k++)
            for (int c = 0; c < 3; c++)
                spread[(x * steps + k / TAPS) * LANES + k % TAPS * 3 + c] = table[x * (taps + 1) + 1 + k];
    for (int64_t y = 0; y < rows; y++) {
        memcpy(row, pixels + y * old * 3, old * 3);
        for (int64_t x = 0; x < new_columns; x++) {
            const uint8_t *from = row + 3 * table[x * (taps + 1)];
            const int32_t *weights = spread + x * steps * LANES;
            int_vec sums = {0};
            for (int64_t i = 0; i < steps; i++)
                sums += wide_pixels(from + i * TAPS * 3) * *(const loose_int_vec *)(weights + i * LANES);
            store_pixel(out + (y * new_columns + x) * 3, sums);
        }
    }
}
