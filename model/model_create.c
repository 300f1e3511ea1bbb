/* model_create.c - a new model with random weights, the same bits for a seed on every machine and any number
 * of ranks. */
#include "elements.h"
#include "hash_tables.h"
#include "packed_weights.h"
#include "wb_hash.h"
#include "wb_random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What is uploaded at once, and what a thread makes of it at once. */
#define CHUNK_ELEMENTS ((int64_t)1 << 20)
#define PART_ELEMENTS ((int64_t)1 << 14)

/* Element i of the stream `key`: the sum of twelve 16-bit uniforms, whose standard deviation is 2^16.
 * Integers, so that every machine has the same bits. */
static float normal(uint64_t key, uint64_t i) {
    int32_t sum = 0;
    for (uint64_t j = 0; j < 3; j++) {
        uint64_t bits = wb_mix64(key + 3 * i + j);
        for (int k = 0; k < 4; k++) sum += (int32_t)(bits >> (16 * k) & 0xffffu);
    }
    return ((float)sum - 6.0f * 65535.0f) * 0x1p-16f;
}

static bool ends_with(const char *name, const char *ending) {
    const size_t n = strlen(name), m = strlen(ending);
    return n >= m && strcmp(name + n - m, ending) == 0;
}

/* That of all elements of a new vector: biases and logarithms are 0, and norms multiply by 1. */
static float constant_of(const wb_model *m, const wb_tensor *t) {
    static const char *const zeros[] = {"bias", "base", "sink", "sinks", "A_log"};
    for (size_t i = 0; i < sizeof zeros / sizeof zeros[0]; i++)
        if (ends_with(t->name, zeros[i])) return 0.0f;
    return m->family->zero_centered_norms && !ends_with(t->name, "linear_attn.norm.weight") ? 0.0f : 1.0f;
}

/* Elements [first, first + n) of a new tensor, f32; constant: of a vector. */
static void fill_new(const wb_tensor *t, float constant, uint64_t key, float std, int64_t first, int64_t n,
                     float *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = t->n_dims == 1 ? constant : std * normal(key, (uint64_t)(first + i));
}

/* Elements [first, first + n) of a new tensor, as stored. Each depends on its number alone, so that threads
 * share them. */
static void make_chunk(const wb_tensor *t, float constant, uint64_t key, float std, int64_t first, int64_t n,
                       float *values, char *rounded) {
    const int64_t n_parts = (n + PART_ELEMENTS - 1) / PART_ELEMENTS;
#pragma omp parallel for schedule(static) if (n_parts > 1)
    for (int64_t part = 0; part < n_parts; part++) {
        const int64_t at = part * PART_ELEMENTS, left = n - at;
        const int64_t count = left < PART_ELEMENTS ? left : PART_ELEMENTS;
        fill_new(t, constant, key, std, first + at, count, values + at);
        wb_convert(count, values + at, WB_F32, rounded + (size_t)at * wb_dtype_size(t->dtype), t->dtype);
    }
}

static wb_status init_tensor(const wb_model *m, const wb_tensor *t, uint64_t seed, float std, float *values,
                             void *rounded) {
    const uint64_t key = wb_mix64(wb_hash64_seeded(t->name, strlen(t->name), seed));
    const size_t size = wb_dtype_size(t->dtype);
    for (int64_t first = 0; first < t->n; first += CHUNK_ELEMENTS) {
        const int64_t n = t->n - first < CHUNK_ELEMENTS ? t->n - first : CHUNK_ELEMENTS;
        make_chunk(t, constant_of(m, t), key, std, first, n, values, rounded);
        WB_TRY(m->device->to_device(m->device, (char *)t->data + (size_t)first * size, rounded,
                                    (size_t)n * size));
    }
    return WB_OK;
}

wb_status wb_model_fill_random(wb_model *m, uint64_t seed, float std) {
    float *values = NULL; /* two chunks: as computed, as stored */
    if (!(isfinite(std) && std >= 0))
        return wb_fail(WB_INVALID_ARGUMENT, "std: expected a finite number of at least 0, found %g",
                       (double)std);
    WB_TRY(WB_NEW(values, 2 * (size_t)CHUNK_ELEMENTS, "random weights"));
    wb_status status = WB_OK;
    for (int32_t i = 0; status == WB_OK && i < m->n_tensors; i++) {
        wb_tensor t = wb_model_tensor(m, i);
        if (m->params[t.param].shared) continue;
        if (t.data) status = init_tensor(m, &t, seed, std, values, values + CHUNK_ELEMENTS);
        if (status == WB_OK) status = wb_model_fill_replicas(m, i);
    }
    free(values);
    return status == WB_OK && m->mtp ? wb_model_fill_random(m->mtp, seed, std) : status;
}

static wb_status create_local(const wb_config *config, uint64_t seed, float std,
                              const wb_model_options *options, wb_model **model) {
    if (!config) return wb_fail(WB_INVALID_ARGUMENT, "model config: NULL");
    WB_TRY(wb_config_check(config));
    WB_TRY(wb_model_new(config, wb_family_rules_of(config->family), options, model));
    WB_TRY(wb_hash_tables_fill(*model, seed));
    WB_TRY(wb_model_fill_random(*model, seed, std));
    return wb_model_pack_weights(*model);
}

wb_status wb_model_create(const wb_config *config, uint64_t seed, float std, const wb_model_options *options,
                          wb_model **model_out) {
    wb_model_options own;
    wb_model *m = NULL;
    wb_status status;
    WB_TRY(wb_model_read_options(options, &own));
    WB_GOTO(wb_comm_agree(own.comm, create_local(config, seed, std, &own, &m)), close);
    uint64_t source[2] = {seed, 0};
    memcpy(&source[1], &std, sizeof std);
    WB_GOTO(wb_model_check_peers(m, source, sizeof source), close);
    WB_GOTO(wb_model_open_exchange(m), close);
    *model_out = m;
    return WB_OK;
close:
    wb_model_close(m);
    return status;
}
