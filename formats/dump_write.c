/* dump_write.c - the dump writer: the file with its header, records, index and trailer, as in dump_layout.h.
 * Refuses: a path that exists, a rid twice, a record that does not pass wb_record_check; what a header and a
 * record consist of (dump_objects.c). */
#include "codec.h"
#include "dump_indexer.h"
#include "dump_layout.h"
#include "dump_objects.h"
#include "dump_share.h"
#include "dump_writer.h"
#include "wb_options.h"
#include "wb_route_model.h"
#include "wb_string_table.h"
#include "wb_text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct written_record {
    const char *rid; /* owner: the table of rids */
    uint64_t offset;
    uint64_t seal; /* of the record that was copied; 0: it was encoded here */
} written_record;

struct wb_dump_writer {
    wb_owner memory; /* of `path` and of the model's layers */
    int fd;
    char *path;
    wb_route_model model;
    size_t row_bytes;
    wb_dump_options options; /* without producer */
    wb_pack pack;            /* of the object being written */
    uint64_t end;            /* bytes of whole objects in the file */
    bool broken;             /* the file holds more than that and could not be cut back */
    wb_string_table rids;    /* rid -> index of its record */
    written_record *records; /* [n_records] in file order */
    size_t n_records, records_capacity;
    wb_share share;
};

/* ---- options ------------------------------------------------------------------------------------ */

WB_OPTIONS_END(wb_dump_options, reserved);
static const wb_dump_options default_options = {.size = sizeof(wb_dump_options),
                                                .codec = WB_CODEC_RAW,
                                                .zstd_level = 3,
                                                .chunk_bytes = WB_CHUNK_BYTES_MAX};

void wb_dump_options_init(wb_dump_options *options_out, size_t size) {
    wb_options_init(options_out, size, &default_options, sizeof default_options);
}

static wb_status options_check(const wb_dump_options *o) {
    WB_TRY(wb_options_check_reserved(o->reserved, sizeof o->reserved, "dump options"));
    if (!wb_codec_name(o->codec))
        return wb_fail(WB_INVALID_ARGUMENT, "dump options: codec %d is none of wb_codec", (int)o->codec);
    if (o->codec != WB_CODEC_RAW && (o->zstd_level < 1 || o->zstd_level > 19))
        return wb_fail(WB_INVALID_ARGUMENT, "dump options: zstd_level: expected 1..19, found %d",
                       o->zstd_level);
    if (o->chunk_bytes == 0 || o->chunk_bytes > WB_CHUNK_BYTES_MAX)
        return wb_fail(WB_INVALID_ARGUMENT, "dump options: chunk_bytes: expected 1..%zu, found %zu",
                       WB_CHUNK_BYTES_MAX, o->chunk_bytes);
    if (o->producer &&
        (strlen(o->producer) > WB_HEADER_BYTES_MAX / 2 || !wb_text_ok(o->producer, strlen(o->producer))))
        return wb_fail(WB_INVALID_ARGUMENT, "dump options: producer must be up to %zu bytes of UTF-8",
                       WB_HEADER_BYTES_MAX / 2);
    return WB_OK;
}

/* ---- the file ------------------------------------------------------------------------------------ */

/* Writes the packed object at the end of the file. */
static wb_status put(wb_dump_writer *w) {
    wb_status status = wb_pack_write(&w->pack, w->fd, w->end, w->path);
    if (status == WB_OK)
        w->end += wb_pack_size(&w->pack);
    else
        w->broken = lseek(w->fd, 0, SEEK_END) != (off_t)w->end;
    return status;
}

static void writer_free(wb_dump_writer *w) {
    wb_pack_free(&w->pack);
    wb_string_table_free(&w->rids);
    wb_share_free(&w->share);
    wb_owner_close(&w->memory);
    free(w->records);
    free(w);
}

/* What the writer copies of its arguments. */
static wb_status take_arguments(wb_dump_writer *w, const char *path, const wb_route_model *model,
                                const wb_dump_options *options) {
    WB_TRY(WB_OWN(&w->memory, w->path, strlen(path) + 1, "dump writer"));
    memcpy(w->path, path, strlen(path));
    WB_TRY(wb_route_model_copy(&w->memory, model, "dump writer", &w->model));
    w->row_bytes = wb_route_row_bytes(model);
    w->options = *options;
    w->options.producer = NULL;
    return WB_OK;
}

static wb_status create_file(wb_dump_writer *w, const char *producer) {
    w->fd = open(w->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0) return wb_fail(WB_IO, "%s: cannot be created: %s", w->path, strerror(errno));
    wb_header_pack(&w->pack, &w->model, producer);
    wb_status status = wb_pack_seal(&w->pack);
    if (status == WB_OK) status = put(w);
    if (status == WB_OK) return WB_OK;
    WB_IGNORE(close(w->fd));
    WB_IGNORE(unlink(w->path));
    return status;
}

wb_status wb_dump_create(const char *path, const wb_route_model *model, const wb_dump_options *options,
                         wb_dump_writer **writer_out) {
    if (!path || !model || !writer_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_create: NULL");
    wb_dump_options o = default_options;
    WB_TRY(wb_options_read(&o, sizeof o, options, "dump options"));
    WB_TRY(options_check(&o));
    WB_TRY(wb_route_model_check(model));
    wb_dump_writer *w = NULL;
    WB_TRY(WB_NEW(w, 1, "dump writer"));
    wb_pack_init(&w->pack);
    wb_status status = take_arguments(w, path, model, &o);
    if (status == WB_OK) status = create_file(w, o.producer);
    if (status == WB_OK)
        *writer_out = w;
    else
        writer_free(w);
    return status;
}

/* ---- records ------------------------------------------------------------------------------------ */

/* Encodes and packs a record whose `shared` first rows are those of record number `base`. */
static wb_status encode_record(wb_dump_writer *w, const wb_record *r, uint32_t shared, uint64_t base,
                               wb_owner *memory) {
    wb_encoded_run *runs = NULL;
    WB_TRY(WB_OWN(memory, runs, r->n_routes, "runs of rows"));
    for (uint32_t i = 0; i < r->n_routes; i++)
        WB_TRY(wb_rows_encode(&w->options, &w->model, &r->routes[i], i == 0 ? shared : 0, memory, &runs[i]));
    wb_encoded_run indexer = {0};
    if (r->indexer) WB_TRY(wb_indexer_encode(&w->options, &w->model, r->indexer, memory, &indexer));
    wb_pack_reset(&w->pack);
    wb_record_pack(&w->pack, r, runs, &indexer, shared, shared ? w->records[base].rid : NULL);
    return wb_pack_seal(&w->pack);
}

/* Writes a record that was checked, as record n_records; the caller has made room for it. */
static wb_status append_checked(wb_dump_writer *w, const wb_record *r) {
    uint64_t base = 0;
    uint32_t shared = wb_share_find(&w->share, w->row_bytes, r, &base);
    wb_share_base offer = {0};
    wb_owner memory = {0};
    wb_status status;
    WB_GOTO(encode_record(w, r, shared, base, &memory), done);
    if (shared == 0) WB_GOTO(wb_share_prepare(w->row_bytes, r, w->n_records, &offer), done);
    uint64_t offset = w->end;
    WB_GOTO(put(w), done);
    w->records[w->n_records].offset = offset;
    w->records[w->n_records++].seal = 0;
    wb_share_keep(&w->share, w->row_bytes, offer);
    offer.ids = NULL;
done:
    free(offer.ids);
    wb_owner_close(&memory);
    return status;
}

static wb_status whole(const wb_dump_writer *w) {
    if (!w->broken) return WB_OK;
    return wb_fail(WB_IO, "%s: holds part of an object after byte %" PRIu64 " since an earlier failure",
                   w->path, w->end);
}

/* Takes the rid of record n_records, and makes room for it. The path may be a name until the file is whole,
 * and a record is wrong in the one that it comes from: the caller knows both. */
static wb_status take_rid(wb_dump_writer *w, const char *rid) {
    uint64_t before;
    size_t length = strlen(rid);
    if (wb_string_table_find(&w->rids, rid, length, &before))
        return wb_fail(WB_INVALID_ARGUMENT, "rid %s is in the file already, as record %" PRIu64, rid, before);
    WB_TRY(WB_GROW(w->records, w->n_records + 1, &w->records_capacity, "index of a dump"));
    return wb_string_table_add(&w->rids, rid, length, w->n_records, &w->records[w->n_records].rid);
}

wb_status wb_dump_append(wb_dump_writer *w, const wb_record *record) {
    if (!w || !record) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_append: NULL");
    WB_TRY(whole(w));
    WB_TRY(wb_record_check(&w->model, record, !w->options.trust_ids));
    WB_TRY(take_rid(w, record->rid));
    wb_status status = append_checked(w, record);
    if (status != WB_OK) wb_string_table_remove(&w->rids, record->rid, strlen(record->rid));
    return status;
}

/* ---- records as they are stored ----------------------------------------------------------------- */

wb_status wb_writer_check(const wb_dump_writer *w, const wb_route_model *model, const wb_record *record) {
    WB_TRY(whole(w));
    WB_TRY(wb_route_model_match(&w->model, model));
    return wb_record_check(&w->model, record, !w->options.trust_ids);
}

bool wb_writer_has(const wb_dump_writer *w, const char *rid, uint64_t seal) {
    uint64_t i = 0;
    return wb_string_table_find(&w->rids, rid, strlen(rid), &i) && w->records[i].seal == seal && seal != 0;
}

wb_status wb_writer_put(wb_dump_writer *w, const char *rid, wb_record_bytes stored) {
    const uint64_t offset = w->end;
    WB_TRY(take_rid(w, rid));
    wb_pack_reset(&w->pack);
    wb_pack_borrow(&w->pack, stored.bytes, stored.size);
    wb_status status = put(w);
    if (status != WB_OK) {
        wb_string_table_remove(&w->rids, rid, strlen(rid));
        return status;
    }
    w->records[w->n_records].offset = offset;
    w->records[w->n_records++].seal = stored.seal;
    return WB_OK;
}

/* ---- the end ------------------------------------------------------------------------------------ */

static wb_status put_index(wb_dump_writer *w) {
    WB_TRY(whole(w));
    wb_pack *p = &w->pack;
    wb_pack_reset(p);
    wb_pack_map(p, 2);
    wb_pack_text(p, "index");
    wb_pack_map(p, w->n_records);
    for (size_t i = 0; i < w->n_records; i++) {
        wb_pack_text(p, w->records[i].rid);
        wb_pack_uint(p, w->records[i].offset);
    }
    WB_TRY(wb_pack_seal(p));
    uint8_t trailer[WB_TRAILER_BYTES];
    wb_trailer_fill(w->end, trailer);
    wb_pack_bytes(p, trailer, sizeof trailer);
    return put(w);
}

wb_status wb_dump_finish(wb_dump_writer *w) {
    if (!w) return WB_OK;
    wb_status status = put_index(w);
    if (status == WB_OK && fsync(w->fd) != 0)
        status = wb_fail(WB_IO, "%s: cannot be synced: %s", w->path, strerror(errno));
    if (close(w->fd) != 0 && status == WB_OK)
        status = wb_fail(WB_IO, "%s: cannot be closed: %s", w->path, strerror(errno));
    writer_free(w);
    return status;
}

void wb_dump_abandon(wb_dump_writer *w) {
    if (!w) return;
    WB_IGNORE(close(w->fd));
    writer_free(w);
}
