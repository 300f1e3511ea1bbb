/* migrate_labels.c - see migrate_labels.h. */
#include "manage/migrate_labels.h"
#include "manage/migrate_walk.h"
#include "wb_check.h"
#include "wb_hash.h"

#include <inttypes.h>
#include <string.h>

/* ---- shapes and checksums ------------------------------------------------------------------------ */

static uint64_t shape_of(const wb_migration *m) {
    wb_hash hash;
    wb_hash_start(&hash);
    for (size_t i = 0; i < m->n_parts; i++) wb_hash_add(&hash, &m->parts[i].bytes, sizeof m->parts[i].bytes);
    return wb_hash_value(&hash);
}

/* Where they lie: what is moved is larger than what a boundary may wait for to come to the host. */
static wb_status hash_part(wb_migration *m, wb_hash *hash, const char *data, size_t bytes) {
    uint64_t digest;
    WB_TRY(m->store->digest(m->store->context, data, bytes, &digest));
    wb_hash_add(hash, &digest, sizeof digest);
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
        if (shadow) shadow += wb_migrate_aligned(part.bytes);
    }
    *sum_out = wb_hash_value(&hash);
    return WB_OK;
}

static wb_status count_label(wb_migration *m, const wb_move *move, const wb_move_place *place) {
    (void)move;
    if (place->from_rank == m->rank) m->to_bytes[place->to_rank] += sizeof(wb_move_label);
    if (place->to_rank == m->rank) m->from_bytes[place->from_rank] += sizeof(wb_move_label);
    return WB_OK;
}

/* Under the name of the expert that this rank's map has in the slot, whatever the plan says. */
static wb_status write_label(wb_migration *m, const wb_move *move, const wb_move_place *place) {
    size_t bytes;
    if (place->from_rank != m->rank) return WB_OK;
    wb_move_label *label = m->sent + m->cursor[place->to_rank]++;
    const int32_t expert = wb_placement_layer(m->placement, move->layer).expert_of_slot[move->from.slot];
    WB_TRY(wb_migrate_find_parts(m, move->layer, move->from, &bytes));
    *label = (wb_move_label){.shape = shape_of(m)};
    return place->checked ? checksum(m, move->layer, (uint32_t)expert, NULL, &label->checksum) : WB_OK;
}

static wb_status fail_move(wb_status status, const wb_move *move, const wb_move_place *place,
                           const char *what, uint64_t expected, uint64_t found) {
    return wb_fail(status,
                   "expert %" PRIu32 " of MoE layer %" PRIu32 " from slot %" PRIu32 " of rank %" PRIu32
                   " to slot %" PRIu32 " of rank %" PRIu32 ": expected %s %016" PRIx64 ", found %016" PRIx64,
                   move->expert, move->layer, move->from.slot, place->from_rank, move->to.slot,
                   place->to_rank, what, expected, found);
}

static wb_status compare_shape(wb_migration *m, const wb_move *move, const wb_move_place *place) {
    size_t bytes;
    if (place->to_rank != m->rank) return WB_OK;
    const uint64_t expected = m->received[m->cursor[place->from_rank]++].shape;
    WB_TRY(wb_migrate_find_parts(m, move->layer, move->to, &bytes));
    if (shape_of(m) == expected) return WB_OK;
    return fail_move(WB_MISMATCH, move, place, "parts of the shape", expected, shape_of(m));
}

static wb_status compare_checksum(wb_migration *m, const wb_move *move, const wb_move_place *place) {
    size_t bytes;
    uint64_t found;
    if (place->to_rank != m->rank) return WB_OK;
    const uint64_t expected = m->received[m->cursor[place->from_rank]++].checksum;
    if (!place->checked) return WB_OK;
    WB_TRY(wb_migrate_find_parts(m, move->layer, move->to, &bytes));
    WB_TRY(checksum(m, move->layer, move->expert, wb_migrate_shadow(m, place), &found));
    return found == expected ? WB_OK : fail_move(WB_CORRUPT, move, place, "checksum", expected, found);
}

static void lay_out(size_t R, const size_t *bytes, size_t *offsets) {
    offsets[0] = 0;
    for (size_t r = 1; r < R; r++) offsets[r] = offsets[r - 1] + bytes[r - 1];
}

static void begin_cursors(wb_migration *m, const size_t *offsets) {
    for (uint32_t r = 0; r < m->n_ranks; r++) m->cursor[r] = offsets[r] / sizeof(wb_move_label);
}

wb_status wb_migrate_write_labels(wb_migration *m) {
    const size_t n = (size_t)wb_migrate_n_moves(m);
    WB_TRY(WB_GROW(m->sent, n, &m->max_sent, "migration"));
    WB_TRY(WB_GROW(m->received, n, &m->max_received, "migration"));
    memset(m->to_bytes, 0, m->n_ranks * sizeof *m->to_bytes);
    memset(m->from_bytes, 0, m->n_ranks * sizeof *m->from_bytes);
    WB_TRY(wb_migrate_visit(m, count_label));
    lay_out(m->n_ranks, m->to_bytes, m->to_offsets);
    lay_out(m->n_ranks, m->from_bytes, m->from_offsets);
    begin_cursors(m, m->to_offsets);
    return wb_migrate_visit(m, write_label);
}

wb_status wb_migrate_send_labels(wb_migration *m) {
    return wb_comm_all_to_all_v(m->comm, m->sent, m->to_bytes, m->to_offsets, m->received, m->from_bytes,
                                m->from_offsets);
}

static wb_status compare_labels(wb_migration *m, wb_visit_fn *compare) {
    begin_cursors(m, m->from_offsets);
    return wb_migrate_visit(m, compare);
}

wb_status wb_migrate_compare_shapes(wb_migration *m) {
    return compare_labels(m, compare_shape);
}

wb_status wb_migrate_compare_checksums(wb_migration *m) {
    return compare_labels(m, compare_checksum);
}
