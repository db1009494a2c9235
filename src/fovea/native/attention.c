/* Attention of one new token of each sequence over its pages, read where they lie: equals reference._decode. */
#include "kernels.h"

#define KEYS 16          /* whose weights are found together */
#define CHUNK 256        /* keys of a sequence that one thread does; the parts are joined at the end */
#define MOST_SUMS 8192   /* floats of a thread's stack: query heads of a KV head, times their size */
#define MOST_GROUP 64

typedef struct {
    float sums[MOST_SUMS], highest[MOST_GROUP], total[MOST_GROUP];
} State;

/* Weights of `count` keys, at distances of `pitch` elements, for all queries of the group. */
static void score(const Decode *d, const void *q, int64_t at, int64_t count, float (*scores)[KEYS]) {
    const int64_t group = d->heads / d->kv_heads, pitch = d->kv_heads * d->size;
#ifdef HAS_BF16_UNITS
    if (d->narrow && d->size % 32 == 0 && count == KEYS) {
        const uint16_t *keys = (const uint16_t *)d->keys + at, *queries = q;
        for (int64_t g = 0; g < group; g++) {
            __m512 sums[KEYS];
            UNROLL for (int i = 0; i < KEYS; i++) sums[i] = _mm512_setzero_ps();
            for (int64_t k = 0; k < d->size; k += 32) {
                const __m512bh some = (__m512bh)_mm512_loadu_si512(queries + g * d->size + k);
                UNROLL for (int i = 0; i < KEYS; i++)
                    sums[i] = _mm512_dpbf16_ps(sums[i], some, (__m512bh)_mm512_loadu_si512(keys + i * pitch + k));
            }
            _mm512_storeu_ps(scores[g], _mm512_mul_ps(sums_of(sums), _mm512_set1_ps(d->scale)));
        }
        return;
    }
#endif
#if defined(HAS_INTRINSICS) && LANES == 16
    if (d->size % LANES == 0 && count == KEYS) {
        for (int64_t g = 0; g < group; g++) {
            __m512 sums[KEYS];
            UNROLL for (int i = 0; i < KEYS; i++) sums[i] = _mm512_setzero_ps();
            for (int64_t k = 0; k < d->size; k += LANES) {
                const __m512 some = (__m512)vec_at(q, g * d->size + k, d->narrow);
                UNROLL for (int i = 0; i < KEYS; i++)
                    sums[i] = _mm512_fmadd_ps(some, (__m512)vec_at(d->keys, at + i * pitch + k, d->narrow), sums[i]);
            }
            _mm512_storeu_ps(scores[g], _mm512_mul_ps(sums_of(sums), _mm512_set1_ps(d->scale)));
        }
        return;
    }
#endif
    for (int64_t i = 0; i < count; i++)
        for (int64_t g = 0; g < group; g++)
            scores[g][i] = product_of(q, g * d->size, d->keys, at + i * pitch, d->size, d->narrow) * d->scale;
}

static void add_values(const Decode *d, int64_t at, int64_t count, float (*weights)[KEYS], float *sums) {
    const int64_t group = d->heads / d->kv_heads, pitch = d->kv_heads * d->size;
    int64_t k = 0;
    for (; k + LANES <= d->size; k += LANES) {
        vec some[KEYS];
        for (int64_t i = 0; i < count; i++) some[i] = vec_at(d->values, at + i * pitch + k, d->narrow);
        for (int64_t g = 0; g < group; g++) {
            vec sum = from_float(sums + g * d->size + k);
            for (int64_t i = 0; i < count; i++) sum += some[i] * weights[g][i];
            *(loose_vec *)(sums + g * d->size + k) = sum;
        }
    }
    for (; k < d->size; k++)
        for (int64_t g = 0; g < group; g++)
            for (int64_t i = 0; i < count; i++)
                sums[g * d->size + k] += value_at(d->values, at + i * pitch + k, d->narrow) * weights[g][i];
}

/* New weights join those before them: the largest so far is what all are relative to. */
static void soften(const Decode *d, int64_t count, int is_first, float (*scores)[KEYS], State *state) {
    const int64_t group = d->heads / d->kv_heads;
    for (int64_t g = 0; g < group; g++) {
        float top = is_first ? scores[g][0] : state->highest[g], sum = 0;
        for (int64_t i = 0; i < count; i++) top = scores[g][i] > top ? scores[g][i] : top;
        for (int64_t i = 0; i < count; i++) scores[g][i] = exponential(scores[g][i] - top);
        for (int64_t i = 0; i < count; i++) sum += scores[g][i];
        if (!is_first && !(top == state->highest[g])) {
            const float shrink = exponential(state->highest[g] - top);
            state->total[g] *= shrink;
            for (int64_t i = 0; i < d->size; i++) state->sums[g * d->size + i] *= shrink;
        }
        state->highest[g] = top;
        state->total[g] = is_first ? sum : state->total[g] + sum;
    }
}

static void attend(const Decode *d, int64_t seq, int64_t head, int64_t start, int64_t end, State *state) {
    const int64_t group = d->heads / d->kv_heads, first = start;
    const void *q = (const char *)d->q + (seq * d->heads + head * group) * d->size * (d->narrow ? 2 : 4);
    float scores[MOST_GROUP][KEYS];
    memset(state->sums, 0, group * d->size * sizeof(float));
    while (start < end) {
        const int64_t left = d->block_size - start % d->block_size;
        int64_t count = left < KEYS ? left : KEYS;
        if (count > end - start) count = end - start;
        const int64_t block = d->tables[seq * d->stride + start / d->block_size];
        const int64_t at = ((block * d->block_size + start % d->block_size) * d->kv_heads + head) * d->size;
        score(d, q, at, count, scores);
        soften(d, count, start == first, scores, state);
        add_values(d, at, count, scores, state->sums);
        start += count;
    }
}

static void finish(const Decode *d, int64_t seq, int64_t head, State *state) {
    const int64_t group = d->heads / d->kv_heads;
    for (int64_t g = 0; g < group; g++)
        for (int64_t i = 0; i < d->size; i++) state->sums[g * d->size + i] /= state->total[g];
    store(d->out, (seq * d->heads + head * group) * d->size, state->sums, group * d->size, d->narrow);
}

static float *part_of(const Decode *d, int64_t seq, int64_t head, int64_t chunk) {
    const int64_t group = d->heads / d->kv_heads;
    return d->parts + ((seq * d->kv_heads + head) * d->chunks + chunk) * group * (d->size + 2);
}

static void attend_parts(void *given) {
    Decode *d = given;
    const int64_t group = d->heads / d->kv_heads;
    int64_t task;
    State state;
    while ((task = taken(&d->next)) < d->seqs * d->kv_heads * d->chunks) {
        const int64_t chunk = task % d->chunks, pair = task / d->chunks;
        const int64_t head = pair % d->kv_heads, seq = pair / d->kv_heads;
        const int64_t length = d->lengths[seq], start = chunk * CHUNK;
        if (start >= length) continue;
        attend(d, seq, head, start, length - start < CHUNK ? length : start + CHUNK, &state);
        if (length <= CHUNK) {
            finish(d, seq, head, &state);
            continue;
        }
        float *part = part_of(d, seq, head, chunk);
        memcpy(part, state.sums, group * d->size * sizeof(float));
        memcpy(part + group * d->size, state.highest, group * sizeof(float));
        memcpy(part + group * (d->size + 1), state.total, group * sizeof(float));
    }
}

static void join(const Decode *d, int64_t seq, int64_t head, State *state) {
    const int64_t group = d->heads / d->kv_heads, size = d->size;
    memset(state->sums, 0, group * size * sizeof(float));
    for (int64_t g = 0; g < group; g++) {
        float top = -__builtin_inff(), total = 0;
        for (int64_t c = 0; c * CHUNK < d->lengths[seq]; c++) {
            const float highest = part_of(d, seq, head, c)[group * size + g];
            top = !(highest <= top) ? highest : top;
        }
        for (int64_t c = 0; c * CHUNK < d->lengths[seq]; c++) {
            const float *part = part_of(d, seq, head, c);
            const float shrink = exponential(part[group * size + g] - top);
            total += part[group * (size + 1) + g] * shrink;
            for (int64_t i = 0; i < size; i++) state->sums[g * size + i] += part[g * size + i] * shrink;
        }
        state->total[g] = total;
    }
}

/* heads / kv_heads <= MOST_GROUP, that times size <= MOST_SUMS; lengths >= 1; chunks: of CHUNK keys in the longest. */
void fovea_paged_decode(const Crew *crew, Decode *d) {
    State state;
    d->next = 0;
    spread(crew, attend_parts, d, d->seqs * d->kv_heads * d->chunks);
    for (int64_t seq = 0; seq < d->seqs; seq++)
        for (int64_t head = 0; d->lengths[seq] > CHUNK && head < d->kv_heads; head++) {
            join(d, seq, head, &state);
            finish(d, seq, head, &state);
        }
}
