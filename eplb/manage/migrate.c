/* migrate.c - see migrate.h. */
#include "migrate.h"
#include "wb_check.h"
#include "wb_hash.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 1 << 20, PART_ALIGNMENT = 256 };

/* ---- memory ---------------------------------------------------------------------------------- */

static size_t aligned(size_t bytes) {
    return (bytes + PART_ALIGNMENT - 1) / PART_ALIGNMENT * PART_ALIGNMENT;
}

/* m->parts (=) those of a slot of this rank, as they are now; *bytes_out: of a shadow slot for them. */
static wb_status find_parts(wb_migration *m, uint32_t layer, wb_physical_id slot, size_t *bytes_out) {
    const wb_expert_store *s = m->store;
    WB_TRY(s->slot(s->context, layer, slot, m->max_parts, m->parts, &m->n_parts));
    if (m->n_parts > m->max_parts) {
        WB_TRY(WB_GROW(m->parts, m->n_parts, &m->max_parts, "migration"));
        WB_TRY(s->slot(s->context, layer, slot, m->max_parts, m->parts, &m->n_parts));
    }
    *bytes_out = 0;
    for (size_t i = 0; i < m->n_parts; i++) *bytes_out += aligned(m->parts[i].bytes);
    return WB_OK;
}

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

/* The largest slot of this rank, if it has any. */
static wb_status open_shadows(wb_migration *m, uint32_t n_shadow) {
    const wb_physical_id first = {wb_placement_first_slot(m->placement, m->rank)};
    void *shadows;
    if (first.slot == wb_placement_first_slot(m->placement, m->rank + 1)) return WB_OK;
    for (uint32_t l = 0; l < wb_placement_layers(m->placement); l++) {
        size_t bytes;
        WB_TRY(find_parts(m, l, first, &bytes));
        if (bytes > m->shadow_bytes) m->shadow_bytes = bytes;
    }
    m->n_shadows = n_shadow;
    return m->store->shadow(m->store->context, n_shadow * m->shadow_bytes, &shadows);
}

wb_status wb_migration_open(const wb_expert_store *store, uint32_t check_every, uint32_t n_shadow,
                            wb_migration *m) {
    wb_comm *comm = wb_exchange_comm(store->exchange);
    *m = (wb_migration){.store = store,
                        .comm = comm,
                        .rank = (uint32_t)wb_comm_rank(comm),
                        .n_ranks = (uint32_t)wb_comm_size(comm),
                        .check_every = check_every};
    const size_t R = m->n_ranks;
    WB_TRY(open_maps(m));
    WB_TRY(WB_OWN(&m->memory, m->to_bytes, 5 * R, "migration"));
    m->to_offsets = m->to_bytes + R, m->from_bytes = m->to_bytes + 2 * R;
    m->from_offsets = m->to_bytes + 3 * R, m->cursor = m->to_bytes + 4 * R;
    WB_TRY(WB_OWN(&m->memory, m->chunk, CHUNK_BYTES, "migration"));
    return open_shadows(m, n_shadow);
}

wb_status wb_migration_follow(wb_migration *m, bool *changed_out) {
    const wb_placement *placement = m->store->placement(m->store->context);
    bool changed = wb_placement_hash(placement) != wb_placement_hash(m->placement);
    for (uint32_t l = 0; l < wb_placement_layers(placement); l++)
        changed =
            changed || wb_placement_layer(placement, l).epoch != wb_placement_layer(m->placement, l).epoch;
    *changed_out = changed;
    return changed ? open_maps(m) : WB_OK;
}

void wb_migration_close(wb_migration *m) {
    free(m->parts);
    free(m->transfers);
    free(m->sent);
    free(m->received);
    wb_owner_close(&m->memory);
    wb_placement_close(m->placement);
    wb_placement_close(m->next);
    *m = (wb_migration){0};
}

/* ---- a group ------------------------------------------------------------------------------------ */

typedef struct move_place {
    uint32_t from_rank, to_rank;
    uint32_t shadow; /* of to_rank */
    bool checked;
} move_place;

/* Where the next move of a walk through a group goes; `last` is that of the one before. Moves are in the
 * order of their ranks, and a rank's take its shadow slots in turn. */
static move_place place_move(const wb_migration *m, const wb_move *move, uint64_t number,
                             const move_place *last) {
    const uint32_t to = wb_placement_rank_of(m->placement, move->to);
    return (move_place){.from_rank = wb_placement_rank_of(m->placement, move->from),
                        .to_rank = to,
                        .shadow = last && last->to_rank == to ? last->shadow + 1 : 0,
                        .checked = m->check_every > 0 && number % m->check_every == 0};
}

/* Calls `visit` for each move of the group in which this rank takes part. */
typedef wb_status visit_fn(wb_migration *m, const wb_move *move, const move_place *place);

static wb_status visit_moves(wb_migration *m, const wb_move_plan *plan, const wb_move_group *group,
                             visit_fn *visit) {
    move_place place, last;
    for (uint64_t i = group->begin; i < group->end; i++, last = place) {
        place = place_move(m, &plan->moves[i], m->moves + i - group->begin, i > group->begin ? &last : NULL);
        if (place.from_rank == m->rank || place.to_rank == m->rank) WB_TRY(visit(m, &plan->moves[i], &place));
    }
    return WB_OK;
}

static char *shadow_of(const wb_migration *m, const move_place *place) {
    return m->shadows + place->shadow * m->shadow_bytes;
}

/* ---- what is sent and received ------------------------------------------------------------------- */

static wb_status measure_move(wb_migration *m, const wb_move *move, const move_place *place) {
    size_t bytes;
    if (place->to_rank != m->rank) return WB_OK;
    WB_TRY(find_parts(m, move->layer, move->to, &bytes));
    if (bytes > m->shadow_bytes) m->shadow_bytes = bytes;
    if (place->shadow >= m->n_shadows) m->n_shadows = place->shadow + 1;
    return WB_OK;
}

static wb_status add_transfers(wb_migration *m, int peer, bool receive, char *shadow) {
    WB_TRY(WB_GROW(m->transfers, m->n_transfers + m->n_parts, &m->max_transfers, "migration"));
    for (size_t i = 0; i < m->n_parts; i++) {
        const wb_expert_part part = m->parts[i];
        m->transfers[m->n_transfers++] =
            (wb_transfer){peer, receive, receive ? shadow : part.data, part.bytes};
        if (receive) shadow += aligned(part.bytes);
    }
    return WB_OK;
}

static wb_status list_move(wb_migration *m, const wb_move *move, const move_place *place) {
    size_t bytes;
    if (place->from_rank == m->rank) {
        WB_TRY(find_parts(m, move->layer, move->from, &bytes));
        WB_TRY(add_transfers(m, (int)place->to_rank, false, NULL));
    }
    if (place->to_rank != m->rank) return WB_OK;
    WB_TRY(find_parts(m, move->layer, move->to, &bytes));
    return add_transfers(m, (int)place->from_rank, true, shadow_of(m, place));
}

/* All that can fail on this rank alone, before anything is sent. */
static wb_status prepare(wb_migration *m, const wb_move_plan *plan, const wb_move_group *group) {
    void *shadows = NULL;
    const size_t n = (size_t)(group->end - group->begin);
    m->n_transfers = 0;
    WB_TRY(WB_GROW(m->sent, n, &m->max_sent, "migration"));
    WB_TRY(WB_GROW(m->received, n, &m->max_received, "migration"));
    WB_TRY(visit_moves(m, plan, group, measure_move));
    if (m->n_shadows > 0)
        WB_TRY(m->store->shadow(m->store->context, m->n_shadows * m->shadow_bytes, &shadows));
    m->shadows = shadows;
    WB_TRY(visit_moves(m, plan, group, list_move));
    return wb_exchange_reserve(m->store->exchange, m->n_transfers);
}

/* Returns when all has come, also where the exchange waits on the stream: ranks agree on it next, and then
 * there is no way back. */
static wb_status exchange(wb_migration *m) {
    const wb_exchange_memory *memory = &m->store->memory;
    uint64_t work;
    WB_TRY(wb_exchange_start_group(m->store->exchange, m->transfers, m->n_transfers, &work));
    WB_TRY(wb_exchange_wait(m->store->exchange, work));
    return memory->to_host(memory->context, NULL, NULL, 0);
}

/* ---- labels ------------------------------------------------------------------------------------- */

static uint64_t shape_of(const wb_migration *m) {
    wb_hash hash;
    wb_hash_start(&hash);
    for (size_t i = 0; i < m->n_parts; i++) wb_hash_add(&hash, &m->parts[i].bytes, sizeof m->parts[i].bytes);
    return wb_hash_value(&hash);
}

static wb_status hash_part(wb_migration *m, wb_hash *hash, const char *data, size_t bytes) {
    const wb_exchange_memory *memory = &m->store->memory;
    for (size_t done = 0; done < bytes; done += CHUNK_BYTES) {
        const size_t n = bytes - done < CHUNK_BYTES ? bytes - done : (size_t)CHUNK_BYTES;
        WB_TRY(memory->to_host(memory->context, m->chunk, data + done, n));
        wb_hash_add(hash, m->chunk, n);
    }
    return WB_OK;
}

/* Of the layer, its epoch, the expert and the parts in m->parts, which lie one behind the other at `shadow`,
 * or where they are (NULL). */
static wb_status checksum(wb_migration *m, uint32_t layer, uint32_t expert, const char *shadow,
                          uint64_t *sum_out) {
    const uint64_t name[3] = {layer, expert, wb_placement_layer(m->placement, layer).epoch};
    wb_hash hash;
    wb_hash_start(&hash);
    wb_hash_add(&hash, name, sizeof name);
    for (size_t i = 0; i < m->n_parts; i++) {
        const wb_expert_part part = m->parts[i];
        WB_TRY(hash_part(m, &hash, shadow ? shadow : part.data, part.bytes));
        if (shadow) shadow += aligned(part.bytes);
    }
    *sum_out = wb_hash_value(&hash);
    return WB_OK;
}

static wb_status count_label(wb_migration *m, const wb_move *move, const move_place *place) {
    (void)move;
    if (place->from_rank == m->rank) m->to_bytes[place->to_rank] += sizeof(wb_move_label);
    if (place->to_rank == m->rank) m->from_bytes[place->from_rank] += sizeof(wb_move_label);
    return WB_OK;
}

/* Under the name of the expert that this rank's map has in the slot, whatever the plan says. */
static wb_status write_label(wb_migration *m, const wb_move *move, const move_place *place) {
    size_t bytes;
    if (place->from_rank != m->rank) return WB_OK;
    wb_move_label *label = m->sent + m->cursor[place->to_rank]++;
    const int32_t expert = wb_placement_layer(m->placement, move->layer).expert_of_slot[move->from.slot];
    WB_TRY(find_parts(m, move->layer, move->from, &bytes));
    *label = (wb_move_label){.shape = shape_of(m)};
    return place->checked ? checksum(m, move->layer, (uint32_t)expert, NULL, &label->checksum) : WB_OK;
}

static wb_status fail_move(wb_status status, const wb_move *move, const move_place *place, const char *what,
                           uint64_t expected, uint64_t found) {
    return wb_fail(status,
                   "expert %" PRIu32 " of MoE layer %" PRIu32 " from slot %" PRIu32 " of rank %" PRIu32
                   " to slot %" PRIu32 " of rank %" PRIu32 ": expected %s %016" PRIx64 ", found %016" PRIx64,
                   move->expert, move->layer, move->from.slot, place->from_rank, move->to.slot,
                   place->to_rank, what, expected, found);
}

static wb_status compare_shape(wb_migration *m, const wb_move *move, const move_place *place) {
    size_t bytes;
    if (place->to_rank != m->rank) return WB_OK;
    const uint64_t expected = m->received[m->cursor[place->from_rank]++].shape;
    WB_TRY(find_parts(m, move->layer, move->to, &bytes));
    if (shape_of(m) == expected) return WB_OK;
    return fail_move(WB_MISMATCH, move, place, "parts of the shape", expected, shape_of(m));
}

static wb_status compare_checksum(wb_migration *m, const wb_move *move, const move_place *place) {
    size_t bytes;
    uint64_t found;
    if (place->to_rank != m->rank) return WB_OK;
    const uint64_t expected = m->received[m->cursor[place->from_rank]++].checksum;
    if (!place->checked) return WB_OK;
    WB_TRY(find_parts(m, move->layer, move->to, &bytes));
    WB_TRY(checksum(m, move->layer, move->expert, shadow_of(m, place), &found));
    return found == expected ? WB_OK : fail_move(WB_CORRUPT, move, place, "checksum", expected, found);
}

static void lay_out(size_t R, const size_t *bytes, size_t *offsets) {
    offsets[0] = 0;
    for (size_t r = 1; r < R; r++) offsets[r] = offsets[r - 1] + bytes[r - 1];
}

static void begin_cursors(wb_migration *m, const size_t *offsets) {
    for (uint32_t r = 0; r < m->n_ranks; r++) m->cursor[r] = offsets[r] / sizeof(wb_move_label);
}

/* m->sent (=) of what this rank sends, made before it travels. */
static wb_status write_labels(wb_migration *m, const wb_move_plan *plan, const wb_move_group *group) {
    memset(m->to_bytes, 0, m->n_ranks * sizeof *m->to_bytes);
    memset(m->from_bytes, 0, m->n_ranks * sizeof *m->from_bytes);
    WB_TRY(visit_moves(m, plan, group, count_label));
    lay_out(m->n_ranks, m->to_bytes, m->to_offsets);
    lay_out(m->n_ranks, m->from_bytes, m->from_offsets);
    begin_cursors(m, m->to_offsets);
    return visit_moves(m, plan, group, write_label);
}

static wb_status send_labels(wb_migration *m) {
    return wb_comm_all_to_all_v(m->comm, m->sent, m->to_bytes, m->to_offsets, m->received, m->from_bytes,
                                m->from_offsets);
}

static wb_status compare_labels(wb_migration *m, const wb_move_plan *plan, const wb_move_group *group,
                                visit_fn *compare) {
    begin_cursors(m, m->from_offsets);
    return visit_moves(m, plan, group, compare);
}

/* ---- taking over ------------------------------------------------------------------------------- */

static wb_status copy_move(wb_migration *m, const wb_move *move, const move_place *place) {
    const wb_exchange_memory *memory = &m->store->memory;
    size_t bytes;
    if (place->to_rank != m->rank) return WB_OK;
    WB_TRY(find_parts(m, move->layer, move->to, &bytes));
    const char *shadow = shadow_of(m, place);
    for (size_t i = 0; i < m->n_parts; i++) {
        const wb_expert_part part = m->parts[i];
        WB_TRY(memory->copy(memory->context, part.data, shadow, part.bytes));
        shadow += aligned(part.bytes);
        m->received_bytes += part.bytes;
    }
    return WB_OK;
}

/* m->next (=) the maps after the group: those in force first, of all layers, since it has what was in force
 * before the last group, or what a group that failed would have made. */
static wb_status make_next(wb_migration *m, const wb_move_plan *plan, uint32_t number, uint64_t epoch) {
    for (uint32_t l = 0; l < wb_placement_layers(m->placement); l++) {
        const wb_layer_map map = wb_placement_layer(m->placement, l);
        if (wb_placement_layer(m->next, l).epoch == map.epoch) continue;
        WB_TRY(wb_placement_set_layer(m->next, l, map.expert_of_slot, map.replica_of_slot, map.epoch));
    }
    return wb_move_apply_group(plan, number, epoch, m->next);
}

/* No way back: slots that are overwritten hold experts that only the new map has elsewhere. Nothing is left
 * to fail but the device. */
static wb_status take_over(wb_migration *m, const wb_move_plan *plan, const wb_move_group *group) {
    WB_TRY(visit_moves(m, plan, group, copy_move));
    WB_TRY(m->store->take(m->store->context, m->next));
    wb_placement *before = m->placement;
    m->placement = m->next;
    m->next = before;
    return WB_OK;
}

wb_status wb_migrate_group(wb_migration *m, const wb_move_plan *plan, uint32_t number, uint64_t epoch,
                           bool *dead_out) {
    const wb_move_group *group = &plan->groups[number];
    *dead_out = false;
    wb_status status = prepare(m, plan, group);
    if (status == WB_OK) status = write_labels(m, plan, group);
    if (status == WB_OK) status = make_next(m, plan, number, epoch);
    WB_TRY(wb_comm_agree(m->comm, status));
    WB_TRY(wb_placement_check_equal(m->next, m->comm));
    *dead_out = true;
    WB_TRY(send_labels(m));
    *dead_out = false;
    WB_TRY(wb_comm_agree(m->comm, compare_labels(m, plan, group, compare_shape)));
    *dead_out = true;
    WB_TRY(exchange(m));
    *dead_out = false;
    WB_TRY(wb_comm_agree(m->comm, compare_labels(m, plan, group, compare_checksum)));
    *dead_out = true;
    WB_TRY(take_over(m, plan, group));
    *dead_out = false;
    m->moves += group->end - group->begin;
    return WB_OK;
}
