/* What is handed to the kernels. */
#include "vectors.h"

enum kind { FLOAT32, BFLOAT16, INT8, INT4 };

typedef struct {
    int64_t kind, rows, width, block;   /* int4: rows are padded to blocks, of so many side by side */
    int64_t outputs;                    /* rows without padding */
    const void *values, *scales, *bias; /* bias: null, or in the model's type */
} Weight;

typedef struct {
    const void *weight; /* null: rows stay as they are */
    float eps;
} Norm;

typedef struct {
    int64_t heads, kv_heads, size, turned;
    const int64_t *slots;    /* [count] */
    const float *cos, *sin;  /* [count, turned / 2] */
    Norm q_norm, k_norm;     /* of each head before it is rotated */
    void *q, *keys, *values; /* q [count, heads, size]; pages [slots, kv_heads, size] */
} Turn;

typedef struct {
    const void *q, *keys, *values;  /* q [seqs, heads, size]; pages [blocks, block_size, kv_heads, size] */
    void *out;                      /* as q */
    float *parts;                   /* [seqs, kv_heads, chunks, group * (size + 2)]; null if there is one chunk */
    const int64_t *tables, *lengths; /* tables [seqs, stride] */
    int64_t seqs, heads, kv_heads, size, block_size, stride, chunks;
    float scale;
    int narrow;
    int64_t next;
} Decode;

void fovea_norm_qkv(const Crew *crew, const Weight *w, const void *x, int64_t count, const Norm *norm, const Turn *turn,
                    int narrow);
void fovea_paged_decode(const Crew *crew, Decode *d);
void fovea_linear(const Crew *crew, const Weight *w, const void *x, int64_t count, void *out, int adds, int narrow,
                  int out_narrow);
void fovea_norm_gate_up(const Crew *crew, const Weight *w, const void *x, int64_t count, const Norm *norm, void *out,
                        int narrow);
void fovea_rms_norm(const void *x, int64_t count, int64_t width, const Norm *norm, void *out, int narrow);
