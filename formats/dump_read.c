/* dump_read.c - records of an open dump: parsed, checked and, where needed, decoded at first access.
 *
 * Rows of codec raw in one chunk are used where they are mapped. Others are joined in one block, which a
 * record's release gives back unless a record that shares its first rows is still held. */
#include "dump_state.h"
#include "wb_hash.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void wb_loaded_free(wb_loaded *l) {
    if (!l) return;
    wb_stored_record_free(&l->stored);
    free(l->tokens);
    free(l->logprobs);
    free(l->routes);
    free(l->joined);
    free(l);
}

static wb_status record_fail(const wb_dump *d, uint64_t i, const char *why) {
    return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": record %s: %s", d->files[d->records[i].file].name,
                   d->records[i].offset, d->records[i].rid, why);
}

/* ---- rows --------------------------------------------------------------------------------------- */

/* Decodes one chunk into `dst`; *used_out bytes of the `capacity`. */
static wb_status decode_chunk(wb_codec codec, const uint8_t *chunk, size_t size, uint8_t *dst,
                              size_t capacity, size_t *used_out) {
    if (codec == WB_CODEC_ZSTD) return wb_zstd_decode(chunk, size, dst, capacity, used_out);
    if (size > capacity) return wb_fail(WB_CORRUPT, "a chunk is longer than the rows left");
    memcpy(dst, chunk, size);
    *used_out = size;
    return WB_OK;
}

/* Decodes all chunks of a run into `dst`, which they must fill exactly, each with whole rows. */
static wb_status decode_run(const wb_file_bytes *file, const wb_stored_run *run, size_t row_bytes,
                            uint8_t *dst) {
    wb_scan scan = wb_scan_range(file->bytes, run->data_at, file->size);
    size_t total = run->rows * row_bytes, done = 0;
    if (wb_scan_is_array(&scan)) wb_scan_array(&scan);
    for (uint32_t c = 0; c < run->n_chunks; c++) {
        size_t size = 0, used = 0;
        const uint8_t *chunk = wb_scan_bin(&scan, &size);
        if (size == 0) continue; /* no rows: an empty bin, which is no zstd frame */
        WB_TRY(decode_chunk(run->codec, chunk, size, dst + done, total - done, &used));
        if (used % row_bytes != 0) return wb_fail(WB_CORRUPT, "a chunk does not hold whole rows");
        done += used;
    }
    if (done == total) return WB_OK;
    return wb_fail(WB_CORRUPT, "the chunks hold %zu bytes of rows, expected %zu", done, total);
}

/* The runs of a loaded record that are its own; the first of `routes` may be a shared one. */
static wb_route_rows *own_runs(const wb_loaded *l) {
    return l->routes + (l->stored.prefix_rows > 0 ? 1 : 0);
}

/* Makes the record's own rows readable. */
static wb_status get_rows(const wb_dump *d, uint64_t i) {
    wb_loaded *l = d->records[i].loaded;
    if (l->in_place || l->joined) return WB_OK;
    size_t row_bytes = wb_route_row_bytes(&d->model), rows = 0;
    for (uint32_t r = 0; r < l->stored.n_runs; r++) rows += l->stored.runs[r].rows;
    uint8_t *block = NULL;
    WB_TRY(WB_ALLOC(block, rows, row_bytes, "rows of a record"));
    wb_file_bytes file = wb_dump_bytes(d, d->records[i].file);
    size_t at = 0;
    for (uint32_t r = 0; r < l->stored.n_runs; r++) {
        wb_status status = decode_run(&file, &l->stored.runs[r], row_bytes, block + at);
        if (status != WB_OK) {
            free(block);
            return wb_fail_context(status, "%s: record %s", file.name, d->records[i].rid);
        }
        if (l->stored.runs[r].rows > 0) own_runs(l)[r].ids = block + at;
        at += l->stored.runs[r].rows * row_bytes;
    }
    l->joined = block;
    return WB_OK;
}

static void drop_rows(wb_dump_record_place *place) {
    if (place->held || place->users > 0 || !place->loaded) return;
    free(place->loaded->joined);
    place->loaded->joined = NULL;
}

static wb_status check_rows(const wb_dump *d, uint64_t i, const wb_stored_run *run) {
    const wb_dump_file *f = &d->files[d->records[i].file];
    wb_scan scan = wb_scan_range(f->bytes, run->data_at, f->size);
    wb_hash hash;
    wb_hash_start(&hash);
    if (wb_scan_is_array(&scan)) wb_scan_array(&scan);
    for (uint32_t c = 0; c < run->n_chunks; c++) {
        size_t size = 0;
        const uint8_t *chunk = wb_scan_bin(&scan, &size);
        if (chunk) wb_hash_add(&hash, chunk, size);
    }
    if (wb_hash_same(run->xxh3, wb_hash_value(&hash))) return WB_OK;
    return record_fail(d, i, "the checksum of its rows does not match");
}

/* ---- loading ------------------------------------------------------------------------------------ */

/* The array itself when it is aligned, else a copy. */
static wb_status aligned_words(const uint8_t *mapped, uint32_t n, void **copy_out) {
    if (!mapped || (uintptr_t)mapped % 4 == 0) return WB_OK;
    WB_TRY(WB_ALLOC(*copy_out, n, 4, "tokens or logprobs"));
    memcpy(*copy_out, mapped, (size_t)n * 4);
    return WB_OK;
}

static wb_status make_routes(wb_loaded *l) {
    const wb_stored_record *s = &l->stored;
    bool shared = s->prefix_rows > 0;
    WB_TRY(WB_NEW(l->routes, (size_t)s->n_runs + shared, "runs of a record"));
    l->in_place = true;
    for (uint32_t r = 0; r < s->n_runs; r++) {
        const wb_stored_run *run = &s->runs[r];
        own_runs(l)[r] = (wb_route_rows){run->start, run->rows, run->chunk, run->valid};
        if (run->codec != WB_CODEC_RAW || run->n_chunks != 1) l->in_place = false;
    }
    l->n_routes = s->n_runs + shared;
    if (!shared) return WB_OK;
    l->routes[0] = (wb_route_rows){s->runs[0].start - s->prefix_rows, s->prefix_rows, l->routes, NULL};
    /* A first run without rows only says where the shared ones end. */
    if (s->n_runs == 1 && s->runs[0].rows == 0) l->n_routes = 1;
    return WB_OK;
}

static wb_record as_record(const wb_dump *d, uint64_t i) {
    const wb_loaded *l = d->records[i].loaded;
    const wb_stored_record *s = &l->stored;
    return (wb_record){
        .rid = d->records[i].rid,
        .group = s->group,
        .sample = s->sample,
        .prompt_len = s->prompt_len,
        .n_tokens = s->n_tokens,
        .tokens = l->tokens ? l->tokens : (const uint32_t *)(const void *)s->tokens,
        .logprobs = l->logprobs ? l->logprobs : (const float *)(const void *)s->logprobs,
        .finish = s->finish,
        .n_spans = s->n_spans,
        .spans = s->n_spans > 0 ? s->spans : NULL,
        .n_routes = l->n_routes,
        .routes = l->n_routes > 0 ? l->routes : NULL,
    };
}

static wb_status fill_loaded(wb_dump *d, uint64_t i) {
    wb_loaded *l = d->records[i].loaded;
    const wb_stored_record *s = &l->stored;
    const char *rid = d->records[i].rid;
    if (strlen(rid) != s->rid_length || memcmp(rid, s->rid, s->rid_length) != 0)
        return record_fail(d, i, "the index has another rid than the record");
    WB_TRY(aligned_words(s->tokens, s->n_tokens, (void **)&l->tokens));
    WB_TRY(aligned_words(s->logprobs, s->n_tokens - s->prompt_len, (void **)&l->logprobs));
    WB_TRY(make_routes(l));
    wb_record record = as_record(d, i);
    if (wb_record_check(&d->model, &record, false) != WB_OK)
        return wb_fail_context(WB_CORRUPT, "%s: byte %" PRIu64, d->files[d->records[i].file].name,
                               d->records[i].offset);
    for (uint32_t r = 0; r < s->n_runs; r++) WB_TRY(check_rows(d, i, &s->runs[r]));
    return WB_OK;
}

/* Parses and checks record i, once. */
static wb_status load(wb_dump *d, uint64_t i) {
    wb_dump_record_place *place = &d->records[i];
    if (place->loaded) return WB_OK;
    wb_file_bytes file = wb_dump_bytes(d, place->file);
    WB_TRY(WB_NEW(place->loaded, 1, "a record"));
    wb_status status = wb_parse_record(&file, place->offset, place->offset + place->bytes, &d->model,
                                       &place->loaded->stored);
    if (status == WB_OK) status = fill_loaded(d, i);
    if (status == WB_OK) return WB_OK;
    wb_loaded_free(place->loaded);
    place->loaded = NULL;
    return status;
}

/* ---- shared rows -------------------------------------------------------------------------------- */

static wb_status base_index(const wb_dump *d, uint64_t i, const wb_stored_record *s, uint64_t *base_out) {
    uint64_t base = 0;
    if (!wb_string_table_find(&d->rids, s->prefix_rid, s->prefix_rid_length, &base) || base >= i ||
        d->records[base].file != d->records[i].file)
        return record_fail(d, i, "its prefix is not a record before it in the file");
    *base_out = base;
    return WB_OK;
}

/* The run of `base` that holds rows [start, start + rows), all valid; NULL when it has none. */
static const wb_route_rows *covering(const wb_loaded *base, uint32_t start, uint32_t rows) {
    for (uint32_t r = 0; r < base->n_routes; r++) {
        const wb_route_rows *run = &base->routes[r];
        if (start < run->start || start - run->start > run->rows || rows > run->rows - (start - run->start))
            continue;
        uint32_t first = start - run->start, n = 0;
        while (n < rows && (!run->valid || (run->valid[(first + n) / 8] >> ((first + n) % 8) & 1))) n++;
        return n == rows ? run : NULL;
    }
    return NULL;
}

/* Points record i's first run into the rows of its base, which is then in use. */
static wb_status attach_prefix(wb_dump *d, uint64_t i) {
    wb_loaded *l = d->records[i].loaded;
    uint64_t base = 0;
    WB_TRY(base_index(d, i, &l->stored, &base));
    WB_TRY(load(d, base));
    wb_loaded *from = d->records[base].loaded;
    if (from->stored.prefix_rows > 0) return record_fail(d, i, "its prefix is a record with a prefix");
    WB_TRY(get_rows(d, base));
    wb_route_rows *run = &l->routes[0];
    const wb_route_rows *source = covering(from, run->start, run->rows);
    if (!source) {
        drop_rows(&d->records[base]);
        return record_fail(d, i, "its prefix does not hold the rows it is to share");
    }
    run->ids = (const uint8_t *)source->ids + (run->start - source->start) * wb_route_row_bytes(&d->model);
    d->records[base].users++;
    return WB_OK;
}

static void detach_prefix(wb_dump *d, uint64_t i) {
    uint64_t base = 0;
    const wb_stored_record *s = &d->records[i].loaded->stored;
    if (s->prefix_rows == 0 || !wb_string_table_find(&d->rids, s->prefix_rid, s->prefix_rid_length, &base))
        return;
    d->records[base].users--;
    drop_rows(&d->records[base]);
}

/* ---- the calls ---------------------------------------------------------------------------------- */

wb_status wb_dump_record(wb_dump *d, uint64_t i, wb_record *record_out) {
    if (!d || !record_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_record: NULL");
    if (i >= d->n_records)
        return wb_fail(WB_INVALID_ARGUMENT, "record %" PRIu64 ": the dump has %zu", i, d->n_records);
    wb_dump_record_place *place = &d->records[i];
    if (!place->held) {
        WB_TRY(load(d, i));
        wb_status status = get_rows(d, i);
        if (status == WB_OK && place->loaded->stored.prefix_rows > 0) status = attach_prefix(d, i);
        if (status != WB_OK) {
            drop_rows(place);
            return status;
        }
        place->held = true;
    }
    *record_out = as_record(d, i);
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
    if (!d || i >= d->n_records || !d->records[i].held) return;
    d->records[i].held = false;
    detach_prefix(d, i);
    drop_rows(&d->records[i]);
}

wb_status wb_dump_get_entry(const wb_dump *d, uint64_t i, wb_dump_entry *entry_out) {
    if (!d || !entry_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_get_entry: NULL");
    if (i >= d->n_records)
        return wb_fail(WB_INVALID_ARGUMENT, "record %" PRIu64 ": the dump has %zu", i, d->n_records);
    const wb_dump_record_place *place = &d->records[i];
    wb_file_bytes file = wb_dump_bytes(d, place->file);
    wb_stored_record s;
    WB_TRY(wb_parse_record(&file, place->offset, place->offset + place->bytes, &d->model, &s));
    wb_dump_entry entry = {.file = file.name, .offset = place->offset, .bytes = place->bytes};
    entry.n_tokens = s.n_tokens;
    for (uint32_t r = 0; r < s.n_runs; r++) {
        entry.stored_rows += s.runs[r].rows;
        entry.stored_row_bytes += s.runs[r].stored_bytes;
    }
    if (s.n_runs > 0) entry.codec = s.runs[0].codec;
    entry.prefix_rows = s.prefix_rows;
    uint64_t base = 0;
    wb_status status = s.prefix_rows > 0 ? base_index(d, i, &s, &base) : WB_OK;
    wb_stored_record_free(&s);
    WB_TRY(status);
    if (entry.prefix_rows > 0) entry.prefix_rid = d->records[base].rid;
    *entry_out = entry;
    return WB_OK;
}
