/* dump_rows_encode.c - see the header. */
#include "dump_rows_encode.h"
#include "codec.h"
#include "wb_check.h"
#include "wb_hash.h"

static void hash_chunks(wb_encoded_run *s) {
    wb_hash hash;
    wb_hash_start(&hash);
    for (uint32_t c = 0; c < s->n_chunks; c++) wb_hash_add(&hash, s->chunks[c], s->sizes[c]);
    s->xxh3 = wb_hash_value(&hash);
}

/* Replaces the chunks by their compressed forms, unless that gains nothing or too much to be believed. */
static wb_status compress_chunks(int level, wb_owner *memory, wb_encoded_run *s) {
    size_t capacity = 0, used = 0, total = 0;
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        capacity += wb_zstd_bound(s->sizes[c]);
        total += s->sizes[c];
    }
    uint8_t *bytes = NULL;
    const uint8_t **chunks = NULL;
    size_t *sizes = NULL;
    WB_TRY(WB_OWN(memory, chunks, s->n_chunks, "compressed rows"));
    WB_TRY(WB_OWN(memory, sizes, s->n_chunks, "compressed rows"));
    WB_TRY(WB_OWN(memory, bytes, capacity, "compressed rows"));
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        chunks[c] = bytes + used;
        WB_TRY(wb_zstd_encode(s->chunks[c], s->sizes[c], level, bytes + used, capacity - used, &sizes[c]));
        used += sizes[c];
    }
    if (used >= total || !wb_zstd_plausible(total, used)) return WB_OK;
    s->codec = WB_CODEC_ZSTD;
    s->chunks = chunks;
    s->sizes = sizes;
    return WB_OK;
}

/* Cuts rows into chunks of at most chunk_bytes, but of one row at least. */
static wb_status cut_chunks(size_t chunk_bytes, size_t row_bytes, const uint8_t *ids, wb_owner *memory,
                            wb_encoded_run *s) {
    size_t per_chunk = chunk_bytes / row_bytes;
    if (per_chunk == 0) per_chunk = 1;
    s->n_chunks = (uint32_t)((s->rows + per_chunk - 1) / per_chunk);
    WB_TRY(WB_OWN(memory, s->chunks, s->n_chunks, "chunks of rows"));
    WB_TRY(WB_OWN(memory, s->sizes, s->n_chunks, "chunks of rows"));
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        size_t first = c * per_chunk, n = s->rows - first;
        if (n > per_chunk) n = per_chunk;
        s->chunks[c] = ids + first * row_bytes;
        s->sizes[c] = n * row_bytes;
    }
    return WB_OK;
}

wb_status wb_rows_encode(const wb_dump_options *options, size_t row_bytes, const wb_route_rows *run,
                         uint32_t skip, wb_owner *memory, wb_encoded_run *run_out) {
    wb_encoded_run s = {.start = run->start + skip, .rows = run->rows - skip, .codec = WB_CODEC_RAW};
    if (run->valid) {
        uint8_t *bits = NULL;
        WB_TRY(WB_OWN(memory, bits, ((size_t)s.rows + 7) / 8, "validity bits"));
        wb_row_copy_valid(run->valid, skip, s.rows, bits);
        s.valid = bits;
    }
    const uint8_t *ids = run->ids;
    WB_TRY(
        cut_chunks(options->chunk_bytes, row_bytes, s.rows > 0 ? ids + skip * row_bytes : ids, memory, &s));
    if (options->codec == WB_CODEC_ZSTD) WB_TRY(compress_chunks(options->zstd_level, memory, &s));
    hash_chunks(&s);
    *run_out = s;
    return WB_OK;
}

void wb_rows_pack(wb_pack *p, const wb_encoded_run *s) {
    wb_pack_map(p, s->valid ? 6 : 5);
    wb_pack_text(p, "start");
    wb_pack_uint(p, s->start);
    wb_pack_text(p, "rows");
    wb_pack_uint(p, s->rows);
    wb_pack_text(p, "codec");
    wb_pack_text(p, wb_codec_name(s->codec));
    if (s->valid) {
        wb_pack_text(p, "valid");
        wb_pack_bin(p, s->valid, ((size_t)s->rows + 7) / 8, true);
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
