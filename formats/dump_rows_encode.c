/* dump_rows_encode.c - see the header. */
#include "dump_rows_encode.h"
#include "codec.h"
#include "packed.h"
#include "wb_check.h"
#include "wb_hash.h"

static void hash_chunks(wb_encoded_run *s) {
    wb_hash hash;
    wb_hash_start(&hash);
    for (uint32_t c = 0; c < s->n_chunks; c++) wb_hash_add(&hash, s->chunks[c], s->sizes[c]);
    s->xxh3 = wb_hash_value(&hash);
}

/* Cuts rows into chunks of at most chunk_bytes, but of one row at least. */
static wb_status cut_chunks(size_t chunk_bytes, size_t row_bytes, size_t rows, const uint8_t *ids,
                            wb_owner *memory, wb_encoded_run *s) {
    size_t per_chunk = chunk_bytes / row_bytes;
    if (per_chunk == 0) per_chunk = 1;
    s->n_chunks = (uint32_t)((rows + per_chunk - 1) / per_chunk);
    WB_TRY(WB_OWN(memory, s->chunks, s->n_chunks, "chunks of rows"));
    WB_TRY(WB_OWN(memory, s->sizes, s->n_chunks, "chunks of rows"));
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        size_t first = c * per_chunk, n = rows - first;
        if (n > per_chunk) n = per_chunk;
        s->chunks[c] = ids + first * row_bytes;
        s->sizes[c] = n * row_bytes;
    }
    return WB_OK;
}

/* What a run is encoded with. */
typedef struct run_encoder {
    const wb_dump_options *options;
    const wb_route_model *model; /* of packed rows */
    wb_owner *memory;
    wb_codec codec; /* zstd or packed */
} run_encoder;

static size_t encoded_bound(const run_encoder *e, size_t bytes) {
    if (e->codec == WB_CODEC_ZSTD) return wb_zstd_bound(bytes);
    return wb_packed_bound(e->model, bytes / wb_route_row_bytes(e->model));
}

/* Encodes chunk c of the run, which begins at byte `first` of it. *size_out is 0 when it cannot be packed. */
static wb_status encode_chunk(const run_encoder *e, const wb_encoded_run *raw, uint32_t c, size_t first,
                              uint8_t *dst, size_t capacity, size_t *size_out) {
    if (e->codec == WB_CODEC_ZSTD)
        return wb_zstd_encode(raw->chunks[c], raw->sizes[c], e->options->zstd_level, dst, capacity, size_out);
    const size_t row_bytes = wb_route_row_bytes(e->model), rows = raw->sizes[c] / row_bytes;
    return wb_packed_encode(e->model, raw->chunks[c], rows, raw->valid, first / row_bytes, dst, capacity,
                            size_out);
}

/* Replaces the raw run `s` by `raw`, the same rows in chunks of their own, in its encoded form, unless that
 * cannot be, gains nothing or too much to be believed. */
static wb_status encode_chunks(const run_encoder *e, const wb_encoded_run *raw, wb_encoded_run *s) {
    size_t capacity = 0, used = 0, total = 0;
    for (uint32_t c = 0; c < raw->n_chunks; c++) capacity += encoded_bound(e, raw->sizes[c]);
    uint8_t *bytes = NULL;
    wb_encoded_run coded = *raw;
    coded.codec = e->codec;
    WB_TRY(WB_OWN(e->memory, coded.chunks, raw->n_chunks, "encoded rows"));
    WB_TRY(WB_OWN(e->memory, coded.sizes, raw->n_chunks, "encoded rows"));
    WB_TRY(WB_OWN(e->memory, bytes, capacity, "encoded rows"));
    for (uint32_t c = 0; c < raw->n_chunks; c++) {
        coded.chunks[c] = bytes + used;
        WB_TRY(encode_chunk(e, raw, c, total, bytes + used, capacity - used, &coded.sizes[c]));
        if (coded.sizes[c] == 0) return WB_OK;
        used += coded.sizes[c];
        total += raw->sizes[c];
    }
    if (used < total && wb_zstd_plausible(total, used)) *s = coded;
    return WB_OK;
}

/* Encodes the raw run `s` of `ids` as the options say. */
static wb_status encode_run(const wb_dump_options *options, const wb_route_model *model, const uint8_t *ids,
                            wb_owner *memory, wb_encoded_run *s) {
    run_encoder e = {options, model, memory, options->codec};
    wb_encoded_run raw = *s;
    if (e.codec == WB_CODEC_RAW || s->rows == 0) return WB_OK;
    if (e.codec == WB_CODEC_PACKED && !wb_packed_fits(model)) e.codec = WB_CODEC_ZSTD;
    if (e.codec == WB_CODEC_PACKED && options->chunk_bytes > WB_PACKED_CHUNK_BYTES)
        WB_TRY(cut_chunks(WB_PACKED_CHUNK_BYTES, wb_route_row_bytes(model), s->rows, ids, memory, &raw));
    return encode_chunks(&e, &raw, s);
}

wb_status wb_rows_encode(const wb_dump_options *options, const wb_route_model *model,
                         const wb_route_rows *run, uint32_t skip, wb_owner *memory, wb_encoded_run *run_out) {
    const size_t row_bytes = wb_route_row_bytes(model);
    wb_encoded_run s = {.start = run->start + skip, .rows = run->rows - skip, .codec = WB_CODEC_RAW};
    if (run->valid) {
        uint8_t *bits = NULL;
        WB_TRY(WB_OWN(memory, bits, ((size_t)s.rows + 7) / 8, "validity bits"));
        wb_row_copy_valid(run->valid, skip, s.rows, bits);
        s.valid = bits;
    }
    const uint8_t *ids = run->ids;
    if (s.rows > 0) ids += skip * row_bytes;
    WB_TRY(cut_chunks(options->chunk_bytes, row_bytes, s.rows, ids, memory, &s));
    WB_TRY(encode_run(options, model, ids, memory, &s));
    hash_chunks(&s);
    *run_out = s;
    return WB_OK;
}

wb_status wb_bytes_encode(const wb_dump_options *options, const uint8_t *bytes, size_t size, wb_owner *memory,
                          wb_encoded_run *run_out) {
    const run_encoder e = {options, NULL, memory, WB_CODEC_ZSTD};
    wb_encoded_run s = {.codec = WB_CODEC_RAW};
    WB_TRY(cut_chunks(options->chunk_bytes, 1, size, bytes, memory, &s));
    const wb_encoded_run raw = s;
    if (options->codec != WB_CODEC_RAW && size > 0) WB_TRY(encode_chunks(&e, &raw, &s));
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
