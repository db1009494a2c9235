/* Linear layers of a few rows with what surrounds them in a decoder: each function equals its twin in ops or
 * reference.py. */
#include "products.h"

#define INFINITY_BITS 0x7f800000
#define TINY_BITS 0x0da24260 /* 1e-30 */
#define MOST_MADE (32 * 16384)

/* Thread-local, because engines of one process may run beside each other. */
static _Thread_local Rows prepared;
static _Thread_local float made[MOST_MADE];

#ifdef HAS_INT8_UNITS
static void split_row(Rows *x, int m, int64_t width) {
    const float *restrict from = x->numbers + m * x->stride;
    int32_t most_bits = TINY_BITS; /* magnitudes are ordered as their bits are, infinity and NaN above all */
    for (int64_t i = 0; i < width; i++) {
        const int32_t bits = bits_of(from[i]) & 0x7fffffff;
        most_bits = bits > most_bits ? bits : most_bits;
    }
    const int is_finite = most_bits < INFINITY_BITS;
    const float most = is_finite ? float_of(most_bits) : 1.0f, inverse = 127.0f / most;
    int8_t *restrict high = x->high + m * x->stride, *restrict low = x->low + m * x->stride;
    int32_t high_sum = 0, low_sum = 0;
    for (int64_t i = 0; i < width; i++) {
        const float value = from[i] * inverse, whole = __builtin_rintf(value);
        high[i] = (int8_t)whole;
        low[i] = (int8_t)__builtin_rintf((value - whole) * LOW_STEPS);
    }
    for (int64_t i = 0; i < width; i++) high_sum += high[i], low_sum += low[i];
    memset(high + width, 0, x->stride - width);
    memset(low + width, 0, x->stride - width);
    x->steps[m] = is_finite ? most / 127.0f : __builtin_nanf(""); /* and so is every result */
    x->high_sums[m] = high_sum;
    x->low_sums[m] = low_sum;
}
#endif

static void sum_groups(Rows *x, int m, int64_t width) {
    for (int64_t g = 0; g < width / GROUP; g++) {
#ifdef HAS_INT8_UNITS
        int32_t high = 0, low = 0;
        for (int64_t i = m * x->stride + g * GROUP; i < m * x->stride + (g + 1) * GROUP; i++)
            high += x->high[i], low += x->low[i];
        x->group_sums[m * x->stride / GROUP + g] = (high + low / LOW_STEPS) * x->steps[m];
#else
        float sum = 0;
        for (int64_t i = g * GROUP; i < (g + 1) * GROUP; i++) sum += x->numbers[m * x->stride + i];
        x->group_sums[m * x->stride / GROUP + g] = sum;
#endif
    }
}

static void normalise(float *restrict row, int64_t width, const Norm *norm, int narrow) {
    float squares = 0;
    for (int64_t i = 0; i < width; i++) squares += row[i] * row[i];
    const float scale = 1.0f / __builtin_sqrtf(squares / width + norm->eps);
    for (int64_t i = 0; i < width; i++) row[i] *= scale * value_at(norm->weight, i, narrow);
}

/* x [count, width] to out of the same type; width <= MOST_NUMBERS. */
void fovea_rms_norm(const void *x, int64_t count, int64_t width, const Norm *norm, void *out, int narrow) {
    for (int64_t m = 0; m < count; m++) {
        widen(x, m * width, width, narrow, made);
        normalise(made, width, norm, narrow);
        store(out, m * width, made, width, narrow);
    }
}

/* Rows of x, normed if there is a norm, as products with this weight want them. */
static const Rows *prepare(const void *x, int64_t count, const Norm *norm, const Weight *w, int narrow) {
    Rows *rows = &prepared;
    rows->count = count;
    rows->stride = w->width / 64 * 64 + 64;
    for (int m = 0; m < count; m++) {
        float *restrict to = rows->numbers + m * rows->stride;
        widen(x, m * w->width, w->width, narrow, to);
        if (norm->weight) normalise(to, w->width, norm, narrow);
#ifdef HAS_BF16_UNITS
        if (w->kind == BFLOAT16) {
            store(rows->halves, m * rows->stride, to, w->width, 1);
            memset(rows->halves + m * rows->stride + w->width, 0, 2 * (rows->stride - w->width));
        }
#endif
#ifdef HAS_INT8_UNITS
        if (w->kind >= INT8) split_row(rows, m, w->width);
#endif
        if (w->kind == INT4) sum_groups(rows, m, w->width);
    }
    return rows;
}

typedef struct {
    const Weight *weight;
    const Rows *rows;
    int64_t next, parts, step; /* of outputs that a thread takes at once */
    int narrow;
    void *out;      /* [rows, outputs] */
    int out_narrow; /* the type of out */
    int adds;       /* to what is there */
} Job;

static Job job_of(const Weight *w, const Rows *rows, int64_t outputs, int64_t threads, int narrow) {
    /* About four parts for a thread, in whole tiles; int4 in whole blocks. */
    int64_t step = (outputs / (4 * threads) + 7) / 8 * 8;
    step = step < 8 ? 8 : step > BLOCK ? BLOCK : step;
    if (w->kind == INT4) step = BLOCK;
    return (Job){.weight = w, .rows = rows, .parts = (outputs + step - 1) / step, .step = step, .narrow = narrow};
}

static void linear_part(void *given) {
    Job *job = given;
    const Weight *w = job->weight;
    int64_t part;
    float out[MOST_ROWS][BLOCK];
    while ((part = taken(&job->next)) < job->parts) {
        const int64_t first = part * job->step;
        const int64_t count = w->outputs - first < job->step ? w->outputs - first : job->step;
        products(w, first, count, job->rows, job->narrow, out);
        for (int m = 0; m < job->rows->count; m++) {
            if (job->adds)
                for (int64_t i = 0; i < count; i++)
                    out[m][i] += value_at(job->out, m * w->outputs + first + i, job->out_narrow);
            store(job->out, m * w->outputs + first, out[m], count, job->out_narrow);
        }
    }
}

/* x [count, width] to out [count, outputs], or added to it. */
void fovea_linear(const Crew *crew, const Weight *w, const void *x, int64_t count, void *out, int adds, int narrow,
                  int out_narrow) {
    const Norm none = {0};
    Job job = job_of(w, prepare(x, count, &none, w, narrow), w->outputs, crew->threads, narrow);
    job.out = out, job.adds = adds, job.out_narrow = out_narrow;
    spread(crew, linear_part, &job, job.parts);
}

static void gate_up_part(void *given) {
    Job *job = given;
    const Weight *w = job->weight;
    const int64_t half = w->outputs / 2;
    int64_t part;
    float gates[MOST_ROWS][BLOCK], ups[MOST_ROWS][BLOCK];
    while ((part = taken(&job->next)) < job->parts) {
        const int64_t first = part * job->step, count = half - first < job->step ? half - first : job->step;
        products(w, first, count, job->rows, job->narrow, gates);
        products(w, half + first, count, job->rows, job->narrow, ups);
        for (int m = 0; m < job->rows->count; m++) {
            for (int64_t i = 0; i < count; i++) {
                const float gate = gates[m][i], limited = gate < -87.0f ? -87.0f : gate;
                gates[m][i] = gate / (1.0f + exponential(-limited)) * ups[m][i];
            }
            store(job->out, m * half + first, gates[m], count, job->narrow);
        }
    }
}

/* x [count, width], normed, to silu(gate) * up [count, outputs / 2]; of int4, that in whole blocks. */
void fovea_norm_gate_up(const Crew *crew, const Weight *w, const void *x, int64_t count, const Norm *norm, void *out,
                        int narrow) {
    Job job = job_of(w, prepare(x, count, norm, w, narrow), w->outputs / 2, crew->threads, narrow);
    job.out = out;
    spread(crew, gate_up_part, &job, job.parts);
}

/* heads + 2 kv_heads of one token: queries and keys rotated, keys and values stored. */
static void turn_and_store(const Turn *t, int64_t token, float *heads, int narrow) {
    const int64_t half = t->turned / 2, to = t->slots[token] * t->kv_heads * t->size;
    const float *restrict c = t->cos + token * half, *restrict s = t->sin + token * half;
    for (int64_t h = 0; h < t->heads + t->kv_heads; h++) {
        const Norm *norm = h < t->heads ? &t->q_norm : &t->k_norm;
        float *restrict low = heads + h * t->size, *restrict high = low + half;
        if (norm->weight) normalise(low, t->size, norm, narrow);
        for (int64_t i = 0; i < half; i++) {
            const float x = low[i], y = high[i];
            low[i] = x * c[i] - y * s[i];
            high[i] = y * c[i] + x * s[i];
        }
    }
    store(t->q, token * t->heads * t->size, heads, t->heads * t->size, narrow);
    store(t->keys, to, heads + t->heads * t->size, t->kv_heads * t->size, narrow);
    store(t->values, to, heads + (t->heads + t->kv_heads) * t->size, t->kv_heads * t->size, narrow);
}

/* x [count, width], normed and projected; see rotate_and_store. */
void fovea_norm_qkv(const Crew *crew, const Weight *w, const void *x, int64_t count, const Norm *norm, const Turn *turn,
                    int narrow) {
    Job job = job_of(w, prepare(x, count, norm, w, narrow), w->outputs, crew->threads, narrow);
    job.out = made, job.out_narrow = 0;
    spread(crew, linear_part, &job, job.parts);
    for (int64_t t = 0; t < count; t++) turn_and_store(turn, t, made + t * w->outputs, narrow);
}
