/* hf_reference.h - what Hugging Face transformers computed of a model, as make_oracle.py wrote it:
 * config.json and model.safetensors, ref.safetensors, grads.safetensors, meta.json. A directory that lacks
 * any of it, or has it in another shape, stops the program. Refuses: the comparison, and how far it may be
 * off (hf_limits.h). */
#ifndef HF_REFERENCE_H
#define HF_REFERENCE_H

#include "tools/hf_checks.h"
#include "tools/hf_mtp.h"
#include "wb_model.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

/* Tokens that are given of a greedy sequence. */
enum { PROMPT = 7 };

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
    double bounds[N_CHECKS];         /* of hf_limits.h: of the largest error; ids: of how many differ */
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

#endif
