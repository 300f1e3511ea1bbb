/* dispatch_rows.c - rows of expert ids in, slots out. Refuses: what the slots are chosen by
 * (dispatch_tables.c), loads of all ranks (dispatch_traffic.c). */
#include "dispatch/dispatch_handle.h"
#include "dispatch/routed_rows.h"
#include "wb_formats.h"
#include "wb_hash.h"
#include "wb_random.h"

#include <inttypes.h>
#include <string.h>

uint64_t wb_token_key(const char *rid, uint32_t position) {
    return wb_hash64_seeded(rid, strlen(rid), position);
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

static inline void look_up(const wb_physical_id *table, const uint8_t *row, wb_dtype dtype, uint32_t K,
                           wb_physical_id *out) {
    for (uint32_t k = 0; k < K; k++) out[k] = table[wb_route_id(row, dtype, k)];
}

static void static_row(const wb_dispatch_layer *state, const uint8_t *row, wb_dtype dtype, uint32_t K,
                       wb_physical_id *out) {
    if (dtype == WB_U16)
        look_up(state->table, row, WB_U16, K, out);
    else
        look_up(state->table, row, WB_U8, K, out);
}

/* A hash of key, layer and expert, scaled to the replicas: keys in steps of 2 or 8 are as good as any. */
static void dynamic_row(const wb_layer_map *map, uint64_t token_hash, const uint8_t *row, wb_dtype dtype,
                        uint32_t K, wb_physical_id *out) {
    for (uint32_t k = 0; k < K; k++) {
        uint32_t expert = wb_route_id(row, dtype, k), begin = map->replica_begin[expert];
        uint64_t n = map->replica_begin[expert + 1] - begin;
        out[k] = map->replicas[begin + ((wb_mix64(token_hash ^ expert) >> 32) * n >> 32)];
    }
}

static void quota_row(const wb_dispatch_layer *state, const uint8_t *row, wb_dtype dtype, uint32_t K,
                      wb_physical_id *out) {
    for (uint32_t k = 0; k < K; k++) {
        wb_quota_progress *p = &state->progress[wb_route_id(row, dtype, k)];
        while (p->left == 0) p->left = state->parts[++p->at].tokens;
        p->left--;
        p->remaining--;
        out[k].slot = state->parts[p->at].slot;
    }
}

/* Ranks in turn, and the slots of each in turn: as even over ranks as can be, whatever slots they have. */
static void fake_row(wb_dispatch_layer *state, uint32_t K, wb_physical_id *out) {
    for (uint32_t k = 0; k < K; k++) {
        uint64_t rank = state->turn % state->n_ranks, round = state->turn / state->n_ranks;
        uint32_t begin = state->rank_begin[rank], filled = state->rank_begin[rank + 1] - begin;
        out[k] = state->table[begin + round % filled];
        state->turn++;
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
    wb_dispatch_policy policy = dispatch->policy;
    WB_TRY(wb_dispatch_check_layer(dispatch->placement, layer));
    WB_TRY(open_rows(rows, &in));
    if (policy == WB_DISPATCH_DYNAMIC && !keys)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "dispatch: layer %" PRIu32 ": keys: expected one a token, found NULL", layer);
    WB_TRY(check_ids(&in, layer, dispatch->placement->n_experts));
    if (policy == WB_DISPATCH_QUOTA) WB_TRY(check_quota(dispatch, layer, &in));
    if (policy == WB_DISPATCH_STATIC || policy == WB_DISPATCH_FAKE)
        (void)wb_dispatch_layer_table(dispatch, layer);

    wb_dispatch_layer *state = &dispatch->layers[layer];
    wb_layer_map map = wb_placement_layer(dispatch->placement, layer);
    uint64_t layer_hash = wb_mix64(layer);
    for (uint32_t t = 0; t < in.T; t++) {
        const uint8_t *row = in.bytes + t * in.stride;
        wb_physical_id *slots = out + (size_t)t * in.K;
        if (!wb_row_valid(in.valid, t)) {
            pad_row(slots, in.K);
            continue;
        }
        switch (policy) {
        case WB_DISPATCH_STATIC:
            static_row(state, row, in.dtype, in.K, slots);
            break;
        case WB_DISPATCH_DYNAMIC:
            dynamic_row(&map, wb_mix64(keys[t] ^ layer_hash), row, in.dtype, in.K, slots);
            break;
        case WB_DISPATCH_QUOTA:
            quota_row(state, row, in.dtype, in.K, slots);
            break;
        case WB_DISPATCH_FAKE:
            fake_row(state, in.K, slots);
            break;
        }
    }
    return WB_OK;
}
