/* replay_fill.c - the rows of a micro-batch from its segments: ids, direction and flags of each, and the
 * memory that they lie in. Refuses: what should have been planned at all (plan.c has decided it). */
#include "replay_state.h"

#include <string.h>

/* ---- memory ---------------------------------------------------------------------------------- */

/* Bytes of the arrays of T rows; with `b`, places them in its block. */
static size_t lay_out(const wb_replay *r, size_t T, micro_batch *b) {
    size_t layers = (size_t)r->options.n_layers;
    size_t ids = (3 * T + layers) * sizeof(uint32_t);
    size_t direction = ids + T * r->row_bytes, by_layer = direction + T, noted = by_layer + layers * T;
    size_t flags = noted + layers * T, bytes = flags + T;
    if (!b) return bytes;
    uint8_t *base = b->block.data;
    b->pending = b->block.data;
    b->followed = b->pending + T;
    b->tokens = (int32_t *)(b->followed + layers);
    b->pos = b->tokens + T;
    b->ids = base + ids;
    b->direction = base + direction;
    b->by_layer = base + by_layer;
    b->noted = base + noted;
    b->flags = base + flags;
    return bytes;
}

wb_status wb_replay_reserve_segments(wb_replay *r, micro_batch *b, int32_t n_segments) {
    return wb_host_reserve(&r->memory, &b->segments, (size_t)n_segments, sizeof(segment_plan),
                           "replay: segments");
}

wb_status wb_replay_reserve_rows(wb_replay *r, micro_batch *b, uint32_t T) {
    WB_TRY(wb_host_reserve(&r->memory, &b->block, lay_out(r, T, NULL), 1, "replay: rows of a micro-batch"));
    b->T = T;
    lay_out(r, T, b);
    return WB_OK;
}

/* ---- rows ------------------------------------------------------------------------------------ */

static void set_rows(const wb_replay *r, micro_batch *b, uint32_t row, uint32_t rows, int direction,
                     uint8_t flags) {
    uint32_t pending = direction == WB_ROW_NATIVE ? (uint32_t)r->options.n_layers : 0;
    for (uint32_t t = row; t < row + rows; t++) b->pending[t] = pending;
    memset(b->direction + row, direction, rows);
    memset(b->flags + row, flags, rows);
    for (int32_t l = 0; l < r->options.n_layers; l++)
        memset(b->by_layer + (size_t)l * b->T + row, direction, rows);
}

static void clear_ids(const wb_replay *r, micro_batch *b, uint32_t row, uint32_t rows) {
    memset(b->ids + row * r->row_bytes, 0, rows * r->row_bytes);
}

/* Under OFF the record's ids are there to be measured against, and its rows choose natively all the same. */
static void fill_replay(const wb_replay *r, micro_batch *b, uint32_t row, const segment_plan *s) {
    uint32_t end = s->start + s->rows;
    int direction = r->mode == WB_REPLAY_OFF ? WB_ROW_NATIVE : WB_ROW_FORCED;
    for (uint32_t p = s->start, next; p < end; p = next) {
        const void *ids;
        next = p + wb_record_stretch(&r->model, s->record, p, end, &ids);
        uint32_t t = row + (p - s->start);
        set_rows(r, b, t, next - p, ids ? direction : WB_ROW_NATIVE, ids ? ROW_REPLAYED : 0);
        if (ids)
            memcpy(b->ids + t * r->row_bytes, ids, (next - p) * r->row_bytes);
        else
            clear_ids(r, b, t, next - p);
    }
}

/* Padding row `p` of the micro-batch has the next turn in each layer. Layers and micro-batches start at
 * different turns: a few padding rows would otherwise send their tokens to the same few experts in all of
 * them. */
static void fill_padding(const wb_replay *r, micro_batch *b, int32_t index, uint32_t row, uint32_t rows,
                         uint32_t p) {
    set_rows(r, b, row, rows, WB_ROW_PADDING, 0);
    for (uint32_t i = 0; i < rows; i++) {
        uint8_t *ids = b->ids + (row + i) * r->row_bytes;
        for (uint32_t l = 0; l < r->model.n_moe_layers; l++)
            wb_replay_padding_row(r, l, (uint64_t)p + i + l + (uint32_t)index, ids + r->layer_at[l]);
    }
}

/* What a dynamic dispatch goes by. A padding row needs nothing: it is sent nowhere. */
static void set_tokens(micro_batch *b, uint32_t row, const segment_plan *s) {
    for (uint32_t i = 0; i < s->rows; i++) {
        b->tokens[row + i] = s->tokens ? (int32_t)s->tokens[i] : 0;
        b->pos[row + i] = s->tokens ? (int32_t)(s->start + i) : 0;
    }
    if (!s->tokens && s->rows > 0 && s->kind != WB_SEGMENT_PADDING) b->all_tokens = false;
}

void wb_replay_fill(const wb_replay *r, micro_batch *b, int32_t index) {
    const segment_plan *segments = b->segments.data;
    size_t layers = (size_t)r->options.n_layers;
    uint32_t row = 0, padding = 0;
    memset(b->noted, 0, layers * b->T);
    memset(b->followed, 0, layers * sizeof *b->followed);
    b->all_tokens = true;
    for (int32_t i = 0; i < b->n_segments; i++) {
        const segment_plan *s = &segments[i];
        set_tokens(b, row, s);
        if (s->kind == WB_SEGMENT_REPLAY) {
            fill_replay(r, b, row, s);
        } else if (s->kind == WB_SEGMENT_RECORD) {
            set_rows(r, b, row, s->rows, WB_ROW_NATIVE, ROW_RECORDED);
            clear_ids(r, b, row, s->rows);
        } else {
            fill_padding(r, b, index, row, s->rows, padding);
            padding += s->rows;
        }
        row += s->rows;
    }
}
