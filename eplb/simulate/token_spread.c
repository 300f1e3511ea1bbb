/* token_spread.c - over how many ranks and nodes the experts of each token of a record are spread. Refuses:
 * choosing replicas (dispatch/). */
#include "dispatch/dispatch_handle.h"
#include "placement/placement_internal.h"
#include "wb_check.h"
#include "wb_memory.h"
#include "wb_simulate.h"

#include <string.h>

/* Rows sent through dispatch at a time; a multiple of 8, so that validity bits stay whole bytes. */
enum { SPREAD_ROWS = 256 };

/* One record's way through a dispatch. */
typedef struct spread {
    wb_owner memory;
    const wb_placement *placement;
    const wb_topology *topology;
    const wb_route_model *model;
    const wb_record *record;
    wb_dispatch *dispatch;
    uint64_t *keys;        /* [SPREAD_ROWS]; NULL under static */
    wb_physical_id *slots; /* [SPREAD_ROWS][K] */
    uint64_t *seen;        /* [R + N] the stamp of the token that was last on a rank or node */
    uint64_t stamp;
    uint8_t *ranks, *nodes; /* [rows of all runs][L] */
} spread;

static void close_spread(spread *s) {
    wb_dispatch_close(s->dispatch);
    wb_owner_close(&s->memory);
}

static wb_status open_spread(wb_dispatch_policy policy, uint32_t rank, spread *s) {
    const char *what = "token spread";
    size_t rows = 0, K = s->model->top_k, L = s->model->n_moe_layers;
    for (uint32_t i = 0; i < s->record->n_routes; i++) rows += s->record->routes[i].rows;
    WB_TRY(wb_dispatch_open(s->placement, policy, rank, &s->dispatch));
    if (policy == WB_DISPATCH_DYNAMIC) WB_TRY(WB_OWN(&s->memory, s->keys, SPREAD_ROWS, what));
    WB_TRY(WB_OWN(&s->memory, s->slots, SPREAD_ROWS * K, what));
    WB_TRY(WB_OWN(&s->memory, s->seen, (size_t)s->topology->n_ranks + s->topology->n_nodes, what));
    WB_TRY(WB_OWN_ALLOC(&s->memory, s->ranks, rows, L, what));
    return WB_OWN_ALLOC(&s->memory, s->nodes, rows, L, what);
}

static void count_once(uint64_t *seen, uint64_t stamp, uint8_t *count) {
    if (*seen == stamp) return;
    *seen = stamp;
    if (*count < UINT8_MAX) (*count)++;
}

/* Distinct ranks and nodes of a token's K slots; a row that is not valid has none, and so has an expert
 * without weights. */
static void count_token(spread *s, uint32_t K, const wb_physical_id *slots, uint8_t *ranks, uint8_t *nodes) {
    s->stamp++;
    for (uint32_t k = 0; k < K; k++) {
        if (slots[k].slot == WB_NO_SLOT) continue;
        uint32_t rank = wb_placement_rank_of(s->placement, slots[k]);
        uint32_t node = s->topology->node_of_rank[rank];
        count_once(&s->seen[rank], s->stamp, ranks);
        count_once(&s->seen[s->topology->n_ranks + node], s->stamp, nodes);
    }
}

/* Rows [first, first + T) of a run, which are row `base` and on of the output. */
static wb_status spread_rows(spread *s, const wb_route_rows *run, uint32_t first, uint32_t T, size_t base) {
    const uint32_t L = s->model->n_moe_layers;
    wb_dtype dtype = wb_route_dtype(s->model->num_experts);
    size_t row_bytes = wb_route_row_bytes(s->model);
    const uint8_t *ids = (const uint8_t *)run->ids + first * row_bytes;
    for (uint32_t t = 0; t < T && s->keys; t++) {
        const uint32_t position = run->start + first + t;
        s->keys[t] = wb_dispatch_token_key((int32_t)s->record->tokens[position], (int32_t)position);
    }
    for (uint32_t l = 0; l < L; l++) {
        const uint32_t K = wb_route_layer_k(s->model, l);
        const wb_routed_rows rows = {.ids = ids + wb_route_layer_first(s->model, l) * wb_dtype_size(dtype),
                                     .dtype = dtype,
                                     .row_stride = row_bytes,
                                     .T = T,
                                     .K = K,
                                     .valid = run->valid ? run->valid + first / 8 : NULL};
        WB_TRY(wb_dispatch_weighted_rows(s->dispatch, l, &rows, s->keys, s->model->n_weightless, s->slots));
        for (uint32_t t = 0; t < T; t++) {
            size_t out = (base + t) * L + l;
            count_token(s, K, s->slots + (size_t)t * K, &s->ranks[out], &s->nodes[out]);
        }
    }
    return WB_OK;
}

static wb_status spread_record(spread *s, size_t *rows_out) {
    size_t base = 0;
    for (uint32_t i = 0; i < s->record->n_routes; i++) {
        const wb_route_rows *run = &s->record->routes[i];
        for (uint32_t first = 0, T; first < run->rows; first += T) {
            T = run->rows - first < SPREAD_ROWS ? run->rows - first : SPREAD_ROWS;
            WB_TRY(spread_rows(s, run, first, T, base + first));
        }
        base += run->rows;
    }
    *rows_out = base;
    return WB_OK;
}

wb_status wb_token_spread(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                          const wb_route_model *model, const wb_record *record, uint8_t *ranks_out,
                          uint8_t *nodes_out) {
    if (policy != WB_DISPATCH_STATIC && policy != WB_DISPATCH_DYNAMIC)
        return wb_fail(WB_INVALID_ARGUMENT, "token spread: policy: expected static or dynamic, found %s",
                       wb_dispatch_policy_name(policy));
    WB_TRY(wb_route_model_check(model));
    WB_TRY(wb_placement_check_size(placement, model->n_moe_layers, wb_route_weighted(model),
                                   "the record's model"));
    WB_TRY(wb_record_check(model, record, true));
    spread s = {.placement = placement,
                .topology = wb_placement_topology(placement),
                .model = model,
                .record = record};
    size_t rows = 0;
    wb_status status = open_spread(policy, rank, &s);
    if (status == WB_OK) status = spread_record(&s, &rows);
    if (status == WB_OK && ranks_out) memcpy(ranks_out, s.ranks, rows * model->n_moe_layers);
    if (status == WB_OK && nodes_out) memcpy(nodes_out, s.nodes, rows * model->n_moe_layers);
    close_spread(&s);
    return status;
}
