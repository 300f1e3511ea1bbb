/* migrate.c - see migrate.h. */
#include "manage/migrate.h"
#include "manage/migrate_labels.h"
#include "manage/migrate_walk.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- maps and memory ------------------------------------------------------------------------- */

/* Both or none: a manager that has lost its memory goes on with the maps that it had. */
static wb_status open_maps(wb_migration *m) {
    const wb_placement *now = m->store->placement(m->store->context);
    wb_placement *placement, *next;
    WB_TRY(wb_placement_clone(now, &placement));
    const wb_status status = wb_placement_clone(now, &next);
    if (status != WB_OK) {
        wb_placement_close(placement);
        return status;
    }
    wb_placement_close(m->placement);
    wb_placement_close(m->next);
    m->placement = placement;
    m->next = next;
    return WB_OK;
}

static bool has_slots(const wb_migration *m) {
    return wb_placement_first_slot(m->placement, m->rank) <
           wb_placement_first_slot(m->placement, m->rank + 1);
}

/* The largest slot of this rank, if it has any. */
static wb_status measure_slots(wb_migration *m) {
    const wb_physical_id first = {wb_placement_first_slot(m->placement, m->rank)};
    for (uint32_t l = 0; has_slots(m) && l < wb_placement_layers(m->placement); l++) {
        size_t bytes, parts = 0;
        WB_TRY(wb_migrate_find_parts(m, l, first, &bytes));
        for (size_t i = 0; i < m->n_parts; i++) parts += m->parts[i].bytes;
        if (bytes > m->needed_bytes) m->needed_bytes = bytes;
        if (parts > m->slot_bytes) m->slot_bytes = parts;
    }
    return WB_OK;
}

/* A sender has to know where a shadow slot of another rank begins: so they are of one size. What is there is
 * enough, or all ranks ask for more together. */
wb_status wb_migration_make_shadows(wb_migration *m) {
    uint64_t bytes = m->needed_bytes;
    void *shadows = NULL;
    WB_TRY(wb_comm_all_reduce_max_u64(m->comm, &bytes));
    if (bytes <= m->shadow_bytes) return WB_OK;
    m->shadow_bytes = 0;
    const size_t own = has_slots(m) ? m->n_shadows * (size_t)bytes : 0;
    WB_TRY(wb_comm_agree(m->comm, m->store->shadow(m->store->context, own, &shadows, m->reached)));
    m->shadows = shadows;
    m->shadow_bytes = (size_t)bytes;
    return WB_OK;
}

wb_status wb_migration_open(const wb_expert_store *store, uint32_t check_every, uint32_t n_shadow,
                            wb_migration *m) {
    wb_comm *comm = wb_exchange_comm(store->exchange);
    *m = (wb_migration){.store = store,
                        .comm = comm,
                        .rank = (uint32_t)wb_comm_rank(comm),
                        .n_ranks = (uint32_t)wb_comm_size(comm),
                        .n_shadows = n_shadow,
                        .check_every = check_every};
    const size_t R = m->n_ranks;
    WB_TRY(open_maps(m));
    WB_TRY(WB_OWN(&m->memory, m->reached, R, "migration"));
    WB_TRY(WB_OWN(&m->memory, m->to_bytes, 5 * R, "migration"));
    m->to_offsets = m->to_bytes + R, m->from_bytes = m->to_bytes + 2 * R;
    m->from_offsets = m->to_bytes + 3 * R, m->cursor = m->to_bytes + 4 * R;
    return measure_slots(m);
}

/* The store's maps are those in force, layer by layer at the same epoch. */
static bool maps_are_the_stores(const wb_migration *m) {
    const wb_placement *now = m->store->placement(m->store->context);
    for (uint32_t l = 0; l < wb_placement_layers(now); l++)
        if (wb_placement_layer(now, l).epoch != wb_placement_layer(m->placement, l).epoch) return false;
    return wb_placement_hash(now) == wb_placement_hash(m->placement);
}

wb_status wb_migration_follow(wb_migration *m) {
    return maps_are_the_stores(m) ? WB_OK : open_maps(m);
}

void wb_migration_close(wb_migration *m) {
    free(m->parts);
    free(m->transfers);
    free(m->puts);
    free(m->sent);
    free(m->received);
    wb_owner_close(&m->memory);
    wb_placement_close(m->placement);
    wb_placement_close(m->next);
    *m = (wb_migration){0};
}

/* ---- what is sent and received ------------------------------------------------------------------- */

static wb_status measure_move(wb_migration *m, const wb_move *move, const wb_move_place *place) {
    size_t bytes;
    if (place->to_rank != m->rank) return WB_OK;
    WB_TRY(wb_migrate_find_parts(m, move->layer, move->to, &bytes));
    if (bytes > m->needed_bytes) m->needed_bytes = bytes;
    return WB_OK;
}

static wb_status add_transfers(wb_migration *m, int peer, bool receive, char *shadow) {
    WB_TRY(WB_GROW(m->transfers, m->n_transfers + m->n_parts, &m->max_transfers, "migration"));
    for (size_t i = 0; i < m->n_parts; i++) {
        const wb_expert_part part = m->parts[i];
        m->transfers[m->n_transfers++] =
            (wb_transfer){peer, receive, receive ? shadow : part.data, part.bytes};
        if (receive) shadow += wb_migrate_aligned(part.bytes);
    }
    return WB_OK;
}

static wb_status add_puts(wb_migration *m, const wb_move_place *place) {
    size_t offset = place->shadow * m->shadow_bytes;
    WB_TRY(WB_GROW(m->puts, m->n_puts + m->n_parts, &m->max_puts, "migration"));
    for (size_t i = 0; i < m->n_parts; i++) {
        const wb_expert_part part = m->parts[i];
        m->puts[m->n_puts++] = (wb_move_put){place->to_rank, offset, part.data, part.bytes};
        offset += wb_migrate_aligned(part.bytes);
    }
    return WB_OK;
}

static wb_status list_move(wb_migration *m, const wb_move *move, const wb_move_place *place) {
    size_t bytes;
    if (place->from_rank == m->rank) {
        WB_TRY(wb_migrate_find_parts(m, move->layer, move->from, &bytes));
        WB_TRY(m->reached[place->to_rank] ? add_puts(m, place)
                                          : add_transfers(m, (int)place->to_rank, false, NULL));
    }
    if (place->to_rank != m->rank || m->reached[place->from_rank]) return WB_OK;
    WB_TRY(wb_migrate_find_parts(m, move->layer, move->to, &bytes));
    return add_transfers(m, (int)place->from_rank, true, wb_migrate_shadow(m, place));
}

/* Maps that others have changed since the decision are seen here and not when they are to be flipped: then
 * slots are overwritten. */
static wb_status measure_round(wb_migration *m) {
    if (!maps_are_the_stores(m))
        return wb_fail(WB_MISMATCH,
                       "rebalance: the placement was changed by somebody else since the decision");
    return wb_migrate_visit(m, measure_move);
}

/* What lies on the stream may still read the shadow slots of the round before, into which others are to put
 * what comes now. */
static wb_status list_round(wb_migration *m) {
    const wb_exchange_memory *memory = &m->store->memory;
    m->n_transfers = m->n_puts = 0;
    WB_TRY(wb_migrate_visit(m, list_move));
    WB_TRY(wb_exchange_reserve(m->store->exchange, m->n_transfers));
    return memory->to_host(memory->context, NULL, NULL, 0);
}

static wb_status start_puts(const wb_migration *m) {
    for (size_t i = 0; i < m->n_puts; i++) {
        const wb_move_put *p = &m->puts[i];
        WB_TRY(m->store->put(m->store->context, p->rank, p->offset, p->data, p->bytes));
    }
    return WB_OK;
}

/* Returns when what goes by the exchange has come, also where that waits on the stream. */
static wb_status wait_for_exchange(wb_migration *m) {
    const wb_exchange_memory *memory = &m->store->memory;
    WB_TRY(wb_exchange_wait(m->store->exchange, m->work));
    return memory->to_host(memory->context, NULL, NULL, 0);
}

/* A rank knows when what it put has come, and not what others put: that they say so is one more agreement. */
static wb_status settle_puts(const wb_migration *m) {
    WB_TRY(m->put_status);
    return m->n_puts > 0 ? m->store->settle(m->store->context) : WB_OK;
}

/* ---- taking over ------------------------------------------------------------------------------- */

static wb_status copy_move(wb_migration *m, const wb_move *move, const wb_move_place *place) {
    const wb_exchange_memory *memory = &m->store->memory;
    size_t bytes;
    if (place->to_rank != m->rank) return WB_OK;
    WB_TRY(wb_migrate_find_parts(m, move->layer, move->to, &bytes));
    const char *shadow = wb_migrate_shadow(m, place);
    for (size_t i = 0; i < m->n_parts; i++) {
        const wb_expert_part part = m->parts[i];
        WB_TRY(memory->copy(memory->context, part.data, shadow, part.bytes));
        shadow += wb_migrate_aligned(part.bytes);
        m->received_bytes += part.bytes;
    }
    return WB_OK;
}

/* m->next (=) the maps after the round: those in force first, of all layers, since it has what was in force
 * before the last round, or what a round that failed would have made. */
static wb_status make_next(wb_migration *m, uint64_t epoch) {
    for (uint32_t l = 0; l < wb_placement_layers(m->placement); l++) {
        const wb_layer_map map = wb_placement_layer(m->placement, l);
        if (wb_placement_layer(m->next, l).epoch == map.epoch) continue;
        WB_TRY(wb_placement_set_layer(m->next, l, map.expert_of_slot, map.replica_of_slot, map.epoch));
    }
    for (uint32_t i = 0; i < m->n_groups; i++)
        WB_TRY(wb_move_apply_group(m->groups[i].plan, m->groups[i].group, epoch, m->next));
    return WB_OK;
}

/* No way back: slots that are overwritten hold experts that only the new map has elsewhere. Nothing is left
 * to fail but the device. */
static wb_status take_over(wb_migration *m) {
    WB_TRY(wb_migrate_visit(m, copy_move));
    WB_TRY(m->store->take(m->store->context, m->next));
    wb_placement *before = m->placement;
    m->placement = m->next;
    m->next = before;
    return WB_OK;
}

/* All that can fail on this rank alone, before anything is sent. */
static wb_status prepare(wb_migration *m, wb_status measured, uint64_t epoch) {
    WB_TRY(measured);
    WB_TRY(list_round(m));
    WB_TRY(wb_migrate_write_labels(m));
    return make_next(m, epoch);
}

wb_status wb_migrate_start(wb_migration *m, uint32_t n_groups, const wb_round_group *groups, uint64_t epoch,
                           bool *dead_out) {
    m->groups = groups;
    m->n_groups = n_groups;
    *dead_out = false;
    const wb_status measured = measure_round(m);
    WB_TRY(wb_migration_make_shadows(m));
    WB_TRY(wb_comm_agree(m->comm, prepare(m, measured, epoch)));
    WB_TRY(wb_placement_check_equal(m->next, m->comm));
    *dead_out = true;
    WB_TRY(wb_migrate_send_labels(m));
    *dead_out = false;
    WB_TRY(wb_comm_agree(m->comm, wb_migrate_compare_shapes(m)));
    *dead_out = true;
    WB_TRY(wb_exchange_start_group(m->store->exchange, m->transfers, m->n_transfers, &m->work));
    *dead_out = false;
    m->put_status = start_puts(m);
    return WB_OK;
}

wb_status wb_migrate_end(wb_migration *m, bool *dead_out) {
    *dead_out = true;
    WB_TRY(wait_for_exchange(m));
    *dead_out = false;
    WB_TRY(wb_comm_agree(m->comm, settle_puts(m)));
    WB_TRY(wb_comm_agree(m->comm, wb_migrate_compare_checksums(m)));
    *dead_out = true;
    WB_TRY(take_over(m));
    *dead_out = false;
    m->moves += wb_migrate_n_moves(m);
    return WB_OK;
}
