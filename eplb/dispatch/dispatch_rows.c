/* dispatch_rows.c - rows of expert ids in, slots out. Refuses: what the slots are chosen by
 * (dispatch_tables.c), loads of all ranks (dispatch_traffic.c). */
#include "dispatch/dispatch_handle.h"
#include "dispatch/routed_rows.h"
#include "wb_dispatch_rules.h"
#include "wb_formats.h"

#include <inttypes.h>
#include <string.h>

uint64_t wb_dispatch_token_key(int32_t token, int32_t position) {
    return wb_dispatch_key(token, position);
}

/* Rows as they are read. */
typedef struct reader {
    const uint8_t *bytes;
    const uint8_t *valid;
    size_t stride;
    uint32_t T, K;
    wb_dtype dtype;
} reader;

static wb_status open_rows(const wb_routed_rows *rows, reader *in) {
    size_t stride = 0;
    WB_TRY(wb_routed_rows_check(rows, "dispatch", &stride));
    *in = (reader){rows->ids, rows->valid, stride, rows->T, rows->K, rows->dtype};
    return WB_OK;
}

static inline uint32_t largest_id(const uint8_t *row, wb_dtype dtype, uint32_t K) {
    uint32_t largest = 0;
    for (uint32_t k = 0; k < K; k++) {
        uint32_t id = wb_route_id(row, dtype, k);
        if (id > largest) largest = id;
    }
    return largest;
}

static wb_status check_ids(const reader *in, uint32_t layer, uint32_t E) {
    if (E > (in->dtype == WB_U16 ? UINT16_MAX : UINT8_MAX)) return WB_OK; /* every value is an expert */
    for (uint32_t t = 0; t < in->T; t++) {
        const uint8_t *row = in->bytes + t * in->stride;
        if (!wb_row_valid(in->valid, t)) continue;
        if ((in->dtype == WB_U16 ? largest_id(row, WB_U16, in->K) : largest_id(row, WB_U8, in->K)) < E)
            continue;
        uint32_t k = 0;
        while (wb_route_id(row, in->dtype, k) < E) k++;
        return wb_fail(WB_INVALID_ARGUMENT,
                       "dispatch: layer %" PRIu32 ", row %" PRIu32 ", choice %" PRIu32
                       ": id: expected 0..%" PRIu32 ", found %" PRIu32,
                       layer, t, k, E - 1, wb_route_id(row, in->dtype, k));
    }
    return WB_OK;
}

static void pad_row(wb_physical_id *out, uint32_t K) {
    for (uint32_t k = 0; k < K; k++) out[k].slot = WB_NO_SLOT;
}

/* static, dynamic: the rule that kernels go by, over all rows. Inlined for each kind of table and width of
 * id, so that what is the same for all choices is done once. */
static inline void rows_by(wb_dispatch_rule rule, const reader *in, wb_dtype dtype, const uint64_t *keys,
                           wb_physical_id *out) {
    const uint32_t K = in->K;
    for (uint32_t t = 0; t < in->T; t++, out += K) {
        const uint8_t *row = in->bytes + t * in->stride;
        if (!wb_row_valid(in->valid, t)) {
            pad_row(out, K);
            continue;
        }
        const uint64_t key = keys ? keys[t] : 0;
        for (uint32_t k = 0; k < K; k++)
            out[k].slot = (uint32_t)wb_dispatch_slot(&rule, wb_route_id(row, dtype, k), key);
    }
}

static inline void table_rows(wb_dispatch_rule rule, const reader *in, const uint64_t *keys,
                              wb_physical_id *out) {
    if (in->dtype == WB_U16)
        rows_by(rule, in, WB_U16, keys, out);
    else
        rows_by(rule, in, WB_U8, keys, out);
}

static void quota_rows(wb_dispatch_layer *state, const reader *in, wb_physical_id *out) {
    for (uint32_t t = 0; t < in->T; t++, out += in->K) {
        const uint8_t *row = in->bytes + t * in->stride;
        if (!wb_row_valid(in->valid, t)) {
            pad_row(out, in->K);
            continue;
        }
        for (uint32_t k = 0; k < in->K; k++) {
            wb_quota_progress *p = &state->progress[wb_route_id(row, in->dtype, k)];
            while (p->left == 0) p->left = state->parts[++p->at].tokens;
            p->left--;
            p->remaining--;
            out[k].slot = state->parts[p->at].slot;
        }
    }
}

/* Ranks in turn, and the slots of each in turn: as even over ranks as can be, whatever slots they have. */
static void fake_rows(wb_dispatch_layer *state, const reader *in, wb_physical_id *out) {
    for (uint32_t t = 0; t < in->T; t++, out += in->K) {
        if (!wb_row_valid(in->valid, t)) {
            pad_row(out, in->K);
            continue;
        }
        for (uint32_t k = 0; k < in->K; k++, state->turn++) {
            uint64_t rank = state->turn % state->n_ranks, round = state->turn / state->n_ranks;
            uint32_t begin = state->rank_begin[rank], filled = state->rank_begin[rank + 1] - begin;
            out[k].slot = (uint32_t)state->table[begin + round % filled];
        }
    }
}

/* quota: the layer has counts for the map as it is, and as many tokens are left of each expert. */
static wb_status check_quota(wb_dispatch *d, uint32_t layer, const reader *in) {
    const wb_dispatch_layer *state = &d->layers[layer];
    uint32_t excess = UINT32_MAX;
    if (!state->made)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "dispatch: layer %" PRIu32 ": expected wb_dispatch_set_counts first", layer);
    if (state->version != d->placement->version[layer])
        return wb_fail(WB_MISMATCH,
                       "dispatch: layer %" PRIu32 ": its map has changed (epoch %" PRIu64
                       ") since the counts were set: expected wb_dispatch_set_counts again",
                       layer, d->placement->epoch[layer]);
    for (uint32_t t = 0; t < in->T; t++)
        for (uint32_t k = 0; wb_row_valid(in->valid, t) && k < in->K; k++) {
            uint32_t expert = wb_route_id(in->bytes + t * in->stride, in->dtype, k);
            if (++d->tally[expert] > state->progress[expert].remaining) excess = expert;
        }
    if (excess != UINT32_MAX) {
        const wb_quota_progress *p = &state->progress[excess];
        (void)wb_fail(WB_MISMATCH,
                      "dispatch: layer %" PRIu32 ", expert %" PRIu32 ": expected %" PRIu32
                      " tokens of rank %" PRIu32 ", found %" PRIu64,
                      layer, excess, p->announced, d->rank,
                      (uint64_t)(p->announced - p->remaining) + d->tally[excess]);
    }
    memset(d->tally, 0, d->placement->n_experts * sizeof *d->tally);
    return excess == UINT32_MAX ? WB_OK : WB_MISMATCH;
}

wb_status wb_dispatch_rows(wb_dispatch *dispatch, uint32_t layer, const wb_routed_rows *rows,
                           const uint64_t *keys, wb_physical_id *out) {
    reader in = {0};
    const wb_dispatch_policy policy = dispatch->policy;
    const uint32_t E = dispatch->placement->n_experts;
    WB_TRY(wb_dispatch_check_layer(dispatch->placement, layer));
    WB_TRY(open_rows(rows, &in));
    if (policy == WB_DISPATCH_DYNAMIC && !keys)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "dispatch: layer %" PRIu32 ": keys: expected one a token, found NULL", layer);
    WB_TRY(check_ids(&in, layer, E));
    if (policy == WB_DISPATCH_QUOTA) WB_TRY(check_quota(dispatch, layer, &in));

    wb_dispatch_layer *state = &dispatch->layers[layer];
    if (policy != WB_DISPATCH_QUOTA) (void)wb_dispatch_layer_table(dispatch, layer);
    switch (policy) {
    case WB_DISPATCH_STATIC:
        table_rows(wb_dispatch_table_rule(false, state->table, E, layer), &in, NULL, out);
        break;
    case WB_DISPATCH_DYNAMIC:
        table_rows(wb_dispatch_table_rule(true, state->table, E, layer), &in, keys, out);
        break;
    case WB_DISPATCH_QUOTA:
        quota_rows(state, &in, out);
        break;
    case WB_DISPATCH_FAKE:
        fake_rows(state, &in, out);
        break;
    }
    return WB_OK;
}

wb_status wb_dispatch_weighted_rows(wb_dispatch *dispatch, uint32_t layer, const wb_routed_rows *rows,
                                    const uint64_t *keys, uint32_t n_weightless, wb_physical_id *out) {
    reader in = {0};
    const uint32_t E = dispatch->placement->n_experts;
    if (n_weightless == 0) return wb_dispatch_rows(dispatch, layer, rows, keys, out);
    WB_TRY(wb_dispatch_check_layer(dispatch->placement, layer));
    WB_TRY(open_rows(rows, &in));
    WB_TRY(check_ids(&in, layer, E + n_weightless));
    const wb_dispatch_layer *state = wb_dispatch_layer_table(dispatch, layer);
    const bool dynamic = dispatch->policy == WB_DISPATCH_DYNAMIC;
    const wb_dispatch_rule rule = wb_dispatch_table_rule(dynamic, state->table, E, layer);
    for (uint32_t t = 0; t < in.T; t++, out += in.K) {
        pad_row(out, in.K);
        for (uint32_t k = 0; wb_row_valid(in.valid, t) && k < in.K; k++) {
            const uint32_t id = wb_route_id(in.bytes + t * in.stride, in.dtype, k);
            if (id < E) out[k].slot = (uint32_t)wb_dispatch_slot(&rule, id, keys ? keys[t] : 0);
        }
    }
    return WB_OK;
}
