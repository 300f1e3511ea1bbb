/* dump_read.c - the calls that give records of an open dump and take them back.
 *
 * Owns: who is needed. Rows of codec raw in one chunk are used where they are mapped, others are decoded into
 * one block a record. The record's last release frees it, and lets its file go, unless a record that shares
 * its first rows is still held. Refuses: a prefix of a record that has a prefix itself. */
#include "dump_rows_decode.h"
#include "dump_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- rows --------------------------------------------------------------------------------------- */

/* The spare block when it has room for the rows, else a new one. */
static wb_status get_block(wb_dump *d, size_t rows, size_t row_bytes, uint8_t **block_out,
                           size_t *bytes_out) {
    uint8_t *block = d->spare;
    size_t bytes = d->spare_bytes;
    if (!block || bytes < rows * row_bytes) {
        bytes = rows * row_bytes;
        WB_TRY(WB_ALLOC(block, rows, row_bytes, "rows of a record"));
    } else {
        d->spare = NULL;
        d->spare_bytes = 0;
    }
    *block_out = block;
    *bytes_out = bytes;
    return WB_OK;
}

/* Makes the record's own rows readable. */
static wb_status get_rows(wb_dump *d, uint64_t i) {
    wb_loaded *l = d->records[i].loaded;
    if (l->in_place || l->joined) return WB_OK;
    size_t row_bytes = wb_route_row_bytes(&d->model), rows = 0;
    for (uint32_t r = 0; r < l->stored.n_runs; r++) rows += l->stored.runs[r].rows;
    uint8_t *block = NULL;
    size_t block_bytes = 0;
    WB_TRY(get_block(d, rows, row_bytes, &block, &block_bytes));
    wb_file_bytes file = wb_dump_bytes(d, d->records[i].file);
    size_t at = 0;
    for (uint32_t r = 0; r < l->stored.n_runs; r++) {
        wb_status status = wb_rows_decode(&file, &l->stored.runs[r], &d->model, &d->scratch, block + at);
        if (status != WB_OK) {
            free(block);
            return wb_fail_context(status, "%s: record %s", file.name, d->records[i].rid);
        }
        if (l->stored.runs[r].rows > 0) wb_loaded_own_runs(l)[r].ids = block + at;
        at += l->stored.runs[r].rows * row_bytes;
    }
    l->joined = block;
    l->joined_bytes = block_bytes;
    return WB_OK;
}

/* Frees the record unless somebody needs it. */
static void drop(wb_dump *d, uint64_t i) {
    if (d->records[i].held == 0 && d->records[i].users == 0) wb_dump_unload(d, i);
}

/* ---- shared rows -------------------------------------------------------------------------------- */

static wb_status base_index(const wb_dump *d, uint64_t i, const wb_stored_record *s, uint64_t *base_out) {
    uint64_t base = 0;
    if (!wb_string_table_find(&d->rids, s->prefix_rid, s->prefix_rid_length, &base) || base >= i ||
        d->records[base].file != d->records[i].file)
        return wb_dump_record_fail(d, i, "its prefix is not a record before it in the file");
    *base_out = base;
    return WB_OK;
}

/* The run of `base` that holds rows [start, start + rows), all valid; NULL when it has none. */
static const wb_route_rows *covering(const wb_loaded *base, uint32_t start, uint32_t rows) {
    for (uint32_t r = 0; r < base->n_routes; r++) {
        const wb_route_rows *run = &base->routes[r];
        if (start < run->start || start - run->start > run->rows || rows > run->rows - (start - run->start))
            continue;
        uint32_t first = start - run->start;
        bool all = wb_row_valid(run->valid, first) && wb_row_stretch(run->valid, first, first + rows) == rows;
        return all ? run : NULL;
    }
    return NULL;
}

/* Points record i's first run into the rows of its base, which is loaded. */
static wb_status point_into(wb_dump *d, uint64_t i, uint64_t base) {
    const wb_loaded *from = d->records[base].loaded;
    if (from->stored.prefix_rows > 0)
        return wb_dump_record_fail(d, i, "its prefix is a record with a prefix");
    WB_TRY(get_rows(d, base));
    wb_route_rows *run = &d->records[i].loaded->routes[0];
    const wb_route_rows *source = covering(from, run->start, run->rows);
    if (!source) return wb_dump_record_fail(d, i, "its prefix does not hold the rows it is to share");
    run->ids = (const uint8_t *)source->ids + (run->start - source->start) * wb_route_row_bytes(&d->model);
    return WB_OK;
}

/* Gives record i the rows of its base, which is then in use. */
static wb_status attach_prefix(wb_dump *d, uint64_t i) {
    uint64_t base = 0;
    WB_TRY(base_index(d, i, &d->records[i].loaded->stored, &base));
    WB_TRY(wb_dump_load(d, base));
    wb_status status = point_into(d, i, base);
    if (status == WB_OK)
        d->records[base].users++;
    else
        drop(d, base);
    return status;
}

static void detach_prefix(wb_dump *d, uint64_t i) {
    uint64_t base = 0;
    const wb_stored_record *s = &d->records[i].loaded->stored;
    if (s->prefix_rows == 0 || !wb_string_table_find(&d->rids, s->prefix_rid, s->prefix_rid_length, &base))
        return;
    d->records[base].users--;
    drop(d, base);
}

/* ---- the calls ---------------------------------------------------------------------------------- */

static wb_status check_number(const wb_dump *d, uint64_t i) {
    if (i < d->n_records) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "record %" PRIu64 ": the dump has %zu", i, d->n_records);
}

wb_status wb_dump_record(wb_dump *d, uint64_t i, wb_record *record_out) {
    if (!d || !record_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_record: NULL");
    WB_TRY(check_number(d, i));
    wb_dump_record_place *place = &d->records[i];
    if (place->held == 0) {
        WB_TRY(wb_dump_load(d, i));
        wb_status status = get_rows(d, i);
        if (status == WB_OK && place->loaded->stored.prefix_rows > 0) status = attach_prefix(d, i);
        if (status != WB_OK) {
            drop(d, i);
            return status;
        }
    }
    place->held++;
    *record_out = wb_dump_as_record(d, i);
    return WB_OK;
}

wb_status wb_dump_index(const wb_dump *d, const char *rid, uint64_t *i_out) {
    if (!d || !rid || !i_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_index: NULL");
    if (wb_string_table_find(&d->rids, rid, strlen(rid), i_out)) return WB_OK;
    return wb_fail(WB_NOT_FOUND, "rid %s: not among the dump's %zu records", rid, d->n_records);
}

wb_status wb_dump_find(wb_dump *d, const char *rid, wb_record *record_out) {
    uint64_t i = 0;
    WB_TRY(wb_dump_index(d, rid, &i));
    return wb_dump_record(d, i, record_out);
}

void wb_dump_release(wb_dump *d, uint64_t i) {
    if (!d || i >= d->n_records || d->records[i].held == 0) return;
    if (--d->records[i].held > 0) return;
    detach_prefix(d, i);
    drop(d, i);
}

static wb_status fill_entry(const wb_dump *d, uint64_t i, const wb_stored_record *s, wb_dump_entry *entry) {
    entry->n_tokens = s->n_tokens;
    entry->group = s->group;
    entry->sample = s->sample;
    entry->has_digest = s->sampling.has_digest;
    for (uint32_t r = 0; r < s->n_runs; r++) {
        entry->stored_rows += s->runs[r].rows;
        entry->stored_row_bytes += s->runs[r].stored_bytes;
        entry->valid_rows += wb_row_count(s->runs[r].valid, s->runs[r].rows);
    }
    entry->valid_rows += s->prefix_rows;
    if (s->has_indexer) {
        entry->stored_indexer_rows = s->indexer.rows;
        entry->stored_indexer_bytes = s->indexer.stored_bytes;
    }
    if (s->n_runs > 0) entry->codec = s->runs[0].codec;
    entry->n_spans = s->n_spans;
    if (s->n_spans > 0) entry->weight_version = s->spans[s->n_spans - 1].weight_version;
    if (s->prefix_rows == 0) return WB_OK;
    uint64_t base = 0;
    WB_TRY(base_index(d, i, s, &base));
    entry->prefix_rows = s->prefix_rows;
    entry->prefix_rid = d->records[base].rid;
    return WB_OK;
}

static wb_status parse_entry(const wb_dump *d, uint64_t i, wb_dump_entry *entry) {
    const wb_dump_record_place *place = &d->records[i];
    wb_file_bytes file = wb_dump_bytes(d, place->file);
    wb_owner memory = {0};
    wb_stored_record s;
    wb_status status =
        wb_parse_record(&file, place->offset, place->offset + place->bytes, &d->model, &memory, &s);
    if (status == WB_OK && place->without_prefix) s.prefix_rows = 0;
    if (status == WB_OK) status = fill_entry(d, i, &s, entry);
    wb_owner_close(&memory);
    return status;
}

wb_status wb_dump_get_entry(wb_dump *d, uint64_t i, wb_dump_entry *entry_out) {
    if (!d || !entry_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_get_entry: NULL");
    WB_TRY(check_number(d, i));
    const wb_dump_record_place *place = &d->records[i];
    wb_dump_entry entry = {.file = d->files[place->file].name,
                           .path = d->files[place->file].path,
                           .offset = place->offset,
                           .bytes = place->bytes};
    WB_TRY(wb_dump_file_use(d, place->file));
    wb_status status = parse_entry(d, i, &entry);
    if (!place->loaded) wb_dump_file_forget(d, place->file, place->offset, place->offset + place->bytes);
    wb_dump_file_drop(d, place->file);
    if (status == WB_OK) *entry_out = entry;
    return status;
}
