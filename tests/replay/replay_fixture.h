/* replay_fixture.h - models and records made by hand for the tests of replay and train_hooks. The id of
 * every (position, layer, choice) of a record is a function, fixture_id, so that a test knows what to expect
 * without a second table. */
#ifndef WB_REPLAY_FIXTURE_H
#define WB_REPLAY_FIXTURE_H

#include "wb_random.h"
#include "wb_replay.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { FIXTURE_LAYERS_MAX = 16, FIXTURE_RUNS_MAX = 8 };

/* MoE layer l is model layer l + 2: two dense layers come first. */
static inline wb_route_model fixture_model(uint32_t E, uint32_t K, uint32_t L) {
    static const uint32_t layers[FIXTURE_LAYERS_MAX] = {2,  3,  4,  5,  6,  7,  8,  9,
                                                        10, 11, 12, 13, 14, 15, 16, 17};
    wb_route_model m = {
        .num_hidden_layers = L + 2, .n_moe_layers = L, .moe_layers = layers, .num_experts = E, .top_k = K};
    strcpy(m.name, "test_moe");
    strcpy(m.fingerprint, "0123456789abcdef0123456789abcdef");
    strcpy(m.router, "softmax_norm");
    return m;
}

/* The expert of choice k; the K of a layer are distinct, in no order. */
static inline uint32_t fixture_id(const wb_route_model *m, uint64_t seed, uint32_t position, uint32_t layer,
                                  uint32_t k) {
    uint64_t state = seed * 1000003u + (uint64_t)position * 64 + layer;
    uint32_t first = wb_random_below(&state, m->num_experts);
    return (first + m->num_experts - k) % m->num_experts;
}

typedef struct fixture_record {
    wb_record record;
    uint64_t seed;
    char rid[32];
    wb_route_rows runs[FIXTURE_RUNS_MAX];
    uint8_t *blocks[FIXTURE_RUNS_MAX]; /* owner of ids */
    uint8_t *bits[FIXTURE_RUNS_MAX];   /* owner of valid */
    uint32_t *tokens;
} fixture_record;

/* No two positions of one record have the same token, nor two records at one position. */
static inline uint32_t fixture_token(uint64_t seed, uint32_t position) {
    return (uint32_t)seed * 1000 + position;
}

/* A record of n_tokens without rows. */
static inline void fixture_open(fixture_record *f, uint64_t seed, uint32_t n_tokens) {
    memset(f, 0, sizeof *f);
    f->seed = seed;
    snprintf(f->rid, sizeof f->rid, "r-%" PRIu64, seed);
    f->tokens = calloc(n_tokens + 1, sizeof *f->tokens);
    for (uint32_t i = 0; i < n_tokens; i++) f->tokens[i] = fixture_token(seed, i);
    f->record = (wb_record){.rid = f->rid, .n_tokens = n_tokens, .tokens = f->tokens, .routes = f->runs};
}

/* Adds rows [start, start + rows); ids at an odd address, as from a mapped dump. */
static inline void fixture_add_run(fixture_record *f, const wb_route_model *m, uint32_t start,
                                   uint32_t rows) {
    uint32_t i = f->record.n_routes++;
    f->blocks[i] = malloc(1 + rows * wb_route_row_bytes(m));
    uint8_t *ids = f->blocks[i] + 1;
    wb_dtype dtype = wb_route_dtype(m->num_experts);
    size_t n = 0;
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t l = 0; l < m->n_moe_layers; l++)
            for (uint32_t k = 0; k < wb_route_layer_k(m, l); k++)
                wb_route_id_set(ids, dtype, n++, fixture_id(m, f->seed, start + r, l, k));
    f->runs[i] = (wb_route_rows){start, rows, ids, NULL};
}

/* Marks the row at `position` as not valid. */
static inline void fixture_invalidate(fixture_record *f, uint32_t position) {
    for (uint32_t i = 0; i < f->record.n_routes; i++) {
        wb_route_rows *run = &f->runs[i];
        if (position < run->start || position - run->start >= run->rows) continue;
        if (!f->bits[i]) {
            f->bits[i] = malloc((run->rows + 7) / 8);
            memset(f->bits[i], 0xff, (run->rows + 7) / 8);
            run->valid = f->bits[i];
        }
        wb_row_set_valid(f->bits[i], position - run->start, false);
    }
}

/* A complete record: n_tokens tokens, n_tokens - 1 rows. */
static inline void fixture_complete(fixture_record *f, const wb_route_model *m, uint64_t seed,
                                    uint32_t n_tokens) {
    fixture_open(f, seed, n_tokens);
    if (n_tokens > 1) fixture_add_run(f, m, 0, n_tokens - 1);
}

static inline void fixture_close(fixture_record *f) {
    for (uint32_t i = 0; i < FIXTURE_RUNS_MAX; i++) {
        free(f->blocks[i]);
        free(f->bits[i]);
    }
    free(f->tokens);
}

#define OK(call)                                                                                 \
    do {                                                                                         \
        wb_status status_ = (call);                                                              \
        if (status_ != WB_OK) fail_msg("%s: %s", wb_status_string(status_), wb_error_message()); \
    } while (0)

#define HAS_MESSAGE(text)                                                                              \
    do {                                                                                               \
        if (!strstr(wb_error_message(), text)) fail_msg("no \"%s\" in: %s", text, wb_error_message()); \
    } while (0)

/* Rows of the record, fed as they were recorded. */
static inline wb_segment fixture_segment(const fixture_record *f, uint32_t start, uint32_t rows) {
    return (wb_segment){WB_SEGMENT_REPLAY, f->rid, start, rows, f->tokens + start};
}

#endif
