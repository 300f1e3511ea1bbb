/* placement_fixture.h - random placements of a model's experts, for the tests of the model room. */
#ifndef PLACEMENT_FIXTURE_H
#define PLACEMENT_FIXTURE_H

#include "model_fixture.h"

enum { MAX_REPLICAS = 4 };

/* Which expert each of the placement's slots holds: every expert once, then, with `replicas`, up to
 * MAX_REPLICAS of it, on one rank too; the other slots, and those of dead ranks, stay empty. */
static inline void deal_experts(uint64_t *state, const wb_placement *placement, bool replicas,
                                int32_t *experts) {
    const wb_topology *topology = wb_placement_topology(placement);
    const int32_t S = (int32_t)topology->n_slots, E = (int32_t)wb_placement_experts(placement);
    int32_t *slots = take(S, sizeof(int32_t)), *count = take(E, sizeof(int32_t)), n_live = 0;
    for (int32_t s = 0; s < S; s++) {
        experts[s] = WB_NO_EXPERT;
        if (!topology->dead[wb_placement_rank_of(placement, (wb_physical_id){(uint32_t)s})])
            slots[n_live++] = s;
    }
    shuffle(state, n_live, slots);
    for (int32_t i = 0; i < n_live; i++) {
        const int32_t e = i < E ? i : random_below(state, E);
        const bool empty = i >= E && (!replicas || count[e] == MAX_REPLICAS || random_below(state, 4) == 0);
        experts[slots[i]] = empty ? WB_NO_EXPERT : e;
        if (!empty) count[e]++;
    }
    free(count);
    free(slots);
}

/* Replica numbers in a random order. */
static inline void deal_numbers(uint64_t *state, int32_t S, int32_t E, const int32_t *experts,
                                uint32_t *replica) {
    int32_t *slots = take(S, sizeof(int32_t));
    uint32_t *count = take(E, sizeof(uint32_t));
    for (int32_t s = 0; s < S; s++) slots[s] = s;
    shuffle(state, S, slots);
    for (int32_t i = 0; i < S; i++)
        if (experts[slots[i]] >= 0) replica[slots[i]] = count[experts[slots[i]]]++;
    free(count);
    free(slots);
}

/* A map of its own for every layer, at `epoch`. */
static inline void placement_deal(wb_placement *placement, uint64_t *state, bool replicas, uint64_t epoch) {
    const int32_t S = (int32_t)wb_placement_topology(placement)->n_slots;
    const int32_t E = (int32_t)wb_placement_experts(placement);
    int32_t *experts = take(S, sizeof(int32_t));
    uint32_t *numbers = take(S, sizeof(uint32_t));
    for (uint32_t l = 0; l < wb_placement_layers(placement); l++) {
        deal_experts(state, placement, replicas, experts);
        deal_numbers(state, S, E, experts, numbers);
        MUST(wb_placement_set_layer(placement, l, experts, numbers, epoch));
    }
    free(numbers);
    free(experts);
}

/* For L MoE layers of E experts on R ranks: E to 2 E + 3 slots, each on a random rank; of several ranks one
 * often has none, or has some and is dead. */
static inline wb_placement *placement_random(int32_t L, int32_t E, int32_t R, uint64_t *state,
                                             bool replicas) {
    const int32_t S = E + random_below(state, E + 4), without = random_below(state, 2 * R);
    uint32_t *slots_of_rank = take(R, sizeof(uint32_t)), n_slots = (uint32_t)S;
    uint8_t *dead = take(R, 1);
    for (int32_t s = 0; s < S;) {
        const int32_t r = random_below(state, R);
        if (R > 1 && r == without) continue;
        slots_of_rank[r]++;
        s++;
    }
    if (R > 1 && without < R && random_below(state, 2) == 0) {
        dead[without] = 1;
        n_slots += slots_of_rank[without] = (uint32_t)random_below(state, E);
    }
    const wb_topology topology = {.n_ranks = (uint32_t)R,
                                  .n_nodes = 1,
                                  .n_slots = n_slots,
                                  .slots_of_rank = slots_of_rank,
                                  .dead = dead};
    wb_placement *placement;
    MUST(wb_placement_open(&topology, (uint32_t)L, (uint32_t)E, &placement));
    placement_deal(placement, state, replicas, 1);
    free(dead);
    free(slots_of_rank);
    return placement;
}

/* The model's own placement with other maps, one epoch later. */
static inline wb_placement *placement_next(const wb_model *model, uint64_t *state, bool replicas) {
    wb_placement *next;
    MUST(wb_placement_clone(wb_model_placement(model), &next));
    placement_deal(next, state, replicas, wb_placement_layer(next, 0).epoch + 1);
    return next;
}

#endif
