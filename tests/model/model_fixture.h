/* model_fixture.h - small random models, sequences and routes for the tests of the model room.
 *
 * Owns: one rank's device, model and trainer, a corpus of sequences, and passes over some of them with
 * what they gave by token of the corpus. A failure of a call ends the process: the test is then red. */
#ifndef MODEL_FIXTURE_H
#define MODEL_FIXTURE_H

#include "wb_device.h"
#include "wb_exact_math.h"
#include "wb_model.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(call)                                                                             \
    do {                                                                                       \
        if ((call) != WB_OK) {                                                                 \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, wb_error_message()); \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

/* ---- random numbers ------------------------------------------------------------------------------ */

static inline uint64_t random_bits(uint64_t *state) {
    const uint64_t bits = wb_mix64(*state);
    *state += WB_RANDOM_STEP;
    return bits;
}

/* 0 <= result < n */
static inline int32_t random_below(uint64_t *state, int32_t n) {
    return (int32_t)(random_bits(state) % (uint64_t)n);
}

/* In [-1, 1). */
static inline float random_unit(uint64_t *state) {
    return (float)((double)(random_bits(state) >> 11) * 0x1p-52 - 1.0);
}

static inline void *take(int64_t count, size_t size) {
    void *memory = calloc(count > 0 ? (size_t)count : 1, size);
    if (!memory) abort();
    return memory;
}

static inline void shuffle(uint64_t *state, int32_t n, int32_t *values) {
    for (int32_t i = n - 1; i > 0; i--) {
        const int32_t j = random_below(state, i + 1), swap = values[i];
        values[i] = values[j];
        values[j] = swap;
    }
}

/* ---- models -------------------------------------------------------------------------------------- */

typedef enum variant {
    VARIANT_QWEN3,      /* biases, a dense layer, E that no rank count divides */
    VARIANT_QWEN3_TIED, /* weights not normalised, tied embeddings, one expert and layer kind */
    VARIANT_OLMOE_CLIP, /* whole-vector norm, clamp */
    VARIANT_FEW,        /* fewer experts than ranks, E = K */
    VARIANT_WIDE,       /* u16 ids */
    VARIANT_QWEN2,      /* a shared expert behind a gate, a window */
    VARIANT_GLM4,       /* groups, selection bias, shared experts, a part of each head turned */
    VARIANT_GPT_OSS,    /* sinks, a window in every second layer, experts with biases, YaRN */
    VARIANT_LATENT,     /* latent attention without a low rank of q, two shared experts, a dense layer */
    VARIANT_LATENT_LOW, /* with one; groups, a selection bias, halves rotated, MTP layers */
    VARIANT_ENTRIES,    /* hyper-connections, a window, entries of both kinds, a hash-routed layer */
    N_VARIANTS
} variant;

static inline wb_config entries_variant(void) {
    wb_config c = {.family = WB_FAMILY_DEEPSEEK_V4,
                   .hidden_size = 20,
                   .n_layers = 3,
                   .n_heads = 4,
                   .head_dim = 6,
                   .expert_width = 10,
                   .vocab_size = 53,
                   .max_positions = 40,
                   .router = {.n_experts = 13, .top_k = 3},
                   .compressed = {.q_rank = 9,
                                  .o_groups = 2,
                                  .o_rank = 5,
                                  .sparse_rate = 3,
                                  .heavy_rate = 5,
                                  .index_heads = 3,
                                  .index_dim = 4,
                                  .index_top_k = 2},
                   .hyper = {.n_streams = 3, .iterations = 4, .eps = 1e-6F}};
    MUST(wb_config_complete(&c));
    c.window = 4;
    c.rotary_dim = 4;
    c.compressed.sparse_layer_mask[0] = 2;
    c.compressed.heavy_layer_mask[0] = 4;
    c.hash_layer_mask[0] = 2;
    c.swiglu_limit = 0.5F;
    c.router.scale = 1.5F;
    c.rope_scaling = (wb_rope_scaling){.type = WB_ROPE_YARN,
                                       .truncate = true,
                                       .factor = 4,
                                       .beta_fast = 32,
                                       .beta_slow = 1,
                                       .original_positions = 10,
                                       .attention_factor = 1};
    return c;
}

static inline wb_config latent_variant(bool low) {
    wb_config c = {.family = low ? WB_FAMILY_DEEPSEEK_V3 : WB_FAMILY_DEEPSEEK_V2,
                   .hidden_size = 20,
                   .n_layers = 3,
                   .n_heads = 4,
                   .expert_width = 10,
                   .dense_width = 14,
                   .vocab_size = 53,
                   .max_positions = 40,
                   .router = {.n_experts = low ? 12 : 13, .top_k = 3},
                   .n_mtp_layers = low ? 1 : 0,
                   .mla = {.kv_rank = 7,
                           .q_rank = low ? 9 : 0,
                           .nope_dim = 5,
                           .rope_dim = 4,
                           .value_dim = 6,
                           .interleaved = !low}};
    MUST(wb_config_complete(&c));
    c.moe_layer_mask[0] = 6;
    c.router.scale = 1.5F;
    if (low) c.router.n_group = 4, c.router.topk_group = 2;
    return c;
}

/* Of the families whose parts the others do not have; more of each than a new model of them has. */
static inline wb_config family_variant(variant v) {
    const wb_family family = v == VARIANT_QWEN2  ? WB_FAMILY_QWEN2_MOE
                             : v == VARIANT_GLM4 ? WB_FAMILY_GLM4_MOE
                                                 : WB_FAMILY_GPT_OSS;
    wb_config c = {.family = family,
                   .hidden_size = 20,
                   .n_layers = 3,
                   .n_heads = 4,
                   .n_kv_heads = 2,
                   .head_dim = 8,
                   .expert_width = 10,
                   .dense_width = 14,
                   .vocab_size = 53,
                   .max_positions = 40,
                   .router = {.n_experts = 12, .top_k = 3}};
    MUST(wb_config_complete(&c));
    c.attention_bias = true;
    c.moe_layer_mask[0] = 7;
    if (v == VARIANT_QWEN2) {
        c.window = 3;
        c.window_layer_mask[0] = 5;
    } else if (v == VARIANT_GLM4) {
        c.qk_norm = WB_QK_NORM_PER_HEAD;
        c.router.n_group = 4;
        c.router.topk_group = 2;
        c.router.scale = 1.5F;
        c.shared_width = 2 * c.expert_width;
    } else {
        c.window = 4;
        c.swiglu_limit = 1.5F;
        c.rope_scaling.original_positions = 16;
    }
    return c;
}

/* A configuration with so many layers, whose kinds beyond those that it had are the plainest. */
static inline void set_depth(wb_config *c, int32_t n_layers) {
    const uint64_t all = (UINT64_C(1) << n_layers) - 1;
    c->n_layers = n_layers;
    c->compressed.sparse_layer_mask[0] &= all;
    c->compressed.heavy_layer_mask[0] &= all;
    c->hash_layer_mask[0] &= all;
    c->window_layer_mask[0] &= all;
    if (c->family == WB_FAMILY_DEEPSEEK_V4) c->window_layer_mask[0] = all;
    if (c->window_layer_mask[0] == 0) c->window = 0;
}

/* Of inference: each sequence has the state of its number, where layers keep one. */
static const int32_t fixture_states[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static inline wb_config variant_config(variant v) {
    if (v == VARIANT_ENTRIES) return entries_variant();
    if (v >= VARIANT_LATENT) return latent_variant(v == VARIANT_LATENT_LOW);
    if (v >= VARIANT_QWEN2) return family_variant(v);
    wb_config c = {.family = WB_FAMILY_QWEN3_MOE,
                   .hidden_size = 20,
                   .n_layers = 3,
                   .n_heads = 4,
                   .n_kv_heads = 2,
                   .head_dim = 6,
                   .expert_width = 10,
                   .dense_width = 14,
                   .vocab_size = 53,
                   .max_positions = 40,
                   .norm_eps = 1e-6F,
                   .rope_theta = 10000,
                   .qk_norm = WB_QK_NORM_PER_HEAD,
                   .router = {.type = WB_ROUTER_SOFTMAX_NORM, .n_experts = 13, .top_k = 3, .scale = 1},
                   .moe_layer_mask = {7}};
    if (v == VARIANT_QWEN3) {
        c.attention_bias = true;
        c.moe_layer_mask[0] = 5;
    } else if (v == VARIANT_QWEN3_TIED) {
        c.tie_word_embeddings = true;
        c.router.type = WB_ROUTER_SOFTMAX;
    } else if (v == VARIANT_OLMOE_CLIP) {
        c.family = WB_FAMILY_OLMOE;
        c.hidden_size = c.n_heads * c.head_dim;
        c.qk_norm = WB_QK_NORM_WHOLE;
        c.clip_qkv = 0.8F;
        c.attention_bias = true;
        c.router.type = WB_ROUTER_SOFTMAX;
        c.router.n_experts = 11;
        c.router.top_k = 4;
    } else if (v == VARIANT_FEW) {
        c.router.n_experts = 3;
    } else if (v == VARIANT_WIDE) {
        c.router.n_experts = 300;
        c.router.top_k = 5;
        c.n_layers = 2;
        c.moe_layer_mask[0] = 3;
    }
    return c;
}

typedef struct fixture {
    wb_comm *comm; /* the caller's */
    wb_device *device;
    wb_model *model;
    wb_train *train;
    int64_t L, K;
    wb_dtype ids_dtype;
    size_t row_bytes;      /* of one token's routes */
    bool reduce_meanwhile; /* a backward reduces the gradients on its way */
} fixture;

/* Of the trainers that fixtures have; NULL: the defaults. */
static const wb_train_options *fixture_train_options;

static inline void fixture_finish(fixture *f) {
    const wb_route_model *routes = wb_model_routes(f->model);
    f->L = routes->n_moe_layers;
    f->K = routes->top_k;
    f->ids_dtype = wb_route_dtype(routes->num_experts);
    f->row_bytes = wb_route_row_bytes(routes);
    MUST(wb_train_open(f->model, fixture_train_options, &f->train));
}

/* Adds to a vector, in all of its replicas here, numbers that are the same on every rank. */
static inline void perturb_vector(fixture *f, int32_t i, uint64_t *seed) {
    const wb_tensor tensor = wb_model_tensor(f->model, i);
    float *values = take(tensor.n, sizeof(float));
    const size_t bytes = (size_t)tensor.n * sizeof(float);
    if (tensor.data) MUST(f->device->to_host(f->device, values, tensor.data, bytes));
    for (int64_t j = 0; j < tensor.n; j++) values[j] += 0.3F * random_unit(seed);
    for (int32_t k = 0; k < wb_model_n_replicas(f->model, i); k++) {
        const wb_tensor replica = wb_model_replica(f->model, i, k);
        if (replica.data) MUST(f->device->to_device(f->device, replica.data, values, bytes));
    }
    free(values);
}

/* Norms and biases start as 1 and 0; nothing would notice if they were left out. */
static inline void perturb_vectors(fixture *f, uint64_t seed) {
    for (int32_t i = 0; i < wb_model_n_tensors(f->model); i++)
        if (wb_model_tensor(f->model, i).n_dims == 1) perturb_vector(f, i, &seed);
}

/* Of the models that a test makes: their matrices, and their activations. */
static wb_dtype fixture_dtype = WB_F32, fixture_activations = WB_F32;

/* Element j of weights of either dtype. */
static inline float weight_get(wb_rows weights, int64_t j) {
    if (weights.dtype == WB_F32) return ((const float *)weights.data)[j];
    return wb_bf16_to_f32(((const uint16_t *)weights.data)[j]);
}
static inline void weight_set(wb_rows weights, int64_t j, float value) {
    if (weights.dtype == WB_F32)
        ((float *)weights.data)[j] = value;
    else
        ((uint16_t *)weights.data)[j] = wb_f32_to_bf16(value);
}

/* A random model of `config`: the same one for a seed on any number of ranks and threads. */
static inline fixture fixture_create_placed(const wb_config *config, uint64_t seed, wb_comm *comm,
                                            int threads, const wb_placement *placement,
                                            wb_dispatch_policy dispatch) {
    fixture f = {.comm = comm};
    MUST(wb_device_open_cpu(threads, &f.device));
    wb_model_options options = wb_model_options_default();
    options.device = f.device;
    options.comm = comm;
    options.dtype = fixture_dtype;
    options.activations = fixture_activations;
    options.placement = placement;
    options.dispatch = dispatch;
    MUST(wb_model_create(config, seed, 0.25F, &options, &f.model));
    perturb_vectors(&f, seed);
    fixture_finish(&f);
    return f;
}

static inline fixture fixture_create(const wb_config *config, uint64_t seed, wb_comm *comm, int threads) {
    return fixture_create_placed(config, seed, comm, threads, NULL, WB_DISPATCH_STATIC);
}

static inline void fixture_close(fixture *f) {
    wb_train_close(f->train);
    wb_model_close(f->model);
    wb_device_close(f->device);
}

/* ---- sequences ----------------------------------------------------------------------------------- */

typedef struct corpus {
    int32_t n_seqs, T;
    int32_t *start;   /* [n_seqs + 1] */
    int32_t *tokens;  /* [T] */
    int32_t *targets; /* [T] the next token, or -1: at the end, and here and there */
    /* What targets were sampled from, as in wb_train_batch, for the sequences in this order; or NULL. */
    const float *temperature;
    const uint32_t *kept_ids;
    const int64_t *kept_start;
} corpus;

static inline corpus corpus_random(const wb_config *config, int32_t n_seqs, int32_t longest,
                                   uint64_t *state) {
    corpus c = {.n_seqs = n_seqs, .start = take(n_seqs + 1, sizeof(int32_t))};
    for (int32_t s = 0; s < n_seqs; s++) c.start[s + 1] = c.start[s] + 1 + random_below(state, longest);
    c.T = c.start[n_seqs];
    c.tokens = take(c.T, sizeof(int32_t));
    c.targets = take(c.T, sizeof(int32_t));
    for (int32_t t = 0; t < c.T; t++) c.tokens[t] = random_below(state, config->vocab_size);
    for (int32_t s = 0; s < n_seqs; s++)
        for (int32_t t = c.start[s]; t < c.start[s + 1]; t++)
            c.targets[t] = t + 1 == c.start[s + 1] || random_below(state, 8) == 0 ? -1 : c.tokens[t + 1];
    return c;
}

static inline void corpus_free(corpus *c) {
    free(c->start);
    free(c->tokens);
    free(c->targets);
}

/* ---- routes -------------------------------------------------------------------------------------- */

/* Rows of random distinct ids for every token of a corpus. */
static inline void *routes_random(const fixture *f, int64_t T, uint64_t *state) {
    const wb_route_model *routes = wb_model_routes(f->model);
    const int32_t E = wb_model_config(f->model)->router.n_experts;
    int32_t *experts = take(E, sizeof(int32_t));
    uint8_t *ids = take(T, f->row_bytes);
    size_t at = 0;
    for (int32_t e = 0; e < E; e++) experts[e] = e;
    for (int64_t i = 0; i < T * f->L; i++) {
        const uint32_t K = wb_route_layer_k(routes, (uint32_t)(i % f->L));
        shuffle(state, E, experts);
        for (uint32_t k = 0; k < K; k++) wb_route_id_set(ids, f->ids_dtype, at++, (uint32_t)experts[k]);
    }
    free(experts);
    return ids;
}

/* ---- a training pass ----------------------------------------------------------------------------- */

/* By token of the corpus; tokens of other sequences are left alone. */
typedef struct results {
    uint8_t *ids, *native; /* [T] rows of routes */
    float *logprobs;       /* [T] */
    float *logits;         /* [T, V], or NULL: not wanted */
} results;

static inline results results_new(const fixture *f, const corpus *c) {
    const int64_t V = wb_model_config(f->model)->vocab_size;
    return (results){take(c->T, f->row_bytes), take(c->T, f->row_bytes), take(c->T, sizeof(float)),
                     take(c->T * V, sizeof(float))};
}

static inline void results_free(results *r) {
    free(r->ids);
    free(r->native);
    free(r->logprobs);
    free(r->logits);
}

/* Copies rows of `bytes` between the corpus's order and the order of the packed sequences. */
static inline void move_rows(const corpus *c, int32_t n, const int32_t *seqs, size_t bytes, bool pack,
                             void *packed, void *by_corpus) {
    uint8_t *row = packed;
    for (int32_t i = 0; i < n; i++) {
        const size_t length = (size_t)(c->start[seqs[i] + 1] - c->start[seqs[i]]) * bytes;
        if (length > 0) {
            uint8_t *at = (uint8_t *)by_corpus + (size_t)c->start[seqs[i]] * bytes;
            memcpy(pack ? row : at, pack ? at : row, length);
        }
        row += length;
    }
}

/* How routes are chosen: rows with forced[t] take ids[t]; both by token of the corpus. NULL: all choose. */
typedef struct direction {
    const uint8_t *ids, *forced;
} direction;

/* No row went to other experts than `ids` [T] says, by what the plan says of its rows. */
static inline void must_have_gone(const fixture *f, int64_t T, const uint8_t *ids, const void *used) {
    uint8_t *found = take(T, f->row_bytes);
    MUST(f->device->to_host(f->device, found, used, (size_t)T * f->row_bytes));
    for (size_t i = 0; i < (size_t)T * f->row_bytes; i++)
        if (found[i] != ids[i]) {
            fprintf(stderr, "row %zu: expected expert %d, found that it went to %d\n", i / f->row_bytes,
                    ids[i], found[i]);
            exit(1);
        }
    free(found);
}

/* Forward of the sequences `seqs` in that order, and with dlogprobs (by token of the corpus) the backward,
 * without reduction. */
static inline void train_pass(fixture *f, const corpus *c, int32_t n, const int32_t *seqs, direction d,
                              const float *dlogprobs, results *r) {
    wb_device *dev = f->device;
    const int64_t V = wb_model_config(f->model)->vocab_size;
    int32_t *start = take(n + 1, sizeof(int32_t));
    for (int32_t i = 0; i < n; i++) start[i + 1] = start[i] + c->start[seqs[i] + 1] - c->start[seqs[i]];
    const int64_t T = start[n];
    int32_t *tokens = take(T, sizeof(int32_t)), *targets = take(T, sizeof(int32_t));
    uint8_t *rows = take(T, f->row_bytes), *forced = take(T, 1);
    float *values = take(T * V, sizeof(float));
    void *ids, *native, *used, *device_forced;
    MUST(dev->mem_alloc(dev, (size_t)T * f->row_bytes, &ids));
    MUST(dev->mem_alloc(dev, (size_t)T * f->row_bytes, &native));
    MUST(dev->mem_alloc(dev, (size_t)T * f->row_bytes, &used));
    MUST(dev->mem_alloc(dev, (size_t)T, &device_forced));
    move_rows(c, n, seqs, sizeof(int32_t), true, tokens, c->tokens);
    move_rows(c, n, seqs, sizeof(int32_t), true, targets, c->targets);
    if (d.ids) {
        move_rows(c, n, seqs, f->row_bytes, true, rows, (void *)(uintptr_t)d.ids);
        move_rows(c, n, seqs, 1, true, forced, (void *)(uintptr_t)d.forced);
        MUST(dev->to_device(dev, ids, rows, (size_t)T * f->row_bytes));
        MUST(dev->to_device(dev, device_forced, forced, (size_t)T));
    }

    const wb_train_batch batch = {.T = T,
                                  .tokens = tokens,
                                  .targets = targets,
                                  .n_seqs = n,
                                  .seq_start = start,
                                  .temperature = c->temperature,
                                  .kept_ids = c->kept_ids,
                                  .kept_start = c->kept_start};
    const wb_routing routing = {
        .ids = ids, .direction = d.ids ? device_forced : NULL, .native = native, .used = used};
    MUST(wb_train_forward(f->train, &batch, &routing, NULL, values));
    move_rows(c, n, seqs, sizeof(float), false, values, r->logprobs);
    if (r->logits) { /* optional: asking for them makes the backward compute them again */
        MUST(wb_train_logits(f->train, values));
        move_rows(c, n, seqs, (size_t)V * sizeof(float), false, values, r->logits);
    }
    MUST(dev->to_host(dev, rows, ids, (size_t)T * f->row_bytes));
    move_rows(c, n, seqs, f->row_bytes, false, rows, r->ids);
    must_have_gone(f, T, rows, used);
    MUST(dev->to_host(dev, rows, native, (size_t)T * f->row_bytes));
    move_rows(c, n, seqs, f->row_bytes, false, rows, r->native);
    if (dlogprobs) {
        move_rows(c, n, seqs, sizeof(float), true, values, (void *)(uintptr_t)dlogprobs);
        MUST(f->reduce_meanwhile ? wb_train_backward_last(f->train, values)
                                 : wb_train_backward(f->train, values));
    }
    dev->mem_free(dev, ids);
    dev->mem_free(dev, native);
    dev->mem_free(dev, used);
    dev->mem_free(dev, device_forced);
    void *const arrays[] = {start, tokens, targets, rows, forced, values};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
}

/* Rows t of the sequences `seqs` whose `bytes` differ between a and b; a NaN among floats is seen as equal
 * bits, so logits are checked by all_finite. */
static inline int64_t rows_differing(const corpus *c, int32_t n, const int32_t *seqs, size_t bytes,
                                     const void *a, const void *b) {
    int64_t differing = 0;
    for (int32_t i = 0; i < n; i++)
        for (int32_t t = c->start[seqs[i]]; t < c->start[seqs[i] + 1]; t++)
            differing += memcmp((const uint8_t *)a + (size_t)t * bytes,
                                (const uint8_t *)b + (size_t)t * bytes, bytes) != 0;
    return differing;
}

static inline bool all_finite(int64_t n, const float *x) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

#endif
