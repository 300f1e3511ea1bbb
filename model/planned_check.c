/* planned_check.c - see planned_check.h. Refuses: whether the rows go to the experts of their ids, which the
 * pass reads back from them (wb_moe_rows_used). */
#include "planned_check.h"
#include "model_dispatch.h"

#include <inttypes.h>

/* From so many tokens on threads share the check, for which the device waits. */
enum { SHARED_TOKENS = 1024 };

/* What every layer is checked against. */
typedef struct checked_pass {
    const wb_model *model;
    const uint8_t *direction;
    int64_t T;
    int32_t K, S;
    uint64_t placement_hash;
    int64_t n_rows; /* choices of rows that are no padding */
} checked_pass;

static wb_status count_rows(checked_pass *c) {
    c->n_rows = 0;
    if (c->T > 0 && !c->direction)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "planned: expected rows that are forced or padding, found all native");
    for (int64_t t = 0; t < c->T; t++) {
        if (c->direction[t] == WB_ROW_NATIVE)
            return wb_fail(
                WB_INVALID_ARGUMENT,
                "planned: token %" PRId64 ": expected a forced or a padding row, found a native one", t);
        if (c->direction[t] != WB_ROW_PADDING) c->n_rows += c->K;
    }
    return WB_OK;
}

static wb_status check_offsets(const checked_pass *c, uint32_t l, const int32_t *offsets) {
    if (offsets[0] != 0 || offsets[c->S] != c->n_rows)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "planned: MoE layer %" PRIu32 ": expected rows from 0 to %" PRId64 ", found %" PRId32
                       " to %" PRId32,
                       l, c->n_rows, offsets[0], offsets[c->S]);
    for (int32_t s = 0; s < c->S; s++)
        if (offsets[s + 1] < offsets[s])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "planned: MoE layer %" PRIu32 ", slot %" PRId32
                           ": expected its rows to end at %" PRId32 " or later, found %" PRId32,
                           l, s, offsets[s], offsets[s + 1]);
    return WB_OK;
}

/* Rows of one token differ, and a row has one token: no two choices share one, so each row is somebody's. */
static bool is_row_of(const checked_pass *c, const wb_planned_layer *p, int64_t t, int32_t k) {
    const int32_t *rows = p->pair_row + t * c->K;
    if (c->direction[t] == WB_ROW_PADDING) return rows[k] == -1;
    if (rows[k] < 0 || rows[k] >= c->n_rows || p->row_token[rows[k]] != t) return false;
    for (int32_t j = 0; j < k; j++)
        if (rows[j] == rows[k]) return false;
    return true;
}

static bool pairs_are_good(const checked_pass *c, const wb_planned_layer *p) {
    bool good = true;
#pragma omp parallel for schedule(static) reduction(&& : good) if (c->T >= SHARED_TOKENS)
    for (int64_t t = 0; t < c->T; t++)
        for (int32_t k = 0; k < c->K; k++) good = good && is_row_of(c, p, t, k);
    return good;
}

/* Names the first one that is not. */
static wb_status check_pairs(const checked_pass *c, uint32_t l, const wb_planned_layer *p) {
    if (pairs_are_good(c, p)) return WB_OK;
    for (int64_t t = 0; t < c->T; t++)
        for (int32_t k = 0; k < c->K; k++)
            if (!is_row_of(c, p, t, k))
                return wb_fail(WB_INVALID_ARGUMENT,
                               "planned: MoE layer %" PRIu32 ", token %" PRId64 ", choice %" PRId32
                               ": expected %s, found row %" PRId32,
                               l, t, k, c->direction[t] == WB_ROW_PADDING ? "-1" : "a row of its own",
                               p->pair_row[t * c->K + k]);
    return WB_OK;
}

/* What other ranks send cannot be known here, but how many there can be, and what this rank sends itself. */
static wb_status check_received(const checked_pass *c, uint32_t l, const wb_planned_layer *p) {
    const wb_model *model = c->model;
    const int32_t R = model->n_ranks, self = model->rank;
    const int64_t here = wb_model_local_slots(model), first = wb_model_first_slot(model);
    for (int64_t i = 0; i < R * here; i++) {
        const int32_t *own = p->offsets + first + i % here;
        if (p->received[i] < 0 || (i / here == self && p->received[i] != own[1] - own[0]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "planned: MoE layer %" PRIu32 ": expected %s for slot %" PRId64
                           " from rank %" PRId64 ", found %" PRId32,
                           l, i / here == self ? "this rank's own rows" : "0 or more rows", first + i % here,
                           i / here, p->received[i]);
    }
    return WB_OK;
}

static wb_status check_layer(const checked_pass *c, uint32_t l, const wb_planned_layer *p) {
    if (p->placement_hash != c->placement_hash)
        return wb_fail(WB_MISMATCH,
                       "planned: MoE layer %" PRIu32 ": expected a plan for the model's placement %016" PRIx64
                       ", found one for %016" PRIx64,
                       l, c->placement_hash, p->placement_hash);
    if (p->T != c->T)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "planned: MoE layer %" PRIu32 ": expected %" PRId64 " tokens, found %" PRId64, l, c->T,
                       p->T);
    if (!p->offsets || !p->pair_row || !p->row_token || !p->received)
        return wb_fail(WB_INVALID_ARGUMENT, "planned: MoE layer %" PRIu32 ": expected all arrays, found NULL",
                       l);
    WB_TRY(check_offsets(c, l, p->offsets));
    WB_TRY(check_pairs(c, l, p));
    return check_received(c, l, p);
}

wb_status wb_planned_check(const wb_model *model, int64_t T, const uint8_t *direction,
                           const wb_planned_layer *planned) {
    checked_pass c = {.model = model,
                      .direction = direction,
                      .T = T,
                      .K = model->config.router.top_k,
                      .S = wb_model_n_slots(model),
                      .placement_hash = wb_placement_hash(model->placement)};
    WB_TRY(count_rows(&c));
    for (uint32_t l = 0; l < model->route_model.n_moe_layers; l++) WB_TRY(check_layer(&c, l, &planned[l]));
    return WB_OK;
}
