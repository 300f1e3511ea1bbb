/* dump_salvage.c - opens what is whole of a damaged dump: walks from object to object, and where there is
 * none, on to the next place where a record may begin. Owns: what is whole (all that wb_dump_verify checks),
 * and what is lost. Refuses: to guess what damaged bytes were. */
#include "dump_layout.h"
#include "dump_state.h"
#include "wb_route_limits.h"
#include "wb_text.h"

#include <stdio.h>
#include <string.h>

typedef struct salvage {
    wb_dump *dump;
    void (*lost)(void *ctx, const wb_dump_loss *loss);
    void *ctx;
    char rid[WB_MAX_RID_BYTES + 1]; /* of the latest loss */
} salvage;

/* ---- losses ------------------------------------------------------------------------------------- */

/* The rid of what begins like a record, if it is there and whole. */
static const char *read_rid(salvage *s, const wb_file_bytes *file, uint64_t begin) {
    wb_scan scan = wb_scan_range(file->bytes, begin, file->size);
    size_t length = 0;
    wb_scan_map(&scan);
    const char *key = wb_scan_str(&scan, &length);
    if (!wb_key_is(key, length, "rid")) return NULL;
    const char *rid = wb_scan_str(&scan, &length);
    if (!rid || length == 0 || length > WB_MAX_RID_BYTES || !wb_text_ok(rid, length)) return NULL;
    memcpy(s->rid, rid, length);
    s->rid[length] = '\0';
    return s->rid;
}

/* Says that [begin, end) of a file is lost; why it is, is the thread's message. */
static void report(salvage *s, uint32_t file, uint64_t begin, uint64_t end) {
    const wb_file_bytes bytes = wb_dump_bytes(s->dump, file);
    const wb_dump_loss loss = {bytes.name, begin, end - begin, read_rid(s, &bytes, begin),
                               wb_error_message()};
    if (s->lost) s->lost(s->ctx, &loss);
}

/* ---- records ------------------------------------------------------------------------------------ */

/* Reads record i as its users will, and its ids. */
static wb_status check_record(wb_dump *d, uint64_t i) {
    wb_record record;
    WB_TRY(wb_dump_record(d, i, &record));
    wb_status status = wb_record_check(&d->model, &record, true);
    wb_dump_release(d, i);
    return status;
}

/* The record that was added last: whole, whole but for the rows of its prefix, or taken out again. */
static wb_status check_added(salvage *s, uint32_t file, bool has_prefix) {
    wb_dump *d = s->dump;
    const uint64_t i = d->n_records - 1;
    wb_dump_record_place *place = &d->records[i];
    wb_status status = check_record(d, i);
    if (status == WB_OK || status == WB_OUT_OF_MEMORY || status == WB_IO) return status;
    char why[1024];
    snprintf(why, sizeof why, "%s", wb_error_message());
    place->without_prefix = has_prefix;
    if (has_prefix && check_record(d, i) == WB_OK) {
        const wb_dump_loss loss = {d->files[file].path, place->offset, 0, place->rid, why};
        if (s->lost) s->lost(s->ctx, &loss);
        return WB_OK;
    }
    wb_string_table_remove(&d->rids, place->rid, strlen(place->rid));
    d->n_records--;
    return wb_fail(status, "%s", why);
}

/* Adds the record [begin, end) if it is whole. */
static wb_status add_whole(salvage *s, uint32_t file, uint64_t begin, uint64_t end) {
    const wb_file_bytes bytes = wb_dump_bytes(s->dump, file);
    wb_owner memory = {0};
    wb_stored_record record;
    wb_status status = wb_parse_record(&bytes, begin, end, &s->dump->model, &memory, &record);
    const bool has_prefix = status == WB_OK && record.prefix_rows > 0;
    if (status == WB_OK)
        status = wb_dump_add_record(s->dump, file, record.rid, record.rid_length, begin, end);
    wb_owner_close(&memory);
    return status == WB_OK ? check_added(s, file, has_prefix) : status;
}

/* ---- files -------------------------------------------------------------------------------------- */

/* A record has 7 pairs and more; the map of a prefix, which begins with rid too, has fewer. */
static bool is_record_head(const uint8_t *key, uint64_t bytes_before) {
    if (key[-1] >= 0x87 && key[-1] <= 0x8f) return true;
    return bytes_before >= 3 && key[-3] == 0xde;
}

/* The next byte after `at` where a record may begin, a map whose first key is rid; without one the file's
 * size. */
static uint64_t next_begin(const wb_file_bytes *file, uint64_t at) {
    static const char key[] = "\xa3rid";
    for (uint64_t i = at + 2; i + 4 <= file->size; i++) {
        const uint8_t *found = memchr(file->bytes + i, key[0], (size_t)(file->size - i));
        if (!found || (uint64_t)(found - file->bytes) + 4 > file->size) break;
        i = (uint64_t)(found - file->bytes);
        if (memcmp(found, key, 4) != 0) continue;
        if (is_record_head(found, i - at - 1)) return found[-1] >= 0x87 && found[-1] <= 0x8f ? i - 1 : i - 3;
    }
    return file->size;
}

/* Whether the object is the index or the trailer, which a copy has anew. */
static bool is_end_object(const wb_file_bytes *file, uint64_t begin, uint64_t end) {
    if (end - begin == WB_TRAILER_BYTES &&
        memcmp(file->bytes + begin, WB_TRAILER_HEAD, WB_TRAILER_HEAD_BYTES) == 0)
        return true;
    return wb_is_index(file, begin, end);
}

/* Everything in a file from byte `at` on. A loss ends where an object does, or where a record may begin.
 * OUT_OF_MEMORY and IO are no damage. */
static wb_status walk(salvage *s, uint32_t file, uint64_t at) {
    const wb_file_bytes bytes = wb_dump_bytes(s->dump, file);
    while (at < bytes.size) {
        uint64_t end = 0;
        bool cut = false;
        wb_status status = wb_object_end(&bytes, at, &end, &cut);
        const bool whole = status == WB_OK && !cut;
        if (status == WB_OK && cut)
            status = wb_fail(WB_CORRUPT, "the file ends inside the object that begins here");
        if (whole && is_end_object(&bytes, at, end)) {
            at = end;
            continue;
        }
        if (whole) status = add_whole(s, file, at, end);
        if (status == WB_OUT_OF_MEMORY || status == WB_IO) return status;
        if (status != WB_OK) {
            const uint64_t next = next_begin(&bytes, at);
            if (!whole || next < end) end = next;
            report(s, file, at, end);
        }
        at = end;
    }
    return WB_OK;
}

/* Where the records of a file begin: after its header, or at byte 0 when that is damaged. A file of another
 * model is lost. */
static wb_status salvage_file(salvage *s, uint32_t file) {
    const wb_file_bytes bytes = wb_dump_bytes(s->dump, file);
    uint64_t end = 0;
    bool cut = false;
    wb_owner memory = {0};
    wb_route_model model;
    s->dump->info.files++;
    s->dump->info.bytes += bytes.size;
    wb_status status = wb_object_end(&bytes, 0, &end, &cut);
    if (status == WB_OK && cut) status = wb_fail(WB_CORRUPT, "the file ends inside its header");
    if (status == WB_OK) status = wb_parse_header(&bytes, end, &memory, &model);
    const bool has_model = status == WB_OK;
    if (has_model) status = wb_route_model_match(&s->dump->model, &model);
    wb_owner_close(&memory);
    if (status == WB_OK) return walk(s, file, end);
    if (status == WB_OUT_OF_MEMORY) return status;
    const uint64_t next = has_model ? bytes.size : next_begin(&bytes, 0);
    report(s, file, 0, next);
    return walk(s, file, next);
}

/* The model of the first file that has a whole header; the rate of its indexers, from any that says it. */
static wb_status find_model(wb_dump *d, uint32_t file) {
    const wb_file_bytes bytes = wb_dump_bytes(d, file);
    uint64_t end = 0;
    bool cut = false;
    wb_owner memory = {0};
    wb_route_model later;
    WB_TRY(wb_object_end(&bytes, 0, &end, &cut));
    if (cut) return wb_fail(WB_CORRUPT, "%s: the file ends inside its header", bytes.name);
    if (!d->has_model) {
        WB_TRY(wb_parse_header(&bytes, end, &d->memory, &d->model));
        d->has_model = true;
        return WB_OK;
    }
    wb_status status = wb_parse_header(&bytes, end, &memory, &later);
    if (status == WB_OK) status = wb_route_model_match(&d->model, &later);
    if (status == WB_OK && later.indexer_rate > 0) d->model.indexer_rate = later.indexer_rate;
    wb_owner_close(&memory);
    return status;
}

static bool is_known(const wb_dump *d) {
    return d->has_model && (d->model.n_indexer_layers == 0 || d->model.indexer_rate > 0);
}

static wb_status salvage_files(salvage *s, const char *path) {
    wb_dump *d = s->dump;
    WB_TRY(wb_dump_list_files(d, path));
    wb_status status = WB_OK;
    for (uint32_t i = 0; i < d->n_files && !is_known(d); i++) {
        WB_TRY(wb_dump_file_use(d, i));
        status = find_model(d, i);
        wb_dump_file_drop(d, i);
        if (status == WB_OUT_OF_MEMORY) return status;
    }
    if (!d->has_model)
        return wb_fail_context(WB_CORRUPT, "%s: no file with a whole header, and so no model", path);
    for (uint32_t i = 0; i < d->n_files; i++) {
        WB_TRY(wb_dump_file_use(d, i));
        status = salvage_file(s, i);
        wb_dump_file_drop(d, i);
        WB_TRY(status);
    }
    d->info.records = d->n_records;
    return WB_OK;
}

wb_status wb_dump_salvage(const char *path, void (*lost)(void *ctx, const wb_dump_loss *loss), void *ctx,
                          wb_dump **dump_out) {
    salvage s = {.lost = lost, .ctx = ctx};
    if (!path || !dump_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_salvage: NULL");
    WB_TRY(WB_NEW(s.dump, 1, "dump"));
    s.dump->directory = -1;
    s.dump->max_maps = WB_DUMP_MAX_MAPS;
    wb_status status = salvage_files(&s, path);
    if (status == WB_OK)
        *dump_out = s.dump;
    else
        wb_dump_close(s.dump);
    return status;
}
