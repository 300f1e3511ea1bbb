/* planned_fixture.h - a step of several micro-batches on this rank: sequences, padding rows, a native pass
 * over each, and the records of what it chose. A failure ends the process: the test is then red. */
#ifndef PLANNED_FIXTURE_H
#define PLANNED_FIXTURE_H

#include "placed_model.h"
#include "wb_replay.h"

enum { MICRO_BATCHES = 3, MAX_SEQS = 3, MAX_LENGTH = 9, MAX_PADDING = 4, CANARY = 0x5A };
enum { MAX_T = MAX_SEQS * MAX_LENGTH + MAX_PADDING };

/* Rows [0, n_tokens) are those of the sequences, the others padding. */
typedef struct step_batch {
    int32_t n_seqs, n_tokens, T, start[MAX_SEQS + 2];
    int32_t tokens[MAX_T], targets[MAX_T];
    uint8_t direction[MAX_T]; /* native or padding */
    float dlogprobs[MAX_T];
    uint8_t *ids; /* [T] rows of routes: in those of padding */
    wb_record records[MAX_SEQS];
    wb_route_rows runs[MAX_SEQS];
    char rids[MAX_SEQS][32];
    uint32_t fed[MAX_T + MAX_SEQS]; /* tokens of the records, each with one more */
} step_batch;

/* What a pass gave. */
typedef struct pass_results {
    float logprobs[MAX_T];
    uint8_t *used;
} pass_results;

typedef struct step {
    fixture f;
    wb_comm *comm;
    wb_replay *replay;
    step_batch batches[MICRO_BATCHES];
    pass_results native[MICRO_BATCHES];
    float *gradients;  /* of the native step */
    int64_t exchanges; /* of the native step */
    wb_dispatch_policy dispatch;
} step;

/* A micro-batch without tokens, now and then. */
static inline void deal_batch(const fixture *f, int32_t m, uint64_t *state, step_batch *b) {
    const int32_t V = wb_model_config(f->model)->vocab_size;
    uint32_t *fed = b->fed;
    b->n_seqs = random_below(state, MAX_SEQS + 1);
    for (int32_t s = 0; s < b->n_seqs; s++) {
        const int32_t n = 1 + random_below(state, MAX_LENGTH);
        for (int32_t i = 0; i <= n; i++) fed[i] = (uint32_t)random_below(state, V);
        for (int32_t i = 0; i < n; i++) {
            b->tokens[b->n_tokens + i] = (int32_t)fed[i];
            b->targets[b->n_tokens + i] = (int32_t)fed[i + 1];
        }
        snprintf(b->rids[s], sizeof b->rids[s], "request-%d-%d-%d", m, wb_comm_rank(f->comm), s);
        b->records[s] = (wb_record){.rid = b->rids[s],
                                    .n_tokens = (uint32_t)n + 1,
                                    .tokens = fed,
                                    .n_routes = 1,
                                    .routes = &b->runs[s]};
        b->runs[s] = (wb_route_rows){0, (uint32_t)n, NULL, NULL};
        b->n_tokens = b->start[s + 1] = b->n_tokens + n;
        fed += n + 1;
    }
    b->T = b->n_tokens + random_below(state, MAX_PADDING + 1);
    for (int32_t t = 0; t < b->T; t++) {
        b->direction[t] = t < b->n_tokens ? WB_ROW_NATIVE : WB_ROW_PADDING;
        if (t >= b->n_tokens) b->targets[t] = -1;
        b->dlogprobs[t] = random_unit(state);
    }
    b->start[b->n_seqs + 1] = b->T;
    b->ids = routes_random(f, b->T, state);
}

/* Forward and backward, with every row's experts read back. */
static inline wb_status try_pass(fixture *f, const step_batch *b, const wb_routing *routing,
                                 pass_results *out) {
    const wb_train_batch batch = {.T = b->T,
                                  .tokens = b->tokens,
                                  .targets = b->targets,
                                  .n_seqs = b->n_seqs + 1,
                                  .seq_start = b->start};
    wb_routing with_used = *routing;
    with_used.used = out->used;
    memset(out->used, CANARY, (size_t)b->T * f->row_bytes);
    WB_TRY(wb_train_forward(f->train, &batch, &with_used, NULL, out->logprobs));
    return wb_train_backward(f->train, b->dlogprobs);
}

static inline void expect_same_pass(const fixture *f, const step_batch *b, const pass_results *found,
                                    const pass_results *expected) {
    EXPECT(memcmp(found->logprobs, expected->logprobs, (size_t)b->T * sizeof(float)) == 0);
    EXPECT(all_finite(b->T, found->logprobs));
    EXPECT(memcmp(found->used, expected->used, (size_t)b->n_tokens * f->row_bytes) == 0);
}

/* Every gradient of this rank; owner: the caller. */
static inline float *all_gradients(const fixture *f, int64_t *n_out) {
    int64_t n = 0;
    float *all = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) all = take(n, sizeof(float));
        n = 0;
        for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++)
            for (int32_t k = 0; k < wb_model_n_replicas(f->model, i); k++) {
                const wb_tensor tensor = wb_model_replica(f->model, i, k);
                const float *grad = wb_train_grad(f->train, &tensor);
                if (!grad) continue;
                if (all) memcpy(all + n, grad, (size_t)tensor.n * sizeof(float));
                n += tensor.n;
            }
    }
    *n_out = n;
    return all;
}

static inline void expect_same_gradients(const fixture *f, const float *expected) {
    int64_t n;
    float *found = all_gradients(f, &n);
    EXPECT(memcmp(found, expected, (size_t)n * sizeof(float)) == 0);
    EXPECT(all_finite(n, found));
    free(found);
}

/* So far, of rows and of counts. */
static inline int64_t exchanges(const step *s) {
    return (int64_t)wb_comm_stats(s->comm).all_to_alls;
}

/* What every row chooses by itself is what the records say. */
static inline void run_native(step *s) {
    fixture *f = &s->f;
    const int64_t before = exchanges(s);
    int64_t n;
    MUST(wb_train_zero_grads(f->train));
    for (int32_t m = 0; m < MICRO_BATCHES; m++) {
        step_batch *b = &s->batches[m];
        const wb_routing routing = {.ids = b->ids, .direction = b->direction};
        s->native[m].used = take(b->T, f->row_bytes);
        MUST(try_pass(f, b, &routing, &s->native[m]));
        for (int32_t i = 0; i < b->n_seqs; i++)
            b->runs[i].ids = s->native[m].used + (size_t)b->start[i] * f->row_bytes;
    }
    s->exchanges = exchanges(s) - before;
    MUST(wb_train_reduce_grads(f->train));
    s->gradients = all_gradients(f, &n);
}

static inline void open_replay_of(step *s) {
    wb_replay_options options = wb_replay_options_default();
    options.placement = wb_model_placement(s->f.model);
    options.dispatch = s->dispatch;
    MUST(wb_replay_open(wb_model_routes(s->f.model), &options, &s->replay));
    for (int32_t m = 0; m < MICRO_BATCHES; m++)
        for (int32_t i = 0; i < s->batches[m].n_seqs; i++)
            MUST(wb_replay_add(s->replay, wb_model_routes(s->f.model), &s->batches[m].records[i]));
}

/* A step on this rank of a random model under a random placement; the model is the same on all ranks. */
static inline void step_open(rank *r, variant v, wb_dispatch_policy dispatch, step *s) {
    const wb_config config = variant_config(v);
    int32_t L = 0;
    for (int32_t l = 0; l < config.n_layers; l++) L += wb_config_is_moe(&config, l);
    wb_placement *placement = placement_random(L, wb_config_weighted(&config), r->of, &r->state, true);
    *s = (step){.comm = r->comm, .dispatch = dispatch};
    s->f = fixture_create_placed(&config, base_seed, s->comm, 1, placement, dispatch);
    wb_placement_close(placement);
    uint64_t own = r->state + (uint64_t)r->number * 1000;
    for (int32_t m = 0; m < MICRO_BATCHES; m++) deal_batch(&s->f, m, &own, &s->batches[m]);
    run_native(s);
    open_replay_of(s);
}

static inline void step_close(step *s) {
    wb_replay_close(s->replay);
    fixture_close(&s->f);
    for (int32_t m = 0; m < MICRO_BATCHES; m++) {
        free(s->batches[m].ids);
        free(s->native[m].used);
    }
    free(s->gradients);
}

/* Plans micro-batch m, its first sequence as rows that choose where `choosing`. */
static inline void plan_batch_of(step *s, int32_t m, bool choosing) {
    const step_batch *b = &s->batches[m];
    wb_segment segments[MAX_SEQS + 1];
    for (int32_t i = 0; i < b->n_seqs; i++) {
        const wb_record *record = &b->records[i];
        segments[i] = (wb_segment){WB_SEGMENT_REPLAY, record->rid, 0, record->n_tokens - 1, record->tokens};
        if (!choosing || i > 0) continue;
        segments[i].kind = WB_SEGMENT_RECORD;
        segments[i].rid = NULL;
    }
    segments[b->n_seqs] = (wb_segment){WB_SEGMENT_PADDING, NULL, 0, (uint32_t)(b->T - b->n_tokens), NULL};
    MUST(wb_replay_plan(s->replay, m, b->n_seqs + 1, segments));
}

/* All micro-batches as replay says, with its plans or without. */
static inline void run_replayed(step *s, bool planned) {
    fixture *f = &s->f;
    MUST(wb_train_zero_grads(f->train));
    for (int32_t m = 0; m < MICRO_BATCHES; m++) {
        const step_batch *b = &s->batches[m];
        const uint32_t T = (uint32_t)b->T;
        const int64_t stride = (int64_t)wb_route_row_ids(wb_model_routes(f->model));
        pass_results found = {.used = take(b->T, f->row_bytes)};
        wb_replay_slice rows;
        MUST(wb_replay_rows(s->replay, m, WB_ALL_LAYERS, 0, T, &rows));
        uint8_t *ids = take(b->T, f->row_bytes);
        memcpy(ids, rows.ids, (size_t)b->T * f->row_bytes);
        const wb_planned_layer *plan = wb_replay_layer_plan(s->replay, m, WB_ALL_LAYERS);
        const wb_routing routing = {
            .ids = ids, .direction = rows.direction, .planned = planned ? plan : NULL};
        MUST(try_pass(f, b, &routing, &found));
        expect_same_pass(f, b, &found, &s->native[m]);
        MUST(wb_replay_store(s->replay, m, WB_ALL_LAYERS, 0, T, found.used, stride, NULL, stride));
        free(found.used);
        free(ids);
    }
}

#endif
