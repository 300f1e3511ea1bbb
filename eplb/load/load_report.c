/* load_report.c - what load statistics say under a placement: balancedness of the ranks, and over how many
 * ranks and nodes a token's experts are spread. Owns: these figures, the key of a token. Refuses:
 * counting, choosing replicas (dispatch). */
#include "load/load_internal.h"
#include "wb_hash.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static wb_status check_shape(const wb_placement *placement, uint32_t L, uint32_t E, const char *what) {
    if (wb_placement_layers(placement) == L && wb_placement_experts(placement) == E) return WB_OK;
    return wb_fail(WB_MISMATCH,
                   "%s has L %" PRIu32 " and E %" PRIu32 ", the placement L %" PRIu32 " and E %" PRIu32, what,
                   L, E, wb_placement_layers(placement), wb_placement_experts(placement));
}

/* ---- balancedness --------------------------------------------------------------------------------- */

/* The ratios mean / max of one layer's ranks, over passes with tokens, and what they are ratios of. */
typedef struct balance {
    double ratio_sum, mean_sum, max_sum;
    uint32_t n;
} balance;

/* Over live ranks: a dead one has no load and would only pull the mean down. */
static void add_ranks(const wb_topology *topology, const double *rank_loads, balance *b) {
    double sum = 0, most = 0;
    uint32_t live = 0;
    for (uint32_t r = 0; r < topology->n_ranks; r++) {
        if (topology->dead[r]) continue;
        sum += rank_loads[r];
        if (rank_loads[r] > most) most = rank_loads[r];
        live++;
    }
    if (!(most > 0)) return;
    b->ratio_sum += sum / live / most;
    b->mean_sum += sum / live;
    b->max_sum += most;
    b->n++;
}

/* scratch [E + R] */
static balance layer_balance(const wb_load *load, const wb_load_table *table, uint32_t phases,
                             uint32_t passes, const wb_placement *placement, uint32_t layer,
                             double *scratch) {
    balance b = {0};
    double *loads = scratch, *rank_loads = scratch + table->shape.n_experts;
    for (uint32_t age = 0; age < passes; age++) {
        wb_load_layer_counts(table, wb_load_place(load, age), phases, layer, loads);
        wb_placement_rank_loads(placement, layer, loads, rank_loads);
        add_ranks(wb_placement_topology(placement), rank_loads, &b);
    }
    return b;
}

wb_status wb_load_balancedness(const wb_load *load, uint32_t region, uint32_t phases, uint32_t passes,
                               const wb_placement *placement, double *by_layer_out, double *mean_out,
                               double *weighted_out) {
    WB_TRY(wb_load_check_query(load, region, phases));
    const wb_load_table *table = &load->regions[region];
    uint32_t L = table->shape.n_layers, E = table->shape.n_experts, with_tokens = 0;
    WB_TRY(check_shape(placement, L, E, "the load region"));
    if (passes == 0 || passes > load->passes) passes = load->passes;

    double *scratch, *by_layer, sum = 0, means = 0, maxima = 0;
    void *block;
    WB_TRY(WB_ALLOC(block, (size_t)L + E + wb_placement_topology(placement)->n_ranks, sizeof *scratch,
                    "load balancedness"));
    by_layer = block;
    scratch = by_layer + L;
    for (uint32_t l = 0; l < L; l++) {
        balance b = layer_balance(load, table, phases, passes, placement, l, scratch);
        by_layer[l] = b.n ? b.ratio_sum / b.n : 1;
        means += b.mean_sum;
        maxima += b.max_sum;
        if (b.n == 0) continue;
        sum += by_layer[l];
        with_tokens++;
    }
    if (with_tokens > 0) {
        if (by_layer_out) memcpy(by_layer_out, by_layer, L * sizeof *by_layer);
        if (mean_out) *mean_out = sum / with_tokens;
        if (weighted_out) *weighted_out = means / maxima;
    }
    free(by_layer);
    if (with_tokens > 0) return WB_OK;
    return wb_fail(WB_NOT_FOUND, "load of region \"%s\": none of %" PRIu32 " passes has tokens",
                   table->shape.name, passes);
}

/* ---- spread of tokens ------------------------------------------------------------------------ */

uint64_t wb_token_key(const char *rid, uint32_t position) {
    return wb_hash64_seeded(rid, strlen(rid), position);
}

enum {
    SPREAD_ROWS = 256
}; /* sent through dispatch at a time; a multiple of 8, so that validity bits stay whole bytes */

/* One record's way through a dispatch. */
typedef struct spread {
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
    free(s->keys);
    free(s->slots);
    free(s->seen);
    free(s->ranks);
    free(s->nodes);
}

static wb_status open_spread(wb_dispatch_policy policy, uint32_t rank, spread *s) {
    uint32_t L = s->model->n_moe_layers;
    size_t rows = 0;
    void *block;
    for (uint32_t i = 0; i < s->record->n_routes; i++) rows += s->record->routes[i].rows;
    WB_TRY(wb_dispatch_open(s->placement, policy, rank, &s->dispatch));
    if (policy == WB_DISPATCH_DYNAMIC) {
        WB_TRY(WB_ALLOC(block, SPREAD_ROWS, sizeof *s->keys, "token spread"));
        s->keys = block;
    }
    WB_TRY(WB_ALLOC(block, (size_t)SPREAD_ROWS * s->model->top_k, sizeof *s->slots, "token spread"));
    s->slots = block;
    WB_TRY(WB_ALLOC(block, (size_t)s->topology->n_ranks + s->topology->n_nodes, sizeof *s->seen,
                    "token spread"));
    s->seen = block;
    WB_TRY(WB_ALLOC(block, rows, L, "token spread"));
    s->ranks = block;
    WB_TRY(WB_ALLOC(block, rows, L, "token spread"));
    s->nodes = block;
    return WB_OK;
}

static void count_once(uint64_t *seen, uint64_t stamp, uint8_t *count) {
    if (*seen == stamp) return;
    *seen = stamp;
    if (*count < UINT8_MAX) (*count)++;
}

/* Distinct ranks and nodes of a token's K slots; a row that is not valid has none. */
static void count_token(spread *s, const wb_physical_id *slots, uint8_t *ranks, uint8_t *nodes) {
    s->stamp++;
    for (uint32_t k = 0; k < s->model->top_k && slots[k].slot != WB_NO_SLOT; k++) {
        uint32_t rank = wb_placement_rank_of(s->placement, slots[k]);
        uint32_t node = s->topology->node_of_rank[rank];
        count_once(&s->seen[rank], s->stamp, ranks);
        count_once(&s->seen[s->topology->n_ranks + node], s->stamp, nodes);
    }
}

/* Rows [first, first + T) of a run, which are row `base` and on of the output. */
static wb_status spread_rows(spread *s, const wb_route_rows *run, uint32_t first, uint32_t T, size_t base) {
    uint32_t L = s->model->n_moe_layers, K = s->model->top_k;
    wb_dtype dtype = wb_route_dtype(s->model->num_experts);
    size_t row_bytes = wb_route_row_bytes(s->model);
    const uint8_t *ids = (const uint8_t *)run->ids + first * row_bytes;
    for (uint32_t t = 0; t < T && s->keys; t++)
        s->keys[t] = wb_token_key(s->record->rid, run->start + first + t);
    for (uint32_t l = 0; l < L; l++) {
        const wb_routed_rows rows = {.ids = ids + (size_t)l * K * wb_dtype_size(dtype),
                                     .dtype = dtype,
                                     .row_stride = row_bytes,
                                     .T = T,
                                     .K = K,
                                     .valid = run->valid ? run->valid + first / 8 : NULL};
        WB_TRY(wb_dispatch_rows(s->dispatch, l, &rows, s->keys, s->slots));
        for (uint32_t t = 0; t < T; t++) {
            size_t out = (base + t) * L + l;
            count_token(s, s->slots + (size_t)t * K, &s->ranks[out], &s->nodes[out]);
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

wb_status wb_load_token_spread(const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank,
                               const wb_route_model *model, const wb_record *record, uint8_t *ranks_out,
                               uint8_t *nodes_out) {
    if (policy != WB_DISPATCH_STATIC && policy != WB_DISPATCH_DYNAMIC)
        return wb_fail(WB_INVALID_ARGUMENT, "token spread: policy: expected static or dynamic, found %s",
                       wb_dispatch_policy_name(policy));
    WB_TRY(wb_route_model_check(model));
    WB_TRY(check_shape(placement, model->n_moe_layers, model->num_experts, "the record's model"));
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
