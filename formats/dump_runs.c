/* dump_runs.c - parses the runs of rows of a record, in arrays like those of its other parts; see
 * dump_record.h. The payloads of `data` are left out of the record's checksum on the way. Refuses: what the
 * rows hold (dump_rows_decode.c). */
#include "dump_record.h"

#include <inttypes.h>

/* Keeps the payload of a data bin out of the record's checksum. */
static void leave_out(wb_record_parser *p, const uint8_t *payload, size_t size) {
    wb_hash_add(&p->hash, p->file->bytes + p->hashed, (size_t)(payload - (p->file->bytes + p->hashed)));
    p->hashed = (uint64_t)(payload - p->file->bytes) + size;
}

static void parse_data(wb_record_parser *p, wb_stored_run *run) {
    wb_scan *s = &p->scan;
    run->data_at = s->pos;
    run->n_chunks = wb_scan_is_array(s) ? wb_scan_array(s) : 1;
    for (uint32_t c = 0; c < run->n_chunks && s->error == WB_SCAN_OK; c++) {
        size_t size = 0;
        const uint8_t *payload = wb_scan_bin(s, &size);
        if (!payload) return;
        leave_out(p, payload, size);
        run->chunk = payload;
        run->stored_bytes += size;
    }
}

static void parse_codec(wb_record_parser *p, wb_stored_run *run) {
    size_t length = 0, at = p->scan.pos;
    const char *name = wb_scan_str(&p->scan, &length);
    if (!name || wb_codec_from_name(name, length, &run->codec)) return;
    int shown = length < 64 ? (int)length : 64;
    p->status =
        wb_fail(WB_UNSUPPORTED, "%s: byte %zu: unknown codec \"%.*s\"", p->file->name, at, shown, name);
}

/* A run's parts against each other and the model. `begin` is the run's first byte. */
static void run_shape(wb_record_parser *p, const wb_stored_run *run, size_t valid_bytes, size_t begin) {
    uint64_t decoded = (uint64_t)run->rows * wb_route_row_bytes(p->model);
    if (run->valid && valid_bytes != ((size_t)run->rows + 7) / 8)
        wb_scan_refuse(&p->scan, begin, "valid does not have a bit a row");
    if (run->codec == WB_CODEC_RAW && run->stored_bytes != decoded && p->scan.error == WB_SCAN_OK &&
        p->status == WB_OK)
        p->status = wb_fail(WB_CORRUPT,
                            "%s: byte %zu: data: expected %" PRIu64 " bytes (%" PRIu32
                            " rows of %zu choices in %" PRIu32 " layers), found %" PRIu64,
                            p->file->name, begin, decoded, run->rows, wb_route_row_ids(p->model),
                            p->model->n_moe_layers, run->stored_bytes);
    if (run->codec != WB_CODEC_RAW && !wb_zstd_plausible(decoded, run->stored_bytes))
        wb_scan_refuse(&p->scan, begin, "data is too small to hold that many rows");
}

enum { RUN_START, RUN_ROWS, RUN_CODEC, RUN_XXH3, RUN_DATA, RUN_REQUIRED, RUN_VALID = RUN_REQUIRED, RUN_KEYS };

static void parse_run_value(wb_record_parser *p, uint32_t key, wb_stored_run *run, size_t *valid_bytes) {
    wb_scan *s = &p->scan;
    switch (key) {
    case RUN_START:
        run->start = (uint32_t)wb_scan_uint(s, UINT32_MAX);
        break;
    case RUN_ROWS:
        run->rows = (uint32_t)wb_scan_uint(s, UINT32_MAX);
        break;
    case RUN_CODEC:
        parse_codec(p, run);
        break;
    case RUN_XXH3:
        run->xxh3 = wb_scan_uint(s, UINT64_MAX);
        break;
    case RUN_DATA:
        parse_data(p, run);
        break;
    case RUN_VALID:
        run->valid = wb_scan_bin(s, valid_bytes);
        break;
    default:
        wb_scan_skip(s);
    }
}

/* The keys of a run. `missing` is what is said when one is not there. */
static void parse_run_keys(wb_record_parser *p, wb_stored_run *run, size_t *valid_bytes,
                           const char *missing) {
    static const char *const names[RUN_KEYS] = {"start", "rows", "codec", "xxh3", "data", "valid"};
    wb_scan *s = &p->scan;
    const uint32_t required = (1u << RUN_REQUIRED) - 1;
    const size_t begin = s->pos;
    uint32_t seen = 0, pairs = wb_scan_map(s);
    for (; pairs > 0 && s->error == WB_SCAN_OK && p->status == WB_OK; pairs--)
        parse_run_value(p, wb_scan_key(s, names, RUN_KEYS, &seen), run, valid_bytes);
    if ((seen & required) != required) wb_scan_refuse(s, begin, missing);
}

static void parse_run(wb_record_parser *p, wb_stored_run *run) {
    const size_t begin = p->scan.pos;
    size_t valid_bytes = 0;
    parse_run_keys(p, run, &valid_bytes, "routes lacks one of start, rows, codec, xxh3, data");
    run_shape(p, run, valid_bytes, begin);
}

void wb_parse_indexer(wb_record_parser *p) {
    const size_t begin = p->scan.pos;
    size_t valid_bytes = 0;
    wb_stored_run *run = &p->out->indexer;
    parse_run_keys(p, run, &valid_bytes, "indexer lacks one of start, rows, codec, xxh3, data");
    if (run->valid || run->codec == WB_CODEC_PACKED)
        wb_scan_refuse(&p->scan, begin, "indexer has valid, or codec packed");
    p->out->has_indexer = true;
}

void *wb_record_members(wb_record_parser *p, uint32_t count, size_t min_bytes, size_t size) {
    void *block = NULL;
    if (p->scan.error != WB_SCAN_OK) return NULL;
    if (count > (p->scan.end - p->scan.pos) / min_bytes) {
        wb_scan_refuse(&p->scan, p->scan.pos, "a count is larger than the bytes left");
        return NULL;
    }
    p->status = WB_OWN_ALLOC(p->memory, block, count, size, "parts of a record");
    return block;
}

void wb_parse_routes(wb_record_parser *p) {
    wb_scan *s = &p->scan;
    bool list = wb_scan_is_array(s);
    uint32_t n = list ? wb_scan_array(s) : 1;
    p->out->runs = wb_record_members(p, n, 40, sizeof *p->out->runs);
    if (!p->out->runs) return;
    p->out->n_runs = n;
    for (uint32_t i = 0; i < n && s->error == WB_SCAN_OK && p->status == WB_OK; i++)
        parse_run(p, &p->out->runs[i]);
}
