/* route_model.c - the route model: what makes one well formed, and when two are the same.
 * Refuses: files, records (record_check.c). */
#include "wb_check.h"
#include "wb_formats.h"
#include "wb_route_limits.h"
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
    if (m->num_hidden_layers == 0 || m->num_hidden_layers > WB_MAX_LAYERS)
        return wb_fail(WB_INVALID_ARGUMENT, "model num_hidden_layers: expected 1..%u, found %" PRIu32,
                       WB_MAX_LAYERS, m->num_hidden_layers);
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
    WB_TRY(layers_check(m));
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
    WB_TRY(match_text("router", expected->router, found->router));
    for (uint32_t l = 0; l < expected->n_moe_layers; l++)
        WB_TRY(match_number("moe_layers", expected->moe_layers[l], found->moe_layers[l]));
    return match_text("fingerprint", expected->fingerprint, found->fingerprint);
}
