/* rope_tables.c - the cosines and sines of the rotary embedding. Refuses: what a configuration may ask for
 * (config_rope.c). */
#include "model_weights.h"

#include <math.h>
#include <stdlib.h>

/* Arithmetic in f32 where the reference implementation has it. */
static float plain_frequency(const wb_config *c, int32_t dim, int32_t i) {
    const float exponent = (float)(2 * i) / (float)dim;
    return 1.0f / (float)pow(c->rope_theta, (double)exponent);
}

/* ---- YaRN ------------------------------------------------------------------------------------ */

/* The dimension whose frequency turns so many times in the original positions. */
static double dimension_of_turns(const wb_config *c, int32_t dim, double turns) {
    const double positions = c->rope_scaling.original_positions;
    return dim * log(positions / (turns * 2 * M_PI)) / (2 * log(c->rope_theta));
}

/* Between these dimensions frequencies go from as they are to divided by the factor. */
typedef struct yarn_ramp {
    double low, high;
} yarn_ramp;

static yarn_ramp make_ramp(const wb_config *c, int32_t dim) {
    const wb_rope_scaling *s = &c->rope_scaling;
    yarn_ramp ramp = {dimension_of_turns(c, dim, s->beta_fast), dimension_of_turns(c, dim, s->beta_slow)};
    if (s->truncate) ramp = (yarn_ramp){floor(ramp.low), ceil(ramp.high)};
    ramp = (yarn_ramp){fmax(ramp.low, 0), fmin(ramp.high, dim - 1)};
    if (ramp.low == ramp.high) ramp.high += 0.001;
    return ramp;
}

static float yarn_frequency(const wb_config *c, const yarn_ramp *ramp, float plain, int32_t i) {
    const float divided = plain / (float)c->rope_scaling.factor;
    float part = ((float)i - (float)ramp->low) / (float)(ramp->high - ramp->low);
    part = part < 0 ? 0 : part > 1 ? 1 : part;
    return divided * part + plain * (1 - part);
}

double wb_rope_magnitude(double factor, double scale) {
    return factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1;
}

/* What cosines and sines are multiplied by. */
static double attention_factor(const wb_rope_scaling *s) {
    if (s->type != WB_ROPE_YARN) return 1;
    if (s->attention_factor > 0) return s->attention_factor;
    if (s->mscale > 0 && s->mscale_all_dim > 0)
        return wb_rope_magnitude(s->factor, s->mscale) / wb_rope_magnitude(s->factor, s->mscale_all_dim);
    return wb_rope_magnitude(s->factor, 1);
}

/* ---- tables ---------------------------------------------------------------------------------- */

static float frequency_of(const wb_config *c, const yarn_ramp *ramp, int32_t dim, int32_t i) {
    const float plain = plain_frequency(c, dim, i);
    if (c->rope_scaling.type == WB_ROPE_LINEAR) return plain / (float)c->rope_scaling.factor;
    return c->rope_scaling.type == WB_ROPE_YARN ? yarn_frequency(c, ramp, plain, i) : plain;
}

/* Angles in f32 like the reference implementation; their cosine and sine to the nearest f32. */
static void fill_rope(const wb_config *c, int32_t dim, float *cos_host, float *sin_host) {
    const int32_t half = dim / 2;
    const float factor = (float)attention_factor(&c->rope_scaling);
    const yarn_ramp none = {0}, ramp = c->rope_scaling.type == WB_ROPE_YARN ? make_ramp(c, dim) : none;
    for (int32_t i = 0; i < half; i++) {
        const float frequency = frequency_of(c, &ramp, dim, i);
        for (int32_t p = 0; p < c->max_positions; p++) {
            const float angle = (float)p * frequency;
            cos_host[(size_t)p * (size_t)half + (size_t)i] = (float)cos((double)angle) * factor;
            sin_host[(size_t)p * (size_t)half + (size_t)i] = (float)sin((double)angle) * factor;
        }
    }
}

void wb_model_layout_rope(wb_model *m, wb_arena *arena) {
    const int64_t rows = m->config.max_positions, width = wb_model_rotary_dim(m) / 2;
    wb_place(arena, &m->cos_table, rows, width, sizeof(float));
    wb_place(arena, &m->sin_table, rows, width, sizeof(float));
    if (!wb_model_has_entries(m)) return;
    wb_place(arena, &m->entry_cos_table, rows, width, sizeof(float));
    wb_place(arena, &m->entry_sin_table, rows, width, sizeof(float));
}

/* `host`: scratch for both. */
static wb_status fill_pair(const wb_model *m, const wb_config *c, float *host, const wb_buffer *cos_table,
                           const wb_buffer *sin_table) {
    wb_device *dev = m->device;
    const int32_t dim = wb_model_rotary_dim(m);
    const size_t n = (size_t)c->max_positions * (size_t)(dim / 2), bytes = n * sizeof(float);
    fill_rope(c, dim, host, host + n);
    WB_TRY(dev->to_device(dev, cos_table->data, host, bytes));
    return dev->to_device(dev, sin_table->data, host + n, bytes);
}

/* Of layers with entries, and without, which have no scaling. */
static wb_status fill_two(wb_model *m, float *host) {
    wb_config plain = m->config, entries = m->config;
    plain.rope_scaling = (wb_rope_scaling){0};
    entries.rope_theta = entries.compressed.rope_theta;
    WB_TRY(fill_pair(m, &plain, host, &m->cos_table, &m->sin_table));
    return fill_pair(m, &entries, host, &m->entry_cos_table, &m->entry_sin_table);
}

wb_status wb_model_fill_rope(wb_model *m) {
    const size_t n = (size_t)m->config.max_positions * (size_t)(wb_model_rotary_dim(m) / 2);
    float *host = NULL;
    WB_TRY(WB_NEW(host, 2 * n, "rope tables"));
    const wb_status status = wb_model_has_entries(m)
                                 ? fill_two(m, host)
                                 : fill_pair(m, &m->config, host, &m->cos_table, &m->sin_table);
    free(host);
    return status;
}
