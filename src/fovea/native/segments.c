/* Full attention inside segments of packed rows, as towers have it: equals reference.segment_attention. In bfloat16,
 * for CPUs that multiply it: scores and sums are float32, weights are rounded to bfloat16 for their product with
 * values.
 *
 * Keys and values are first laid out as the products read them: of keys, two neighbouring dimensions of 64 keys side by
 * side; of values, two neighbouring keys of every dimension. Then each task takes some queries of one head past all
 * keys of their segment, with weights relative to the largest so far (arXiv:1805.02867). */
#include "kernels.h"

#define SIDE 64    /* keys side by side */
#define KEYS 128   /* whose weights are found together */
#define TILE 6     /* queries done together */
#define QUERIES 96 /* of a task */
#define MOST_SIZE 128

typedef struct {
    const uint16_t *q, *k, *v; /* rows `stride` apart, heads `size` apart */
    uint16_t *out;             /* [rows, heads, size] */
    uint32_t *keys, *values; /* for both layouts: [heads, padded rows, size / 2] and [heads, padded rows / 2, room] */
    const int64_t *starts;     /* [segments + 1]: first rows */
    const int64_t *places;     /* [segments + 1]: first rows among the padded ones, multiples of KEYS */
    const int64_t *tasks;      /* [segments + 1]: first tasks of a head */
    int64_t segments, heads, size, room, stride; /* room: size in whole vectors */
    float scale;
    int64_t next;
} Segments;

/* Whether this processor has what fovea_segment_attention needs. */
int fovea_has_segment_attention(void) {
#ifdef HAS_BF16_UNITS
    return 1;
#else
    return 0;
#endif
}

#ifdef HAS_BF16_UNITS
INLINE uint32_t pair_at(const uint16_t *at) {
    uint32_t pair;
    memcpy(&pair, at, 4);
    return pair;
}

static void lay_out(const Segments *s, int64_t segment, int64_t head) {
    const int64_t first = s->starts[segment], count = s->starts[segment + 1] - first, padded = s->places[s->segments];
    const int64_t place = s->places[segment], end = s->places[segment + 1] - place, half = s->size / 2;
    uint32_t *keys = s->keys + (head * padded + place) * half;
    for (int64_t block = 0; block < end; block += SIDE, keys += SIDE * half)
        for (int64_t i = 0; i < SIDE; i++) {
            const uint16_t *key = s->k + (first + block + i) * s->stride + head * s->size;
            for (int64_t d = 0; d < half; d++) keys[d * SIDE + i] = block + i < count ? pair_at(key + 2 * d) : 0;
        }
    uint32_t *values = s->values + (head * padded + place) / 2 * s->room;
    for (int64_t i = 0; i < end; i += 2, values += s->room) {
        const uint16_t *one = s->v + (first + i) * s->stride + head * s->size, *two = one + s->stride;
        for (int64_t d = 0; d < s->room; d++) {
            const uint32_t low = i < count && d < s->size ? one[d] : 0;
            const uint32_t high = i + 1 < count && d < s->size ? two[d] : 0;
            values[d] = low | high << 16;
        }
    }
}

static void lay_out_some(void *given) {
    Segments *s = given;
    int64_t task;
    while ((task = taken(&s->next)) < s->segments * s->heads) lay_out(s, task / s->heads, task % s->heads);
}

/* 2 to the power of x <= 0; relative error below 3e-7. */
INLINE __m512 power_of_two(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.339887440e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.618437357e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550332548e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402264791e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931472028e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

/* Scores of `nq` queries and SIDE keys. */
INLINE void score(int nq, const Segments *s, const uint16_t *q, const uint32_t *keys, float (*scores)[KEYS], int at) {
    __m512 sums[TILE][SIDE / 16];
    UNROLL for (int i = 0; i < nq; i++) UNROLL for (int j = 0; j < SIDE / 16; j++) sums[i][j] = _mm512_setzero_ps();
    for (int64_t d = 0; d < s->size / 2; d++) {
        __m512i some[SIDE / 16];
        UNROLL for (int j = 0; j < SIDE / 16; j++) some[j] = _mm512_loadu_si512(keys + d * SIDE + 16 * j);
        UNROLL for (int i = 0; i < nq; i++) {
            const __m512i pair = _mm512_set1_epi32((int)pair_at(q + i * s->stride + 2 * d));
            UNROLL for (int j = 0; j < SIDE / 16; j++)
                sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)pair, (__m512bh)some[j]);
        }
    }
    const __m512 scale = _mm512_set1_ps(s->scale * 1.44269504f);
    UNROLL for (int i = 0; i < nq; i++) UNROLL for (int j = 0; j < SIDE / 16; j++)
        _mm512_storeu_ps(scores[i] + at + 16 * j, _mm512_mul_ps(sums[i][j], scale));
}

/* Weights of a row of scores; what the row's sums so far are multiplied by. */
INLINE float soften(const float *scores, uint16_t *weights, float *highest, float *total) {
    __m512 top = _mm512_loadu_ps(scores), sum = _mm512_setzero_ps();
    UNROLL for (int i = 1; i < KEYS / 16; i++) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + 16 * i));
    float most = _mm512_reduce_max_ps(top);
    most = most > *highest ? most : *highest;
    const __m512 from = _mm512_set1_ps(most);
    UNROLL for (int i = 0; i < KEYS / 16; i++) {
        const __m512 weight = power_of_two(_mm512_sub_ps(_mm512_loadu_ps(scores + 16 * i), from));
        sum = _mm512_add_ps(sum, weight);
        _mm256_storeu_si256((__m256i *)(weights + 16 * i), (__m256i)_mm512_cvtneps_pbh(weight));
    }
    const float shrink = _mm512_cvtss_f32(power_of_two(_mm512_set1_ps(*highest - most)));
    *total = *total * shrink + _mm512_reduce_add_ps(sum);
    *highest = most;
    return shrink;
}

/* `nv` vectors of the sums of `nq` queries, which are `room` apart. */
INLINE void add_values(int nq, int nv, const uint32_t *values, int64_t room, uint16_t (*weights)[KEYS],
                       const float *shrink, float *sums) {
    __m512 acc[TILE][4];
    UNROLL for (int i = 0; i < nq; i++) UNROLL for (int j = 0; j < nv; j++)
        acc[i][j] = _mm512_mul_ps(_mm512_loadu_ps(sums + i * room + 16 * j), _mm512_set1_ps(shrink[i]));
    for (int64_t k = 0; k < KEYS / 2; k++) {
        __m512i some[4];
        UNROLL for (int j = 0; j < nv; j++) some[j] = _mm512_loadu_si512(values + k * room + 16 * j);
        UNROLL for (int i = 0; i < nq; i++) {
            const __m512i pair = _mm512_set1_epi32((int)pair_at(weights[i] + 2 * k));
            UNROLL for (int j = 0; j < nv; j++)
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh)pair, (__m512bh)some[j]);
        }
    }
    UNROLL for (int i = 0; i < nq; i++) UNROLL for (int j = 0; j < nv; j++)
        _mm512_storeu_ps(sums + i * room + 16 * j, acc[i][j]);
}

INLINE void attend(int nq, const Segments *s, int64_t segment, int64_t head, int64_t row) {
    const int64_t count = s->starts[segment + 1] - s->starts[segment], padded = s->places[s->segments];
    const uint16_t *q = s->q + row * s->stride + head * s->size;
    const uint32_t *keys = s->keys + (head * padded + s->places[segment]) * (s->size / 2);
    const uint32_t *values = s->values + (head * padded + s->places[segment]) / 2 * s->room;
    float sums[TILE * MOST_SIZE], scores[TILE][KEYS], highest[TILE], total[TILE], shrink[TILE];
    uint16_t weights[TILE][KEYS];
    memset(sums, 0, nq * s->room * sizeof(float));
    for (int i = 0; i < nq; i++) highest[i] = -1e30f, total[i] = 0;
    for (int64_t k = 0; k < count; k += KEYS, keys += KEYS * (s->size / 2), values += KEYS / 2 * s->room) {
        for (int at = 0; at < KEYS; at += SIDE) score(nq, s, q, keys + at * (s->size / 2), scores, at);
        for (int64_t i = count - k; i < KEYS; i++) UNROLL for (int j = 0; j < nq; j++) scores[j][i] = -__builtin_inff();
        for (int i = 0; i < nq; i++) shrink[i] = soften(scores[i], weights[i], highest + i, total + i);
        int64_t d = 0;
        for (; d + 64 <= s->room; d += 64) add_values(nq, 4, values + d, s->room, weights, shrink, sums + d);
        if (s->room - d == 48) add_values(nq, 3, values + d, s->room, weights, shrink, sums + d);
        if (s->room - d == 32) add_values(nq, 2, values + d, s->room, weights, shrink, sums + d);
        if (s->room - d == 16) add_values(nq, 1, values + d, s->room, weights, shrink, sums + d);
    }
    for (int i = 0; i < nq; i++) {
        for (int64_t d = 0; d < s->size; d++) sums[i * s->room + d] /= total[i];
        store(s->out, ((row + i) * s->heads + head) * s->size, sums + i * s->room, s->size, 1);
    }
}

static void attend_some(void *given) {
    Segments *s = given;
    const int64_t each = s->tasks[s->segments];
    int64_t task, segment = 0, of = 0;
    while ((task = taken(&s->next)) < each * s->heads) {
        for (of = task % each, segment = 0; s->tasks[segment + 1] <= of;) segment++;
        const int64_t first = s->starts[segment] + (of - s->tasks[segment]) * QUERIES, end = s->starts[segment + 1];
        const int64_t last = first + QUERIES < end ? first + QUERIES : end;
        int64_t row = first;
        for (; row + TILE <= last; row += TILE) attend(TILE, s, segment, task / each, row);
        for (; row < last; row++) attend(1, s, segment, task / each, row);
    }
}

/* size even and at most MOST_SIZE. */
void fovea_segment_attention(const Crew *crew, Segments *s) {
    s->next = 0;
    spread(crew, lay_out_some, s, s->segments * s->heads);
    s->next = 0;
    spread(crew, attend_some, s, s->tasks[s->segments] * s->heads);
}
#else
void fovea_segment_attention(const Crew *crew, Segments *s) { (void)crew, (void)s; }
#endif
