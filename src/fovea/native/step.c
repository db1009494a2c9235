/* All layers of a decoder, for a step in which every sequence has one new token: no word of Python in between. */
#include "kernels.h"

typedef struct {
    const Weight *qkv, *out, *gate_up, *down;
    Norm attention_norm, mlp_norm, q_norm, k_norm;
    void *keys, *values;
} Layer;

typedef struct {
    const Layer *layers;
    int64_t num_layers, count, width;
    void *x, *attended, *hidden, *normed; /* x [count, width] is written over, its norm goes to normed */
    Norm norm;
    Turn turn;     /* without pages */
    Decode decode; /* likewise */
} Step;

void fovea_step(const Crew *crew, Step *s) {
    const int narrow = s->decode.narrow;
    for (int64_t i = 0; i < s->num_layers; i++) {
        const Layer *layer = s->layers + i;
        s->turn.q_norm = layer->q_norm, s->turn.k_norm = layer->k_norm;
        s->turn.keys = layer->keys, s->turn.values = layer->values;
        s->decode.keys = layer->keys, s->decode.values = layer->values;
        fovea_norm_qkv(crew, layer->qkv, s->x, s->count, &layer->attention_norm, &s->turn, narrow);
        fovea_paged_decode(crew, &s->decode);
        fovea_linear(crew, layer->out, s->attended, s->count, s->x, 1, narrow, narrow);
        fovea_norm_gate_up(crew, layer->gate_up, s->x, s->count, &layer->mlp_norm, s->hidden, narrow);
        fovea_linear(crew, layer->down, s->hidden, s->count, s->x, 1, narrow, narrow);
    }
    fovea_rms_norm(s->x, s->count, s->width, &s->norm, s->normed, narrow);
}
