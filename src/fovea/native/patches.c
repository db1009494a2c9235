/* Pictures cut into a tower's patches, with the same bits as pixels_reference.cut_patches: every value is looked up. */
#include "vectors.h"

typedef struct {
    const uint8_t *canvas;        /* [rows * side * px, columns * side * px, 3] */
    const void *levels;           /* [3, 256]: what a value of a channel becomes */
    void *out;                    /* [rows * columns * side * side, 3, repeats, px, px] */
    int64_t rows, columns, side, px, repeats; /* rows and columns of blocks of side * side patches */
    int64_t next;
    int narrow;
} Cut;

#define CUT(NAME, TYPE)                                                                                       \
    static void NAME(const Cut *c, int64_t row) {                                                             \
        const int64_t width = c->columns * c->side * c->px, area = c->px * c->px;                             \
        for (int64_t column = 0; column < c->columns * c->side; column++) {                                   \
            const int64_t block = row / c->side * c->columns + column / c->side;                              \
            const int64_t patch = (block * c->side + row % c->side) * c->side + column % c->side;             \
            const uint8_t *corner = c->canvas + (row * c->px * width + column * c->px) * 3;                   \
            for (int64_t channel = 0; channel < 3; channel++) {                                               \
                const TYPE *levels = (const TYPE *)c->levels + channel * 256;                                 \
                TYPE *to = (TYPE *)c->out + (patch * 3 + channel) * c->repeats * area;                        \
                for (int64_t y = 0; y < c->px; y++)                                                           \
                    for (int64_t x = 0; x < c->px; x++)                                                       \
                        to[y * c->px + x] = levels[corner[(y * width + x) * 3 + channel]];                    \
                for (int64_t i = 1; i < c->repeats; i++) memcpy(to + i * area, to, area * sizeof(TYPE));      \
            }                                                                                                 \
        }                                                                                                     \
    }

CUT(cut_floats, float)
CUT(cut_halves, uint16_t)

static void cut_some(void *given) {
    Cut *c = given;
    int64_t row;
    while ((row = taken(&c->next)) < c->rows * c->side) (c->narrow ? cut_halves : cut_floats)(c, row);
}

void fovea_cut_patches(const Crew *crew, Cut *c) {
    c->next = 0;
    spread(crew, cut_some, c, c->rows * c->side);
}
