/* config_routes.c - whose routes those of a config.json are, also where this engine does not compute the
 * model or keys that it needs are absent: then only what routes depend on is read, by the rules of its
 * family.
 *
 * Refuses: models of no family, by name. */
#include "config.h"
#include "wb_check.h"
#include "wb_file.h"
#include "wb_hash.h"
#include "wb_json.h"
#include "wb_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BYTES = 16 << 20 };

/* The number under the first of the keys that is there: families spell it differently. */
static wb_status read_number(const json_t *root, const char *const *keys, int32_t max, int32_t *value_out) {
    const char *first = *keys;
    for (; *keys; keys++) {
        if (!wb_json_value(root, *keys)) continue;
        WB_TRY(wb_json_int(root, *keys, WB_JSON_REQUIRED, value_out));
        return wb_config_in_range(*keys, *value_out, 1, max);
    }
    return wb_fail(WB_CORRUPT, "%s: expected an integer, found none", first);
}

/* ---- the route model ------------------------------------------------------------------------------ */

static void set_fingerprint(const wb_family_rules *rules, int32_t hidden, uint32_t vocab, wb_route_model *m) {
    char text[512], layers[33];
    const int used =
        snprintf(text, sizeof text,
                 "waybill routes 1\nfamily %s\nhidden %d\nlayers %" PRIu32 "\nvocab %" PRIu32
                 "\nrouter %s\nexperts %" PRIu32 "\ntop_k %" PRIu32,
                 rules->model_type, hidden, m->num_hidden_layers, vocab, m->router, m->num_experts, m->top_k);
    wb_hash128_hex(m->moe_layers, m->n_moe_layers * sizeof *m->moe_layers, layers);
    snprintf(text + used, sizeof text - (size_t)used, "\nmoe_layers %s", layers);
    wb_hash128_hex(text, strlen(text), m->fingerprint);
}

/* Of a family that has experts in every layer: which of these are hash-routed, and which layers have an
 * indexer. lists: [2 * n_layers]. */
static wb_status read_compressed(const json_t *root, int32_t n_layers, uint32_t *lists,
                                 wb_route_model *model) {
    wb_config config = {.n_layers = n_layers};
    WB_TRY(wb_config_read_compressed(root, &config));
    WB_TRY(wb_config_in_range("index_topk", config.compressed.index_top_k, 1, 65536));
    WB_TRY(wb_config_in_range("compress_rates.compressed_sparse_attention", config.compressed.sparse_rate, 1,
                              65536));
    for (int32_t l = 0; l < n_layers; l++)
        if (wb_config_is_hash(&config, l)) lists[model->n_hash_layers++] = (uint32_t)l;
    if (model->n_hash_layers > 0) model->hash_layers = lists;
    wb_config_describe_indexers(&config, lists + n_layers, model);
    return WB_OK;
}

static wb_status read_routes(const json_t *root, const wb_family_rules *rules, uint32_t *moe_layers,
                             wb_route_model *model, uint32_t *vocab_out) {
    static const char *const layers[] = {"num_hidden_layers", NULL}, *const hiddens[] = {"hidden_size", NULL},
                             *const experts[] = {"num_experts", "num_local_experts", "n_routed_experts",
                                                 NULL},
                             *const choices[] = {"num_experts_per_tok", "num_experts_per_token",
                                                 "experts_per_token", NULL},
                             *const vocabs[] = {"vocab_size", NULL};
    int32_t n_layers, hidden, n_experts, top_k, vocab;
    uint64_t mask[WB_LAYER_MASK_WORDS];
    bool normalizes = rules->norm_topk_prob;
    WB_TRY(read_number(root, layers, WB_MAX_LAYERS, &n_layers));
    WB_TRY(read_number(root, hiddens, INT32_MAX, &hidden));
    WB_TRY(read_number(root, experts, 65536, &n_experts));
    WB_TRY(read_number(root, choices, n_experts, &top_k));
    WB_TRY(read_number(root, vocabs, INT32_MAX, &vocab));
    if (wb_json_value(root, "norm_topk_prob")) WB_TRY(wb_json_bool(root, "norm_topk_prob", &normalizes));
    WB_TRY(wb_config_read_moe_layers(root, rules->moe_layers, rules->first_dense, n_layers, mask));
    snprintf(model->name, sizeof model->name, "%s", rules->model_type);
    snprintf(model->router, sizeof model->router, "%s", wb_router_name(rules->router_types[normalizes]));
    model->num_hidden_layers = (uint32_t)n_layers;
    model->num_experts = (uint32_t)n_experts;
    model->top_k = (uint32_t)top_k;
    model->moe_layers = moe_layers;
    for (int32_t l = 0; l < n_layers; l++)
        if (mask[l / 64] >> (l % 64) & 1u) moe_layers[model->n_moe_layers++] = (uint32_t)l;
    if (model->n_moe_layers == 0)
        return wb_fail(WB_INVALID_ARGUMENT, "expected a layer with experts, found none");
    if (rules->compressed) WB_TRY(read_compressed(root, n_layers, moe_layers + n_layers, model));
    set_fingerprint(rules, hidden, (uint32_t)vocab, model);
    *vocab_out = (uint32_t)vocab;
    return wb_route_model_check(model);
}

/* A model that this engine runs has the fingerprint that the engine gives it. How weights are stored changes
 * no route; UNSUPPORTED: the engine does not compute such a model; CORRUPT: the file lacks what it needs. */
static wb_status as_engine(json_t *root, wb_family family, uint32_t *moe_layers, wb_route_model *model,
                           uint32_t *vocab_out) {
    wb_config config = {.family = family};
    const wb_family_rules *rules = wb_family_rules_of(family);
    json_t *part;
    json_object_del(root, "quantization_config");
    WB_TRY(wb_config_language_part(root, rules, &part));
    const wb_status status = wb_config_parse(part, rules, &config);
    json_decref(part);
    WB_TRY(status);
    if (config.layer_top_k[0] > 0) /* the route model would point into the configuration, which goes here */
        return wb_fail(WB_INVALID_ARGUMENT, "layer_top_k: expected one K for all layers");
    *vocab_out = (uint32_t)config.vocab_size;
    return wb_config_routes(&config, moe_layers, model);
}

static wb_status read_root(json_t *root, uint32_t *moe_layers, wb_route_model *model, uint32_t *vocab_out) {
    wb_family family;
    WB_TRY(wb_config_family(root, &family));
    const wb_status status = as_engine(root, family, moe_layers, model, vocab_out);
    /* CORRUPT: a key is absent or of another type. If routes depend on it, that is found again below. */
    if (status != WB_UNSUPPORTED && status != WB_CORRUPT) return status;
    const json_t *text = wb_json_value(root, "text_config");
    if (!json_is_object(text) || wb_json_value(root, "num_hidden_layers")) text = root;
    *model = (wb_route_model){0};
    return read_routes(text, wb_family_rules_of(family), moe_layers, model, vocab_out);
}

wb_status wb_routes_of_folder(const char *dir, uint32_t *moe_layers_out, wb_route_model *model_out,
                              uint32_t *vocab_size_out) {
    char *path = NULL, *text = NULL;
    size_t bytes = 0;
    json_t *root = NULL;
    wb_route_model model = {0};
    uint32_t layers[WB_ROUTE_LISTS_MAX] = {0}, vocab = 0;
    _Static_assert(WB_ROUTE_LISTS_MAX == 3 * WB_MAX_LAYERS, "three lists of all layers");
    WB_TRY(wb_text_format(&path, "%s/config.json", dir));
    wb_status status = wb_file_read(path, MAX_BYTES, &text, &bytes);
    if (status == WB_OK) status = wb_json_parse(text, bytes, path, &root);
    if (status == WB_OK) {
        status = read_root(root, layers, &model, &vocab);
        if (status != WB_OK) status = wb_fail_context(status, "%s", path);
    }
    json_decref(root);
    free(text);
    free(path);
    if (status != WB_OK) return status;
    memcpy(moe_layers_out, layers, sizeof layers);
    model.moe_layers = moe_layers_out;
    if (model.hash_layers) model.hash_layers = moe_layers_out + (model.hash_layers - layers);
    if (model.indexer_layers) model.indexer_layers = moe_layers_out + (model.indexer_layers - layers);
    if (model.indexer_source) model.indexer_source = moe_layers_out + (model.indexer_source - layers);
    *model_out = model;
    *vocab_size_out = vocab;
    return WB_OK;
}
