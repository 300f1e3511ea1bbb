/* replay_padding.c - which experts padding rows go to: distinct in a row, and in turn over the ranks that
 * hold experts, so that no rank is hotter for it. Refuses: where experts are (the placement). */
#include "replay_state.h"

#include <stdlib.h>

/* An expert's key: how many experts its rank has less 1, the rank, the expert; 16, 32 and 16 bits. Experts of
 * one rank are neighbours in ascending order. */
enum { EXPERT_BITS = 16, SIZE_SHIFT = 48 };

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* One past the last expert of the rank whose first is keys[first]. */
static uint32_t end_of_rank(const uint64_t *keys, uint32_t first, uint32_t E) {
    uint32_t end = first + 1;
    while (end < E && keys[end] >> EXPERT_BITS == keys[first] >> EXPERT_BITS) end++;
    return end;
}

/* Sorts experts by rank, ranks with few experts first; keys [E] hold rank and expert. Returns the number of
 * ranks that hold any. */
static uint32_t sort_by_rank(uint64_t *keys, uint32_t E) {
    uint32_t n_ranks = 0;
    qsort(keys, E, sizeof *keys, ascending);
    for (uint32_t first = 0, end; first < E; first = end, n_ranks++) {
        end = end_of_rank(keys, first, E);
        for (uint32_t i = first; i < end; i++) keys[i] |= (uint64_t)(end - first - 1) << SIZE_SHIFT;
    }
    qsort(keys, E, sizeof *keys, ascending);
    return n_ranks;
}

/* A rank of n experts cannot have more than n of a row's choices. Where that is not more than its even share
 * of the choices that are left, all of its experts are in every row. Ranks ascend by n and shares only grow,
 * so that the first rank with enough experts is followed by such ranks only. */
static void order_layer(uint64_t *keys, uint32_t E, uint32_t K, padding_order *p) {
    uint32_t ranks = sort_by_rank(keys, E), first = 0;
    for (uint32_t i = 0; i < E; i++) p->experts[i] = (uint32_t)keys[i] & ((1u << EXPERT_BITS) - 1);
    /* With more choices than experts every expert is in each row, and no rank has a turn. */
    while (ranks > 0) {
        uint32_t end = end_of_rank(keys, first, E);
        if (K > first && (uint64_t)(end - first) * ranks > K - first) break;
        first = end;
        ranks--;
    }
    p->n_always = first;
    p->n_turns = ranks;
    for (uint32_t i = 0; i < ranks; i++, first = end_of_rank(keys, first, E)) p->starts[i] = first;
    p->starts[ranks] = E;
}

/* The rank that has an expert's replica 0. */
static uint64_t rank_of_first(const wb_placement *placement, uint32_t layer, uint32_t expert) {
    const wb_layer_map map = wb_placement_layer(placement, layer);
    return wb_placement_rank_of(placement, map.replicas[map.replica_begin[expert]]);
}

wb_status wb_replay_open_padding(wb_replay *r) {
    const uint32_t E = wb_route_weighted(&r->model);
    const uint32_t n = r->options.placement || r->model.layer_top_k ? r->model.n_moe_layers : 1;
    uint32_t *experts, *starts;
    r->n_padding = n;
    WB_TRY(WB_OWN(&r->memory, r->padding, n, "replay: padding"));
    WB_TRY(WB_OWN(&r->memory, r->padding_keys, E, "replay: padding"));
    /* No more ranks than experts hold any. */
    WB_TRY(WB_OWN(&r->memory, experts, (size_t)n * E, "replay: padding"));
    WB_TRY(WB_OWN(&r->memory, starts, (size_t)n * (E + 1), "replay: padding"));
    for (uint32_t l = 0; l < n; l++) {
        r->padding[l].experts = experts + (size_t)l * E;
        r->padding[l].starts = starts + (size_t)l * (E + 1);
    }
    return WB_OK;
}

void wb_replay_order_padding(wb_replay *r) {
    const wb_placement *placement = r->options.placement;
    const uint32_t E = wb_route_weighted(&r->model), R = (uint32_t)r->options.n_ranks;
    for (uint32_t l = 0; l < r->n_padding; l++) {
        for (uint32_t e = 0; e < E; e++) {
            const uint64_t rank = placement ? rank_of_first(placement, l, e) : wb_block_of(E, R, e);
            r->padding_keys[e] = rank << EXPERT_BITS | e;
        }
        order_layer(r->padding_keys, E, wb_route_layer_k(&r->model, l), &r->padding[l]);
    }
}

void wb_replay_padding_row(const wb_replay *r, uint32_t layer, uint64_t turn, uint8_t *ids_out) {
    const padding_order *p = &r->padding[r->n_padding > 1 ? layer : 0];
    const uint32_t K = wb_route_layer_k(&r->model, layer), E = wb_route_weighted(&r->model);
    uint32_t k = 0;
    for (; k < p->n_always && k < K; k++) wb_route_id_set(ids_out, r->dtype, k, p->experts[k]);
    /* More choices than there are experts with weights: the others are of those without. */
    for (; p->n_turns == 0 && k < K; k++) wb_route_id_set(ids_out, r->dtype, k, E + (k - p->n_always));
    if (k == K) return;
    /* Each rank has its next expert each time that its turn comes round. */
    uint64_t drawn = turn * (K - k), round = drawn / p->n_turns;
    uint32_t rank = (uint32_t)(drawn % p->n_turns);
    for (; k < K; k++) {
        uint32_t first = p->starts[rank], size = p->starts[rank + 1] - first;
        wb_route_id_set(ids_out, r->dtype, k, p->experts[first + (uint32_t)(round % size)]);
        if (++rank == p->n_turns) rank = 0, round++;
    }
}
