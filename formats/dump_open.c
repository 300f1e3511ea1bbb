/* dump_open.c - opens a dump: finds every record by index or by walking, sums up what is lost. Refuses: what
 * is damaged rather than cut, files of several models, a rid twice. */
#include "dump_layout.h"
#include "dump_state.h"
#include "wb_route_limits.h"
#include "wb_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- records ------------------------------------------------------------------------------------ */

wb_status wb_dump_add_record(wb_dump *d, uint32_t file, const char *rid, size_t length, uint64_t begin,
                             uint64_t end) {
    uint64_t other;
    if (wb_string_table_find(&d->rids, rid, length, &other))
        return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": rid %.*s is in %s already, at byte %" PRIu64,
                       d->files[file].path, begin, (int)length, rid, d->files[d->records[other].file].path,
                       d->records[other].offset);
    wb_dump_record_place place = {.offset = begin, .bytes = end - begin, .file = file};
    WB_TRY(WB_GROW(d->records, d->n_records + 1, &d->records_capacity, "records of a dump"));
    WB_TRY(wb_string_table_add(&d->rids, rid, length, d->n_records, &place.rid));
    d->records[d->n_records++] = place;
    return WB_OK;
}

/* ---- with an index ------------------------------------------------------------------------------ */

/* The index's offset when the file ends with a trailer that is whole. */
static bool find_trailer(const wb_dump_file *f, uint64_t first, uint64_t *index_out) {
    if (f->size < first + WB_TRAILER_BYTES) return false;
    uint64_t at = f->size - WB_TRAILER_BYTES, index;
    memcpy(&index, f->bytes + at + WB_TRAILER_OFFSET_AT, sizeof index);
    uint8_t expected[WB_TRAILER_BYTES];
    wb_trailer_fill(index, expected);
    if (memcmp(f->bytes + at, expected, sizeof expected) != 0 || index < first || index > at) return false;
    *index_out = index;
    return true;
}

/* Takes one pair of the index: a rid, and the offset of its record, which is in [min, max]. */
static wb_status add_indexed(wb_dump *d, uint32_t file, wb_scan *pairs, uint64_t min, uint64_t max,
                             uint64_t index) {
    size_t length = 0, at = pairs->pos;
    const char *rid = wb_scan_str(pairs, &length);
    uint64_t offset = wb_scan_uint(pairs, max);
    if (offset < min) wb_scan_refuse(pairs, at, "records of the index overlap");
    if (rid && (length == 0 || length > WB_MAX_RID_BYTES || !wb_text_ok(rid, length)))
        wb_scan_refuse(pairs, at, "rid is not 1..1024 bytes of UTF-8");
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    if (pairs->error != WB_SCAN_OK) return wb_parse_fail(&bytes, pairs);
    return wb_dump_add_record(d, file, rid, length, offset, index);
}

/* Records from the index at byte `index`: they tile [first, index), each ending where the next begins. */
static wb_status read_index(wb_dump *d, uint32_t file, uint64_t first, uint64_t index) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    uint64_t end = bytes.size - WB_TRAILER_BYTES, walked = 0;
    bool cut = false;
    WB_TRY(wb_object_end(&bytes, index, &walked, &cut));
    if (cut || walked != end)
        return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": the index does not end at the trailer", bytes.name,
                       index);
    wb_scan pairs;
    uint32_t n = 0;
    WB_TRY(wb_parse_index(&bytes, index, end, &pairs, &n));
    if (n == 0 && index != first)
        return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": the index leaves out what is here", bytes.name,
                       first);
    /* The first record follows the header; a later one comes after the one before it. */
    uint64_t min = first, max = first;
    for (uint32_t i = 0; i < n; i++) {
        WB_TRY(add_indexed(d, file, &pairs, min, max, index));
        wb_dump_record_place *place = &d->records[d->n_records - 1];
        if (i > 0) place[-1].bytes = place->offset - place[-1].offset;
        min = place->offset + WB_RECORD_BYTES_MIN;
        max = index;
    }
    return WB_OK;
}

/* ---- without one -------------------------------------------------------------------------------- */

enum { SHOWN_PATH = 768 }; /* bytes of a path in lost_where; of a longer one its end */

static void report_lost(wb_dump *d, uint32_t file, uint64_t last_whole, const char *what) {
    const wb_dump_file *f = &d->files[file];
    d->info.files_cut++;
    d->info.lost_bytes += f->size - last_whole;
    if (d->info.lost_where[0] != '\0') return;
    size_t length = strlen(f->path), skipped = length > SHOWN_PATH ? length - SHOWN_PATH : 0;
    snprintf(d->info.lost_where, sizeof d->info.lost_where, "%s%s: byte %" PRIu64 ": %s",
             skipped ? "..." : "", f->path + skipped, last_whole, what);
}

/* An index that is whole in a file without a whole trailer: what follows must be the beginning of its
 * trailer, else it is damage. */
static wb_status check_tail(wb_dump *d, uint32_t file, uint64_t index, uint64_t end) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    wb_scan pairs;
    uint32_t n = 0;
    WB_TRY(wb_parse_index(&bytes, index, end, &pairs, &n));
    uint8_t trailer[WB_TRAILER_BYTES];
    wb_trailer_fill(index, trailer);
    uint64_t left = bytes.size - end;
    if (left >= WB_TRAILER_BYTES || memcmp(bytes.bytes + end, trailer, (size_t)left) != 0)
        return wb_fail(WB_CORRUPT,
                       "%s: byte %" PRIu64 ": the trailer is damaged (records before byte %" PRIu64
                       " can be read once the file is cut there)",
                       bytes.name, end, index);
    report_lost(d, file, index, "the file was cut inside its trailer; no record is lost");
    return WB_OK;
}

static wb_status walk_record(wb_dump *d, uint32_t file, uint64_t begin, uint64_t end) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    wb_owner memory = {0};
    wb_stored_record record;
    wb_status status = wb_parse_record(&bytes, begin, end, &d->model, &memory, &record);
    if (status == WB_OK) status = wb_dump_add_record(d, file, record.rid, record.rid_length, begin, end);
    wb_owner_close(&memory);
    wb_dump_file_forget(d, file, begin, end);
    return status;
}

static wb_status walk_records(wb_dump *d, uint32_t file, uint64_t first) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    uint64_t begin = first, end = first;
    d->info.files_without_index++;
    for (; begin < bytes.size; begin = end) {
        bool cut = false;
        WB_TRY(wb_object_end(&bytes, begin, &end, &cut));
        if (cut) {
            report_lost(d, file, begin, "the file was cut inside the object that begins here");
            return WB_OK;
        }
        if (wb_is_index(&bytes, begin, end)) return check_tail(d, file, begin, end);
        WB_TRY(walk_record(d, file, begin, end));
    }
    return WB_OK;
}

/* ---- files -------------------------------------------------------------------------------------- */

/* Takes the header's model as the dump's, or holds it against it. */
static wb_status take_model(wb_dump *d, uint32_t file, uint64_t header_end) {
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    wb_route_model model;
    if (!d->has_model) {
        WB_TRY(wb_parse_header(&bytes, header_end, &d->memory, &d->model));
        d->has_model = true;
        return WB_OK;
    }
    wb_owner memory = {0};
    wb_status status = wb_parse_header(&bytes, header_end, &memory, &model);
    if (status == WB_OK) {
        status = wb_route_model_match(&d->model, &model);
        if (status != WB_OK)
            status = wb_fail_context(status, "%s is of another model than the files before it", bytes.name);
        else if (model.indexer_rate > 0) /* which the files before it may not say */
            d->model.indexer_rate = model.indexer_rate;
    }
    wb_owner_close(&memory);
    return status;
}

static wb_status read_file(wb_dump *d, uint32_t file) {
    wb_dump_file *f = &d->files[file];
    wb_file_bytes bytes = wb_dump_bytes(d, file);
    uint64_t header_end = 0, index = 0;
    bool cut = false;
    WB_TRY(wb_object_end(&bytes, 0, &header_end, &cut));
    d->info.files++;
    d->info.bytes += f->size;
    if (cut) {
        d->info.files_without_index++;
        report_lost(d, file, 0, "the file was cut inside its header");
        return WB_OK;
    }
    WB_TRY(take_model(d, file, header_end));
    if (find_trailer(f, header_end, &index)) return read_index(d, file, header_end, index);
    return walk_records(d, file, header_end);
}

static wb_status read_files(wb_dump *d, const char *path) {
    WB_TRY(wb_dump_list_files(d, path));
    for (uint32_t i = 0; i < d->n_files; i++) {
        WB_TRY(wb_dump_file_use(d, i));
        wb_status status = read_file(d, i);
        wb_dump_file_drop(d, i);
        WB_TRY(status);
    }
    d->info.records = d->n_records;
    if (d->has_model) return WB_OK;
    return wb_fail(WB_CORRUPT, "%s: no file with a whole header, and so neither a model nor a record: %s",
                   path, d->info.lost_where);
}

wb_status wb_dump_open_mapping(const char *path, size_t max_maps, wb_dump **dump_out) {
    if (!path || !dump_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_open: NULL");
    wb_dump *d = NULL;
    WB_TRY(WB_NEW(d, 1, "dump"));
    d->directory = -1;
    d->max_maps = max_maps;
    wb_status status = read_files(d, path);
    if (status == WB_OK)
        *dump_out = d;
    else
        wb_dump_close(d);
    return status;
}

wb_status wb_dump_open(const char *path, wb_dump **dump_out) {
    return wb_dump_open_mapping(path, WB_DUMP_MAX_MAPS, dump_out);
}

void wb_dump_close(wb_dump *d) {
    if (!d) return;
    for (size_t i = 0; i < d->n_records; i++) wb_dump_unload(d, i);
    free(d->records);
    free(d->spare);
    free(d->scratch.bytes);
    wb_string_table_free(&d->rids);
    wb_dump_free_files(d);
    wb_owner_close(&d->memory);
    free(d);
}

const wb_route_model *wb_dump_model(const wb_dump *dump) {
    return &dump->model;
}

wb_dump_info wb_dump_get_info(const wb_dump *dump) {
    return dump->info;
}
