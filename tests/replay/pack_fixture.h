/* pack_fixture.h - records with every field, for the tests of packing. What a seed makes is the same on every
 * rank, so that whoever gets a record can make it again and compare. */
#ifndef WB_PACK_FIXTURE_H
#define WB_PACK_FIXTURE_H

#include "replay_ranks.h"
#include "wb_pack.h"

#include <time.h>

/* A record and what it points to; those fields that may be absent are, now and then. */
typedef struct full_record {
    fixture_record f;
    float *logprobs, *sampling_logprobs;
    wb_span spans[2];
    wb_sampling sampling;
    uint32_t *mask_ids, *mask_ends;
    wb_indexer_rows indexer;
    uint32_t *counts, *positions;
    uint64_t *ends;
} full_record;

static inline float *random_floats(uint64_t *state, uint32_t n) {
    float *values = malloc((n + 1) * sizeof *values);
    for (uint32_t i = 0; i < n; i++) values[i] = wb_random_unit(wb_random(state));
    return values;
}

static inline void full_mask(full_record *f, uint64_t *state, uint32_t n_new) {
    f->mask_ids = malloc((3 * n_new + 1) * sizeof *f->mask_ids);
    f->mask_ends = malloc((n_new + 1) * sizeof *f->mask_ends);
    for (uint32_t i = 0, n = 0; i < n_new; i++) {
        const uint32_t token = f->f.tokens[f->f.record.prompt_len + i];
        for (uint32_t k = wb_random_below(state, 3); k > 0 && token >= 10; k--) f->mask_ids[n++] = token - k;
        f->mask_ids[n++] = token;
        f->mask_ends[i] = n;
    }
    f->f.record.mask_ids = f->mask_ids;
    f->f.record.mask_ends = f->mask_ends;
}

/* Of two indexers, or one in a model of one layer, up to three positions each. */
static inline void model_with_indexers(wb_route_model *model) {
    static const uint32_t layers[] = {0, 2};
    model->n_indexer_layers = model->num_hidden_layers > 2 ? 2 : 1;
    model->indexer_k = 3;
    model->indexer_layers = model->indexer_source = layers;
}

/* Cells of all positions that are fed: of all that there is, or of the last ones. */
static inline void full_indexer(full_record *f, const wb_route_model *model, uint64_t *state) {
    const uint32_t rows = f->f.record.n_tokens - 1, S = wb_indexer_columns(model);
    const size_t n = (size_t)rows * S;
    uint64_t at = 0;
    f->counts = calloc(n + 1, sizeof *f->counts);
    f->ends = calloc(n + 1, sizeof *f->ends);
    f->positions = calloc(3 * n + 1, sizeof *f->positions);
    for (size_t cell = 0; cell < n; cell++) {
        const uint32_t position = (uint32_t)(cell / S), most = position < 2 ? position + 1 : 3;
        f->counts[cell] = wb_random_below(state, most + 1);
        const bool listed = wb_random_below(state, 2) == 1;
        for (uint32_t j = f->counts[cell]; listed && j-- > 0;) f->positions[at++] = position - j;
        f->ends[cell] = at;
    }
    f->indexer = (wb_indexer_rows){0, rows, f->counts, f->ends, f->positions};
    f->f.record.indexer = &f->indexer;
}

/* Of 2 .. longest + 1 tokens. In place: the record points into it. */
static inline void full_open(full_record *f, const wb_route_model *model, uint64_t seed, uint32_t longest) {
    uint64_t state = wb_mix64(seed);
    const uint32_t n = 2 + wb_random_below(&state, longest), kinds = (uint32_t)wb_random(&state);
    memset(f, 0, sizeof *f);
    fixture_open(&f->f, seed, n);
    const uint32_t first = wb_random_below(&state, n), cut = first + wb_random_below(&state, n - first);
    wb_record *r = &f->f.record;
    if (kinds % 8 != 0 && first < cut) fixture_add_run(&f->f, model, first, cut - first);
    if (kinds % 8 != 0 && cut < n - 1) fixture_add_run(&f->f, model, cut, n - 1 - cut);
    for (uint32_t i = 0; i < 3; i++) fixture_invalidate(&f->f, wb_random_below(&state, n));
    r->group = wb_random(&state);
    r->sample = (uint32_t)wb_random(&state);
    r->prompt_len = wb_random_below(&state, n + 1);
    r->finish = (wb_finish)wb_random_below(&state, 4);
    f->spans[0] = (wb_span){0, 1, seed};
    f->spans[1] = (wb_span){1, n, seed + 1};
    f->sampling = (wb_sampling){0.5F, 7, 0.75F};
    const uint32_t n_new = n - r->prompt_len;
    f->logprobs = random_floats(&state, n_new);
    f->sampling_logprobs = random_floats(&state, n_new);
    if (kinds & 8) r->logprobs = f->logprobs;
    if (kinds & 16) r->sampling_logprobs = f->sampling_logprobs;
    r->spans = f->spans;
    r->n_spans = kinds >> 5 & 1 ? 2 : 1;
    if (kinds & 64) r->sampling = &f->sampling;
    /* Ids of a mask are below 2^31. */
    bool masked = kinds & 128;
    for (uint32_t i = 0; i < n_new; i++) masked = masked && f->f.tokens[r->prompt_len + i] <= INT32_MAX;
    if (masked) full_mask(f, &state, n_new);
    if (model->n_indexer_layers > 0 && (kinds & 256)) full_indexer(f, model, &state);
}

static inline void full_spoil(full_record *f, const wb_route_model *model) {
    const wb_record *r = &f->f.record;
    const uint32_t n_new = r->n_tokens - r->prompt_len;
    memset(f->f.rid, 'x', sizeof f->f.rid - 1);
    memset(f->f.tokens, 0xEE, r->n_tokens * sizeof *f->f.tokens);
    for (uint32_t i = 0; i < r->n_routes; i++) {
        memset(f->f.blocks[i], 0xEE, 1 + f->f.runs[i].rows * wb_route_row_bytes(model));
        if (f->f.bits[i]) memset(f->f.bits[i], 0xEE, (f->f.runs[i].rows + 7) / 8);
        f->f.runs[i] = (wb_route_rows){99, 99, NULL, NULL};
    }
    memset(f->logprobs, 0xEE, n_new * sizeof *f->logprobs);
    memset(f->sampling_logprobs, 0xEE, n_new * sizeof *f->sampling_logprobs);
    memset(f->spans, 0xEE, sizeof f->spans);
    memset(&f->sampling, 0xEE, sizeof f->sampling);
    if (f->counts) {
        const size_t n = (size_t)f->indexer.rows * wb_indexer_columns(model);
        memset(f->positions, 0xEE, (size_t)f->ends[n - 1] * sizeof *f->positions);
        memset(f->counts, 0xEE, n * sizeof *f->counts);
        memset(f->ends, 0xEE, n * sizeof *f->ends);
        memset(&f->indexer, 0xEE, sizeof f->indexer);
    }
    if (!f->mask_ends || n_new == 0) return;
    memset(f->mask_ids, 0xEE, f->mask_ends[n_new - 1] * sizeof *f->mask_ids);
    memset(f->mask_ends, 0xEE, n_new * sizeof *f->mask_ends);
}

static inline void full_close(full_record *f) {
    fixture_close(&f->f);
    free(f->logprobs);
    free(f->sampling_logprobs);
    free(f->mask_ids);
    free(f->mask_ends);
    free(f->counts);
    free(f->positions);
    free(f->ends);
}

/* Sequence i of a rank. */
static inline uint64_t seed_of(uint64_t step, uint32_t number, uint32_t i) {
    return step * 10000 + number * 100 + i + 1;
}

#endif
