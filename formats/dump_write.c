/* dump_write.c - the dump writer: header, records with their rows, index and trailer, as in dump_layout.h.
 * Refuses: a path that exists, a rid twice, a record that does not pass wb_record_check. */
#include "codec.h"
#include "dump_layout.h"
#include "dump_pack.h"
#include "dump_share.h"
#include "wb_hash.h"
#include "wb_memory.h"
#include "wb_route_limits.h"
#include "wb_string_table.h"
#include "wb_text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct written_record {
    const char *rid; /* owner: the table of rids */
    uint64_t offset;
} written_record;

struct wb_dump_writer {
    int fd;
    char *path;
    wb_route_model model;
    uint32_t *moe_layers; /* what model points to */
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

/* One run of rows on its way: what of it is stored, and how. */
typedef struct stored_run {
    wb_route_rows rows; /* after the shared ones; `valid` is `bits` */
    uint8_t *bits;      /* owned, or NULL */
    wb_codec codec;
    uint32_t n_chunks;
    const uint8_t **chunks; /* [n_chunks] owned list of pointers into ids or `encoded` */
    size_t *sizes;          /* [n_chunks] owned */
    uint8_t *encoded;       /* owned, or NULL when raw */
    uint64_t xxh3;
} stored_run;

wb_dump_options wb_dump_options_default(void) {
    return (wb_dump_options){
        .codec = WB_CODEC_RAW, .zstd_level = 3, .chunk_bytes = WB_CHUNK_BYTES_MAX, .producer = NULL};
}

static wb_status options_check(const wb_dump_options *o) {
    if (!wb_codec_name(o->codec))
        return wb_fail(WB_INVALID_ARGUMENT, "dump options: codec %d is none of wb_codec", (int)o->codec);
    if (o->codec == WB_CODEC_ZSTD && (o->zstd_level < 1 || o->zstd_level > 19))
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

/* ---- header ------------------------------------------------------------------------------------- */

static void pack_header(wb_pack *p, const wb_route_model *m, const char *producer) {
    wb_pack_map(p, 7);
    wb_pack_text(p, "format");
    wb_pack_text(p, WB_DUMP_FORMAT);
    wb_pack_text(p, "version");
    wb_pack_uint(p, WB_DUMP_VERSION);
    wb_pack_text(p, "model");
    wb_pack_map(p, 7);
    wb_pack_text(p, "name");
    wb_pack_text(p, m->name);
    wb_pack_text(p, "fingerprint");
    wb_pack_text(p, m->fingerprint);
    wb_pack_text(p, "num_hidden_layers");
    wb_pack_uint(p, m->num_hidden_layers);
    wb_pack_text(p, "moe_layers");
    wb_pack_array(p, m->n_moe_layers);
    for (uint32_t l = 0; l < m->n_moe_layers; l++) wb_pack_uint(p, m->moe_layers[l]);
    wb_pack_text(p, "num_experts");
    wb_pack_uint(p, m->num_experts);
    wb_pack_text(p, "top_k");
    wb_pack_uint(p, m->top_k);
    wb_pack_text(p, "router");
    wb_pack_text(p, m->router);
    wb_pack_text(p, "dtype");
    wb_pack_text(p, wb_dtype_name(wb_route_dtype(m->num_experts)));
    wb_pack_text(p, "created");
    wb_pack_uint(p, (uint64_t)time(NULL));
    wb_pack_text(p, "producer");
    wb_pack_text(p, producer ? producer : "");
}

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
    free(w->records);
    free(w->moe_layers);
    free(w->path);
    free(w);
}

static wb_status writer_new(const char *path, const wb_route_model *model, const wb_dump_options *options,
                            wb_dump_writer **out) {
    wb_dump_writer *w = NULL;
    wb_status status = WB_NEW(w, 1, "dump writer");
    if (status != WB_OK) return status;
    wb_pack_init(&w->pack);
    WB_GOTO(WB_ALLOC(w->path, strlen(path) + 1, 1, "dump writer"), fail);
    memcpy(w->path, path, strlen(path));
    WB_GOTO(WB_NEW(w->moe_layers, model->n_moe_layers, "dump writer"), fail);
    memcpy(w->moe_layers, model->moe_layers, model->n_moe_layers * sizeof *w->moe_layers);
    w->model = *model;
    w->model.moe_layers = w->moe_layers;
    w->row_bytes = wb_route_row_bytes(model);
    w->options = *options;
    w->options.producer = NULL;
    *out = w;
    return WB_OK;
fail:
    writer_free(w);
    return status;
}

wb_status wb_dump_create(const char *path, const wb_route_model *model, const wb_dump_options *options,
                         wb_dump_writer **writer_out) {
    if (!path || !model || !writer_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_create: NULL");
    wb_dump_options defaults = wb_dump_options_default();
    if (!options) options = &defaults;
    WB_TRY(options_check(options));
    WB_TRY(wb_route_model_check(model));
    wb_dump_writer *w = NULL;
    wb_status status;
    WB_TRY(writer_new(path, model, options, &w));
    w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        status = wb_fail(WB_IO, "%s: cannot be created: %s", path, strerror(errno));
        goto fail_open;
    }
    pack_header(&w->pack, &w->model, options->producer);
    WB_GOTO(wb_pack_seal(&w->pack), fail_header);
    WB_GOTO(put(w), fail_header);
    *writer_out = w;
    return WB_OK;
fail_header:
    WB_IGNORE(close(w->fd));
    WB_IGNORE(unlink(path));
fail_open:
    writer_free(w);
    return status;
}

/* ---- rows --------------------------------------------------------------------------------------- */

static void stored_run_free(stored_run *s) {
    free(s->bits);
    free(s->chunks);
    free(s->sizes);
    free(s->encoded);
}

/* Bits [first, first + n) of `valid`, moved to bit 0; bits past the last row are zero. */
static wb_status copy_bits(const uint8_t *valid, uint32_t first, uint32_t n, uint8_t **out) {
    WB_TRY(WB_NEW(*out, ((size_t)n + 7) / 8, "validity bits"));
    for (uint32_t r = 0; r < n; r++) {
        unsigned bit = valid[(first + r) / 8] >> ((first + r) % 8) & 1u;
        (*out)[r / 8] |= (uint8_t)(bit << (r % 8));
    }
    return WB_OK;
}

static void hash_chunks(stored_run *s) {
    wb_hash hash;
    wb_hash_start(&hash);
    for (uint32_t c = 0; c < s->n_chunks; c++) wb_hash_add(&hash, s->chunks[c], s->sizes[c]);
    s->xxh3 = wb_hash_value(&hash);
}

/* Replaces the chunks by their compressed forms, unless that gains nothing or too much to be believed. */
static wb_status compress_chunks(stored_run *s, int level) {
    size_t capacity = 0, used = 0, total = 0;
    size_t *sizes = NULL;
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        capacity += wb_zstd_bound(s->sizes[c]);
        total += s->sizes[c];
    }
    wb_status status = WB_OK;
    WB_GOTO(WB_NEW(sizes, s->n_chunks, "compressed rows"), done);
    WB_GOTO(WB_ALLOC(s->encoded, capacity, 1, "compressed rows"), done);
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        WB_GOTO(
            wb_zstd_encode(s->chunks[c], s->sizes[c], level, s->encoded + used, capacity - used, &sizes[c]),
            done);
        used += sizes[c];
    }
    if (used < total && wb_zstd_plausible(total, used)) {
        s->codec = WB_CODEC_ZSTD;
        size_t at = 0;
        for (uint32_t c = 0; c < s->n_chunks; c++) {
            s->chunks[c] = s->encoded + at;
            s->sizes[c] = sizes[c];
            at += sizes[c];
        }
    }
done:
    free(sizes);
    return status;
}

/* Cuts a run without its first `skip` rows into chunks, encodes them and takes their checksum. On failure
 * what was made is left in `s` for stored_run_free. */
static wb_status store_run(const wb_dump_writer *w, const wb_route_rows *run, uint32_t skip, stored_run *s) {
    size_t row = w->row_bytes;
    s->rows = (wb_route_rows){run->start + skip, run->rows - skip, NULL, NULL};
    if (run->valid) WB_TRY(copy_bits(run->valid, skip, s->rows.rows, &s->bits));
    s->rows.valid = s->bits;
    s->codec = WB_CODEC_RAW;
    size_t per_chunk = w->options.chunk_bytes / row;
    if (per_chunk == 0) per_chunk = 1;
    s->n_chunks = (uint32_t)((s->rows.rows + per_chunk - 1) / per_chunk);
    WB_TRY(WB_NEW(s->chunks, s->n_chunks, "chunks of rows"));
    WB_TRY(WB_NEW(s->sizes, s->n_chunks, "chunks of rows"));
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        size_t first = c * per_chunk, n = s->rows.rows - first;
        if (n > per_chunk) n = per_chunk;
        s->chunks[c] = (const uint8_t *)run->ids + (skip + first) * row;
        s->sizes[c] = n * row;
    }
    if (w->options.codec == WB_CODEC_ZSTD) WB_TRY(compress_chunks(s, w->options.zstd_level));
    hash_chunks(s);
    return WB_OK;
}

static void pack_run(wb_pack *p, const stored_run *s) {
    wb_pack_map(p, s->bits ? 6 : 5);
    wb_pack_text(p, "start");
    wb_pack_uint(p, s->rows.start);
    wb_pack_text(p, "rows");
    wb_pack_uint(p, s->rows.rows);
    wb_pack_text(p, "codec");
    wb_pack_text(p, wb_codec_name(s->codec));
    if (s->bits) {
        wb_pack_text(p, "valid");
        wb_pack_bin(p, s->bits, ((size_t)s->rows.rows + 7) / 8, true);
    }
    wb_pack_text(p, "xxh3");
    wb_pack_uint64(p, s->xxh3);
    wb_pack_text(p, "data");
    if (s->n_chunks != 1) {
        if (s->n_chunks == 0)
            wb_pack_bin(p, NULL, 0, false);
        else
            wb_pack_array(p, s->n_chunks);
    }
    for (uint32_t c = 0; c < s->n_chunks; c++) wb_pack_bin(p, s->chunks[c], s->sizes[c], false);
}

/* ---- records ------------------------------------------------------------------------------------ */

static void pack_spans(wb_pack *p, const wb_record *r) {
    wb_pack_text(p, "spans");
    wb_pack_array(p, r->n_spans);
    for (uint32_t i = 0; i < r->n_spans; i++) {
        wb_pack_array(p, 3);
        wb_pack_uint(p, r->spans[i].start);
        wb_pack_uint(p, r->spans[i].end);
        wb_pack_uint(p, r->spans[i].weight_version);
    }
}

/* The whole record but its seal. `shared` first rows are those of record `base_rid`. */
static void pack_record(wb_pack *p, const wb_record *r, const stored_run *runs, uint32_t shared,
                        const char *base_rid) {
    size_t pairs = 7;
    pairs += (r->logprobs ? 1u : 0u) + (r->n_spans > 0) + (shared > 0) + (r->n_routes > 0);
    wb_pack_map(p, pairs);
    wb_pack_text(p, "rid");
    wb_pack_text(p, r->rid);
    wb_pack_text(p, "group");
    wb_pack_uint(p, r->group);
    wb_pack_text(p, "sample");
    wb_pack_uint(p, r->sample);
    wb_pack_text(p, "prompt_len");
    wb_pack_uint(p, r->prompt_len);
    wb_pack_text(p, "tokens");
    wb_pack_bin(p, r->tokens, (size_t)r->n_tokens * sizeof *r->tokens, true);
    if (r->logprobs) {
        wb_pack_text(p, "logprobs");
        wb_pack_bin(p, r->logprobs, (size_t)(r->n_tokens - r->prompt_len) * sizeof *r->logprobs, true);
    }
    wb_pack_text(p, "finish");
    wb_pack_text(p, wb_finish_name(r->finish));
    if (r->n_spans > 0) pack_spans(p, r);
    if (shared > 0) {
        wb_pack_text(p, "prefix");
        wb_pack_map(p, 2);
        wb_pack_text(p, "rid");
        wb_pack_text(p, base_rid);
        wb_pack_text(p, "rows");
        wb_pack_uint(p, shared);
    }
    if (r->n_routes == 0) return;
    wb_pack_text(p, "routes");
    if (r->n_routes > 1) wb_pack_array(p, r->n_routes);
    for (uint32_t i = 0; i < r->n_routes; i++) pack_run(p, &runs[i]);
}

/* Encodes, packs and writes a record that was checked, as record n_records; the caller has made room for
 * it. */
static wb_status append_checked(wb_dump_writer *w, const wb_record *r) {
    uint64_t base = 0, index = w->n_records;
    uint32_t shared = wb_share_find(&w->share, w->row_bytes, r, &base);
    wb_share_base offer = {0};
    stored_run *runs = NULL;
    wb_status status = WB_OK;
    WB_GOTO(WB_NEW(runs, r->n_routes, "runs of rows"), done);
    for (uint32_t i = 0; i < r->n_routes; i++)
        WB_GOTO(store_run(w, &r->routes[i], i == 0 ? shared : 0, &runs[i]), done);
    if (shared == 0) WB_GOTO(wb_share_prepare(w->row_bytes, r, index, &offer), done);
    wb_pack_reset(&w->pack);
    pack_record(&w->pack, r, runs, shared, shared ? w->records[base].rid : NULL);
    WB_GOTO(wb_pack_seal(&w->pack), done);
    uint64_t offset = w->end;
    WB_GOTO(put(w), done);
    w->records[w->n_records++].offset = offset;
    wb_share_keep(&w->share, w->row_bytes, offer);
    offer.ids = NULL;
done:
    free(offer.ids);
    for (uint32_t i = 0; runs && i < r->n_routes; i++) stored_run_free(&runs[i]);
    free(runs);
    return status;
}

static wb_status whole(const wb_dump_writer *w) {
    if (!w->broken) return WB_OK;
    return wb_fail(WB_IO, "%s: holds part of an object after byte %" PRIu64 " since an earlier failure",
                   w->path, w->end);
}

wb_status wb_dump_append(wb_dump_writer *w, const wb_record *record) {
    if (!w || !record) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_append: NULL");
    WB_TRY(whole(w));
    WB_TRY(wb_record_check(&w->model, record, !w->options.trust_ids));
    uint64_t before;
    size_t length = strlen(record->rid);
    if (wb_string_table_find(&w->rids, record->rid, length, &before))
        return wb_fail(WB_INVALID_ARGUMENT, "%s: rid %s is in it already, as record %" PRIu64, w->path,
                       record->rid, before);
    WB_TRY(WB_GROW(w->records, w->n_records + 1, &w->records_capacity, "index of a dump"));
    WB_TRY(wb_string_table_add(&w->rids, record->rid, length, w->n_records, &w->records[w->n_records].rid));
    wb_status status = append_checked(w, record);
    if (status != WB_OK) wb_string_table_remove(&w->rids, record->rid, length);
    return status;
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
    wb_trailer_fill(trailer, w->end);
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
