/* placement_sync.c - the same placement on every rank: hash, broadcast, comparison. Owns who agrees with
 * whom; refuses the choice of places and files. */
#include "placement/placement_internal.h"
#include "wb_hash.h"

#include <string.h>

/* ---- digests --------------------------------------------------------------------------------- */

static void add_topology(wb_hash *hash, const wb_placement *p) {
    const wb_topology *t = &p->topology;
    const uint32_t shape[] = {p->n_layers, p->n_experts, t->n_ranks, t->n_nodes, t->n_slots};
    wb_hash_add(hash, shape, sizeof shape);
    wb_hash_add(hash, p->slots_of_rank, t->n_ranks * sizeof *p->slots_of_rank);
    wb_hash_add(hash, p->node_of_rank, t->n_ranks * sizeof *p->node_of_rank);
    wb_hash_add(hash, p->dead, t->n_ranks * sizeof *p->dead);
}

static uint64_t topology_hash(const wb_placement *p) {
    wb_hash hash;
    wb_hash_start(&hash);
    add_topology(&hash, p);
    return wb_hash_value(&hash);
}

static uint64_t epochs_hash(const wb_placement *p) {
    wb_hash hash;
    wb_hash_start(&hash);
    wb_hash_add(&hash, p->epoch, p->n_layers * sizeof *p->epoch);
    return wb_hash_value(&hash);
}

uint64_t wb_placement_hash(const wb_placement *p) {
    const size_t slots = (size_t)p->n_layers * p->topology.n_slots;
    wb_hash hash;
    wb_hash_start(&hash);
    add_topology(&hash, p);
    wb_hash_add(&hash, p->expert_of_slot, slots * sizeof *p->expert_of_slot);
    wb_hash_add(&hash, p->replica_of_slot, slots * sizeof *p->replica_of_slot);
    return wb_hash_value(&hash);
}

wb_status wb_placement_check_equal(const wb_placement *placement, wb_comm *comm) {
    const uint64_t maps = wb_placement_hash(placement), epochs = epochs_hash(placement);
    WB_TRY(wb_comm_check_equal(comm, &maps, sizeof maps, "placement maps"));
    return wb_comm_check_equal(comm, &epochs, sizeof epochs, "placement epochs");
}

/* ---- broadcast ------------------------------------------------------------------------------- */

/* Into a copy of the same shape; not yet checked. */
static wb_status receive(wb_placement *copy, wb_comm *comm, int root) {
    const size_t slots = (size_t)copy->n_layers * copy->topology.n_slots;
    WB_TRY(wb_comm_broadcast(comm, copy->expert_of_slot, slots * sizeof *copy->expert_of_slot, root));
    WB_TRY(wb_comm_broadcast(comm, copy->replica_of_slot, slots * sizeof *copy->replica_of_slot, root));
    return wb_comm_broadcast(comm, copy->epoch, copy->n_layers * sizeof *copy->epoch, root);
}

/* Checks what was received, and derives the logical -> physical side. */
static wb_status accept(wb_placement *copy) {
    const size_t S = copy->topology.n_slots;
    for (uint32_t l = 0; l < copy->n_layers; l++) {
        wb_status status = wb_placement_set_layer(copy, l, copy->expert_of_slot + l * S,
                                                  copy->replica_of_slot + l * S, copy->epoch[l]);
        if (status != WB_OK) return wb_fail_context(status, "placement broadcast");
    }
    return WB_OK;
}

/* In place, so that pointers to the layers' maps stay valid. Cannot fail. */
static void commit(wb_placement *p, const wb_placement *copy) {
    const size_t L = p->n_layers, slots = L * p->topology.n_slots;
    memcpy(p->expert_of_slot, copy->expert_of_slot, slots * sizeof *p->expert_of_slot);
    memcpy(p->replica_of_slot, copy->replica_of_slot, slots * sizeof *p->replica_of_slot);
    memcpy(p->replica_begin, copy->replica_begin, L * (p->n_experts + 1u) * sizeof *p->replica_begin);
    memcpy(p->replicas, copy->replicas, slots * sizeof *p->replicas);
    memcpy(p->epoch, copy->epoch, L * sizeof *p->epoch);
    for (size_t l = 0; l < L; l++) p->version[l]++;
}

wb_status wb_placement_broadcast(wb_placement *placement, wb_comm *comm, int root) {
    const uint64_t shape = topology_hash(placement);
    WB_TRY(wb_comm_check_equal(comm, &root, sizeof root, "root of the placement"));
    WB_TRY(wb_comm_check_equal(comm, &shape, sizeof shape, "placement shape"));
    wb_placement *copy = NULL;
    wb_status status = wb_comm_agree(comm, wb_placement_clone(placement, &copy));
    if (status == WB_OK) status = receive(copy, comm, root);
    if (status == WB_OK) status = wb_comm_agree(comm, accept(copy));
    if (status == WB_OK) commit(placement, copy);
    wb_placement_close(copy);
    if (status != WB_OK) return status;
    const uint64_t hash = wb_placement_hash(placement);
    return wb_comm_check_equal(comm, &hash, sizeof hash, "placement maps");
}
