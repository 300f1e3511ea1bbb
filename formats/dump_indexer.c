/* dump_indexer.c - see the header. */
#include "dump_indexer.h"
#include "dump_rows_decode.h"

#include <string.h>

/* ---- writing ------------------------------------------------------------------------------------ */

/* Bytes of the coded cells: counted where `bytes` is NULL, else written there too. */
typedef struct coder {
    uint8_t *bytes;
    size_t size;
} coder;

static void put(coder *c, uint64_t number) {
    for (; number >= 128; number >>= 7, c->size++)
        if (c->bytes) c->bytes[c->size] = (uint8_t)(number | 128);
    if (c->bytes) c->bytes[c->size] = (uint8_t)number;
    c->size++;
}

/* A choice of all of the first `count`, however the record has it, is stored without positions: the last of
 * ascending ones is then count - 1. */
static void put_cell(coder *c, uint32_t count, const uint32_t *positions) {
    const bool all = !positions || count == 0 || positions[count - 1] == count - 1;
    put(c, 2 * (uint64_t)count + all);
    for (uint32_t i = 0; !all && i < count; i++)
        put(c, i == 0 ? positions[0] : positions[i] - positions[i - 1] - 1);
}

static void put_cells(coder *c, const wb_indexer_rows *rows, size_t cells) {
    uint64_t from = 0;
    for (size_t i = 0; i < cells; from = rows->ends[i++])
        put_cell(c, rows->counts[i], rows->ends[i] > from ? rows->positions + from : NULL);
}

wb_status wb_indexer_encode(const wb_dump_options *options, const wb_route_model *model,
                            const wb_indexer_rows *rows, wb_owner *memory, wb_encoded_run *run_out) {
    const size_t cells = (size_t)rows->rows * wb_indexer_columns(model);
    coder c = {0};
    uint8_t *bytes = NULL;
    put_cells(&c, rows, cells);
    WB_TRY(WB_OWN(memory, bytes, c.size, "indexer rows"));
    c = (coder){bytes, 0};
    put_cells(&c, rows, cells);
    WB_TRY(wb_bytes_encode(options, bytes, c.size, memory, run_out));
    run_out->start = rows->start;
    run_out->rows = rows->rows;
    return WB_OK;
}

/* ---- reading ------------------------------------------------------------------------------------ */

typedef struct decoder {
    const uint8_t *bytes;
    size_t size, pos;
    bool bad;
} decoder;

static uint32_t get(decoder *d, uint64_t max) {
    uint64_t number = 0;
    for (uint32_t shift = 0; shift < 35 && d->pos < d->size; shift += 7) {
        const uint8_t byte = d->bytes[d->pos++];
        number |= (uint64_t)(byte & 127) << shift;
        if (byte < 128 && number <= max) return (uint32_t)number;
        if (byte < 128) break;
    }
    d->bad = true;
    return 0;
}

/* Reads one cell; its positions go to `positions` where that is not NULL. Returns how many are stored. */
static uint32_t get_cell(decoder *d, uint32_t *count_out, uint32_t *positions) {
    const uint32_t head = get(d, UINT32_MAX), count = head / 2, stored = head % 2 == 0 ? count : 0;
    uint64_t next = 0;
    /* Each takes a byte at least. */
    if (stored > d->size - d->pos) d->bad = true;
    for (uint32_t i = 0; i < stored && !d->bad; i++) {
        next += get(d, UINT32_MAX - next);
        if (positions) positions[i] = (uint32_t)next;
        if (next++ == UINT32_MAX && i + 1 < stored) d->bad = true;
    }
    *count_out = count;
    return stored;
}

static wb_status get_cells(decoder d, size_t cells, wb_owner *memory, wb_indexer_rows *rows) {
    uint32_t *counts = NULL, *positions = NULL;
    uint64_t *ends = NULL;
    if (cells > d.size) return wb_fail(WB_CORRUPT, "indexer: the data is too small to hold that many rows");
    WB_TRY(WB_OWN(memory, counts, cells, "indexer rows"));
    WB_TRY(WB_OWN(memory, ends, cells, "indexer rows"));
    for (size_t i = 0; i < cells && !d.bad; i++)
        ends[i] = (i > 0 ? ends[i - 1] : 0) + get_cell(&d, &counts[i], NULL);
    if (d.bad || d.pos != d.size)
        return wb_fail(WB_CORRUPT, "indexer: the data is not that of %zu cells of a row's choices", cells);
    const uint64_t total = cells > 0 ? ends[cells - 1] : 0;
    if (total > 0) WB_TRY(WB_OWN(memory, positions, (size_t)total, "indexer rows"));
    d.pos = 0;
    for (size_t i = 0; i < cells; i++) {
        const uint64_t from = i > 0 ? ends[i - 1] : 0;
        get_cell(&d, &counts[i], ends[i] > from ? positions + from : NULL);
    }
    rows->counts = counts;
    rows->ends = ends;
    rows->positions = positions;
    return WB_OK;
}

wb_status wb_indexer_decode(const wb_file_bytes *file, const wb_stored_run *run, const wb_route_model *model,
                            wb_owner *memory, wb_indexer_rows *rows_out) {
    wb_indexer_rows rows = {.start = run->start, .rows = run->rows};
    wb_owner scratch = {0};
    decoder d = {0};
    if (model->n_indexer_layers == 0)
        return wb_fail(WB_CORRUPT, "indexer: the model of the header has no layer with one");
    wb_status status = wb_bytes_decode(file, run, &scratch, &d.bytes, &d.size);
    if (status == WB_OK) status = get_cells(d, (size_t)run->rows * wb_indexer_columns(model), memory, &rows);
    wb_owner_close(&scratch);
    if (status == WB_OK) *rows_out = rows;
    return status;
}
