/* hf_oracle.c - this engine against a directory of reference data written by Hugging Face transformers.
 *
 * Owns: the comparison of logits, routes, weights, forced replay, every gradient, the rollout engine's
 * greedy continuation and, where the directory has them, the logits of the MTP layer that drafts, and the
 * verdict as exit code. Refuses: tolerances other than those the files
 * support.
 *
 * In f32 limits follow from what roundings come to in this model (hf_noise.h).
 * In bf16 (hf_bounds.h) an expert that is chosen otherwise changes all that follows: so what the reference
 * computed by its own choice is compared under that choice, forced, beside which each row tells what it would
 * choose. The engine goes on from its prompts by itself, and what it captured is compared with the training
 * forward over the same tokens, bit for bit. MTP layers choose by themselves and are compared in f32 alone.
 *
 * DIR holds config.json and model.safetensors, ref.safetensors, grads.safetensors, meta.json. */
#include "tools/hf_bounds.h"
#include "tools/hf_mtp.h"
#include "tools/hf_noise.h"
#include "wb_rollout.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens: given of a greedy sequence, fed in one step, of a KV block. */
enum { PROMPT = 7, CHUNK = 5, BLOCK_SIZE = 4 };
enum { EXIT_PASS = 0, EXIT_DIFFERENT = 1, EXIT_UNREADABLE = 2, EXIT_NO_LIMIT = 77 };

static const char usage[] =
    "usage: hf_oracle [--device cpu|cuda] [--dtype f32|bf16] [--ranks N] [--save OUT] [--plant X] DIR\n"
    "Compares this engine with the reference data in DIR. --ranks N runs N thread ranks, sequences and "
    "experts\n"
    "spread over them; with --device cuda rank r takes GPU r, counted round. --dtype bf16: weights and\n"
    "activations, within bounds that follow from the number of roundings. --save OUT also writes the model\n"
    "again, as a checkpoint (check_hf_load.py reads it). --plant X moves each weight of the middle layer by "
    "X\n"
    "of itself, up or down, which must be found.\n"
    "Exit code: 0 all equal within tolerance, 1 not, 2 usage or unreadable input, 77 bf16 has no limit.\n";

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("hf_oracle: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(EXIT_UNREADABLE);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (!memory) die("out of memory");
    return memory;
}

/* ---- checks -------------------------------------------------------------------------------------- */

typedef enum check_id {
    LOGITS,
    ROUTER_IDS,
    ROUTER_LOGITS,
    ROUTER_WEIGHTS,
    FORCED_WEIGHTS,
    FORCED_LOGITS,
    FORCED_LOGPROBS,
    FORCED_LOSS,
    GRADIENTS,
    GREEDY_IDS,
    GREEDY_ROUTES,
    ENGINE_LOGPROBS,
    MTP_LOGITS,
    MTP_FURTHER_LOGITS,
    N_CHECKS
} check_id;

static const struct {
    const char *name, *unit;
    double limit; /* of the largest error; ids: of their number that differ */
} checks[N_CHECKS] = {
    {"logits", "absolute", LEAST_BOUND},
    {"router ids", "differing", 0},
    {"router logits", "absolute", LEAST_BOUND},
    {"router weights", "absolute", LEAST_BOUND},
    {"forced weights", "absolute", LEAST_BOUND},
    {"forced logits", "absolute", LEAST_BOUND},
    {"forced logprobs", "absolute", LEAST_BOUND},
    {"forced loss", "absolute", LEAST_BOUND},
    {"gradients", "relative", LEAST_BOUND},
    {"greedy ids", "differing", 0},
    {"greedy routes", "differing", 0},
    {"engine logprobs", "absolute", LEAST_BOUND},
    {"mtp logits", "absolute", LEAST_BOUND},
    {"mtp further", "absolute", LEAST_BOUND},
};

typedef struct outcome {
    double error; /* largest, or number of differing ids; infinite once a NaN was seen */
    int64_t compared;
} outcome;

static void see_error(outcome *o, double error) {
    if (!(error <= o->error)) o->error = isnan(error) ? INFINITY : error;
}

static void see_floats(outcome *o, int64_t n, const float *found, const float *expected) {
    for (int64_t i = 0; i < n; i++) see_error(o, fabs((double)found[i] - (double)expected[i]));
    o->compared += n;
}

static void see_id(outcome *o, int64_t found, int64_t expected) {
    o->error += found != expected;
    o->compared++;
}

/* ---- reference data -------------------------------------------------------------------------- */

typedef struct layer_reference {
    float *logits, *weights, *forced_weights; /* [B*S, E], [B*S, K], [B*S, K] */
    float *bias;                              /* [E] of the selection; NULL: none */
    int64_t *ids, *forced_ids, *greedy_ids;   /* [B*S, K], [B*S, K], [B*W, K] */
} layer_reference;

typedef struct reference {
    const char *dir;
    wb_config config;
    wb_safetensors *ref, *grads;
    json_t *meta;
    bool unordered;              /* the reference's choices of a token are a set */
    int64_t B, S, V, E, K, L, W; /* W: length of a greedy sequence */
    int64_t *input_ids, *greedy_ids;
    float *logits, *forced_logits, *forced_logprobs, *forced_loss;
    float *mtp_logits, *mtp_further; /* [B, S - 1, V], [B, S - 3, 2, V]; NULL: not compared */
    layer_reference *layers;         /* [L] */
    float **kept_grads;              /* of each tensor of the registry, of own results; else NULL */
    double largest_grad;             /* of all tensors */
    wb_dtype dtype;                  /* that this engine computes in */
    double bounds[N_CHECKS];         /* of the largest error; ids: of their number that differ */
} reference;

static float float_at(const wb_tensor_view *view, int64_t i) {
    const uint8_t *at = (const uint8_t *)view->data + (size_t)i * wb_dtype_size(view->dtype);
    if (view->dtype == WB_F32) {
        float value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    const uint32_t bits = (uint32_t)at[0] | (uint32_t)at[1] << 8;
    if (view->dtype == WB_BF16) {
        const uint32_t wide = bits << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    const int exponent = (int)(bits >> 10 & 31);
    const float fraction = (float)(bits & 1023), sign = bits >> 15 ? -1.0F : 1.0F;
    if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
    return sign * (exponent == 0 ? ldexpf(fraction, -24) : ldexpf(fraction + 1024, exponent - 25));
}

static int64_t elements(const wb_tensor_view *view) {
    int64_t n = 1;
    for (int32_t d = 0; d < view->n_dims; d++) n *= view->shape[d];
    return n;
}

static wb_tensor_view find(const wb_safetensors *file, const char *name) {
    wb_tensor_view view;
    if (wb_safetensors_find(file, name, &view) != WB_OK) die("%s", wb_error_message());
    return view;
}

/* The tensor's elements, of which there must be n. */
static float *read_floats(const wb_safetensors *file, const char *name, int64_t n) {
    const wb_tensor_view view = find(file, name);
    if (view.dtype != WB_F32 && view.dtype != WB_BF16 && view.dtype != WB_F16)
        die("%s: expected floats, found %s", name, wb_dtype_name(view.dtype));
    if (elements(&view) != n)
        die("%s: expected %" PRId64 " elements, found %" PRId64, name, n, elements(&view));
    float *values = allocate((size_t)n, sizeof(float));
    for (int64_t i = 0; i < n; i++) values[i] = float_at(&view, i);
    return values;
}

static int64_t *read_ids(const wb_safetensors *file, const char *name, int64_t n) {
    const wb_tensor_view view = find(file, name);
    if (view.dtype != WB_I64) die("%s: expected i64, found %s", name, wb_dtype_name(view.dtype));
    if (elements(&view) != n)
        die("%s: expected %" PRId64 " elements, found %" PRId64, name, n, elements(&view));
    int64_t *values = allocate((size_t)n, sizeof(int64_t));
    memcpy(values, view.data, (size_t)n * sizeof(int64_t));
    return values;
}

static void matrix_shape(const wb_safetensors *file, const char *name, int64_t *rows_out,
                         int64_t *columns_out) {
    const wb_tensor_view view = find(file, name);
    if (view.n_dims != 2) die("%s: expected 2 dimensions, found %d", name, view.n_dims);
    *rows_out = view.shape[0];
    *columns_out = view.shape[1];
}

static void read_layer(reference *ref, int64_t i) {
    const int64_t T = ref->B * ref->S;
    layer_reference *layer = &ref->layers[i];
    char name[64];
    snprintf(name, sizeof name, "router.%d.logits", (int)i);
    layer->logits = read_floats(ref->ref, name, T * ref->E);
    snprintf(name, sizeof name, "router.%d.topk_ids", (int)i);
    layer->ids = read_ids(ref->ref, name, T * ref->K);
    snprintf(name, sizeof name, "router.%d.topk_weights", (int)i);
    layer->weights = read_floats(ref->ref, name, T * ref->K);
    snprintf(name, sizeof name, "forced.%d.topk_ids", (int)i);
    layer->forced_ids = read_ids(ref->ref, name, T * ref->K);
    snprintf(name, sizeof name, "forced.%d.topk_weights", (int)i);
    layer->forced_weights = read_floats(ref->ref, name, T * ref->K);
    snprintf(name, sizeof name, "greedy.%d.topk_ids", (int)i);
    layer->greedy_ids = read_ids(ref->ref, name, ref->B * ref->W * ref->K);
    for (int64_t j = 0; j < T * ref->K; j++)
        if (layer->forced_ids[j] < 0 || layer->forced_ids[j] >= ref->E)
            die("forced.%d.topk_ids: expected ids below %" PRId64 ", found %" PRId64, (int)i, ref->E,
                layer->forced_ids[j]);
}

/* The bias of a router is a tensor of the checkpoint, beside its matrix. */
static void read_biases(reference *ref) {
    wb_safetensors *model;
    if (wb_safetensors_open(ref->dir, NULL, &model) != WB_OK) die("%s", wb_error_message());
    for (int64_t i = 0; i < ref->L; i++) {
        const char *router =
            json_string_value(json_array_get(json_object_get(ref->meta, "routers"), (size_t)i));
        char name[256];
        wb_tensor_view view;
        snprintf(name, sizeof name, "%s.e_score_correction_bias", router ? router : "");
        const char *mlp = router ? strstr(router, ".mlp.gate") : NULL;
        if (ref->config.family == WB_FAMILY_DEEPSEEK_V4 && mlp)
            snprintf(name, sizeof name, "%.*s.ffn.gate.bias", (int)(mlp - router), router);
        /* Releases of that family do without "model.". */
        const bool is_there = wb_safetensors_find(model, name, &view) == WB_OK;
        const char *found = is_there ? name : strchr(name, '.') + 1;
        if (wb_safetensors_find(model, found, &view) == WB_OK)
            ref->layers[i].bias = read_floats(model, found, ref->E);
    }
    wb_safetensors_close(model);
}

/* Routers that ask torch for a set of experts, not for an order. */
static bool is_unordered(const reference *ref) {
    static const char *const classes[] = {"Glm4MoeTopkRouter", "DeepseekV2TopkRouter", "DeepseekV3TopkRouter",
                                          "DeepseekV4HashRouter", "DeepseekV4TopKRouter"};
    const char *found = json_string_value(json_array_get(json_object_get(ref->meta, "router_classes"), 0));
    for (size_t i = 0; found && i < sizeof classes / sizeof classes[0]; i++)
        if (strcmp(found, classes[i]) == 0) return true;
    return false;
}

/* Not those of a model with MTP layers of which the directory has no reference. */
static void read_mtp(reference *ref) {
    wb_tensor_view view;
    const int64_t rows = ref->B * (ref->S - 1 - MTP_FURTHER);
    if (ref->dtype != WB_F32 || wb_safetensors_find(ref->ref, "mtp.logits", &view) != WB_OK) return;
    ref->mtp_logits = read_floats(ref->ref, "mtp.logits", ref->B * (ref->S - 1) * ref->V);
    ref->mtp_further = read_floats(ref->ref, "mtp.further", rows * MTP_FURTHER * ref->V);
}

static void find_largest_grad(reference *ref) {
    for (size_t i = 0; i < wb_safetensors_count(ref->grads); i++) {
        wb_tensor_view view;
        if (wb_safetensors_get(ref->grads, i, &view) != WB_OK) die("%s", wb_error_message());
        for (int64_t j = 0; view.dtype != WB_I64 && j < elements(&view); j++)
            ref->largest_grad = fmax(ref->largest_grad, fabs((double)float_at(&view, j)));
    }
}

/* The limits of f32, or those that follow from the sizes of what is rounded. */
static void find_bounds(reference *ref) {
    for (int i = 0; i < N_CHECKS; i++) ref->bounds[i] = checks[i].limit;
    if (ref->dtype == WB_F32) return;
    const int64_t T = ref->B * ref->S;
    double router = 0;
    for (int64_t l = 0; l < ref->L; l++) router = fmax(router, largest_row(T, ref->E, ref->layers[l].logits));
    const double bound = rounding_bound(&ref->config, largest_row(T, ref->V, ref->logits));
    ref->bounds[LOGITS] = ref->bounds[FORCED_LOGITS] = bound;
    ref->bounds[FORCED_LOGPROBS] = ref->bounds[FORCED_LOSS] = 2 * bound;
    ref->bounds[ROUTER_LOGITS] = rounding_bound(&ref->config, router);
    ref->bounds[ROUTER_WEIGHTS] = ref->bounds[FORCED_WEIGHTS] = ref->bounds[ROUTER_LOGITS] / 2;
    ref->bounds[GRADIENTS] = 2 * rounding_bound(&ref->config, 1);
    ref->bounds[ENGINE_LOGPROBS] = 0;
}

static void reference_open(const char *dir, wb_dtype dtype, reference *ref) {
    memset(ref, 0, sizeof *ref);
    ref->dir = dir;
    ref->dtype = dtype;
    if (wb_config_load(dir, &ref->config) != WB_OK || wb_safetensors_open(dir, "ref", &ref->ref) != WB_OK ||
        wb_safetensors_open(dir, "grads", &ref->grads) != WB_OK)
        die("%s", wb_error_message());
    char path[4096];
    json_error_t error;
    snprintf(path, sizeof path, "%s/meta.json", dir);
    ref->meta = json_load_file(path, 0, &error);
    if (!ref->meta) die("%s: line %d: %s", path, error.line, error.text);

    ref->V = ref->config.vocab_size;
    ref->E = ref->config.router.n_experts;
    ref->K = ref->config.router.top_k;
    for (int32_t l = 0; l < ref->config.n_layers; l++) ref->L += wb_config_is_moe(&ref->config, l);
    const size_t routers = json_array_size(json_object_get(ref->meta, "routers"));
    if (routers != (size_t)ref->L) die("%s: expected %d routers, found %zu", path, (int)ref->L, routers);

    int64_t B;
    matrix_shape(ref->ref, "input_ids", &ref->B, &ref->S);
    matrix_shape(ref->ref, "greedy_ids", &B, &ref->W);
    if (B != ref->B) die("greedy_ids: expected %d rows, found %d", (int)ref->B, (int)B);
    if (ref->W <= PROMPT) die("greedy_ids: expected more than %d columns, found %d", PROMPT, (int)ref->W);
    const int64_t T = ref->B * ref->S;
    ref->input_ids = read_ids(ref->ref, "input_ids", T);
    ref->greedy_ids = read_ids(ref->ref, "greedy_ids", B * ref->W);
    ref->logits = read_floats(ref->ref, "logits", T * ref->V);
    ref->forced_logits = read_floats(ref->ref, "forced.logits", T * ref->V);
    ref->forced_logprobs = read_floats(ref->ref, "forced.logprobs", B * (ref->S - 1));
    ref->forced_loss = read_floats(ref->ref, "forced.loss", 1);
    read_mtp(ref);
    ref->layers = allocate((size_t)ref->L, sizeof(layer_reference));
    for (int64_t i = 0; i < ref->L; i++) read_layer(ref, i);
    read_biases(ref);
    ref->unordered = is_unordered(ref);
    find_largest_grad(ref);
    find_bounds(ref);
}

static void reference_close(reference *ref) {
    for (int64_t i = 0; i < ref->L; i++) {
        const layer_reference *layer = &ref->layers[i];
        void *const arrays[] = {layer->logits, layer->weights,    layer->forced_weights, layer->bias,
                                layer->ids,    layer->forced_ids, layer->greedy_ids};
        for (size_t j = 0; j < sizeof arrays / sizeof arrays[0]; j++) free(arrays[j]);
    }
    void *const arrays[] = {ref->layers,      ref->input_ids,     ref->greedy_ids,
                            ref->logits,      ref->forced_logits, ref->forced_logprobs,
                            ref->forced_loss, ref->mtp_logits,    ref->mtp_further};
    for (size_t j = 0; j < sizeof arrays / sizeof arrays[0]; j++) free(arrays[j]);
    json_decref(ref->meta);
    wb_safetensors_close(ref->grads);
    wb_safetensors_close(ref->ref);
}

/* ---- one rank ------------------------------------------------------------------------------------ */

typedef struct rank_run {
    const reference *ref;
    const char *save_dir; /* or NULL */
    wb_comm *comm;
    bool cuda;
    wb_device *device;
    wb_model *model;
    wb_train *train;
    int64_t n_seqs; /* sequences rank, rank + R, rank + 2R, ... of the reference */
    double plant;   /* part of the middle layer's weights that these are moved by; 0: none */
    bool keeps;     /* results become those of `ref` in place of being compared */
    bool is_noise;  /* ref's results are this model's own: its choices are forced */
    outcome outcomes[N_CHECKS];
    double bounds[N_CHECKS]; /* ref's, or those that noise gives */
    bool has_no_limit;       /* bf16: noise is above one of them */
    double loss;             /* this rank's part */
    int64_t n_tensors, n_tensors_expected;
    int verdict; /* EXIT_PASS unless the run itself failed */
} rank_run;

static int64_t reference_seq(const rank_run *run, int64_t s) {
    return wb_comm_rank(run->comm) + s * wb_comm_size(run->comm);
}

/* Row of the reference's [B*length, ...] for this rank's token t of sequences of that length. */
static int64_t row_of(const rank_run *run, int64_t length, int64_t t) {
    return reference_seq(run, t / length) * length + t % length;
}

static int64_t reference_row(const rank_run *run, int64_t t) {
    return row_of(run, run->ref->S, t);
}

/* A route tensor [T][L][K] on the device and its ids as numbers. */
typedef struct routes {
    wb_device *device;
    wb_dtype dtype;
    int64_t n;
    void *device_ids, *host_ids;
} routes;

static wb_status routes_open(const rank_run *run, int64_t T, routes *r) {
    *r = (routes){.device = run->device, .dtype = wb_route_dtype((uint32_t)run->ref->E)};
    r->n = T * run->ref->L * run->ref->K;
    r->host_ids = allocate((size_t)r->n, sizeof(uint16_t));
    return run->device->mem_alloc(run->device, (size_t)r->n * sizeof(uint16_t), &r->device_ids);
}

static void routes_close(routes *r) {
    r->device->mem_free(r->device, r->device_ids);
    free(r->host_ids);
}

static int64_t routes_get(const routes *r, int64_t i) {
    return r->dtype == WB_U8 ? ((const uint8_t *)r->host_ids)[i] : ((const uint16_t *)r->host_ids)[i];
}

static void routes_set(routes *r, int64_t i, int64_t id) {
    if (r->dtype == WB_U8)
        ((uint8_t *)r->host_ids)[i] = (uint8_t)id;
    else
        ((uint16_t *)r->host_ids)[i] = (uint16_t)id;
}

static wb_status routes_download(routes *r) {
    return r->device->to_host(r->device, r->host_ids, r->device_ids, (size_t)r->n * wb_dtype_size(r->dtype));
}

static wb_status routes_upload(routes *r) {
    return r->device->to_device(r->device, r->device_ids, r->host_ids,
                                (size_t)r->n * wb_dtype_size(r->dtype));
}

/* This rank's sequences as a training batch, every next token a target. */
typedef struct packed {
    wb_train_batch batch;
    int32_t *tokens, *targets, *seq_start;
    float *logprobs, *logits;
} packed;

/* Of the reference's ids [B, length]. */
static packed pack(const rank_run *run, const int64_t *ids, int64_t length) {
    const int64_t T = run->n_seqs * length;
    packed p;
    p.tokens = allocate((size_t)T, sizeof(int32_t));
    p.targets = allocate((size_t)T, sizeof(int32_t));
    p.seq_start = allocate((size_t)run->n_seqs + 1, sizeof(int32_t));
    p.logprobs = allocate((size_t)T, sizeof(float));
    p.logits = allocate((size_t)(T * run->ref->V), sizeof(float));
    for (int64_t t = 0; t < T; t++) {
        const int64_t row = row_of(run, length, t);
        p.tokens[t] = (int32_t)ids[row];
        p.targets[t] = t % length == length - 1 ? -1 : (int32_t)ids[row + 1];
    }
    for (int64_t s = 0; s <= run->n_seqs; s++) p.seq_start[s] = (int32_t)(s * length);
    p.batch = (wb_train_batch){.T = T,
                               .tokens = p.tokens,
                               .targets = p.targets,
                               .n_seqs = (int32_t)run->n_seqs,
                               .seq_start = p.seq_start};
    return p;
}

static void unpack(packed *p) {
    free(p->tokens);
    free(p->targets);
    free(p->seq_start);
    free(p->logprobs);
    free(p->logits);
}

/* Compares, or keeps what was found. */
static void see_result(rank_run *run, check_id id, int64_t n, const float *found, float *expected) {
    if (run->keeps)
        memcpy(expected, found, (size_t)n * sizeof *found);
    else
        see_floats(&run->outcomes[id], n, found, expected);
}

static void compare_logits(rank_run *run, check_id id, const float *logits, float *expected) {
    const int64_t V = run->ref->V;
    for (int64_t t = 0; t < run->n_seqs * run->ref->S; t++)
        see_result(run, id, V, logits + t * V, expected + reference_row(run, t) * V);
}

/* ---- native routing -------------------------------------------------------------------------- */

enum { MAX_K = 64 };

/* Choices [K] of a row, moved to where the reference has the same expert, where its order means nothing;
 * those that it does not have fill the places left. */
static void pair_choices(const reference *ref, const int64_t *expected, int64_t *found) {
    if (!ref->unordered) return;
    for (int64_t k = 0; k < ref->K; k++)
        for (int64_t j = 0; j < ref->K; j++)
            if (found[j] == expected[k] && found[j] != expected[j]) {
                const int64_t swap = found[k];
                found[k] = found[j];
                found[j] = swap;
                break;
            }
}

static int descending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The weights [K] of a row of the reference's own choices; of a set, in the order of their size. */
static void see_weights(rank_run *run, const float *weights, float *expected) {
    const reference *ref = run->ref;
    const size_t bytes = (size_t)ref->K * sizeof(float);
    float found[MAX_K], sorted[MAX_K];
    if (run->keeps) memcpy(expected, weights, bytes);
    memcpy(found, weights, bytes);
    memcpy(sorted, expected, bytes);
    if (ref->unordered) {
        qsort(found, (size_t)ref->K, sizeof(float), descending);
        qsort(sorted, (size_t)ref->K, sizeof(float), descending);
    }
    see_floats(&run->outcomes[ROUTER_WEIGHTS], ref->K, found, sorted);
}

static void probe_native(void *ctx, int32_t layer, int64_t T, const float *logits, const float *weights) {
    rank_run *run = ctx;
    const reference *ref = run->ref;
    for (int64_t t = 0; t < T; t++) {
        const int64_t row = reference_row(run, t);
        see_result(run, ROUTER_LOGITS, ref->E, logits + t * ref->E, ref->layers[layer].logits + row * ref->E);
        see_weights(run, weights + t * ref->K, ref->layers[layer].weights + row * ref->K);
    }
}

/* What an expert is chosen by; a sigmoid makes an error of its logit four times smaller, at least. */
static double selection_key(const reference *ref, const layer_reference *layer, int64_t row, int64_t e) {
    const double logit = (double)layer->logits[row * ref->E + e];
    if (!layer->bias) return logit;
    /* Of sqrt(softplus) the slope is below 1/3. */
    if (ref->config.router.type == WB_ROUTER_SQRTSOFTPLUS)
        return 3 * (sqrt(log1p(exp(-fabs(logit))) + fmax(logit, 0)) + (double)layer->bias[e]);
    return 4 * (1 / (1 + exp(-logit)) + (double)layer->bias[e]);
}

/* The sum of a group's two largest keys, or the largest alone where experts are chosen by logits; such a
 * score is off by as many errors as there are keys in it. */
static double group_score(const reference *ref, const layer_reference *layer, int64_t row, int64_t group) {
    const int64_t size = ref->E / ref->config.router.n_group;
    double first = -INFINITY, second = -INFINITY;
    for (int64_t e = group * size; e < (group + 1) * size; e++) {
        const double key = selection_key(ref, layer, row, e);
        second = fmax(second, fmin(key, first));
        first = fmax(first, key);
    }
    return layer->bias && size > 1 ? first + second : first;
}

/* Whether errors can take the group of `expected` out of those that are chosen from, or bring that of `found`
 * in: the reference's score of it is as close to one on the other side as two errors of scores. */
static bool groups_are_close(const reference *ref, const layer_reference *layer, int64_t row,
                             int64_t expected, int64_t found) {
    const int64_t n = ref->config.router.n_group, kept = ref->config.router.topk_group;
    if (n <= 1) return false;
    const double bound = 2 * (layer->bias && ref->E > n ? 2 : 1) * ref->bounds[ROUTER_LOGITS];
    const double lost = group_score(ref, layer, row, expected / (ref->E / n)),
                 won = group_score(ref, layer, row, found / (ref->E / n));
    for (int64_t g = 0; g < n; g++) {
        const double score = group_score(ref, layer, row, g);
        int64_t rank = 0;
        for (int64_t other = 0; other < n; other++) rank += group_score(ref, layer, row, other) > score;
        if (rank >= kept && lost - score <= bound) return true;
        if (rank < kept && won < score && score - won <= bound) return true;
    }
    return false;
}

/* The choices of a row in layer l. In bf16 the reference's key of another expert than its own is as close as
 * two errors can bring them, or their groups are. */
static void see_choices(rank_run *run, int64_t l, int64_t row, int64_t *found) {
    const reference *ref = run->ref;
    const layer_reference *layer = &ref->layers[l];
    const int64_t *expected = layer->ids + row * ref->K;
    pair_choices(ref, expected, found);
    for (int64_t k = 0; k < ref->K; k++) {
        const bool close =
            ref->dtype != WB_F32 && found[k] < ref->E &&
            (fabs(selection_key(ref, layer, row, found[k]) - selection_key(ref, layer, row, expected[k])) <=
                 2 * ref->bounds[ROUTER_LOGITS] ||
             groups_are_close(ref, layer, row, expected[k], found[k]));
        see_id(&run->outcomes[ROUTER_IDS], close ? expected[k] : found[k], expected[k]);
    }
}

/* Those of a tensor of routes. */
static void see_routes(rank_run *run, const routes *chosen) {
    const reference *ref = run->ref;
    for (int64_t i = 0; i < chosen->n; i += ref->K) {
        int64_t found[MAX_K];
        for (int64_t k = 0; k < ref->K; k++) found[k] = routes_get(chosen, i + k);
        see_choices(run, i / ref->K % ref->L, reference_row(run, i / ref->K / ref->L), found);
    }
}

/* The reference's choices, or those of its forced pass, for this rank's rows. */
static wb_status put_choices(const rank_run *run, routes *r, bool forced) {
    const reference *ref = run->ref;
    for (int64_t i = 0; i < r->n; i++) {
        const int64_t k = i % ref->K, l = i / ref->K % ref->L, row = reference_row(run, i / ref->K / ref->L);
        const layer_reference *layer = &ref->layers[l];
        routes_set(r, i, (forced ? layer->forced_ids : layer->ids)[row * ref->K + k]);
    }
    return routes_upload(r);
}

/* `r`: where the choices come; forced: device [T], NULL where each row goes where it chooses. */
static wb_status native_forward(rank_run *run, packed *p, routes *r, const uint8_t *forced) {
    const reference *ref = run->ref;
    routes own;
    const wb_router_probe probe = {probe_native, run};
    wb_status status = routes_open(run, p->batch.T, &own);
    const wb_routing routing = {
        .ids = r->device_ids, .direction = forced, .native = forced ? own.device_ids : NULL};
    routes *const chosen = forced ? &own : r;
    if (status == WB_OK && forced) status = put_choices(run, r, false);
    if (status == WB_OK) status = wb_train_forward(run->train, &p->batch, &routing, &probe, p->logprobs);
    if (status == WB_OK) status = wb_train_logits(run->train, p->logits);
    if (status == WB_OK) status = routes_download(chosen);
    if (status == WB_OK) compare_logits(run, LOGITS, p->logits, ref->logits);
    if (status == WB_OK) see_routes(run, chosen);
    routes_close(&own);
    return status;
}

/* ---- forced routing and gradients ------------------------------------------------------------ */

static void probe_forced(void *ctx, int32_t layer, int64_t T, const float *logits, const float *weights) {
    (void)logits;
    rank_run *run = ctx;
    const int64_t K = run->ref->K;
    for (int64_t t = 0; t < T; t++)
        see_result(run, FORCED_WEIGHTS, K, weights + t * K,
                   run->ref->layers[layer].forced_weights + reference_row(run, t) * K);
}

static wb_status forced_forward(rank_run *run, packed *p, routes *r, const uint8_t *forced) {
    const reference *ref = run->ref;
    const wb_routing routing = {.ids = r->device_ids, .direction = forced};
    const wb_router_probe probe = {probe_forced, run};
    wb_status status = wb_train_forward(run->train, &p->batch, &routing, &probe, p->logprobs);
    if (status == WB_OK) status = wb_train_logits(run->train, p->logits);
    if (status != WB_OK) return status;
    compare_logits(run, FORCED_LOGITS, p->logits, ref->forced_logits);
    const double n = (double)(ref->B * (ref->S - 1));
    for (int64_t t = 0; t < p->batch.T; t++) {
        if (p->targets[t] < 0) continue;
        const int64_t row = reference_row(run, t);
        see_result(run, FORCED_LOGPROBS, 1, &p->logprobs[t],
                   &ref->forced_logprobs[row / ref->S * (ref->S - 1) + row % ref->S]);
        run->loss -= (double)p->logprobs[t] / n;
        p->logprobs[t] = (float)(-1.0 / n); /* from here on dloss / dlogprob */
    }
    status = wb_train_backward(run->train, p->logprobs);
    return status == WB_OK ? wb_train_reduce_grads(run->train) : status;
}

static wb_status check_passes(rank_run *run, packed *p, routes *r, const uint8_t *forced) {
    WB_TRY(native_forward(run, p, r, run->ref->dtype == WB_F32 && !run->is_noise ? NULL : forced));
    WB_TRY(put_choices(run, r, true));
    return forced_forward(run, p, r, forced);
}

/* Native, then forced with its backward. */
static wb_status check_training(rank_run *run, packed *p, routes *r) {
    const size_t T = (size_t)p->batch.T;
    uint8_t *ones = allocate(T, 1);
    memset(ones, WB_ROW_FORCED, T);
    void *forced = NULL;
    wb_status status = run->device->mem_alloc(run->device, T, &forced);
    if (status == WB_OK) status = run->device->to_device(run->device, forced, ones, T);
    if (status == WB_OK) status = check_passes(run, p, r, forced);
    run->device->mem_free(run->device, forced);
    free(ones);
    return status;
}

static bool without_grad(const reference *ref, const char *name) {
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(ref->meta, "params_without_grad"), i, entry) {
        const char *listed = json_string_value(entry);
        if (listed && strcmp(listed, name) == 0) return true;
    }
    return false;
}

/* Error of a gradient relative to the largest entry of its tensor; in bf16 that of root mean squares. A
 * tensor of nothing but rounding noise (a router whose weights are always 1, an expert that no token chose)
 * must be noise here too: below a millionth of the model's largest. */
static double gradient_error(const reference *ref, int64_t n, const float *expected, const float *found) {
    double largest = 0, difference = 0, squares = 0, squares_off = 0;
    for (int64_t i = 0; i < n; i++) {
        const double value = (double)expected[i];
        const double d = fabs((double)found[i] - value);
        if (isnan(d)) return INFINITY;
        largest = fmax(largest, fabs(value));
        difference = fmax(difference, d);
        squares += value * value;
        squares_off += d * d;
    }
    if (difference == 0) return 0;
    if (ref->dtype != WB_F32 && largest >= 1e-6 * ref->largest_grad) return sqrt(squares_off / squares);
    return difference / (largest >= 1e-6 * ref->largest_grad ? largest : 1e-2 * ref->largest_grad);
}

/* A buffer, in whose place the reference has its value: it only selects, and has no gradient. */
static bool is_selection_bias(const char *name) {
    return strstr(name, "e_score_correction_bias") || strstr(name, "ffn.gate.bias");
}

/* Where the reference has an expert's gradient in one tensor with those of all experts of the layer, as
 * gpt_oss does: [E, inputs, outputs], or [E, outputs] of a bias, outputs of gate and up in turn. Writes
 * its name. */
static void fused_name(const char *name, char out[256]) {
    const char *experts = strstr(name, ".experts.");
    if (!experts) {
        snprintf(out, 256, "%s", name);
        return;
    }
    snprintf(out, 256, "%.*s.experts.%s%s", (int)(experts - name), name,
             strstr(experts, ".down_proj.") ? "down_proj" : "gate_up_proj",
             strstr(experts, ".bias") ? "_bias" : "");
}

/* The elements of such an expert's tensor in its own order. */
static bool read_fused(const reference *ref, const wb_tensor *tensor, float *values) {
    char name[256];
    wb_tensor_view view;
    fused_name(tensor->name, name);
    if (tensor->expert < 0 || wb_safetensors_find(ref->grads, name, &view) != WB_OK) return false;
    const bool down = strstr(tensor->name, ".down_proj.");
    const int64_t turns = down ? 1 : 2, first = strstr(tensor->name, ".up_proj.") ? 1 : 0;
    const int64_t outputs = tensor->shape[0], inputs = tensor->n_dims == 2 ? tensor->shape[1] : 1;
    if (elements(&view) != ref->E * turns * tensor->n) return false;
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < inputs; i++)
            values[o * inputs + i] =
                float_at(&view, (tensor->expert * inputs + i) * turns * outputs + turns * o + first);
    return true;
}

/* Of tensor i in the reference: by itself, or among those of all experts. */
static bool read_expected(const reference *ref, const wb_tensor *tensor, int32_t i, float *values) {
    wb_tensor_view view;
    if (ref->kept_grads) {
        memcpy(values, ref->kept_grads[i], (size_t)tensor->n * sizeof *values);
        return true;
    }
    if (wb_safetensors_find(ref->grads, tensor->name, &view) != WB_OK) return read_fused(ref, tensor, values);
    if (elements(&view) != tensor->n) return false;
    for (int64_t j = 0; j < tensor->n; j++) values[j] = float_at(&view, j);
    return true;
}

static void compare_gradient(rank_run *run, const wb_tensor *tensor, const float *expected,
                             const float *found) {
    const double error = gradient_error(run->ref, tensor->n, expected, found);
    if (!(error <= run->bounds[GRADIENTS]))
        fprintf(stderr, "gradient off by %.3g: %s\n", error, tensor->name);
    see_error(&run->outcomes[GRADIENTS], error);
    const bool counts = tensor->expert >= 0 || wb_comm_rank(run->comm) == 0; /* others are every rank's */
    run->n_tensors += counts;
    run->outcomes[GRADIENTS].compared += counts ? tensor->n : 0;
}

static wb_status download_gradient(const rank_run *run, const wb_tensor *tensor, float *values) {
    return run->device->to_host(run->device, values, wb_train_grad(run->train, tensor),
                                (size_t)tensor->n * sizeof(float));
}

static wb_status check_gradient(rank_run *run, const wb_tensor *tensor, int32_t i) {
    const reference *ref = run->ref;
    if (without_grad(ref, tensor->name) || is_selection_bias(tensor->name)) return WB_OK;
    run->n_tensors_expected += tensor->expert >= 0 ? !!tensor->data : wb_comm_rank(run->comm) == 0;
    if (!tensor->data) return WB_OK;
    if (run->keeps) {
        ref->kept_grads[i] = allocate((size_t)tensor->n, sizeof(float));
        return download_gradient(run, tensor, ref->kept_grads[i]);
    }
    float *expected = allocate((size_t)tensor->n, sizeof(float)),
          *found = allocate((size_t)tensor->n, sizeof(float));
    wb_status status = WB_OK;
    if (read_expected(ref, tensor, i, expected)) {
        status = download_gradient(run, tensor, found);
        if (status == WB_OK) compare_gradient(run, tensor, expected, found);
    } else {
        fprintf(stderr, "no gradient of %" PRId64 " elements in the reference: %s\n", tensor->n,
                tensor->name);
        see_error(&run->outcomes[GRADIENTS], INFINITY);
    }
    free(expected);
    free(found);
    return status;
}

/* The reference must name no gradient that the registry does not have. */
static void check_surplus(rank_run *run) {
    const reference *ref = run->ref;
    for (size_t i = 0; i < wb_safetensors_count(ref->grads); i++) {
        wb_tensor_view view;
        if (wb_safetensors_get(ref->grads, i, &view) != WB_OK) die("%s", wb_error_message());
        bool known = without_grad(ref, view.name) || view.dtype == WB_I64; /* a table is no weight */
        for (int32_t j = 0; j < wb_model_n_tensors(run->model) && !known; j++) {
            char fused[256];
            const char *name = wb_model_tensor(run->model, j).name;
            fused_name(name, fused);
            known = strcmp(name, view.name) == 0 || strcmp(fused, view.name) == 0;
        }
        if (known) continue;
        fprintf(stderr, "gradient of a tensor that the model lacks: %s\n", view.name);
        see_error(&run->outcomes[GRADIENTS], INFINITY);
    }
}

static wb_status check_gradients(rank_run *run) {
    for (int32_t i = 0; i < wb_model_n_tensors(run->model); i++) {
        const wb_tensor tensor = wb_model_tensor(run->model, i);
        WB_TRY(check_gradient(run, &tensor, i));
    }
    if (wb_comm_rank(run->comm) == 0 && !run->is_noise) check_surplus(run);
    return WB_OK;
}

/* ---- limits of f32 --------------------------------------------------------------------------- */

static float *room_like(int64_t n) {
    return allocate((size_t)n, sizeof(float));
}

/* A reference of the same choices, with room for this model's own results. */
static reference own_open(const rank_run *run) {
    reference own = *run->ref;
    const int64_t T = own.B * own.S;
    own.logits = room_like(T * own.V);
    own.forced_logits = room_like(T * own.V);
    own.forced_logprobs = room_like(own.B * (own.S - 1));
    own.layers = allocate((size_t)own.L, sizeof *own.layers);
    own.kept_grads = allocate((size_t)wb_model_n_tensors(run->model), sizeof *own.kept_grads);
    for (int64_t l = 0; l < own.L; l++) {
        own.layers[l] = run->ref->layers[l];
        own.layers[l].logits = room_like(T * own.E);
        own.layers[l].weights = room_like(T * own.K);
        own.layers[l].forced_weights = room_like(T * own.K);
    }
    return own;
}

static void own_close(const rank_run *run, reference *own) {
    for (int64_t l = 0; l < own->L; l++) {
        free(own->layers[l].logits);
        free(own->layers[l].weights);
        free(own->layers[l].forced_weights);
    }
    for (int32_t i = 0; i < wb_model_n_tensors(run->model); i++) free(own->kept_grads[i]);
    free(own->kept_grads);
    free(own->layers);
    free(own->forced_logprobs);
    free(own->forced_logits);
    free(own->logits);
}

static wb_status noise_pass(rank_run *noise, packed *p, routes *r) {
    WB_TRY(check_training(noise, p, r));
    WB_TRY(check_gradients(noise));
    return wb_train_zero_grads(noise->train);
}

/* Forward and backward by the weights as they are, which are kept, and by weights that were rounded once
 * more. */
static wb_status noise_passes(rank_run *noise, packed *p, routes *r, uint8_t *weights) {
    const double rounding = noise->ref->dtype == WB_F32 ? F32_ROUNDING : UNIT;
    noise->keeps = true;
    WB_TRY(noise_pass(noise, p, r));
    noise->keeps = false;
    WB_TRY(copy_weights(noise->model, noise->device, false, weights));
    for (uint64_t seed = 1; seed <= NOISE_RUNS; seed++) {
        WB_TRY(scatter_weights(noise->model, noise->device, -1, seed, rounding));
        WB_TRY(noise_pass(noise, p, r));
        WB_TRY(copy_weights(noise->model, noise->device, true, weights));
    }
    return WB_OK;
}

static void see_noise(rank_run *run, check_id id, double noise) {
    if (run->ref->dtype == WB_F32)
        run->bounds[id] = noise_bound(noise);
    else if (!(noise <= NOISE_FACTOR * run->bounds[id]))
        run->has_no_limit = true;
}

/* The limits of this rank's checks (hf_noise.h). */
static wb_status find_noise(rank_run *run, packed *p, routes *r) {
    static const check_id moved[] = {LOGITS,        ROUTER_LOGITS,   ROUTER_WEIGHTS, FORCED_WEIGHTS,
                                     FORCED_LOGITS, FORCED_LOGPROBS, GRADIENTS};
    reference own = own_open(run);
    uint8_t *weights = allocate(weight_bytes(run->model), 1);
    rank_run noise = *run;
    noise.ref = &own;
    noise.is_noise = true;
    for (int i = 0; i < N_CHECKS; i++) noise.bounds[i] = INFINITY;
    const wb_status status = noise_passes(&noise, p, r, weights);
    for (size_t i = 0; i < sizeof moved / sizeof moved[0]; i++)
        see_noise(run, moved[i], noise.outcomes[moved[i]].error);
    free(weights);
    own_close(run, &own);
    return status;
}

/* ---- greedy continuation --------------------------------------------------------------------- */

static wb_status submit_greedy(const rank_run *run, wb_engine *engine, int64_t s) {
    const reference *ref = run->ref;
    uint32_t prompt[PROMPT];
    for (int64_t t = 0; t < PROMPT; t++)
        prompt[t] = (uint32_t)ref->greedy_ids[reference_seq(run, s) * ref->W + t];
    char rid[32];
    snprintf(rid, sizeof rid, "%" PRId64, s);
    wb_request request = wb_request_default();
    request.rid = rid;
    request.n_tokens = PROMPT;
    request.tokens = prompt;
    request.temperature = 0;
    request.max_tokens = (uint32_t)(ref->W - PROMPT);
    return wb_engine_submit(engine, &request);
}

/* What the engine returned: in f32 the reference's tokens. `tokens`: the reference's [B, W], whose rows of
 * this rank become the engine's own in bf16. */
static void take_greedy(rank_run *run, int64_t s, const wb_record *record, int64_t *tokens) {
    const reference *ref = run->ref;
    const int64_t first = reference_seq(run, s) * ref->W;
    for (int64_t t = PROMPT; t < ref->W; t++) {
        const int64_t found = t < record->n_tokens ? (int64_t)record->tokens[t] : -1;
        if (ref->dtype == WB_F32 || found < 0)
            see_id(&run->outcomes[GREEDY_IDS], found, ref->greedy_ids[first + t]);
        else
            tokens[first + t] = found;
    }
}

/* forward: [W] log-probabilities of the next tokens, and the rows that the training forward chose. */
static void compare_greedy(rank_run *run, int64_t s, const wb_record *record, const float *forward,
                           const routes *chosen) {
    const reference *ref = run->ref;
    const int64_t row = ref->L * ref->K, first = reference_seq(run, s) * ref->W;
    const wb_dtype dtype = wb_route_dtype((uint32_t)ref->E);
    for (int64_t t = PROMPT; t < ref->W; t++) {
        const float logprob = t < record->n_tokens ? record->logprobs[t - PROMPT] : NAN;
        see_floats(&run->outcomes[ENGINE_LOGPROBS], 1, &logprob, &forward[t - 1]);
    }
    for (int64_t i = 0; i < (ref->W - 1) * row; i += ref->K) {
        const int64_t t = i / row, l = i % row / ref->K;
        const void *ids = wb_record_row(wb_model_routes(run->model), record, (uint32_t)t);
        int64_t found[MAX_K], expected[MAX_K];
        for (int64_t k = 0; k < ref->K; k++) {
            found[k] = ids ? (int64_t)wb_route_id(ids, dtype, (size_t)(i % row + k)) : -1;
            expected[k] = ref->dtype == WB_F32 ? ref->layers[l].greedy_ids[(first + t) * ref->K + k]
                                               : routes_get(chosen, s * ref->W * row + i + k);
        }
        if (ref->dtype == WB_F32) pair_choices(ref, expected, found);
        for (int64_t k = 0; k < ref->K; k++) see_id(&run->outcomes[GREEDY_ROUTES], found[k], expected[k]);
    }
}

/* Steps the engine dry; done: [n_seqs] what it completed. */
static wb_status run_greedy(const rank_run *run, wb_engine *engine, wb_completion **done) {
    wb_status status = WB_OK;
    for (int64_t s = 0; s < run->n_seqs && status == WB_OK; s++) status = submit_greedy(run, engine, s);
    bool busy = true;
    while (busy && status == WB_OK) status = wb_engine_step(engine, &busy);
    if (status != WB_OK) return status;
    int64_t n_done = 0;
    for (wb_completion *c; (c = wb_engine_poll(engine)); n_done++) done[atoll(c->record.rid)] = c;
    if (n_done == run->n_seqs) return WB_OK;
    return wb_fail(WB_NOT_FOUND, "engine: expected %d completions, found %d", (int)run->n_seqs, (int)n_done);
}

/* The training forward over the greedy sequences, and the comparison with it. Collective. */
static wb_status follow_greedy(rank_run *run, wb_completion **done, int64_t *tokens) {
    routes r;
    for (int64_t s = 0; s < run->n_seqs; s++) take_greedy(run, s, &done[s]->record, tokens);
    packed p = pack(run, tokens, run->ref->W);
    wb_status status = routes_open(run, p.batch.T, &r);
    const wb_routing routing = {.ids = r.device_ids};
    if (status == WB_OK) status = wb_train_forward(run->train, &p.batch, &routing, NULL, p.logprobs);
    if (status == WB_OK) status = routes_download(&r);
    for (int64_t s = 0; status == WB_OK && s < run->n_seqs; s++)
        compare_greedy(run, s, &done[s]->record, p.logprobs + s * run->ref->W, &r);
    routes_close(&r);
    unpack(&p);
    return status;
}

/* Through the engine: prompts in chunks that end inside a block, then a token a step beside the other
 * requests. */
static wb_status check_greedy(rank_run *run) {
    const reference *ref = run->ref;
    const int64_t n_seqs = run->n_seqs > 0 ? run->n_seqs : 1;
    const int64_t seq_blocks = (ref->W + BLOCK_SIZE - 1) / BLOCK_SIZE;
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = (int32_t)(n_seqs * seq_blocks);
    options.block_size = BLOCK_SIZE;
    options.max_batch_tokens = CHUNK;
    options.max_running = (int32_t)n_seqs;
    wb_completion **done = allocate((size_t)n_seqs, sizeof(wb_completion *));
    int64_t *tokens = allocate((size_t)(ref->B * ref->W), sizeof *tokens);
    memcpy(tokens, ref->greedy_ids, (size_t)(ref->B * ref->W) * sizeof *tokens);
    wb_engine *engine = NULL;
    wb_status status = wb_engine_open(run->model, &options, &engine);
    if (status == WB_OK) status = run_greedy(run, engine, done);
    if (status == WB_OK) status = follow_greedy(run, done, tokens);
    for (int64_t s = 0; s < n_seqs; s++) wb_completion_free(done[s]);
    wb_engine_close(engine);
    free(tokens);
    free(done);
    return status;
}

/* ---- layers for multi-token prediction --------------------------------------------------------- */

static void compare_mtp(rank_run *run, const float *first, const float *further) {
    const reference *ref = run->ref;
    const int64_t n_first = (ref->S - 1) * ref->V,
                  n_further = (ref->S - 1 - MTP_FURTHER) * MTP_FURTHER * ref->V;
    for (int64_t s = 0; s < run->n_seqs; s++) {
        const int64_t r = reference_seq(run, s);
        see_floats(&run->outcomes[MTP_LOGITS], n_first, first + s * n_first, ref->mtp_logits + r * n_first);
        see_floats(&run->outcomes[MTP_FURTHER_LOGITS], n_further, further + s * n_further,
                   ref->mtp_further + r * n_further);
    }
}

static wb_status check_mtp(rank_run *run, const int32_t *tokens) {
    const reference *ref = run->ref;
    const size_t rows = (size_t)(run->n_seqs * ref->S * ref->V);
    mtp_run mtp;
    if (!ref->mtp_logits) return WB_OK;
    if (!wb_model_mtp(run->model)) return wb_fail(WB_MISMATCH, "expected a model with MTP layers");
    float *first = allocate(rows, sizeof *first), *further = allocate(MTP_FURTHER * rows, sizeof *further);
    wb_status status = mtp_open(run->model, run->device, run->n_seqs, ref->B, ref->S, tokens, &mtp);
    if (status == WB_OK) status = mtp_logits(&mtp, first, further);
    if (status == WB_OK) compare_mtp(run, first, further);
    mtp_close(&mtp);
    free(first);
    free(further);
    return status;
}

/* ---- the run ------------------------------------------------------------------------------------- */

static wb_status run_checks(rank_run *run) {
    routes r;
    packed p = pack(run, run->ref->input_ids, run->ref->S);
    wb_status status = routes_open(run, p.batch.T, &r);
    if (status == WB_OK) status = find_noise(run, &p, &r);
    if (status == WB_OK) status = check_training(run, &p, &r);
    if (status == WB_OK) status = check_gradients(run);
    if (status == WB_OK) status = check_greedy(run);
    if (status == WB_OK) status = check_mtp(run, p.tokens);
    routes_close(&r);
    unpack(&p);
    return status;
}

/* Ranks share GPUs where there are fewer. */
static wb_status open_device(rank_run *run) {
    const int rank = wb_comm_rank(run->comm), size = wb_comm_size(run->comm);
    if (!run->cuda) return wb_device_open_cpu(size > 1 ? 1 : 0, &run->device);
    const int gpus = wb_device_count_cuda();
    return wb_device_open_cuda(gpus > 0 ? rank % gpus : 0, NULL, &run->device);
}

static void *run_rank(void *ctx) {
    rank_run *run = ctx;
    const int rank = wb_comm_rank(run->comm), size = wb_comm_size(run->comm);
    run->n_seqs = run->ref->B / size + (rank < run->ref->B % size);
    run->verdict = EXIT_UNREADABLE;
    memcpy(run->bounds, run->ref->bounds, sizeof run->bounds);
    wb_status status = open_device(run);
    wb_model_options options = wb_model_options_default();
    options.device = run->device;
    options.comm = run->comm;
    options.dtype = options.activations = run->ref->dtype;
    if (status == WB_OK) status = wb_model_open(run->ref->dir, &options, &run->model);
    if (status == WB_OK) status = wb_train_open(run->model, NULL, &run->train);
    if (status == WB_OK && run->plant > 0)
        status = scatter_weights(run->model, run->device, run->ref->config.n_layers / 2, 1, run->plant);
    if (status == WB_OK) {
        run->verdict = EXIT_DIFFERENT;
        status = run_checks(run);
        if (status == WB_OK && run->save_dir) status = wb_model_save(run->model, run->save_dir);
    }
    if (status == WB_OK)
        run->verdict = EXIT_PASS;
    else {
        fprintf(stderr, "hf_oracle: rank %d: %s\n", rank, wb_error_message());
        wb_comm_abort(run->comm);
    }
    wb_train_close(run->train);
    wb_model_close(run->model);
    wb_device_close(run->device);
    return NULL;
}

static bool ids_are_compared(int check) {
    return check == ROUTER_IDS || check == GREEDY_IDS || check == GREEDY_ROUTES;
}

/* Prints the table; EXIT_PASS when every check passed on every rank. */
static int report(const reference *ref, const rank_run *runs, int n_ranks) {
    outcome all[N_CHECKS] = {0};
    int64_t n_tensors = 0, n_expected = 0;
    double loss = 0, bounds[N_CHECKS] = {0};
    bool derived = false, no_limit = false;
    int verdict = EXIT_PASS;
    for (int r = 0; r < n_ranks; r++) {
        for (int i = 0; i < N_CHECKS; i++) {
            bounds[i] = fmax(bounds[i], runs[r].bounds[i]);
            derived |= bounds[i] > ref->bounds[i];
            no_limit |= runs[r].has_no_limit;
            const outcome *o = &runs[r].outcomes[i];
            all[i].compared += o->compared;
            all[i].error = ids_are_compared(i) ? all[i].error + o->error : fmax(all[i].error, o->error);
        }
        n_tensors += runs[r].n_tensors;
        n_expected += runs[r].n_tensors_expected;
        loss += runs[r].loss;
        if (runs[r].verdict != EXIT_PASS) return runs[r].verdict;
    }
    const float total = (float)loss;
    see_floats(&all[FORCED_LOSS], 1, &total, ref->forced_loss);

    printf("%-16s %10s %12s %10s %-10s\n", "check", "compared", "error", "limit", "");
    for (int i = 0; i < N_CHECKS; i++) {
        if (i >= MTP_LOGITS && !ref->mtp_logits) continue;
        /* In bf16 the engine goes on by itself, and no token is the reference's. */
        const bool compared = all[i].compared > 0 || (i == GREEDY_IDS && ref->dtype != WB_F32);
        const bool is_exact = i == GREEDY_ROUTES || i == ENGINE_LOGPROBS;
        bool ok = compared && (all[i].error <= bounds[i] || (no_limit && !is_exact));
        if (i == GRADIENTS) ok = ok && n_tensors == n_expected;
        printf("%-16s %10" PRId64 " %12.3g %10.3g %-10s %s\n", checks[i].name, all[i].compared, all[i].error,
               bounds[i], checks[i].unit,
               !ok                     ? "FAIL"
               : no_limit && !is_exact ? "NO LIMIT"
                                       : "PASS");
        if (!ok) verdict = EXIT_DIFFERENT;
    }
    printf("tensors with a gradient compared: %" PRId64 " of %" PRId64 "; %zu listed without one\n",
           n_tensors, n_expected, json_array_size(json_object_get(ref->meta, "params_without_grad")));
    if (no_limit)
        printf("bf16 has no limit here: one more rounding of each weight changes a result by more than twice "
               "of it\n");
    if (derived)
        printf(
            "limits above %g: %d times what one more rounding of each weight changes, the most of %d runs\n",
            LEAST_BOUND, NOISE_FACTOR, NOISE_RUNS);
    return verdict == EXIT_PASS && no_limit ? EXIT_NO_LIMIT : verdict;
}

int main(int argc, char **argv) {
    int n_ranks = 1;
    double plant = 0;
    const char *dir = NULL, *save_dir = NULL, *device = "cpu", *dtype = "f32";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            fputs(usage, stdout);
            return EXIT_PASS;
        }
        if (strcmp(argv[i], "--ranks") == 0 && i + 1 < argc) {
            n_ranks = atoi(argv[++i]);
        } else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc) {
            device = argv[++i];
        } else if (strcmp(argv[i], "--dtype") == 0 && i + 1 < argc) {
            dtype = argv[++i];
        } else if (strcmp(argv[i], "--save") == 0 && i + 1 < argc) {
            save_dir = argv[++i];
        } else if (strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
            plant = atof(argv[++i]);
        } else if (argv[i][0] != '-' && !dir) {
            dir = argv[i];
        } else {
            n_ranks = 0;
        }
    }
    const bool cuda = strcmp(device, "cuda") == 0, bf16 = strcmp(dtype, "bf16") == 0;
    if (!dir || (!bf16 && strcmp(dtype, "f32") != 0) || n_ranks < 1 || n_ranks > 64 ||
        (!cuda && strcmp(device, "cpu") != 0)) {
        fputs(usage, stderr);
        return EXIT_UNREADABLE;
    }

    reference ref;
    reference_open(dir, bf16 ? WB_BF16 : WB_F32, &ref);
    wb_comm *comms[64];
    pthread_t threads[64];
    rank_run *runs = allocate((size_t)n_ranks, sizeof(rank_run));
    if (wb_comm_open_threads(n_ranks, comms) != WB_OK) die("%s", wb_error_message());
    for (int r = 0; r < n_ranks; r++) {
        runs[r].ref = &ref;
        runs[r].save_dir = save_dir;
        runs[r].plant = plant;
        runs[r].cuda = cuda;
        runs[r].comm = comms[r];
        if (pthread_create(&threads[r], NULL, run_rank, &runs[r]) != 0) die("no thread for rank %d", r);
    }
    for (int r = 0; r < n_ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < n_ranks; r++) wb_comm_close(comms[r]);
    const int verdict = report(&ref, runs, n_ranks);
    free(runs);
    reference_close(&ref);
    return verdict;
}
