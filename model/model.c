/* model.c - opening, creating, copying and closing a model.
 * Refuses: what is in a checkpoint (checkpoint_load.c), which tensors there are (registry.c), the forward. */
#include "checkpoint.h"
#include "wb_hash.h"
#include "wb_memory.h"
#include "wb_random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- fingerprint ----------------------------------------------------------------------------- */

/* Everything that changes the function or the meaning of a route; nothing that a training step or a
 * machine changes (weights, dtype, max_positions). */
static void set_fingerprint(const wb_config *c, wb_route_model *routes) {
    char text[2048];
    const wb_router *r = &c->router;
    bool dense = routes->n_moe_layers < routes->num_hidden_layers;
    int used = snprintf(text, sizeof text,
                        "waybill model 1\nfamily %s\nhidden %d\nlayers %d\nheads %d %d %d\nexpert_width %d\n"
                        "dense_width %d\nvocab %d\neps %.9g\nrope_theta %.17g\ntied %d\nbias %d\nqk_norm %d\n"
                        "clip %.9g\nrouter %s\nexperts %d\ntop_k %d\nscale %.9g\nmoe_layers",
                        routes->name, c->hidden_size, c->n_layers, c->n_heads, c->n_kv_heads, c->head_dim,
                        c->expert_width, dense ? c->dense_width : 0, c->vocab_size, (double)c->norm_eps,
                        c->rope_theta, c->tie_word_embeddings, c->attention_bias, (int)c->qk_norm,
                        (double)c->clip_qkv, routes->router, r->n_experts, r->top_k, (double)r->scale);
    for (size_t i = 0; i < 16; i++)
        used += snprintf(text + used, sizeof text - (size_t)used, " %016llx",
                         (unsigned long long)c->moe_layer_mask[i]);
    wb_hash128_hex(text, (size_t)used, routes->fingerprint);
}

static wb_status describe_routes(wb_model *m) {
    const wb_config *c = &m->config;
    wb_route_model *routes = &m->route_model;
    uint32_t n = 0;
    WB_TRY(WB_NEW(m->moe_layers, (size_t)c->n_layers, "moe layers"));
    for (int32_t l = 0; l < c->n_layers; l++)
        if (wb_config_is_moe(c, l)) m->moe_layers[n++] = (uint32_t)l;
    snprintf(routes->name, sizeof routes->name, "%s", wb_family_rules_of(c->family)->model_type);
    snprintf(routes->router, sizeof routes->router, "%s", wb_router_name(c->router.type));
    routes->num_hidden_layers = (uint32_t)c->n_layers;
    routes->n_moe_layers = n;
    routes->moe_layers = m->moe_layers;
    routes->num_experts = (uint32_t)c->router.n_experts;
    routes->top_k = (uint32_t)c->router.top_k;
    set_fingerprint(c, routes);
    return wb_route_model_check(routes);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Angles in f32 like the reference implementation; their cosine and sine to the nearest f32. */
static void fill_rope(const wb_config *c, float *cos_host, float *sin_host) {
    int32_t half = c->head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)c->head_dim;
        float frequency = 1.0f / (float)pow(c->rope_theta, (double)exponent);
        for (int32_t p = 0; p < c->max_positions; p++) {
            float angle = (float)p * frequency;
            cos_host[(size_t)p * (size_t)half + (size_t)i] = (float)cos((double)angle);
            sin_host[(size_t)p * (size_t)half + (size_t)i] = (float)sin((double)angle);
        }
    }
}

static wb_status make_rope(wb_model *m) {
    wb_device *dev = m->device;
    size_t n = (size_t)m->config.max_positions * (size_t)(m->config.head_dim / 2), bytes = n * sizeof(float);
    float *host = NULL;
    WB_TRY(dev->mem_alloc(dev, bytes, (void **)&m->cos_table));
    WB_TRY(dev->mem_alloc(dev, bytes, (void **)&m->sin_table));
    WB_TRY(WB_NEW(host, 2 * n, "rope tables"));
    fill_rope(&m->config, host, host + n);
    wb_status status = dev->to_device(dev, m->cos_table, host, bytes);
    if (status == WB_OK) status = dev->to_device(dev, m->sin_table, host + n, bytes);
    free(host);
    return status;
}

static wb_status fill_model(wb_model *m) {
    WB_TRY(wb_registry_build(m));
    WB_TRY(describe_routes(m));
    for (int32_t i = 0; i < m->n_params; i++) {
        wb_param *p = &m->params[i];
        WB_TRY(m->device->mem_alloc(m->device, (size_t)p->n * wb_dtype_size(p->dtype), &p->data));
    }
    return make_rope(m);
}

/* A model without weights. */
static wb_status new_model(const wb_config *config, const wb_model_options *options, wb_model **model_out) {
    wb_model *m = NULL;
    WB_TRY(wb_config_check(config));
    if (options->dtype != WB_F32 && options->dtype != WB_BF16)
        return wb_fail(WB_INVALID_ARGUMENT, "dtype: expected f32 or bf16, found %s",
                       wb_dtype_name(options->dtype));
    WB_TRY(WB_NEW(m, 1, "model"));
    m->config = *config;
    m->device = options->device;
    m->comm = options->comm;
    m->dtype = options->dtype;
    wb_status status = fill_model(m);
    if (status != WB_OK) {
        wb_model_close(m);
        return status;
    }
    *model_out = m;
    return WB_OK;
}

void wb_model_close(wb_model *m) {
    if (!m) return;
    for (int32_t i = 0; i < m->n_params; i++) m->device->mem_free(m->device, m->params[i].data);
    m->device->mem_free(m->device, m->cos_table);
    m->device->mem_free(m->device, m->sin_table);
    free(m->params);
    free(m->layers);
    free(m->expert_rank);
    free(m->expert_slot);
    free(m->tensors);
    free(m->names);
    free(m->moe_layers);
    free(m->source_dir);
    free(m->source_config);
    free(m);
}

/* ---- open ------------------------------------------------------------------------------------ */

static wb_status check_options(const wb_model_options *options) {
    if (!options || !options->device || !options->comm)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "model options: expected a device and a communicator, found NULL");
    return WB_OK;
}

/* What all ranks must have in common. `source` tells checkpoints (or seeds) apart. */
static wb_status check_peers(const wb_model *m, const void *source, size_t bytes) {
    int32_t sizes[2] = {(int32_t)m->dtype, m->config.max_positions};
    WB_TRY(wb_comm_check_equal(m->comm, m->route_model.fingerprint, sizeof m->route_model.fingerprint,
                               "model fingerprint"));
    WB_TRY(wb_comm_check_equal(m->comm, sizes, sizeof sizes, "model dtype and max_positions"));
    return wb_comm_check_equal(m->comm, source, bytes, "source of the weights");
}

static wb_status open_local(const char *dir, const wb_model_options *options, wb_safetensors **files,
                            wb_model **model) {
    wb_config config;
    char *text = NULL;
    if (!dir) return wb_fail(WB_INVALID_ARGUMENT, "model directory: NULL");
    WB_TRY(wb_config_read(dir, &config, &text));
    wb_status status = wb_safetensors_open(dir, NULL, files);
    if (status == WB_OK) status = new_model(&config, options, model);
    if (status != WB_OK) {
        free(text);
        return status;
    }
    (*model)->source_config = text;
    return wb_text_format(&(*model)->source_dir, "%s", dir);
}

wb_status wb_model_open(const char *dir, const wb_model_options *options, wb_model **model_out) {
    wb_model *m = NULL;
    wb_safetensors *files = NULL;
    wb_status status;
    WB_TRY(check_options(options));
    WB_GOTO(wb_comm_agree(options->comm, open_local(dir, options, &files, &m)), close);
    uint64_t digest = wb_safetensors_digest(files);
    WB_GOTO(check_peers(m, &digest, sizeof digest), close);
    WB_GOTO(wb_comm_agree(options->comm, wb_checkpoint_load(m, files, dir)), close);
    wb_safetensors_close(files);
    *model_out = m;
    return WB_OK;
close:
    wb_safetensors_close(files);
    wb_model_close(m);
    return status;
}

/* ---- create ---------------------------------------------------------------------------------- */

#define CHUNK_ELEMENTS ((int64_t)1 << 18)

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

/* Elements [first, first + n) of a new tensor, f32. */
static void fill_new(const wb_tensor *t, uint64_t key, float std, int64_t first, int64_t n, float *out) {
    const char *dot = strrchr(t->name, '.');
    float constant = strcmp(dot, ".bias") == 0 ? 0.0f : 1.0f;
    for (int64_t i = 0; i < n; i++)
        out[i] = t->n_dims == 1 ? constant : std * normal(key, (uint64_t)(first + i));
}

static wb_status init_tensor(const wb_model *m, const wb_tensor *t, uint64_t seed, float std, float *values,
                             void *rounded) {
    uint64_t key = wb_mix64(wb_hash64_seeded(t->name, strlen(t->name), seed));
    for (int64_t first = 0; first < t->n; first += CHUNK_ELEMENTS) {
        int64_t n = t->n - first < CHUNK_ELEMENTS ? t->n - first : CHUNK_ELEMENTS;
        size_t size = wb_dtype_size(t->dtype);
        fill_new(t, key, std, first, n, values);
        wb_convert(n, values, WB_F32, rounded, t->dtype);
        WB_TRY(m->device->to_device(m->device, (char *)t->data + (size_t)first * size, rounded,
                                    (size_t)n * size));
    }
    return WB_OK;
}

static wb_status init_weights(wb_model *m, uint64_t seed, float std) {
    float *values = NULL; /* two chunks: as computed, as stored */
    if (!(isfinite(std) && std >= 0))
        return wb_fail(WB_INVALID_ARGUMENT, "std: expected a finite number of at least 0, found %g",
                       (double)std);
    WB_TRY(WB_NEW(values, 2 * (size_t)CHUNK_ELEMENTS, "random weights"));
    wb_status status = WB_OK;
    for (int32_t i = 0; status == WB_OK && i < m->n_tensors; i++) {
        wb_tensor t = wb_model_tensor(m, i);
        if (t.data) status = init_tensor(m, &t, seed, std, values, values + CHUNK_ELEMENTS);
    }
    free(values);
    return status;
}

static wb_status create_local(const wb_config *config, uint64_t seed, float std,
                              const wb_model_options *options, wb_model **model) {
    if (!config) return wb_fail(WB_INVALID_ARGUMENT, "model config: NULL");
    WB_TRY(new_model(config, options, model));
    return init_weights(*model, seed, std);
}

wb_status wb_model_create(const wb_config *config, uint64_t seed, float std, const wb_model_options *options,
                          wb_model **model_out) {
    wb_model *m = NULL;
    wb_status status;
    WB_TRY(check_options(options));
    WB_GOTO(wb_comm_agree(options->comm, create_local(config, seed, std, options, &m)), close);
    uint64_t source[2] = {seed, 0};
    memcpy(&source[1], &std, sizeof std);
    WB_GOTO(check_peers(m, source, sizeof source), close);
    *model_out = m;
    return WB_OK;
close:
    wb_model_close(m);
    return status;
}

/* ---- use ------------------------------------------------------------------------------------- */

const wb_config *wb_model_config(const wb_model *model) {
    return &model->config;
}

const wb_route_model *wb_model_routes(const wb_model *model) {
    return &model->route_model;
}

wb_device *wb_model_device(const wb_model *model) {
    return model->device;
}

wb_comm *wb_model_comm(const wb_model *model) {
    return model->comm;
}

static wb_status check_copy(const wb_model *to, const wb_model *from) {
    WB_TRY(wb_route_model_match(&from->route_model, &to->route_model));
    if (wb_comm_rank(to->comm) != wb_comm_rank(from->comm) ||
        wb_comm_size(to->comm) != wb_comm_size(from->comm))
        return wb_fail(WB_MISMATCH, "copy weights: expected rank %d of %d, found rank %d of %d",
                       wb_comm_rank(from->comm), wb_comm_size(from->comm), wb_comm_rank(to->comm),
                       wb_comm_size(to->comm));
    if (to->device->backend != from->device->backend)
        return wb_fail(WB_MISMATCH, "copy weights: expected device %s, found %s", from->device->name,
                       to->device->name);
    size_t bytes = (size_t)to->config.router.n_experts * sizeof *to->expert_rank;
    if (memcmp(to->expert_rank, from->expert_rank, bytes) != 0 ||
        memcmp(to->expert_slot, from->expert_slot, bytes) != 0)
        return wb_fail(WB_MISMATCH, "copy weights: the models' experts are placed differently");
    return WB_OK;
}

wb_status wb_model_copy_weights(wb_model *to, const wb_model *from) {
    wb_device *dev = to->device;
    WB_TRY(check_copy(to, from));
    for (int32_t i = 0; i < to->n_params; i++) {
        const wb_param *t = &to->params[i], *f = &from->params[i];
        if (t->dtype == f->dtype)
            WB_TRY(dev->copy(dev, t->data, f->data, (size_t)t->n * wb_dtype_size(t->dtype)));
        else if (dev->cast)
            WB_TRY(dev->cast(dev, t->n, f->data, f->dtype, t->data, t->dtype));
        else
            return wb_fail(WB_UNSUPPORTED, "copy weights: device %s cannot cast %s to %s", dev->name,
                           wb_dtype_name(f->dtype), wb_dtype_name(t->dtype));
    }
    return WB_OK;
}
