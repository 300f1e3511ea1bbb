/* placement_keep.c - slots of a rank renumbered so that what stays on the rank stays in its slot. */
#include "placement/placement_internal.h"

#include <string.h>

enum { FREE_SLOT = WB_NO_EXPERT - 1 };

/* Memory of keep_slots for one layer. */
typedef struct keeper {
    wb_owner memory;
    int32_t *experts;  /* [S] as they were */
    uint32_t *replica; /* [S] */
    uint32_t *head;  /* [E] first slot of a rank with the expert that has found no place yet, or WB_NO_SLOT */
    uint32_t *next;  /* [S] the next such slot */
    uint8_t *placed; /* [S] */
} keeper;

/* Reorders the slots [first, last) of one rank: where `current` has an expert that the rank keeps, it
 * stays; the rest fill up in order. */
static void keep_slots_of_rank(keeper *k, uint32_t first, uint32_t last, const int32_t *current,
                               int32_t *experts, uint32_t *replica) {
    for (uint32_t s = last; s-- > first;) {
        k->placed[s] = 0;
        if (k->experts[s] < 0) continue;
        k->next[s] = k->head[k->experts[s]];
        k->head[k->experts[s]] = s;
    }
    for (uint32_t d = first; d < last; d++) {
        uint32_t s = current[d] < 0 ? WB_NO_SLOT : k->head[current[d]];
        experts[d] = FREE_SLOT;
        if (s == WB_NO_SLOT) continue;
        k->head[current[d]] = k->next[s];
        k->placed[s] = 1;
        experts[d] = k->experts[s];
        replica[d] = k->replica[s];
    }
    for (uint32_t s = first, d = first; s < last; s++) {
        if (k->experts[s] >= 0) k->head[k->experts[s]] = WB_NO_SLOT;
        if (k->placed[s]) continue;
        while (experts[d] != FREE_SLOT) d++;
        experts[d] = k->experts[s];
        replica[d] = k->replica[s];
    }
}

static wb_status open_keeper(keeper *k, const wb_placement *p) {
    size_t S = p->topology.n_slots;
    WB_TRY(WB_OWN(&k->memory, k->experts, S, "placement"));
    WB_TRY(WB_OWN(&k->memory, k->replica, S, "placement"));
    WB_TRY(WB_OWN(&k->memory, k->head, p->n_experts, "placement"));
    WB_TRY(WB_OWN(&k->memory, k->next, S, "placement"));
    WB_TRY(WB_OWN(&k->memory, k->placed, S, "placement"));
    for (uint32_t e = 0; e < p->n_experts; e++) k->head[e] = WB_NO_SLOT;
    return WB_OK;
}

static void keep_slots(keeper *k, wb_placement *p, const wb_placement *current) {
    size_t S = p->topology.n_slots;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        memcpy(k->experts, p->expert_of_slot + l * S, S * sizeof *k->experts);
        memcpy(k->replica, p->replica_of_slot + l * S, S * sizeof *k->replica);
        for (uint32_t r = 0; r < p->topology.n_ranks; r++)
            keep_slots_of_rank(k, p->first_slot[r], p->first_slot[r + 1], wb_placement_experts_of(current, l),
                               p->expert_of_slot + l * S, p->replica_of_slot + l * S);
        wb_placement_index_layer(p, l);
    }
}

wb_status wb_placement_keep_slots(wb_placement *p, const wb_placement *current) {
    WB_TRY(wb_placement_check_shape(p, current));
    keeper k = {0};
    wb_status status = open_keeper(&k, p);
    if (status == WB_OK) keep_slots(&k, p, current);
    wb_owner_close(&k.memory);
    return status;
}
