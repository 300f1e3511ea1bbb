/* rows.c - the rows of a record: walking, finding and counting them. Owns: where a row lies in its run,
 * and which are valid. Refuses: whether a record is well formed (route.c), files. */
#include "wb_formats.h"

wb_dtype wb_route_dtype(uint32_t num_experts) {
    return num_experts <= 256 ? WB_U8 : WB_U16;
}

size_t wb_route_row_bytes(const wb_route_model *model) {
    return (size_t)model->n_moe_layers * model->top_k * wb_dtype_size(wb_route_dtype(model->num_experts));
}

static const void *row_of(const wb_route_rows *run, uint32_t r, size_t row_bytes) {
    return (const uint8_t *)run->ids + (size_t)r * row_bytes;
}

uint32_t wb_row_stretch(const uint8_t *valid, uint32_t row, uint32_t rows) {
    if (!valid) return rows - row;
    bool first = wb_row_valid(valid, row);
    uint32_t end = row + 1;
    while (end < rows && wb_row_valid(valid, end) == first) end++;
    return end - row;
}

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

const void *wb_record_row(const wb_route_model *model, const wb_record *record, uint32_t position) {
    for (uint32_t i = 0; i < record->n_routes; i++) {
        const wb_route_rows *run = &record->routes[i];
        if (position < run->start || position - run->start >= run->rows) continue;
        uint32_t r = position - run->start;
        return wb_row_valid(run->valid, r) ? row_of(run, r, wb_route_row_bytes(model)) : NULL;
    }
    return NULL;
}

void wb_record_count(const wb_route_model *model, const wb_record *record, uint32_t first, uint32_t end,
                     uint64_t *counts) {
    wb_dtype dtype = wb_route_dtype(model->num_experts);
    for (wb_row_walk walk = wb_rows_of(model, record); wb_row_next(&walk);) {
        if (walk.position < first || walk.position >= end) continue;
        for (uint32_t l = 0; l < model->n_moe_layers; l++)
            for (uint32_t k = 0; k < model->top_k; k++) {
                size_t at = (size_t)l * model->top_k + k;
                counts[(size_t)l * model->num_experts + wb_route_id(walk.row, dtype, at)]++;
            }
    }
}
