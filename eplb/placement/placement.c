/* placement.c - the maps between logical experts and physical slots: opening, reading, and what follows
 * from a map (rank loads, eplb.py's tables). Refuses: choosing places (solve/), changing layers
 * (placement_change.c), files, other ranks. */
#include "placement/placement_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory ---------------------------------------------------------------------------------- */

static wb_status allocate(wb_placement *p) {
    size_t R = p->topology.n_ranks, S = p->topology.n_slots, L = p->n_layers, E = p->n_experts;
    const char *what = "placement";
    WB_TRY(WB_OWN(&p->memory, p->slots_of_rank, R, what));
    WB_TRY(WB_OWN(&p->memory, p->node_of_rank, R, what));
    WB_TRY(WB_OWN(&p->memory, p->dead, R, what));
    WB_TRY(WB_OWN(&p->memory, p->first_slot, R + 1, what));
    WB_TRY(WB_OWN(&p->memory, p->rank_of_slot, S, what));
    WB_TRY(WB_OWN_ALLOC(&p->memory, p->expert_of_slot, L, S * sizeof *p->expert_of_slot, what));
    WB_TRY(WB_OWN_ALLOC(&p->memory, p->replica_of_slot, L, S * sizeof *p->replica_of_slot, what));
    WB_TRY(WB_OWN_ALLOC(&p->memory, p->replica_begin, L, (E + 1) * sizeof *p->replica_begin, what));
    WB_TRY(WB_OWN_ALLOC(&p->memory, p->replicas, L, S * sizeof *p->replicas, what));
    WB_TRY(WB_OWN(&p->memory, p->epoch, L, what));
    return WB_OWN(&p->memory, p->version, L, what);
}

/* The logical -> physical side of a layer from the other; the map has been checked. */
void wb_placement_index_layer(wb_placement *p, uint32_t layer) {
    uint32_t S = p->topology.n_slots, E = p->n_experts;
    const int32_t *experts = p->expert_of_slot + (size_t)layer * S;
    const uint32_t *replica = p->replica_of_slot + (size_t)layer * S;
    uint32_t *begin = p->replica_begin + (size_t)layer * (E + 1);
    wb_physical_id *replicas = p->replicas + (size_t)layer * S;
    memset(begin, 0, (E + 1) * sizeof *begin);
    for (uint32_t s = 0; s < S; s++)
        if (experts[s] >= 0) begin[experts[s] + 1]++;
    for (uint32_t e = 0; e < E; e++) begin[e + 1] += begin[e];
    for (uint32_t s = 0; s < S; s++)
        if (experts[s] >= 0) replicas[begin[experts[s]] + replica[s]].slot = s;
    p->version[layer]++;
}

/* Replicas in slot order; `count` [E] is scratch. */
void wb_placement_number_replicas(uint32_t S, uint32_t E, const int32_t *experts, uint32_t *count,
                                  uint32_t *replica_out) {
    memset(count, 0, E * sizeof *count);
    for (uint32_t s = 0; s < S; s++) replica_out[s] = experts[s] >= 0 ? count[experts[s]]++ : 0;
}

/* Layer 0; a rank has E slots or more: its further ones stay empty. */
static void place_trivially(wb_placement *p) {
    const wb_topology *t = &p->topology;
    uint32_t i = 0, E = p->n_experts;
    for (uint32_t r = 0; r < t->n_ranks; r++)
        for (uint32_t s = p->first_slot[r]; s < p->first_slot[r + 1]; s++) {
            bool empty = p->dead[r] || s - p->first_slot[r] >= E;
            p->expert_of_slot[s] = empty ? WB_NO_EXPERT : (int32_t)(i++ % E);
        }
    wb_placement_number_replicas(t->n_slots, E, p->expert_of_slot, p->replica_begin, p->replica_of_slot);
}

wb_status wb_placement_open(const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,
                            wb_placement **placement_out) {
    WB_TRY(wb_topology_check(topology, n_experts));
    if (n_layers < 1) return wb_fail(WB_INVALID_ARGUMENT, "placement: layers: expected 1 or more, found 0");
    wb_placement *p = NULL;
    WB_TRY(WB_NEW(p, 1, "placement"));
    p->topology = *topology;
    p->n_layers = n_layers;
    p->n_experts = n_experts;
    wb_status status = allocate(p);
    if (status != WB_OK) {
        wb_placement_close(p);
        return status;
    }
    wb_topology_fill(p, topology);
    place_trivially(p);
    size_t S = topology->n_slots;
    for (uint32_t l = 0; l < n_layers; l++) {
        if (l > 0) memcpy(p->expert_of_slot + l * S, p->expert_of_slot, S * sizeof *p->expert_of_slot);
        if (l > 0) memcpy(p->replica_of_slot + l * S, p->replica_of_slot, S * sizeof *p->replica_of_slot);
        wb_placement_index_layer(p, l);
    }
    *placement_out = p;
    return WB_OK;
}

void wb_placement_copy_layer(wb_placement *to, const wb_placement *from, uint32_t layer) {
    size_t S = to->topology.n_slots, E = to->n_experts;
    memcpy(to->expert_of_slot + layer * S, from->expert_of_slot + layer * S, S * sizeof *to->expert_of_slot);
    memcpy(to->replica_of_slot + layer * S, from->replica_of_slot + layer * S,
           S * sizeof *to->replica_of_slot);
    memcpy(to->replica_begin + layer * (E + 1), from->replica_begin + layer * (E + 1),
           (E + 1) * sizeof *to->replica_begin);
    memcpy(to->replicas + layer * S, from->replicas + layer * S, S * sizeof *to->replicas);
    to->version[layer]++;
}

wb_status wb_placement_clone(const wb_placement *placement, wb_placement **placement_out) {
    wb_placement *p = NULL;
    WB_TRY(wb_placement_open(&placement->topology, placement->n_layers, placement->n_experts, &p));
    for (uint32_t l = 0; l < p->n_layers; l++) wb_placement_copy_layer(p, placement, l);
    memcpy(p->epoch, placement->epoch, p->n_layers * sizeof *p->epoch);
    *placement_out = p;
    return WB_OK;
}

void wb_placement_close(wb_placement *p) {
    if (!p) return;
    wb_owner_close(&p->memory);
    free(p);
}

/* ---- reading --------------------------------------------------------------------------------- */

uint32_t wb_placement_layers(const wb_placement *placement) {
    return placement->n_layers;
}

uint32_t wb_placement_experts(const wb_placement *placement) {
    return placement->n_experts;
}

const wb_topology *wb_placement_topology(const wb_placement *placement) {
    return &placement->topology;
}

uint32_t wb_placement_rank_of(const wb_placement *placement, wb_physical_id id) {
    return placement->rank_of_slot[id.slot];
}

uint32_t wb_placement_first_slot(const wb_placement *placement, uint32_t rank) {
    return placement->first_slot[rank];
}

wb_layer_map wb_placement_layer(const wb_placement *p, uint32_t layer) {
    size_t S = p->topology.n_slots;
    return (wb_layer_map){.expert_of_slot = p->expert_of_slot + layer * S,
                          .replica_of_slot = p->replica_of_slot + layer * S,
                          .replica_begin = p->replica_begin + (size_t)layer * (p->n_experts + 1),
                          .replicas = p->replicas + layer * S,
                          .epoch = p->epoch[layer]};
}

uint32_t wb_placement_max_replicas(const wb_placement *p) {
    uint32_t max = 0;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        for (uint32_t e = 0; e < p->n_experts; e++) {
            uint32_t n = map.replica_begin[e + 1] - map.replica_begin[e];
            if (n > max) max = n;
        }
    }
    return max;
}

void wb_placement_export(const wb_placement *p, int32_t *log2phy_out, int32_t *logcnt_out) {
    size_t X = wb_placement_max_replicas(p), E = p->n_experts;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        wb_layer_map map = wb_placement_layer(p, l);
        for (uint32_t e = 0; e < E; e++) {
            uint32_t begin = map.replica_begin[e], n = map.replica_begin[e + 1] - begin;
            if (logcnt_out) logcnt_out[l * E + e] = (int32_t)n;
            for (uint32_t i = 0; log2phy_out && i < X; i++)
                log2phy_out[(l * E + e) * X + i] = i < n ? (int32_t)map.replicas[begin + i].slot : -1;
        }
    }
}

void wb_placement_rank_loads(const wb_placement *p, uint32_t layer, const double *loads,
                             double *rank_loads_out) {
    wb_layer_map map = wb_placement_layer(p, layer);
    memset(rank_loads_out, 0, p->topology.n_ranks * sizeof *rank_loads_out);
    for (uint32_t s = 0; s < p->topology.n_slots; s++) {
        int32_t e = map.expert_of_slot[s];
        if (e < 0) continue;
        rank_loads_out[p->rank_of_slot[s]] += loads[e] / (map.replica_begin[e + 1] - map.replica_begin[e]);
    }
}

wb_rank_spread wb_placement_rank_spread(const wb_topology *topology, const double *rank_loads) {
    wb_rank_spread spread = {0};
    uint32_t live = 0;
    for (uint32_t r = 0; r < topology->n_ranks; r++) {
        if (topology->dead[r]) continue;
        spread.mean += rank_loads[r];
        if (rank_loads[r] > spread.max) spread.max = rank_loads[r];
        live++;
    }
    spread.mean /= live;
    return spread;
}

double wb_placement_balancedness(const wb_placement *p, const double *rank_loads) {
    const wb_rank_spread spread = wb_placement_rank_spread(&p->topology, rank_loads);
    return spread.max > 0 ? spread.mean / spread.max : 1;
}
