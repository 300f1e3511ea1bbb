/* dump_copy.c - a record of one dump into another: as it is stored where that can be, else encoded anew.
 * Refuses: what reading it finds damaged, and what the writer refuses. */
#include "dump_layout.h"
#include "dump_state.h"
#include "dump_writer.h"

#include <string.h>

/* A record's bytes; its file is in memory. */
static wb_record_bytes bytes_of(const wb_dump *d, uint64_t i) {
    const wb_dump_record_place *place = &d->records[i];
    wb_record_bytes stored = {d->files[place->file].bytes + place->offset, (size_t)place->bytes, 0};
    for (size_t k = stored.size - (WB_SEAL_VALUE_BYTES - 1); k < stored.size; k++)
        stored.seal = stored.seal << 8 | stored.bytes[k];
    return stored;
}

/* Whether the bytes of record i mean in the writer's file what they mean here: they have no prefix, or the
 * record that it names is there with the same bytes. Record i is loaded, and so is that other one. */
static bool can_be_copied(const wb_dump_writer *w, const wb_dump *d, uint64_t i) {
    const wb_dump_record_place *place = &d->records[i];
    const wb_stored_record *s = &place->loaded->stored;
    uint64_t base = 0;
    if (place->without_prefix) return false;
    if (s->prefix_rows == 0) return true;
    if (!wb_string_table_find(&d->rids, s->prefix_rid, s->prefix_rid_length, &base)) return false;
    return wb_writer_has(w, d->records[base].rid, bytes_of(d, base).seal);
}

/* The first two runs of a record as one, in memory of `memory`: the rows of its prefix and its own. */
static wb_status join_runs(const wb_route_model *m, const wb_record *r, wb_owner *memory,
                           wb_route_rows *joined_out) {
    const wb_route_rows *first = &r->routes[0], *second = &r->routes[1];
    const size_t row_bytes = wb_route_row_bytes(m), rows = (size_t)first->rows + second->rows;
    uint8_t *ids = NULL, *valid = NULL;
    WB_TRY(WB_OWN_ALLOC(memory, ids, rows, row_bytes, "rows of a record"));
    memcpy(ids, first->ids, first->rows * row_bytes);
    if (second->rows > 0) memcpy(ids + first->rows * row_bytes, second->ids, second->rows * row_bytes);
    if (second->valid) WB_TRY(WB_OWN(memory, valid, (rows + 7) / 8, "valid rows of a record"));
    for (uint32_t i = 0; second->valid && i < rows; i++)
        wb_row_set_valid(valid, i, i < first->rows || wb_row_valid(second->valid, i - first->rows));
    *joined_out = (wb_route_rows){first->start, (uint32_t)rows, ids, valid};
    return WB_OK;
}

/* Appends a record without its prefix. Its first rows and those after them become one run, as they were
 * before they were stored in two places, or each copy of a copy would be in more pieces. */
static wb_status append_whole(wb_dump_writer *w, const wb_route_model *m, const wb_record *r) {
    const bool in_two = r->n_routes > 1 && !r->routes[0].valid &&
                        r->routes[0].start + r->routes[0].rows == r->routes[1].start;
    wb_record whole = *r;
    wb_route_rows *runs = NULL;
    wb_owner memory = {0};
    if (!in_two) return wb_dump_append(w, r);
    wb_status status = WB_OWN(&memory, runs, r->n_routes - 1, "runs of a record");
    if (status == WB_OK) status = join_runs(m, r, &memory, &runs[0]);
    if (status == WB_OK) {
        memcpy(runs + 1, r->routes + 2, (r->n_routes - 2) * sizeof *runs);
        whole.routes = runs;
        whole.n_routes--;
        status = wb_dump_append(w, &whole);
    }
    wb_owner_close(&memory);
    return status;
}

wb_status wb_dump_append_stored(wb_dump_writer *w, wb_dump *d, uint64_t i) {
    wb_record record;
    if (!w || !d) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_append_stored: NULL");
    WB_TRY(wb_dump_record(d, i, &record));
    wb_status status = wb_writer_check(w, &d->model, &record);
    if (status == WB_OK)
        status = can_be_copied(w, d, i) ? wb_writer_put(w, record.rid, bytes_of(d, i))
                                        : append_whole(w, &d->model, &record);
    wb_dump_release(d, i);
    return status;
}
