/* rows.c - the rows of a record: walking, finding and counting them. Owns: where a row lies in its run,
 * and which are valid. Refuses: whether a record is well formed (record_check.c), files. */
#include "wb_formats.h"

#include <string.h>

wb_dtype wb_route_dtype(uint32_t num_experts) {
    return num_experts <= 256 ? WB_U8 : WB_U16;
}

size_t wb_route_row_ids(const wb_route_model *model) {
    return wb_route_layer_first(model, model->n_moe_layers);
}

size_t wb_route_row_bytes(const wb_route_model *model) {
    return wb_route_row_ids(model) * wb_dtype_size(wb_route_dtype(model->num_experts));
}

static const uint8_t *row_of(const wb_route_rows *run, uint32_t r, size_t row_bytes) {
    return (const uint8_t *)run->ids + (size_t)r * row_bytes;
}

/* ---- validity ----------------------------------------------------------------------------------- */

uint32_t wb_row_stretch(const uint8_t *valid, uint32_t row, uint32_t rows) {
    if (!valid) return rows - row;
    bool first = wb_row_valid(valid, row);
    uint8_t eight_alike = first ? 0xff : 0;
    uint32_t end = row + 1;
    while (end < rows) {
        if (end % 8 == 0 && rows - end >= 8 && valid[end / 8] == eight_alike)
            end += 8;
        else if (wb_row_valid(valid, end) == first)
            end++;
        else
            break;
    }
    return end - row;
}

void wb_row_copy_valid(const uint8_t *valid, uint32_t first, uint32_t rows, uint8_t *valid_out) {
    memset(valid_out, 0, ((size_t)rows + 7) / 8);
    for (uint32_t r = 0; r < rows; r++)
        if (wb_row_valid(valid, (size_t)first + r)) wb_row_set_valid(valid_out, r, true);
}

uint32_t wb_row_count(const uint8_t *valid, uint32_t rows) {
    uint32_t n = 0;
    for (uint32_t r = 0, alike; r < rows; r += alike) {
        alike = wb_row_stretch(valid, r, rows);
        if (wb_row_valid(valid, r)) n += alike;
    }
    return n;
}

uint64_t wb_record_count_rows(const wb_record *record) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < record->n_routes; i++)
        n += wb_row_count(record->routes[i].valid, record->routes[i].rows);
    return n;
}

/* ---- walking and finding ------------------------------------------------------------------------ */

wb_row_walk wb_rows_of(const wb_route_model *model, const wb_record *record) {
    return (wb_row_walk){.record = record, .row_bytes = wb_route_row_bytes(model)};
}

bool wb_row_next(wb_row_walk *walk) {
    for (; walk->run < walk->record->n_routes; walk->run++, walk->next = 0) {
        const wb_route_rows *run = &walk->record->routes[walk->run];
        while (walk->next < run->rows) {
            uint32_t r = walk->next++;
            if (!wb_row_valid(run->valid, r)) continue;
            walk->position = run->start + r;
            walk->row = row_of(run, r, walk->row_bytes);
            return true;
        }
    }
    return false;
}

/* The first run that ends after `position`; n_routes when there is none. */
static uint32_t find_run(const wb_record *record, uint32_t position) {
    uint32_t low = 0, high = record->n_routes;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const wb_route_rows *run = &record->routes[middle];
        if (position < run->start || position - run->start < run->rows)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

const void *wb_record_row(const wb_route_model *model, const wb_record *record, uint32_t position) {
    uint32_t i = find_run(record, position);
    if (i == record->n_routes || position < record->routes[i].start) return NULL;
    const wb_route_rows *run = &record->routes[i];
    uint32_t r = position - run->start;
    return wb_row_valid(run->valid, r) ? row_of(run, r, wb_route_row_bytes(model)) : NULL;
}

uint32_t wb_record_stretch(const wb_route_model *model, const wb_record *record, uint32_t position,
                           uint32_t end, const void **rows_out) {
    uint32_t i = find_run(record, position);
    *rows_out = NULL;
    if (i == record->n_routes) return end - position;
    const wb_route_rows *run = &record->routes[i];
    if (position < run->start) return (run->start < end ? run->start : end) - position;
    uint32_t r = position - run->start, limit = end - run->start;
    if (wb_row_valid(run->valid, r)) *rows_out = row_of(run, r, wb_route_row_bytes(model));
    return wb_row_stretch(run->valid, r, limit < run->rows ? limit : run->rows);
}

/* ---- counting ----------------------------------------------------------------------------------- */

/* Rows are counted a tile at a time: some rows of as many layers as have counters that fit the first-level
 * cache together. With all layers at once the counters of a large model would be read from the second level
 * for each row; with one layer at once an increment would often wait for the one before it, of the same
 * counter. Measured on 48 layers of 128 experts to 58 of 256: up to 1.4 times the speed of plain rows. */
enum { TILE_ROWS = 32, TILE_COUNTER_BYTES = 24 * 1024 };

typedef struct tile {
    size_t rows, row_bytes; /* a row's bytes: of all layers, not of the tile's */
    size_t layers, K, E;
} tile;

/* A function for each width of ids, so that the innermost loop has no branch. */
static void count_u8(tile t, const uint8_t *ids, uint64_t *counts) {
    for (size_t r = 0; r < t.rows; r++, ids += t.row_bytes) {
        const uint8_t *of_layer = ids;
        uint64_t *layer = counts;
        for (size_t l = 0; l < t.layers; l++, of_layer += t.K, layer += t.E)
            for (size_t k = 0; k < t.K; k++) layer[of_layer[k]]++;
    }
}

static void count_u16(tile t, const uint8_t *ids, uint64_t *counts) {
    for (size_t r = 0; r < t.rows; r++, ids += t.row_bytes) {
        const uint8_t *of_layer = ids;
        uint64_t *layer = counts;
        for (size_t l = 0; l < t.layers; l++, of_layer += 2 * t.K, layer += t.E)
            for (size_t k = 0; k < t.K; k++) layer[wb_route_id(of_layer, WB_U16, k)]++;
    }
}

/* Counts `rows` valid rows that lie together. */
static void count_rows(const wb_route_model *model, const uint8_t *ids, size_t rows, uint64_t *counts) {
    size_t L = model->n_moe_layers, E = model->num_experts, row_bytes = wb_route_row_bytes(model);
    size_t max_layers = TILE_COUNTER_BYTES / (E * sizeof *counts);
    /* Layers of a tile have one K. */
    if (max_layers == 0 || model->layer_top_k) max_layers = 1;
    bool narrow = wb_route_dtype(model->num_experts) == WB_U8;
    for (size_t r = 0; r < rows; r += TILE_ROWS)
        for (size_t l = 0; l < L; l += max_layers) {
            const size_t first = wb_route_layer_first(model, (uint32_t)l) * (narrow ? 1 : 2);
            tile t = {.row_bytes = row_bytes, .K = wb_route_layer_k(model, (uint32_t)l), .E = E};
            t.rows = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            t.layers = L - l < max_layers ? L - l : max_layers;
            (narrow ? count_u8 : count_u16)(t, ids + r * row_bytes + first, counts + l * E);
        }
}

void wb_record_count(const wb_route_model *model, const wb_record *record, uint32_t first, uint32_t end,
                     uint64_t *counts) {
    size_t row_bytes = wb_route_row_bytes(model);
    for (uint32_t i = 0; i < record->n_routes; i++) {
        const wb_route_rows *run = &record->routes[i];
        uint32_t r = first > run->start ? first - run->start : 0;
        uint32_t limit = end > run->start ? end - run->start : 0;
        if (limit > run->rows) limit = run->rows;
        for (uint32_t alike; r < limit; r += alike) {
            alike = wb_row_stretch(run->valid, r, limit);
            if (wb_row_valid(run->valid, r)) count_rows(model, row_of(run, r, row_bytes), alike, counts);
        }
    }
}
