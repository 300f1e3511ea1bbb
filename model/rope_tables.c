/* rope_tables.c - the cosines and sines of the rotary embedding. Refuses: scaled kinds (config_read.c names
 * them). */
#include "model_weights.h"

#include <math.h>
#include <stdlib.h>

/* Angles in f32 like the reference implementation; their cosine and sine to the nearest f32. */
static void fill_rope(const wb_config *c, float *cos_host, float *sin_host) {
    int32_t half = c->head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)c->head_dim;
        float frequency = 1.0f / (float)pow(c->rope_theta, (double)exponent);
        for (int32_t p = 0; p < c->max_positions; p++) {
            float angle = (float)p * frequency;
            cos_host[(size_t)p * (size_t)half + (size_t)i] = (float)cos((double)angle);
            sin_host[(size_t)p * (size_t)half + (size_t)i] = (float)sin((double)angle);
        }
    }
}

void wb_model_layout_rope(wb_model *m, wb_arena *arena) {
    const int64_t rows = m->config.max_positions, width = m->config.head_dim / 2;
    wb_place(arena, &m->cos_table, rows, width, sizeof(float));
    wb_place(arena, &m->sin_table, rows, width, sizeof(float));
}

wb_status wb_model_fill_rope(wb_model *m) {
    wb_device *dev = m->device;
    const size_t n = (size_t)m->config.max_positions * (size_t)(m->config.head_dim / 2),
                 bytes = n * sizeof(float);
    float *host = NULL;
    WB_TRY(WB_NEW(host, 2 * n, "rope tables"));
    fill_rope(&m->config, host, host + n);
    wb_status status = dev->to_device(dev, m->cos_table.data, host, bytes);
    if (status == WB_OK) status = dev->to_device(dev, m->sin_table.data, host + n, bytes);
    free(host);
    return status;
}
