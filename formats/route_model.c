/* route_model.c - the route model: what makes one well formed, and when two are the same;
 * copies of one. Refuses: files, records (record_check.c). */
#include "wb_check.h"
#include "wb_route_limits.h"
#include "wb_route_model.h"
#include "wb_text.h"

#include <inttypes.h>
#include <string.h>

/* A non-empty NUL-terminated string inside its array. */
static wb_status field_check(const char *field, const char *text, size_t capacity) {
    size_t length = strnlen(text, capacity);
    if (length == capacity || length == 0 || !wb_text_ok(text, length))
        return wb_fail(WB_INVALID_ARGUMENT, "model %s: expected 1..%zu bytes of UTF-8", field, capacity - 1);
    return WB_OK;
}

static wb_status layers_check(const wb_route_model *m) {
    if (m->num_hidden_layers == 0 || m->num_hidden_layers > WB_MAX_MODEL_LAYERS)
        return wb_fail(WB_INVALID_ARGUMENT, "model num_hidden_layers: expected 1..%u, found %" PRIu32,
                       WB_MAX_MODEL_LAYERS, m->num_hidden_layers);
    if (m->n_moe_layers == 0 || m->n_moe_layers > m->num_hidden_layers)
        return wb_fail(WB_INVALID_ARGUMENT, "model n_moe_layers: expected 1..%" PRIu32 ", found %" PRIu32,
                       m->num_hidden_layers, m->n_moe_layers);
    if (!m->moe_layers) return wb_fail(WB_INVALID_ARGUMENT, "model moe_layers: NULL");
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        if (m->moe_layers[l] >= m->num_hidden_layers || (l > 0 && m->moe_layers[l] <= m->moe_layers[l - 1]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "model moe_layers[%" PRIu32 "]: expected ascending and < %" PRIu32
                           ", found %" PRIu32,
                           l, m->num_hidden_layers, m->moe_layers[l]);
    }
    return WB_OK;
}

static wb_status layer_top_k_check(const wb_route_model *m) {
    uint32_t most = 0;
    for (uint32_t l = 0; m->layer_top_k && l < m->n_moe_layers; l++) {
        const uint32_t k = m->layer_top_k[l];
        if (k == 0 || k > m->top_k)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "model layer_top_k[%" PRIu32 "]: expected 1..%" PRIu32 ", found %" PRIu32, l,
                           m->top_k, k);
        if (k > most) most = k;
    }
    if (m->layer_top_k && most != m->top_k)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "model top_k: expected %" PRIu32 ", the largest of layer_top_k, found %" PRIu32, most,
                       m->top_k);
    return WB_OK;
}

static wb_status hash_layers_check(const wb_route_model *m) {
    if (m->n_hash_layers > m->n_moe_layers || (m->n_hash_layers > 0 && !m->hash_layers))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "model n_hash_layers: expected 0..%" PRIu32 " with hash_layers, found %" PRIu32,
                       m->n_moe_layers, m->n_hash_layers);
    for (uint32_t i = 0; i < m->n_hash_layers; i++)
        if (m->hash_layers[i] >= m->n_moe_layers || (i > 0 && m->hash_layers[i] <= m->hash_layers[i - 1]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "model hash_layers[%" PRIu32 "]: expected ascending and < %" PRIu32
                           ", found %" PRIu32,
                           i, m->n_moe_layers, m->hash_layers[i]);
    return WB_OK;
}

/* Whether layer i of the list uses its own indexer, or that of one before it which does. */
static bool source_ok(const wb_route_model *m, uint32_t i) {
    const uint32_t source = m->indexer_source[i];
    if (source == m->indexer_layers[i]) return true;
    for (uint32_t j = 0; j < i; j++)
        if (m->indexer_layers[j] == source) return m->indexer_source[j] == source;
    return false;
}

static wb_status indexer_check(const wb_route_model *m) {
    const uint32_t n = m->n_indexer_layers;
    if (n > m->num_hidden_layers)
        return wb_fail(WB_INVALID_ARGUMENT, "model n_indexer_layers: expected 0..%" PRIu32 ", found %" PRIu32,
                       m->num_hidden_layers, n);
    if (n == 0 ? m->indexer_k != 0 : m->indexer_k == 0 || m->indexer_k > WB_MAX_TOKENS)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "model indexer_k: expected 1..%u, and 0 without indexer layers, found %" PRIu32,
                       WB_MAX_TOKENS, m->indexer_k);
    if (m->indexer_rate > (n == 0 ? 0 : WB_MAX_TOKENS))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "model indexer_rate: expected 0..%u, and 0 without indexer layers, found %" PRIu32,
                       WB_MAX_TOKENS, m->indexer_rate);
    if (n > 0 && (!m->indexer_layers || !m->indexer_source))
        return wb_fail(WB_INVALID_ARGUMENT, "model indexer_layers or indexer_source: NULL with a count");
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t layer = m->indexer_layers[i];
        if (layer >= m->num_hidden_layers || (i > 0 && layer <= m->indexer_layers[i - 1]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "model indexer_layers[%" PRIu32 "]: expected ascending and < %" PRIu32
                           ", found %" PRIu32,
                           i, m->num_hidden_layers, layer);
        if (!source_ok(m, i))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "model indexer_source[%" PRIu32 "]: expected layer %" PRIu32
                           ", or one before it in the list that uses its own indexer, found %" PRIu32,
                           i, layer, m->indexer_source[i]);
    }
    return WB_OK;
}

wb_status wb_route_model_check(const wb_route_model *m) {
    WB_TRY(field_check("name", m->name, sizeof m->name));
    WB_TRY(field_check("router", m->router, sizeof m->router));
    WB_TRY(field_check("fingerprint", m->fingerprint, sizeof m->fingerprint));
    if (strspn(m->fingerprint, "0123456789abcdef") != sizeof m->fingerprint - 1)
        return wb_fail(WB_INVALID_ARGUMENT, "model fingerprint: expected 32 lower-case hex digits, found %s",
                       m->fingerprint);
    if (m->num_experts == 0 || m->num_experts > WB_MAX_EXPERTS)
        return wb_fail(WB_INVALID_ARGUMENT, "model num_experts: expected 1..%u, found %" PRIu32,
                       WB_MAX_EXPERTS, m->num_experts);
    if (m->top_k == 0 || m->top_k > m->num_experts)
        return wb_fail(WB_INVALID_ARGUMENT, "model top_k: expected 1..%" PRIu32 ", found %" PRIu32,
                       m->num_experts, m->top_k);
    if (m->n_weightless >= m->num_experts)
        return wb_fail(WB_INVALID_ARGUMENT, "model n_weightless: expected 0..%" PRIu32 ", found %" PRIu32,
                       m->num_experts - 1, m->n_weightless);
    WB_TRY(layers_check(m));
    WB_TRY(layer_top_k_check(m));
    WB_TRY(hash_layers_check(m));
    WB_TRY(indexer_check(m));
    if (wb_route_row_bytes(m) > WB_MAX_ROW_BYTES)
        return wb_fail(WB_INVALID_ARGUMENT, "model: a row of %zu bytes is over the limit of %zu",
                       wb_route_row_bytes(m), WB_MAX_ROW_BYTES);
    return WB_OK;
}

static wb_status match_text(const char *field, const char *expected, const char *found) {
    if (strcmp(expected, found) == 0) return WB_OK;
    return wb_fail(WB_MISMATCH, "model %s: expected %s, found %s", field, expected, found);
}

static wb_status match_number(const char *field, uint32_t expected, uint32_t found) {
    if (expected == found) return WB_OK;
    return wb_fail(WB_MISMATCH, "model %s: expected %" PRIu32 ", found %" PRIu32, field, expected, found);
}

wb_status wb_route_model_match(const wb_route_model *expected, const wb_route_model *found) {
    WB_TRY(match_text("name", expected->name, found->name));
    WB_TRY(match_number("num_hidden_layers", expected->num_hidden_layers, found->num_hidden_layers));
    WB_TRY(match_number("n_moe_layers", expected->n_moe_layers, found->n_moe_layers));
    WB_TRY(match_number("num_experts", expected->num_experts, found->num_experts));
    WB_TRY(match_number("top_k", expected->top_k, found->top_k));
    for (uint32_t l = 0; l < expected->n_moe_layers; l++)
        WB_TRY(match_number("layer_top_k", wb_route_layer_k(expected, l), wb_route_layer_k(found, l)));
    WB_TRY(match_number("n_weightless", expected->n_weightless, found->n_weightless));
    WB_TRY(match_text("router", expected->router, found->router));
    for (uint32_t l = 0; l < expected->n_moe_layers; l++)
        WB_TRY(match_number("moe_layers", expected->moe_layers[l], found->moe_layers[l]));
    WB_TRY(match_number("n_hash_layers", expected->n_hash_layers, found->n_hash_layers));
    for (uint32_t i = 0; i < expected->n_hash_layers; i++)
        WB_TRY(match_number("hash_layers", expected->hash_layers[i], found->hash_layers[i]));
    WB_TRY(match_number("n_indexer_layers", expected->n_indexer_layers, found->n_indexer_layers));
    WB_TRY(match_number("indexer_k", expected->indexer_k, found->indexer_k));
    /* A file from before there was a rate is of the same model. */
    if (expected->indexer_rate > 0 && found->indexer_rate > 0)
        WB_TRY(match_number("indexer_rate", expected->indexer_rate, found->indexer_rate));
    for (uint32_t i = 0; i < expected->n_indexer_layers; i++) {
        WB_TRY(match_number("indexer_layers", expected->indexer_layers[i], found->indexer_layers[i]));
        WB_TRY(match_number("indexer_source", expected->indexer_source[i], found->indexer_source[i]));
    }
    return match_text("fingerprint", expected->fingerprint, found->fingerprint);
}

static wb_status copy_list(wb_owner *memory, const uint32_t **list, uint32_t n, const char *what) {
    uint32_t *copy = NULL;
    if (!*list) return WB_OK;
    WB_TRY(WB_OWN(memory, copy, n, what));
    for (uint32_t i = 0; i < n; i++) copy[i] = (*list)[i];
    *list = copy;
    return WB_OK;
}

wb_status wb_route_model_copy(wb_owner *memory, const wb_route_model *model, const char *what,
                              wb_route_model *copy_out) {
    wb_route_model copy = *model;
    WB_TRY(copy_list(memory, &copy.moe_layers, copy.n_moe_layers, what));
    WB_TRY(copy_list(memory, &copy.layer_top_k, copy.n_moe_layers, what));
    WB_TRY(copy_list(memory, &copy.hash_layers, copy.n_hash_layers, what));
    WB_TRY(copy_list(memory, &copy.indexer_layers, copy.n_indexer_layers, what));
    WB_TRY(copy_list(memory, &copy.indexer_source, copy.n_indexer_layers, what));
    *copy_out = copy;
    return WB_OK;
}
