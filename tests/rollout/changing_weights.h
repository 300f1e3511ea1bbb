/* changing_weights.h - random schedules in which the weights change on the way, in f32 and bf16, on any
 * number of ranks: one test core for one rank, threads and MPI.
 *
 * Every row and logprob of every record is what feed_log.h's independent forward gives, on one rank with the
 * whole model. Records of one version are in f32 what the trainer chooses by itself. */
#ifndef WB_CHANGING_WEIGHTS_H
#define WB_CHANGING_WEIGHTS_H

#include "feed_log.h"

enum { N_VERSIONS = 4, N_ASKS = 8, LAST_ARRIVAL = 14 };

typedef struct changing {
    uint64_t seed;
    wb_comm *comm;
    wb_config config;
    wb_dtype dtype; /* of the engine's model */
    int threads;
    ask asks[N_ASKS];
    uint32_t rank[N_ASKS];       /* who submits it ... */
    uint64_t step[N_ASKS];       /* ... before which step */
    uint64_t change[N_VERSIONS]; /* step before which the weights become this version's; the first at 0 */
    wb_engine_options options;   /* of this rank */
    feed_log logs[N_ASKS];
    wb_completion *done[N_ASKS];
    rig shards[N_VERSIONS], wholes[N_VERSIONS];
    int failures;
} changing;

/* What the schedules came to, over all of them. */
typedef struct changing_totals {
    uint64_t preemptions, refed_by_other_weights, compared_with_trainer;
} changing_totals;

static inline void changing_fail(changing *c, const char *rid, const char *what) {
    fprintf(stderr, "seed %" PRIu64 ", rank %d of %d, %s, request %s: %s\n", c->seed, wb_comm_rank(c->comm),
            wb_comm_size(c->comm), wb_dtype_name(c->dtype), rid, what);
    c->failures++;
}

/* The same requests and versions on every rank, engine options of its own. */
static inline void changing_make(changing *c, uint64_t seed, wb_comm *comm) {
    dice d = {seed};
    memset(c, 0, sizeof *c);
    c->seed = seed;
    c->comm = comm;
    const wb_family family = pick_family(&d);
    const int32_t n_experts = pick(&d, 0, 5) == 0 ? 300 : (int32_t)pick(&d, 4, 24);
    const int32_t top_k = (int32_t)pick(&d, 1, 4), n_layers = (int32_t)pick(&d, 1, 3);
    c->config = tiny_config(family, n_experts, top_k, n_layers, 0);
    c->dtype = pick(&d, 0, 1) == 0 ? WB_F32 : WB_BF16;
    for (uint32_t i = 0; i < N_ASKS; i++) {
        c->asks[i] = ask_random(&d, i, (uint32_t)c->config.vocab_size, 16, 16);
        c->asks[i].request.return_routes = pick(&d, 0, 3) != 0;
        c->asks[i].request.routes_start = pick(&d, 0, 1) == 0 ? 0 : c->asks[i].request.n_tokens / 2;
        c->rank[i] = pick(&d, 0, (uint32_t)wb_comm_size(comm) - 1);
        c->step[i] = pick(&d, 0, LAST_ARRIVAL);
    }
    for (int v = 1; v < N_VERSIONS; v++) c->change[v] = c->change[v - 1] + pick(&d, 1, 10);
    c->options.max_batch_tokens = (int32_t)pick(&d, 4, 24); /* the same on all ranks */
    d.state += (uint64_t)wb_comm_rank(comm);
    c->options.block_size = (int32_t)pick(&d, 1, 4);
    c->options.n_blocks = 31 / c->options.block_size + 1 + (int32_t)pick(&d, 0, 4);
    c->options.max_running = (int32_t)pick(&d, 2, 6);
    static const int threads[] = {1, 2, 3, 5};
    c->threads = threads[pick(&d, 0, 3)];
}

static inline void changing_before_step(changing *c, wb_engine *engine, uint64_t step) {
    for (uint32_t i = 0; i < N_ASKS; i++)
        if (c->rank[i] == (uint32_t)wb_comm_rank(c->comm) && c->step[i] == step)
            must(wb_engine_submit(engine, ask_request(&c->asks[i])), "submit");
    for (int v = 0; v < N_VERSIONS; v++)
        if (c->change[v] == step)
            must(wb_engine_set_weights(engine, c->shards[v].model, (uint64_t)v), "weights");
}

static inline void changing_run(changing *c, changing_totals *totals) {
    rig r = rig_open_as(&c->config, c->seed, c->threads, c->comm, c->dtype);
    wb_engine *engine = engine_of(r.model, c->options.n_blocks, c->options.block_size,
                                  c->options.max_batch_tokens, c->options.max_running);
    bool busy = true;
    for (uint64_t step = 0; step <= LAST_ARRIVAL || busy; step++) {
        changing_before_step(c, engine, step);
        must(wb_engine_step(engine, &busy), "step");
        log_step(engine, c->logs);
        for (wb_completion *done = wb_engine_poll(engine); done; done = wb_engine_poll(engine)) {
            log_finished(engine, c->logs, &done->record);
            c->done[number_of(&done->record)] = done;
        }
    }
    totals->preemptions += wb_engine_get_stats(engine).preemptions;
    wb_engine_close(engine);
    rig_close(&r);
}

/* Rows and logprobs of a record of one version are what that version's training forward gives. */
static inline const char *changing_train(wb_model *model, const wb_record *record) {
    const wb_route_model *routes = wb_model_routes(model);
    const size_t row_bytes = wb_route_row_bytes(routes);
    const int32_t T = (int32_t)record->n_tokens - 1, seq_start[2] = {0, T};
    int32_t tokens[64], targets[64];
    float logprobs[64];
    uint8_t *ids = take(64, row_bytes);
    for (int32_t t = 0; t < T; t++) {
        tokens[t] = (int32_t)record->tokens[t];
        targets[t] = (int32_t)record->tokens[t + 1];
    }
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = seq_start};
    const wb_routing routing = {.ids = ids};
    wb_train *train = NULL;
    must(wb_train_open(model, NULL, &train), "train");
    must(wb_train_forward(train, &batch, &routing, NULL, logprobs), "training forward");
    wb_train_close(train);
    const char *what = NULL;
    for (uint32_t t = record->n_routes > 0 ? record->routes[0].start : record->n_tokens;
         t + 1 < record->n_tokens; t++)
        if (memcmp(wb_record_row(routes, record, t), ids + t * row_bytes, row_bytes) != 0)
            what = "a row is not the trainer's choice";
    if (!same_bytes(record->logprobs, logprobs + record->prompt_len - 1,
                    (record->n_tokens - record->prompt_len) * sizeof(float)))
        what = "logprobs are not the trainer's";
    free(ids);
    return what;
}

static inline void changing_check(changing *c, changing_totals *totals) {
    rig alone = rig_open_as(&c->config, c->seed, 1, NULL, c->dtype);
    const wb_model *versions[N_VERSIONS];
    for (int v = 0; v < N_VERSIONS; v++) versions[v] = c->wholes[v].model;
    repeater again = repeater_open(alone.model, versions);
    for (uint32_t i = 0; i < N_ASKS; i++) {
        if (c->rank[i] != (uint32_t)wb_comm_rank(c->comm)) continue;
        if (!c->done[i]) {
            changing_fail(c, c->asks[i].rid, "was lost");
            continue;
        }
        const wb_record *record = &c->done[i]->record;
        const feed *last = &c->logs[i].feeds[c->logs[i].n - 1];
        const char *what = repeat_record(&again, &c->logs[i], record);
        if (wb_record_check(wb_model_routes(alone.model), record, true) != WB_OK) what = wb_error_message();
        if (!what && c->dtype == WB_F32 && record->n_spans == 1) {
            what = changing_train(c->wholes[last->version].model, record);
            totals->compared_with_trainer++;
        }
        if (what) changing_fail(c, record->rid, what);
        totals->refed_by_other_weights += fed_again_by_other_weights(&c->logs[i]);
        wb_completion_free(c->done[i]);
    }
    repeater_close(&again);
    rig_close(&alone);
}

/* One schedule; returns this rank's failures. Collective. */
static inline int changing_weights(uint64_t seed, wb_comm *comm, changing_totals *totals) {
    changing *c = take(1, sizeof *c);
    changing_make(c, seed, comm);
    for (int v = 0; v < N_VERSIONS; v++) {
        c->shards[v] = rig_open(&c->config, seed + 1000 + (uint64_t)v, 1, comm);
        c->wholes[v] = rig_open(&c->config, seed + 1000 + (uint64_t)v, 1, NULL);
    }
    changing_run(c, totals);
    changing_check(c, totals);
    for (int v = 0; v < N_VERSIONS; v++) {
        rig_close(&c->shards[v]);
        rig_close(&c->wholes[v]);
    }
    const int failures = c->failures;
    free(c);
    return failures;
}

#endif
