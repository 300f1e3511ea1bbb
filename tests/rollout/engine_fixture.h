/* engine_fixture.h - tiny models, requests and runs for the tests of the engine. Failing helpers print and
 * abort: a test that cannot be set up has no verdict. */
#ifndef WB_ENGINE_FIXTURE_H
#define WB_ENGINE_FIXTURE_H

#include "wb_device.h"
#include "wb_random.h"
#include "wb_rollout.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void must(wb_status status, const char *what) {
    if (status == WB_OK) return;
    fprintf(stderr, "%s: %s: %s\n", what, wb_status_string(status), wb_error_message());
    abort();
}

static inline void *take(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (!memory) abort();
    return memory;
}

/* ---- random numbers ------------------------------------------------------------------------------ */

typedef struct dice {
    uint64_t state;
} dice;

static inline uint64_t roll(dice *d) {
    d->state += WB_RANDOM_STEP;
    return wb_mix64(d->state - WB_RANDOM_STEP);
}

/* min .. max, both included. */
static inline uint32_t pick(dice *d, uint32_t min, uint32_t max) {
    return min + (uint32_t)(roll(d) % (max - min + 1));
}

/* ---- models -------------------------------------------------------------------------------------- */

#define X(NAME, name) #name,
static const char *const family_names[] = {WB_FAMILY_LIST(X)};
#undef X
enum { N_FAMILIES = sizeof family_names / sizeof family_names[0] };

static inline wb_family pick_family(dice *d) {
    return (wb_family)pick(d, 0, N_FAMILIES - 1);
}

/* Entries of few positions, of which an indexer leaves some out; a layer of each kind, the first by a
 * table. */
static inline void make_entries_narrow(wb_config *c) {
    c->compressed.heavy_rate = 6;
    c->compressed.sparse_rate = 3;
    c->compressed.index_top_k = 2;
    c->compressed.sparse_layer_mask[0] = UINT64_C(0x9);
    c->compressed.heavy_layer_mask[0] = UINT64_C(0x12);
    c->hash_layer_mask[0] = 1;
    for (int32_t l = c->n_layers; l < 64; l++) {
        c->compressed.sparse_layer_mask[0] &= ~(UINT64_C(1) << l);
        c->compressed.heavy_layer_mask[0] &= ~(UINT64_C(1) << l);
    }
    c->hyper.n_streams = 3;
}

/* Steps that a family may have and that would hardly be met by themselves: windows shorter than the
 * sequences, groups where the experts can be shared out, a low rank of q and MTP layers, a gated delta net in
 * every second layer. */
static inline void make_narrow(wb_config *c) {
    if (c->window > 0) c->window = 5;
    if (c->family == WB_FAMILY_MIXTRAL) {
        c->window = 7;
        for (int32_t l = 0; l < c->n_layers; l++) c->window_layer_mask[0] |= (uint64_t)1 << l;
    }
    if (c->family == WB_FAMILY_DEEPSEEK_V3) c->mla.q_rank = 10, c->n_mtp_layers = 1;
    if (c->family == WB_FAMILY_QWEN3_NEXT) c->n_mtp_layers = 1;
    if (c->delta.n_key_heads > 0) c->delta.layer_mask[0] = 0x5555555555555555 >> (64 - c->n_layers);
    if (c->family == WB_FAMILY_DEEPSEEK_V4) make_entries_narrow(c);
    if (c->router.type == WB_ROUTER_SIGMOID && c->router.n_experts % 3 == 0 &&
        c->router.top_k <= c->router.n_experts / 3 * 2) {
        c->router.n_group = 3;
        c->router.topk_group = 2;
        c->router.scale = 1.5f;
    }
}

/* n_layers <= 64; the layers in `dense` (bits) are not MoE. */
static inline wb_config tiny_config(wb_family family, int32_t n_experts, int32_t top_k, int32_t n_layers,
                                    uint64_t dense) {
    wb_config c = {.family = family,
                   .hidden_size = 32,
                   .n_layers = n_layers,
                   .n_heads = 4,
                   .n_kv_heads = family == WB_FAMILY_OLMOE ? 4 : 2,
                   .head_dim = 8,
                   .expert_width = 16,
                   .dense_width = 24,
                   .vocab_size = 61,
                   .max_positions = 160,
                   .router = {.n_experts = n_experts, .top_k = top_k}};
    must(wb_config_complete(&c), "configuration");
    if (family == WB_FAMILY_QWEN3_MOE) {
        c.router.type = WB_ROUTER_SOFTMAX_NORM;
        c.router.normalize = true;
    }
    make_narrow(&c);
    c.norm_eps = 1e-6f;
    c.moe_layer_mask[0] = 0;
    for (int32_t l = 0; l < n_layers; l++)
        if ((dense >> l & 1) == 0) c.moe_layer_mask[0] |= (uint64_t)1 << l;
    return c;
}

/* A model with the device that it needs. */
typedef struct rig {
    wb_device *device;
    wb_comm *own_comm;
    wb_model *model;
} rig;

/* comm NULL: a communicator of its own with one rank. The device becomes the rig's. */
static inline rig rig_open_with(const wb_config *config, uint64_t seed, wb_device *device, wb_comm *comm,
                                wb_dtype dtype, wb_dtype activations, bool inference_only) {
    rig r = {device, NULL, NULL};
    if (!comm) must(wb_comm_open_self(&r.own_comm), "comm");
    wb_model_options options = wb_model_options_default();
    options.device = r.device;
    options.comm = comm ? comm : r.own_comm;
    options.dtype = dtype;
    options.activations = activations;
    options.inference_only = inference_only;
    must(wb_model_create(config, seed, 0.4f, &options, &r.model), "model");
    return r;
}

static inline rig rig_open_on(const wb_config *config, uint64_t seed, wb_device *device, wb_comm *comm,
                              wb_dtype dtype) {
    return rig_open_with(config, seed, device, comm, dtype, WB_F32, false);
}

static inline rig rig_open_as(const wb_config *config, uint64_t seed, int threads, wb_comm *comm,
                              wb_dtype dtype) {
    wb_device *device = NULL;
    must(wb_device_open_cpu(threads, &device), "device");
    return rig_open_on(config, seed, device, comm, dtype);
}

static inline rig rig_open(const wb_config *config, uint64_t seed, int threads, wb_comm *comm) {
    return rig_open_as(config, seed, threads, comm, WB_F32);
}

static inline void rig_close(rig *r) {
    wb_model_close(r->model);
    wb_comm_close(r->own_comm);
    wb_device_close(r->device);
}

/* ---- requests ------------------------------------------------------------------------------------ */

#define MAX_PROMPT 64

typedef struct ask {
    char rid[24];
    uint32_t prompt[MAX_PROMPT];
    uint32_t stop[2];
    wb_request request; /* points into this struct: set by ask_request */
} ask;

static inline const wb_request *ask_request(ask *a) {
    a->request.rid = a->rid;
    a->request.tokens = a->prompt;
    a->request.stop_tokens = a->request.n_stop > 0 ? a->stop : NULL;
    return &a->request;
}

static inline ask ask_fixed(const char *rid, uint32_t n_tokens, uint32_t max_tokens) {
    ask a;
    memset(&a, 0, sizeof a);
    snprintf(a.rid, sizeof a.rid, "%s", rid);
    a.request = wb_request_default();
    a.request.n_tokens = n_tokens;
    a.request.max_tokens = max_tokens;
    for (uint32_t i = 0; i < n_tokens; i++) a.prompt[i] = (7 * i + 3) % 61;
    return a;
}

static inline ask ask_random(dice *d, uint32_t number, uint32_t vocab_size, uint32_t max_prompt,
                             uint32_t max_new) {
    char rid[24];
    snprintf(rid, sizeof rid, "r%" PRIu32, number);
    /* In statements of their own: the order of arguments is the compiler's. */
    const uint32_t max_tokens = pick(d, 1, max_new), n_tokens = pick(d, 1, max_prompt);
    ask a = ask_fixed(rid, n_tokens, max_tokens);
    for (uint32_t i = 0; i < a.request.n_tokens; i++) a.prompt[i] = pick(d, 0, vocab_size - 1);
    a.request.seed = roll(d);
    a.request.temperature = pick(d, 0, 3) == 0 ? 0.0f : 0.5f + (float)pick(d, 0, 10) * 0.1f;
    a.request.top_k = pick(d, 0, 1) == 0 ? 0 : (int32_t)pick(d, 1, 20);
    a.request.top_p = pick(d, 0, 1) == 0 ? 1.0f : 0.3f + (float)pick(d, 0, 6) * 0.1f;
    a.request.return_sampling_mask = number % 2 == 0;
    a.request.n_stop = pick(d, 0, 2);
    for (uint32_t i = 0; i < a.request.n_stop; i++) a.stop[i] = pick(d, 0, vocab_size - 1);
    return a;
}

/* ---- runs ---------------------------------------------------------------------------------------- */

static inline wb_engine *engine_of(wb_model *model, int32_t n_blocks, int32_t block_size,
                                   int32_t max_batch_tokens, int32_t max_running) {
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = n_blocks;
    options.block_size = block_size;
    options.max_batch_tokens = max_batch_tokens;
    options.max_running = max_running;
    options.indexer = true; /* of models that have some */
    wb_engine *engine = NULL;
    must(wb_engine_open(model, &options, &engine), "engine");
    return engine;
}

/* Steps until no rank has work; more than `limit` steps are a livelock. */
static inline void run_dry(wb_engine *engine, uint64_t limit) {
    bool busy = true;
    for (uint64_t i = 0; busy; i++) {
        if (i == limit) {
            fprintf(stderr, "the engine is still busy after %" PRIu64 " steps\n", limit);
            abort();
        }
        must(wb_engine_step(engine, &busy), "step");
    }
}

/* The request alone in an engine with room: what any other schedule must give. */
static inline wb_completion *run_alone(wb_model *model, ask *a) {
    wb_engine *engine = engine_of(model, 160, 1, 160, 1);
    must(wb_engine_submit(engine, ask_request(a)), "submit");
    run_dry(engine, 1000);
    wb_completion *done = wb_engine_poll(engine);
    if (!done) abort();
    wb_engine_close(engine);
    return done;
}

static inline bool same_bytes(const void *a, const void *b, size_t bytes) {
    return bytes == 0 || (a && b && memcmp(a, b, bytes) == 0);
}

static inline const char *mask_difference(const wb_record *x, const wb_record *y) {
    const uint32_t n = x->n_tokens - x->prompt_len;
    if (!x->mask_ends != !y->mask_ends) return "presence of a mask";
    if (n == 0 || !x->mask_ends) return NULL;
    if (!same_bytes(x->mask_ends, y->mask_ends, n * sizeof *x->mask_ends)) return "ends of the mask";
    if (!same_bytes(x->mask_ids, y->mask_ids, x->mask_ends[n - 1] * sizeof *x->mask_ids)) return "mask";
    return NULL;
}

static inline const char *indexer_difference(const wb_route_model *model, const wb_indexer_rows *x,
                                             const wb_indexer_rows *y) {
    if (!x != !y) return "presence of what indexers chose";
    if (!x) return NULL;
    const size_t cells = (size_t)x->rows * wb_indexer_columns(model);
    if (x->start != y->start || x->rows != y->rows) return "places of what indexers chose";
    if (!same_bytes(x->counts, y->counts, cells * sizeof *x->counts)) return "counts of what indexers chose";
    if (!same_bytes(x->ends, y->ends, cells * sizeof *x->ends)) return "ends of what indexers chose";
    const size_t n = cells > 0 ? x->ends[cells - 1] : 0;
    return same_bytes(x->positions, y->positions, n * sizeof *x->positions) ? NULL : "what indexers chose";
}

/* NULL, or the first thing in which the two completions of one request differ. Exact: bits, ids, spans. */
static inline const char *difference(const wb_route_model *model, const wb_completion *a,
                                     const wb_completion *b) {
    const wb_record *x = &a->record, *y = &b->record;
    if (strcmp(x->rid, y->rid) != 0) return "rid";
    if (x->n_tokens != y->n_tokens || x->prompt_len != y->prompt_len) return "length";
    if (!same_bytes(x->tokens, y->tokens, x->n_tokens * sizeof *x->tokens)) return "tokens";
    const size_t new_bytes = (x->n_tokens - x->prompt_len) * sizeof(float);
    if (!same_bytes(x->logprobs, y->logprobs, new_bytes)) return "logprobs";
    if (!same_bytes(x->sampling_logprobs, y->sampling_logprobs, new_bytes)) return "sampling logprobs";
    const char *mask = mask_difference(x, y);
    if (mask) return mask;
    if (x->finish != y->finish) return "finish reason";
    if (x->n_spans != y->n_spans || !same_bytes(x->spans, y->spans, x->n_spans * sizeof *x->spans))
        return "spans";
    const char *indexer = indexer_difference(model, x->indexer, y->indexer);
    if (indexer) return indexer;
    if (x->n_routes != y->n_routes) return "runs of rows";
    for (uint32_t i = 0; i < x->n_routes; i++) {
        if (x->routes[i].start != y->routes[i].start || x->routes[i].rows != y->routes[i].rows)
            return "rows' places";
        if (!same_bytes(x->routes[i].ids, y->routes[i].ids, x->routes[i].rows * wb_route_row_bytes(model)))
            return "rows";
    }
    return NULL;
}

#endif
