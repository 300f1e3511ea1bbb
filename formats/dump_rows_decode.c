/* dump_rows_decode.c - see the header. */
#include "dump_rows_decode.h"
#include "dump_layout.h"

#include <string.h>

/* A cursor at the first chunk. The run was parsed from these bytes, so that reading its n_chunks succeeds. */
static wb_scan chunks_of(const wb_file_bytes *file, const wb_stored_run *run) {
    wb_scan scan = wb_scan_range(file->bytes, run->data_at, file->size);
    if (wb_scan_is_array(&scan)) wb_scan_array(&scan);
    return scan;
}

bool wb_rows_intact(const wb_file_bytes *file, const wb_stored_run *run) {
    wb_scan scan = chunks_of(file, run);
    wb_hash hash;
    wb_hash_start(&hash);
    for (uint32_t c = 0; c < run->n_chunks; c++) {
        size_t size = 0;
        const uint8_t *chunk = wb_scan_bin(&scan, &size);
        if (chunk) wb_hash_add(&hash, chunk, size);
    }
    return wb_checksum_ok(run->xxh3, wb_hash_value(&hash));
}

/* What the chunks of a run have in common. */
typedef struct chunk_decoder {
    wb_codec codec;
    const wb_route_model *model;
    wb_packed_scratch *scratch;
} chunk_decoder;

/* Decodes one chunk into `dst`; *used_out bytes of the `capacity`. */
static wb_status decode_chunk(const chunk_decoder *d, const uint8_t *chunk, size_t size, uint8_t *dst,
                              size_t capacity, size_t *used_out) {
    if (d->codec == WB_CODEC_ZSTD) return wb_zstd_decode(chunk, size, dst, capacity, used_out);
    if (d->codec == WB_CODEC_PACKED) {
        if (!wb_packed_fits(d->model)) return wb_fail(WB_CORRUPT, "rows of this model cannot be packed");
        return wb_packed_decode(d->model, chunk, size, d->scratch, dst, capacity, used_out);
    }
    if (size > capacity) return wb_fail(WB_CORRUPT, "a chunk is longer than the rows left");
    memcpy(dst, chunk, size);
    *used_out = size;
    return WB_OK;
}

wb_status wb_rows_decode(const wb_file_bytes *file, const wb_stored_run *run, const wb_route_model *model,
                         wb_packed_scratch *scratch, uint8_t *rows_out) {
    const chunk_decoder d = {run->codec, model, scratch};
    const size_t row_bytes = wb_route_row_bytes(model);
    wb_scan scan = chunks_of(file, run);
    size_t total = run->rows * row_bytes, done = 0;
    for (uint32_t c = 0; c < run->n_chunks; c++) {
        size_t size = 0, used = 0;
        const uint8_t *chunk = wb_scan_bin(&scan, &size);
        /* An empty bin holds no rows; it is not a frame that zstd would decode. */
        if (size == 0) continue;
        WB_TRY(decode_chunk(&d, chunk, size, rows_out + done, total - done, &used));
        if (used % row_bytes != 0) return wb_fail(WB_CORRUPT, "a chunk does not hold whole rows");
        done += used;
    }
    if (done == total) return WB_OK;
    return wb_fail(WB_CORRUPT, "the chunks hold %zu bytes of rows, expected %zu", done, total);
}

/* How many bytes the chunks decode to, as they claim; the frames' own claims are believed as far as
 * wb_zstd_plausible does. */
static wb_status claimed_bytes(const wb_file_bytes *file, const wb_stored_run *run, size_t *total_out) {
    wb_scan scan = chunks_of(file, run);
    size_t total = 0;
    for (uint32_t c = 0; c < run->n_chunks; c++) {
        size_t size = 0, claimed = 0;
        const uint8_t *chunk = wb_scan_bin(&scan, &size);
        if (run->codec == WB_CODEC_RAW)
            claimed = size;
        else if (!wb_zstd_claims(chunk, size, &claimed) || !wb_zstd_plausible(claimed, size))
            return wb_fail(WB_CORRUPT, "a chunk does not say how much it holds, or too much to be believed");
        total += claimed;
    }
    *total_out = total;
    return WB_OK;
}

wb_status wb_bytes_decode(const wb_file_bytes *file, const wb_stored_run *run, wb_owner *memory,
                          const uint8_t **bytes_out, size_t *size_out) {
    size_t total = 0, done = 0;
    uint8_t *bytes = NULL;
    WB_TRY(claimed_bytes(file, run, &total));
    if (run->codec == WB_CODEC_RAW && run->n_chunks == 1) {
        *bytes_out = run->chunk;
        *size_out = total;
        return WB_OK;
    }
    const chunk_decoder d = {run->codec, NULL, NULL};
    wb_scan scan = chunks_of(file, run);
    WB_TRY(WB_OWN(memory, bytes, total, "indexer rows"));
    for (uint32_t c = 0; c < run->n_chunks; c++) {
        size_t size = 0, used = 0;
        const uint8_t *chunk = wb_scan_bin(&scan, &size);
        WB_TRY(decode_chunk(&d, chunk, size, bytes + done, total - done, &used));
        done += used;
    }
    if (done != total) return wb_fail(WB_CORRUPT, "the chunks hold %zu bytes, and claim %zu", done, total);
    *bytes_out = bytes;
    *size_out = total;
    return WB_OK;
}
