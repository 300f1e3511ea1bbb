/* dump_load.c - a record of an open dump, parsed and checked when it is needed and kept as long as it is; see
 * dump_state.h. Refuses: decoding rows, other records. */
#include "dump_indexer.h"
#include "dump_rows_decode.h"
#include "dump_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A larger block is given back. */
enum { SPARE_BYTES_MAX = 64 << 20 };

/* Of the block and the spare one the larger is kept. */
static void keep_block(wb_dump *d, uint8_t *block, size_t bytes) {
    if (!block || bytes > SPARE_BYTES_MAX || (d->spare && d->spare_bytes >= bytes)) {
        free(block);
        return;
    }
    free(d->spare);
    d->spare = block;
    d->spare_bytes = bytes;
}

static void free_loaded(wb_dump *d, wb_loaded *l) {
    wb_owner_close(&l->memory);
    keep_block(d, l->joined, l->joined_bytes);
    free(l);
}

void wb_dump_unload(wb_dump *d, uint64_t i) {
    wb_dump_record_place *place = &d->records[i];
    if (!place->loaded) return;
    free_loaded(d, place->loaded);
    place->loaded = NULL;
    wb_dump_file_forget(d, place->file, place->offset, place->offset + place->bytes);
    wb_dump_file_drop(d, place->file);
}

wb_status wb_dump_record_fail(const wb_dump *d, uint64_t i, const char *why) {
    return wb_fail(WB_CORRUPT, "%s: byte %" PRIu64 ": record %s: %s", d->files[d->records[i].file].path,
                   d->records[i].offset, d->records[i].rid, why);
}

wb_route_rows *wb_loaded_own_runs(const wb_loaded *l) {
    return l->routes + (l->stored.prefix_rows > 0 ? 1 : 0);
}

/* The n words of 4 bytes at `mapped` where they are when that is aligned, else a copy; NULL when mapped is
 * NULL. */
static wb_status aligned_words(wb_owner *memory, const uint8_t *mapped, uint32_t n, const void **words_out) {
    void *copy = NULL;
    if (mapped && (uintptr_t)mapped % 4 != 0) {
        WB_TRY(WB_OWN_ALLOC(memory, copy, n, 4, "tokens, logprobs or masks"));
        memcpy(copy, mapped, (size_t)n * 4);
    }
    *words_out = copy ? copy : mapped;
    return WB_OK;
}

static wb_status make_sampling(wb_loaded *l) {
    const wb_stored_sampling *s = &l->stored.sampling;
    const void *logprobs = NULL, *ids = NULL, *ends = NULL;
    WB_TRY(aligned_words(&l->memory, s->logprobs, s->n_logprobs, &logprobs));
    WB_TRY(aligned_words(&l->memory, s->mask_ids, s->n_ids, &ids));
    WB_TRY(aligned_words(&l->memory, s->mask_ends, s->n_ends, &ends));
    l->sampling_logprobs = logprobs;
    l->mask_ids = ids;
    l->mask_ends = ends;
    return WB_OK;
}

static wb_status make_arrays(wb_loaded *l) {
    const wb_stored_record *s = &l->stored;
    const void *tokens = NULL, *logprobs = NULL;
    WB_TRY(aligned_words(&l->memory, s->tokens, s->n_tokens, &tokens));
    WB_TRY(aligned_words(&l->memory, s->logprobs, s->n_tokens - s->prompt_len, &logprobs));
    l->tokens = tokens;
    l->logprobs = logprobs;
    return make_sampling(l);
}

static wb_status make_routes(wb_loaded *l) {
    const wb_stored_record *s = &l->stored;
    bool shared = s->prefix_rows > 0;
    WB_TRY(WB_OWN(&l->memory, l->routes, (size_t)s->n_runs + shared, "runs of a record"));
    l->in_place = true;
    for (uint32_t r = 0; r < s->n_runs; r++) {
        const wb_stored_run *run = &s->runs[r];
        wb_loaded_own_runs(l)[r] = (wb_route_rows){run->start, run->rows, run->chunk, run->valid};
        if (run->codec != WB_CODEC_RAW || run->n_chunks != 1) l->in_place = false;
    }
    l->n_routes = s->n_runs + shared;
    if (!shared) return WB_OK;
    l->routes[0] = (wb_route_rows){s->runs[0].start - s->prefix_rows, s->prefix_rows, l->routes, NULL};
    /* A first run without rows only says where the shared ones end. */
    if (s->n_runs == 1 && s->runs[0].rows == 0) l->n_routes = 1;
    return WB_OK;
}

wb_record wb_dump_as_record(const wb_dump *d, uint64_t i) {
    const wb_loaded *l = d->records[i].loaded;
    const wb_stored_record *s = &l->stored;
    return (wb_record){
        .rid = d->records[i].rid,
        .group = s->group,
        .sample = s->sample,
        .prompt_len = s->prompt_len,
        .n_tokens = s->n_tokens,
        .tokens = l->tokens,
        .logprobs = l->logprobs,
        .finish = s->finish,
        .n_spans = s->n_spans,
        .spans = s->n_spans > 0 ? s->spans : NULL,
        .n_routes = l->n_routes,
        .routes = l->n_routes > 0 ? l->routes : NULL,
        .sampling = s->sampling.known ? &s->sampling.values : NULL,
        .sampling_logprobs = l->sampling_logprobs,
        .mask_ids = l->mask_ids,
        .mask_ends = l->mask_ends,
        .indexer = s->has_indexer ? &l->indexer : NULL,
    };
}

/* Decoded as soon as it is read: positions are checked against each other like the rest of a record. */
static wb_status make_indexer(const wb_dump *d, uint64_t i) {
    wb_loaded *l = d->records[i].loaded;
    const wb_file_bytes file = wb_dump_bytes(d, d->records[i].file);
    if (!l->stored.has_indexer) return WB_OK;
    if (!wb_rows_intact(&file, &l->stored.indexer))
        return wb_dump_record_fail(d, i, "the checksum of its indexer rows does not match");
    wb_status status = wb_indexer_decode(&file, &l->stored.indexer, &d->model, &l->memory, &l->indexer);
    if (status != WB_OK)
        wb_fail_context(status, "%s: byte %" PRIu64 ": record %s", d->files[d->records[i].file].path,
                        d->records[i].offset, d->records[i].rid);
    return status;
}

static wb_status fill_loaded(wb_dump *d, uint64_t i) {
    wb_loaded *l = d->records[i].loaded;
    const wb_stored_record *s = &l->stored;
    const char *rid = d->records[i].rid;
    if (strlen(rid) != s->rid_length || memcmp(rid, s->rid, s->rid_length) != 0)
        return wb_dump_record_fail(d, i, "the index has another rid than the record");
    WB_TRY(make_arrays(l));
    WB_TRY(make_routes(l));
    WB_TRY(make_indexer(d, i));
    wb_record record = wb_dump_as_record(d, i);
    if (wb_record_check(&d->model, &record, false) != WB_OK)
        return wb_fail_context(WB_CORRUPT, "%s: byte %" PRIu64, d->files[d->records[i].file].path,
                               d->records[i].offset);
    wb_file_bytes file = wb_dump_bytes(d, d->records[i].file);
    for (uint32_t r = 0; r < s->n_runs && !d->records[i].intact; r++)
        if (!wb_rows_intact(&file, &s->runs[r]))
            return wb_dump_record_fail(d, i, "the checksum of its rows does not match");
    d->records[i].intact = true;
    return WB_OK;
}

static wb_status parse_loaded(wb_dump *d, uint64_t i) {
    const wb_dump_record_place *place = &d->records[i];
    wb_file_bytes file = wb_dump_bytes(d, place->file);
    WB_TRY(wb_parse_record(&file, place->offset, place->offset + place->bytes, &d->model,
                           &place->loaded->memory, &place->loaded->stored));
    if (place->without_prefix) place->loaded->stored.prefix_rows = 0;
    return fill_loaded(d, i);
}

wb_status wb_dump_load(wb_dump *d, uint64_t i) {
    wb_dump_record_place *place = &d->records[i];
    if (place->loaded) return WB_OK;
    WB_TRY(wb_dump_file_use(d, place->file));
    wb_status status = WB_NEW(place->loaded, 1, "a record");
    if (status != WB_OK) {
        wb_dump_file_drop(d, place->file);
        return status;
    }
    status = parse_loaded(d, i);
    if (status != WB_OK) wb_dump_unload(d, i);
    return status;
}
