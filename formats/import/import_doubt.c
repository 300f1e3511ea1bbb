/* import_doubt.c - rows that are well formed and that no router makes; see import_rows.h. */
#include "import/import_rows.h"
#include "wb_check.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Bits of chance beyond which rows that are alike are no accident: one in a million. */
static const double doubtful_bits = 20;

static bool is_zero(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i]) return false;
    return true;
}

static const uint8_t *row_at(const import_rows *r, uint32_t i) {
    return r->ids + i * wb_route_row_bytes(r->model);
}

/* Whether MoE layer l is zero in all valid rows. */
static bool layer_is_zero(const import_rows *r, uint32_t l) {
    const size_t id_bytes = wb_dtype_size(r->dtype), first = wb_route_layer_first(r->model, l) * id_bytes,
                 bytes = wb_route_layer_k(r->model, l) * id_bytes;
    for (uint32_t i = 0; i < r->rows; i++)
        if (wb_row_valid(r->valid, i) && !is_zero(row_at(r, i) + first, bytes)) return false;
    return true;
}

static wb_status all_zero(uint32_t n) {
    return wb_fail(WB_INVALID_ARGUMENT,
                   "every id of all %" PRIu32 " rows is zero: the engine has not filled its buffer", n);
}

/* An engine that fills no buffer, or that of one pipeline stage, leaves zeros of the right shape. With K > 1
 * a single row shows it, since no expert is chosen twice; with K = 1 zero is an expert, and there have to be
 * enough rows and layers of it. */
static wb_status check_zeros(const import_rows *r) {
    const wb_route_model *m = r->model;
    const uint32_t n = r->rows - r->missing;
    uint32_t first = UINT32_MAX, zero = 0, certain = 0; /* layers that are zero; of these, those with K > 1 */
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        if (!layer_is_zero(r, l)) continue;
        zero++;
        if (wb_route_layer_k(m, l) > 1 && certain++ == 0) first = l;
    }
    const bool all = zero == m->n_moe_layers;
    if (certain == 0 && (!all || n * zero * log2(m->num_experts) < doubtful_bits)) return WB_OK;
    if (all) return all_zero(n);
    return wb_fail(WB_INVALID_ARGUMENT,
                   "MoE layer %" PRIu32 " (model layer %" PRIu32 ") is zero in all %" PRIu32
                   " rows: the engine has not filled it (%" PRIu32 " such layers)",
                   first, m->moe_layers[first], n, certain);
}

/* log2 of the number of rows that there may be. */
static double bits_of_row(const wb_route_model *m) {
    double bits = 0;
    for (uint32_t l = 0; l < m->n_moe_layers; l++)
        for (uint32_t k = 0; k < wb_route_layer_k(m, l); k++) bits += log2(m->num_experts - k);
    return bits;
}

/* Whether all valid rows are one row, and how many there are of it at positions whose token is another than
 * the one of the first. */
static bool is_one_row(const import_rows *r, const import_tokens *t, uint32_t *others_out) {
    uint32_t first = UINT32_MAX, others = 0;
    for (uint32_t i = 0; i < r->rows; i++) {
        if (!wb_row_valid(r->valid, i)) continue;
        if (first == UINT32_MAX) first = i;
        if (memcmp(row_at(r, i), row_at(r, first), wb_route_row_bytes(r->model)) != 0) return false;
        others += t->are_unknown ? i != first : t->tokens[r->start + i] != t->tokens[r->start + first];
    }
    *others_out = others;
    return true;
}

wb_status wb_import_rows_check(const import_rows *rows, const import_tokens *tokens) {
    uint32_t others = 0;
    if (rows->zeros > 0 && rows->zeros == rows->rows) return all_zero(rows->rows);
    if (rows->missing == rows->rows) return WB_OK;
    WB_TRY(check_zeros(rows));
    if (!is_one_row(rows, tokens, &others) || others * bits_of_row(rows->model) < doubtful_bits) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "the same experts in all %" PRIu32 " rows, while the tokens differ: no router did that",
                   rows->rows - rows->missing);
}
