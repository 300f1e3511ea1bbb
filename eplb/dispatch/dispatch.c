/* dispatch.c - the slot for each token of one rank: the handle, its tables, and rows of expert ids in,
 * slots out. Refuses: how shares are found (dispatch_quota.c), loads of all ranks (dispatch_traffic.c). */
#include "dispatch/dispatch_internal.h"
#include "wb_memory.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* quota: this rank's tokens of one slot. */
typedef struct part {
    uint32_t slot, tokens;
} part;

/* quota: how far the tokens of an expert are. */
typedef struct progress {
    uint32_t at;   /* the part they come from next */
    uint32_t left; /* tokens left of that part */
    uint32_t announced, remaining;
} progress;

/* One layer, made at `version` of its map. Arrays are slices of the handle's. */
typedef struct layer_state {
    bool made;
    uint64_t version;
    wb_physical_id *table; /* static: [E]. fake: the slots that hold an expert, by rank */
    uint32_t *rank_begin;  /* fake: [n_ranks + 1] where the slots of each rank that has any begin in table */
    uint32_t n_ranks;
    uint64_t turn;      /* fake: tokens sent so far, from this rank's number on: ranks do not start alike */
    part *parts;        /* quota: [S] */
    progress *progress; /* quota: [E] */
} layer_state;

struct wb_dispatch {
    const wb_placement *placement; /* borrowed */
    wb_dispatch_policy policy;
    uint32_t rank;
    layer_state *layers;     /* [L] */
    wb_physical_id *tables;  /* static: [L][E]. fake: [L][S] */
    uint32_t *rank_begins;   /* fake: [L][R + 1] */
    part *parts;             /* quota: [L][S] */
    progress *progress;      /* quota: [L][E] */
    uint32_t *tally;         /* quota: [E] tokens of the present call, all zero between calls */
    wb_dispatch_frame frame; /* static, quota: scratch */
};

static const char *const policy_names[] = {"static", "dynamic", "quota", "fake"};
#define N_POLICIES (sizeof policy_names / sizeof policy_names[0])

const char *wb_dispatch_policy_name(wb_dispatch_policy policy) {
    return (size_t)policy < N_POLICIES ? policy_names[policy] : "unknown";
}

wb_status wb_dispatch_policy_parse(const char *name, wb_dispatch_policy *policy_out) {
    for (size_t i = 0; i < N_POLICIES; i++) {
        if (strcmp(policy_names[i], name) != 0) continue;
        *policy_out = (wb_dispatch_policy)i;
        return WB_OK;
    }
    return wb_fail(WB_INVALID_ARGUMENT,
                   "dispatch policy: expected static, dynamic, quota or fake, found '%s'", name);
}

/* ---- the handle ------------------------------------------------------------------------------ */

static wb_status allocate(wb_dispatch *d) {
    size_t L = d->placement->n_layers, E = d->placement->n_experts, S = d->placement->topology.n_slots;
    bool fixed = d->policy == WB_DISPATCH_STATIC, quota = d->policy == WB_DISPATCH_QUOTA;
    bool fake = d->policy == WB_DISPATCH_FAKE;
    size_t table = fixed ? E : fake ? S : 0, ranks = fake ? (size_t)d->placement->topology.n_ranks + 1 : 0;
    WB_TRY(WB_NEW(d->layers, L, "dispatch layers"));
    WB_TRY(WB_NEW(d->tables, L * table, "dispatch tables"));
    WB_TRY(WB_NEW(d->rank_begins, L * ranks, "dispatch tables"));
    WB_TRY(WB_NEW(d->parts, quota ? L * S : 0, "quota parts"));
    WB_TRY(WB_NEW(d->progress, quota ? L * E : 0, "quota parts"));
    WB_TRY(WB_NEW(d->tally, quota ? E : 0, "quota parts"));
    if (fixed || quota) WB_TRY(wb_dispatch_frame_open(d->placement, &d->frame));
    for (size_t layer = 0; layer < L; layer++)
        d->layers[layer] = (layer_state){.table = d->tables + layer * table,
                                         .rank_begin = d->rank_begins + layer * ranks,
                                         .turn = d->rank,
                                         .parts = d->parts + (quota ? layer * S : 0),
                                         .progress = d->progress + (quota ? layer * E : 0)};
    return WB_OK;
}

wb_status wb_dispatch_open(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                           wb_dispatch **dispatch_out) {
    const wb_topology *topology = &placement->topology;
    if ((size_t)policy >= N_POLICIES)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch: policy: expected 0..%zu, found %d", N_POLICIES - 1,
                       (int)policy);
    if (rank >= topology->n_ranks)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch: rank: expected 0..%" PRIu32 ", found %" PRIu32,
                       topology->n_ranks - 1, rank);
    if (topology->dead[rank])
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch: rank %" PRIu32 " is dead: it has no tokens", rank);
    wb_dispatch *d = NULL;
    WB_TRY(WB_NEW(d, 1, "dispatch"));
    d->placement = placement;
    d->policy = policy;
    d->rank = rank;
    wb_status status = allocate(d);
    if (status != WB_OK) {
        wb_dispatch_close(d);
        return status;
    }
    *dispatch_out = d;
    return WB_OK;
}

void wb_dispatch_close(wb_dispatch *dispatch) {
    if (!dispatch) return;
    wb_dispatch_frame_close(&dispatch->frame);
    free(dispatch->tally);
    free(dispatch->progress);
    free(dispatch->parts);
    free(dispatch->rank_begins);
    free(dispatch->tables);
    free(dispatch->layers);
    free(dispatch);
}

/* ---- tables ---------------------------------------------------------------------------------- */

static void list_filled_slots(const wb_placement *placement, const int32_t *expert_of_slot,
                              layer_state *state) {
    uint32_t n = 0;
    state->n_ranks = 0;
    for (uint32_t rank = 0; rank < placement->topology.n_ranks; rank++) {
        uint32_t begin = n;
        for (uint32_t slot = placement->first_slot[rank]; slot < placement->first_slot[rank + 1]; slot++)
            if (expert_of_slot[slot] != WB_NO_EXPERT) state->table[n++].slot = slot;
        if (n > begin) state->rank_begin[state->n_ranks++] = begin;
    }
    state->rank_begin[state->n_ranks] = n;
}

/* static, fake: the layer's table, by the map as it is now. */
static const layer_state *table_of(wb_dispatch *d, uint32_t layer) {
    layer_state *state = &d->layers[layer];
    wb_layer_map map = wb_placement_layer(d->placement, layer);
    if (state->made && state->version == d->placement->version[layer]) return state;
    state->made = true;
    state->version = d->placement->version[layer];
    if (d->policy == WB_DISPATCH_STATIC) {
        wb_dispatch_frame_read(&d->frame, layer);
        for (uint32_t e = 0; e < d->placement->n_experts; e++)
            state->table[e].slot = wb_static_slot(&d->frame, e, d->rank);
        return state;
    }
    list_filled_slots(d->placement, map.expert_of_slot, state);
    return state;
}

wb_status wb_dispatch_table(wb_dispatch *dispatch, uint32_t layer, const wb_physical_id **table_out) {
    if (dispatch->policy != WB_DISPATCH_STATIC)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch table: expected policy static, found %s",
                       wb_dispatch_policy_name(dispatch->policy));
    WB_TRY(wb_dispatch_check_layer(dispatch->placement, layer));
    *table_out = table_of(dispatch, layer)->table;
    return WB_OK;
}

/* ---- quota: this rank's parts ---------------------------------------------------------------- */

typedef struct own_parts {
    uint32_t rank;
    part *parts;
} own_parts;

static void keep_own(void *ctx, uint32_t from_rank, uint32_t j, uint32_t tokens) {
    own_parts *own = ctx;
    if (from_rank == own->rank) own->parts[j].tokens += tokens;
}

/* Cuts shares [S] into those of each source rank and keeps this rank's. */
static void cut_shares(wb_dispatch *d, uint32_t layer, const uint32_t *counts, uint32_t *shares,
                       uint32_t *columns) {
    const wb_dispatch_frame *frame = &d->frame;
    uint32_t R = d->placement->topology.n_ranks, E = d->placement->n_experts;
    layer_state *state = &d->layers[layer];
    own_parts own = {d->rank, state->parts};
    for (uint32_t j = 0; j < frame->begin[E]; j++) state->parts[j] = (part){frame->slots[j], 0};
    for (uint32_t first = 0; first < E; first += WB_COLUMN_BLOCK) {
        uint32_t n = E - first < WB_COLUMN_BLOCK ? E - first : WB_COLUMN_BLOCK;
        wb_dispatch_columns(d->placement, counts, first, n, columns);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t e = first + i, announced = counts[(size_t)d->rank * E + e], at = frame->begin[e];
            if (announced > 0) wb_quota_split(frame, e, columns + (size_t)i * R, shares, keep_own, &own);
            state->progress[e] = (progress){at, state->parts[at].tokens, announced, announced};
        }
    }
    state->made = true;
    state->version = d->placement->version[layer];
}

wb_status wb_dispatch_set_counts(wb_dispatch *dispatch, uint32_t layer, const uint32_t *counts) {
    const wb_placement *placement = dispatch->placement;
    uint64_t *tokens = NULL;
    uint32_t *shares = NULL, *columns = NULL;
    wb_status status = WB_OK;
    if (dispatch->policy != WB_DISPATCH_QUOTA)
        return wb_fail(WB_INVALID_ARGUMENT, "dispatch counts: expected policy quota, found %s",
                       wb_dispatch_policy_name(dispatch->policy));
    WB_TRY(wb_dispatch_check_layer(placement, layer));
    WB_GOTO(WB_NEW(tokens, placement->n_experts, "dispatch counts"), close);
    WB_GOTO(WB_NEW(shares, placement->topology.n_slots, "quota"), close);
    WB_GOTO(WB_NEW(columns, (size_t)placement->topology.n_ranks * WB_COLUMN_BLOCK, "columns of counts"),
            close);
    WB_GOTO(wb_dispatch_sum_counts(placement, layer, counts, tokens), close);
    wb_dispatch_frame_read(&dispatch->frame, layer);
    WB_GOTO(wb_quota_shares(&dispatch->frame, counts, tokens, shares), close);
    cut_shares(dispatch, layer, counts, shares, columns);
close:
    free(columns);
    free(shares);
    free(tokens);
    return status;
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* Rows as they are read. */
typedef struct reader {
    const uint8_t *bytes;
    const uint8_t *valid;
    size_t stride;
    uint32_t T, K;
    bool wide; /* u16 */
} reader;

static inline uint32_t id_at(const uint8_t *row, bool wide, uint32_t k) {
    return wide ? (uint32_t)row[2 * (size_t)k] | (uint32_t)row[2 * (size_t)k + 1] << 8 : row[k];
}

static wb_status open_rows(const wb_routed_rows *rows, reader *in) {
    size_t stride = 0;
    WB_TRY(wb_routed_rows_check(rows, "dispatch", &stride));
    *in = (reader){rows->ids, rows->valid, stride, rows->T, rows->K, rows->dtype == WB_U16};
    return WB_OK;
}

static inline uint32_t largest_id(const uint8_t *row, bool wide, uint32_t K) {
    uint32_t largest = 0;
    for (uint32_t k = 0; k < K; k++) {
        uint32_t id = id_at(row, wide, k);
        if (id > largest) largest = id;
    }
    return largest;
}

static wb_status check_ids(const reader *in, uint32_t layer, uint32_t E) {
    if (E > (in->wide ? UINT16_MAX : UINT8_MAX)) return WB_OK; /* every value is an expert */
    for (uint32_t t = 0; t < in->T; t++) {
        const uint8_t *row = in->bytes + t * in->stride;
        if (!wb_row_valid(in->valid, t)) continue;
        if ((in->wide ? largest_id(row, true, in->K) : largest_id(row, false, in->K)) < E) continue;
        uint32_t k = 0;
        while (id_at(row, in->wide, k) < E) k++;
        return wb_fail(WB_INVALID_ARGUMENT,
                       "dispatch: layer %" PRIu32 ", row %" PRIu32 ", place %" PRIu32
                       ": id: expected 0..%" PRIu32 ", found %" PRIu32,
                       layer, t, k, E - 1, id_at(row, in->wide, k));
    }
    return WB_OK;
}

static void pad_row(wb_physical_id *out, uint32_t K) {
    for (uint32_t k = 0; k < K; k++) out[k].slot = WB_NO_SLOT;
}

static inline void look_up(const wb_physical_id *table, const uint8_t *row, bool wide, uint32_t K,
                           wb_physical_id *out) {
    for (uint32_t k = 0; k < K; k++) out[k] = table[id_at(row, wide, k)];
}

static void static_row(const layer_state *state, const uint8_t *row, bool wide, uint32_t K,
                       wb_physical_id *out) {
    if (wide)
        look_up(state->table, row, true, K, out);
    else
        look_up(state->table, row, false, K, out);
}

/* A hash of key, layer and expert, scaled to the replicas: keys in steps of 2 or 8 are as good as any. */
static void dynamic_row(const wb_layer_map *map, uint64_t token_hash, const uint8_t *row, bool wide,
                        uint32_t K, wb_physical_id *out) {
    for (uint32_t k = 0; k < K; k++) {
        uint32_t expert = id_at(row, wide, k), begin = map->replica_begin[expert];
        uint64_t n = map->replica_begin[expert + 1] - begin;
        out[k] = map->replicas[begin + ((wb_mix64(token_hash ^ expert) >> 32) * n >> 32)];
    }
}

static void quota_row(const layer_state *state, const uint8_t *row, bool wide, uint32_t K,
                      wb_physical_id *out) {
    for (uint32_t k = 0; k < K; k++) {
        progress *p = &state->progress[id_at(row, wide, k)];
        while (p->left == 0) p->left = state->parts[++p->at].tokens;
        p->left--;
        p->remaining--;
        out[k].slot = state->parts[p->at].slot;
    }
}

/* Ranks in turn, and the slots of each in turn: as even over ranks as can be, whatever slots they have. */
static void fake_row(layer_state *state, uint32_t K, wb_physical_id *out) {
    for (uint32_t k = 0; k < K; k++) {
        uint64_t rank = state->turn % state->n_ranks, round = state->turn / state->n_ranks;
        uint32_t begin = state->rank_begin[rank], filled = state->rank_begin[rank + 1] - begin;
        out[k] = state->table[begin + round % filled];
        state->turn++;
    }
}

/* quota: the layer has counts for the map as it is, and as many tokens are left of each expert. */
static wb_status check_quota(wb_dispatch *d, uint32_t layer, const reader *in) {
    const layer_state *state = &d->layers[layer];
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
            uint32_t expert = id_at(in->bytes + t * in->stride, in->wide, k);
            if (++d->tally[expert] > state->progress[expert].remaining) excess = expert;
        }
    if (excess != UINT32_MAX) {
        const progress *p = &state->progress[excess];
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
    if (policy == WB_DISPATCH_STATIC || policy == WB_DISPATCH_FAKE) (void)table_of(dispatch, layer);

    layer_state *state = &dispatch->layers[layer];
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
            static_row(state, row, in.wide, in.K, slots);
            break;
        case WB_DISPATCH_DYNAMIC:
            dynamic_row(&map, wb_mix64(keys[t] ^ layer_hash), row, in.wide, in.K, slots);
            break;
        case WB_DISPATCH_QUOTA:
            quota_row(state, row, in.wide, in.K, slots);
            break;
        case WB_DISPATCH_FAKE:
            fake_row(state, in.K, slots);
            break;
        }
    }
    return WB_OK;
}
