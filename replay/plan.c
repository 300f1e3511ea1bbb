/* plan.c - the plan of a step: segments become the rows of micro-batches, which are then read and
 * completed layer by layer. Owns: packing, padding rows, the policy for missing rows, what later passes
 * are forced to. Refuses: a cursor, any order of use. */
#include "replay_internal.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void wb_replay_drop_plan(wb_replay *r) {
    for (int32_t i = 0; i < r->n_micro_batches; i++) r->micro_batches[i].planned = false;
    r->n_micro_batches = 0;
}

void wb_replay_free_micro_batch(micro_batch *b) {
    free(b->segments);
    free(b->block);
}

wb_status wb_replay_begin(wb_replay *r, int32_t n_micro_batches) {
    if (!r || n_micro_batches < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: begin: handle is NULL or %" PRId32 " micro-batches",
                       n_micro_batches);
    if (n_micro_batches > r->micro_batch_capacity) {
        micro_batch *more = realloc(r->micro_batches, (size_t)n_micro_batches * sizeof *more);
        if (!more)
            return wb_fail(WB_OUT_OF_MEMORY, "replay: no memory for %" PRId32 " micro-batches",
                           n_micro_batches);
        memset(more + r->micro_batch_capacity, 0,
               (size_t)(n_micro_batches - r->micro_batch_capacity) * sizeof *more);
        r->micro_batches = more;
        r->micro_batch_capacity = n_micro_batches;
    }
    wb_replay_drop_plan(r);
    wb_replay_clear_sums(r);
    r->n_micro_batches = n_micro_batches;
    return WB_OK;
}

bool wb_replay_planned(const wb_replay *r, int32_t micro_batch_index) {
    return r && micro_batch_index >= 0 && micro_batch_index < r->n_micro_batches &&
           r->micro_batches[micro_batch_index].planned;
}

static wb_status check_index(const wb_replay *r, int32_t index) {
    if (!r) return wb_fail(WB_INVALID_ARGUMENT, "replay: handle is NULL");
    if (index < 0 || index >= r->n_micro_batches)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: micro-batch %" PRId32 ": the plan was begun with %" PRId32, index,
                       r->n_micro_batches);
    return WB_OK;
}

/* ---- segments -------------------------------------------------------------------------------- */

static bool bit(const uint8_t *bits, uint32_t i) {
    return (bits[i / 8] >> (i % 8) & 1) != 0;
}

/* The first run that ends after `position`, n_routes if there is none. */
static uint32_t find_run(const wb_record *record, uint32_t position) {
    uint32_t low = 0, high = record->n_routes;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const wb_route_rows *run = &record->routes[middle];
        if (position - run->start < run->rows || position < run->start)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The longest stretch [position, returned) before `end` that lies together in the record, *ids_out its
 * first row, or that the record does not have, *ids_out NULL. */
static uint32_t find_stretch(const wb_replay *r, const wb_record *record, uint32_t position, uint32_t end,
                             const uint8_t **ids_out) {
    uint32_t i = find_run(record, position);
    *ids_out = NULL;
    if (i == record->n_routes) return end;
    const wb_route_rows *run = &record->routes[i];
    if (position < run->start) return run->start < end ? run->start : end;
    uint32_t n = position - run->start, limit = end - run->start < run->rows ? end - run->start : run->rows;
    bool valid = !run->valid || bit(run->valid, n);
    if (valid) *ids_out = (const uint8_t *)run->ids + n * r->row_bytes;
    if (!run->valid) return run->start + limit;
    while (n < limit && bit(run->valid, n) == valid) n++;
    return run->start + n;
}

static wb_status missing_routes(const wb_replay *r, const wb_segment *s, uint32_t first, uint32_t missing) {
    uint32_t layer = (uint32_t)r->options.first_layer;
    return wb_fail(WB_MISSING_ROUTES,
                   "replay: request %s: no route at position %" PRIu32 ", MoE layer %" PRIu32
                   " (model layer %" PRIu32 ", the stage's first); %" PRIu32 " of the segment's %" PRIu32
                   " rows are missing",
                   s->rid, first, layer, r->model.moe_layers[layer], missing, s->rows);
}

/* Finds the record and counts the rows it should have and has not. */
static wb_status resolve_replay(const wb_replay *r, const wb_segment *s, segment_plan *out) {
    const wb_record *record = s->rid ? wb_replay_find_record(r, s->rid) : NULL;
    if (!record) return wb_fail(WB_NOT_FOUND, "replay: no record of request %s", s->rid ? s->rid : "(NULL)");
    if (s->start > record->n_tokens || s->rows > record->n_tokens - s->start)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: request %s: %" PRIu32 " rows from position %" PRIu32 " go beyond its %" PRIu32
                       " tokens",
                       s->rid, s->rows, s->start, record->n_tokens);
    uint32_t end = s->start + s->rows, first = end, missing = 0;
    if (end == record->n_tokens && s->rows > 0) end--; /* the last token was never fed: no row by nature */
    for (uint32_t p = s->start, next; p < end; p = next) {
        const uint8_t *ids;
        next = find_stretch(r, record, p, end, &ids);
        if (ids) continue;
        if (missing == 0) first = p;
        missing += next - p;
    }
    if (missing > 0 && r->options.missing == WB_MISSING_STRICT) return missing_routes(r, s, first, missing);
    out->missing = missing;
    out->record = record;
    return WB_OK;
}

static wb_status resolve(const wb_replay *r, int32_t n, const wb_segment *segments, segment_plan *out,
                         uint32_t *T_out) {
    uint32_t T = 0;
    for (int32_t i = 0; i < n; i++) {
        const wb_segment *s = &segments[i];
        if ((unsigned)s->kind > WB_SEGMENT_PADDING)
            return wb_fail(WB_INVALID_ARGUMENT, "replay: segment %" PRId32 ": %d is none of wb_segment_kind",
                           i, (int)s->kind);
        if (s->rows > UINT32_MAX - T)
            return wb_fail(WB_INVALID_ARGUMENT, "replay: segment %" PRId32 ": more than 2^32 rows", i);
        T += s->rows;
        out[i] = (segment_plan){s->kind, s->start, s->rows, 0, NULL};
        if (s->kind == WB_SEGMENT_REPLAY) WB_TRY(resolve_replay(r, s, &out[i]));
    }
    *T_out = T;
    return WB_OK;
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* Bytes of the arrays of T rows; with `b`, places them in its block. */
static size_t lay_out(const wb_replay *r, size_t T, micro_batch *b) {
    size_t layers = (size_t)r->options.n_layers;
    size_t pending = 0, ids = pending + T * sizeof(uint32_t), state = ids + T * r->row_bytes;
    size_t layer_state = state + T, measured = layer_state + layers * T, flags = measured + layers * T;
    size_t used = flags + T, bytes = used + layers;
    if (!b) return bytes;
    uint8_t *base = b->block;
    b->pending = (uint32_t *)b->block;
    b->ids = base + ids;
    b->state = base + state;
    b->layer_state = base + layer_state;
    b->measured = base + measured;
    b->flags = base + flags;
    b->used = base + used;
    return bytes;
}

static wb_status reserve_segments(micro_batch *b, int32_t n) {
    if (n <= b->segment_capacity) return WB_OK;
    segment_plan *segments;
    WB_TRY(WB_NEW(segments, (size_t)n, "replay: segments"));
    free(b->segments);
    b->segments = segments;
    b->segment_capacity = n;
    return WB_OK;
}

static wb_status reserve_rows(const wb_replay *r, micro_batch *b, uint32_t T) {
    size_t bytes = lay_out(r, T, NULL);
    if (bytes <= b->block_bytes) return WB_OK;
    void *block;
    WB_TRY(WB_ALLOC(block, bytes, 1, "replay: rows of a micro-batch"));
    free(b->block);
    b->block = block;
    b->block_bytes = bytes;
    return WB_OK;
}

static void set_rows(const wb_replay *r, micro_batch *b, uint32_t row, uint32_t rows, int state,
                     uint8_t flags) {
    bool native = state == WB_ROW_NATIVE;
    for (uint32_t t = row; t < row + rows; t++) b->pending[t] = native ? (uint32_t)r->options.n_layers : 0;
    memset(b->state + row, state, rows);
    memset(b->flags + row, flags, rows);
    for (int32_t l = 0; l < r->options.n_layers; l++)
        memset(b->layer_state + (size_t)l * b->T + row, state, rows);
    if (native) memset(b->ids + row * r->row_bytes, 0, rows * r->row_bytes);
}

static void fill_replay(const wb_replay *r, micro_batch *b, uint32_t row, const segment_plan *s) {
    uint32_t end = s->start + s->rows;
    for (uint32_t p = s->start, next; p < end; p = next) {
        const uint8_t *ids;
        next = find_stretch(r, s->record, p, end, &ids);
        uint32_t t = row + (p - s->start);
        set_rows(r, b, t, next - p, ids ? WB_ROW_FORCED : WB_ROW_NATIVE, ids ? ROW_REPLAYED : 0);
        if (ids) memcpy(b->ids + t * r->row_bytes, ids, (next - p) * r->row_bytes);
    }
}

/* Padding row `p` of the micro-batch takes the next K experts of the order in each layer; layers and
 * micro-batches start elsewhere, so that few padding rows do not meet the same experts in all of them. */
static void fill_padding(const wb_replay *r, micro_batch *b, int32_t index, uint32_t row, uint32_t rows,
                         uint32_t p) {
    uint32_t L = r->model.n_moe_layers, K = r->model.top_k, E = r->model.num_experts;
    set_rows(r, b, row, rows, WB_ROW_PADDING, 0);
    uint8_t *out = b->ids + row * r->row_bytes;
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t l = 0; l < L; l++) {
            size_t slot = (size_t)(((uint64_t)p + i + l + (uint32_t)index) * K % E);
            for (uint32_t k = 0; k < K; k++, slot = slot + 1 < E ? slot + 1 : 0) {
                uint32_t id = r->padding_order[slot];
                *out++ = (uint8_t)id;
                if (r->dtype == WB_U16) *out++ = (uint8_t)(id >> 8);
            }
        }
}

static void fill(wb_replay *r, micro_batch *b, int32_t index) {
    uint32_t row = 0, padding = 0;
    for (int32_t i = 0; i < b->n_segments; i++) {
        segment_plan *s = &b->segments[i];
        if (s->kind == WB_SEGMENT_REPLAY) {
            fill_replay(r, b, row, s);
        } else if (s->kind == WB_SEGMENT_RECORD) {
            set_rows(r, b, row, s->rows, WB_ROW_NATIVE, ROW_RECORDED);
        } else {
            fill_padding(r, b, index, row, s->rows, padding);
            padding += s->rows;
        }
        wb_replay_count_segment(r, s);
        row += s->rows;
    }
}

wb_status wb_replay_plan(wb_replay *r, int32_t index, int32_t n_segments, const wb_segment *segments) {
    WB_TRY(check_index(r, index));
    micro_batch *b = &r->micro_batches[index];
    if (b->planned)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: micro-batch %" PRId32 " was planned before", index);
    if (n_segments < 0 || (n_segments > 0 && !segments))
        return wb_fail(WB_INVALID_ARGUMENT, "replay: micro-batch %" PRId32 ": %" PRId32 " segments%s", index,
                       n_segments, segments ? "" : ", NULL");
    uint32_t T = 0;
    WB_TRY(reserve_segments(b, n_segments));
    WB_TRY(resolve(r, n_segments, segments, b->segments, &T));
    WB_TRY(reserve_rows(r, b, T));
    b->T = T;
    b->n_segments = n_segments;
    size_t layers = (size_t)r->options.n_layers;
    lay_out(r, T, b);
    memset(b->measured, 0, layers * T);
    memset(b->used, 0, layers);
    fill(r, b, index);
    b->planned = true;
    return WB_OK;
}

bool wb_replay_dropped(const wb_replay *r, int32_t index, int32_t segment) {
    if (!wb_replay_planned(r, index) || r->options.missing != WB_MISSING_DROP) return false;
    const micro_batch *b = &r->micro_batches[index];
    return segment >= 0 && segment < b->n_segments && b->segments[segment].missing > 0;
}

/* ---- use ------------------------------------------------------------------------------------- */

static wb_status get_micro_batch(const wb_replay *r, int32_t index, micro_batch **out) {
    WB_TRY(check_index(r, index));
    if (!r->micro_batches[index].planned)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: micro-batch %" PRId32 " was not planned", index);
    *out = &r->micro_batches[index];
    return WB_OK;
}

wb_status wb_replay_rows(wb_replay *r, int32_t index, wb_replay_micro_batch *out) {
    micro_batch *b = NULL;
    WB_TRY(get_micro_batch(r, index, &b));
    *out = (wb_replay_micro_batch){b->T, b->ids, b->state};
    return WB_OK;
}

/* Rows of one layer of a micro-batch, checked. */
typedef struct slice {
    micro_batch *batch;
    int32_t index;
    uint32_t layer, stage_layer; /* of the model; from the stage's first */
    uint32_t row, rows;
    uint8_t *state; /* [rows] of the layer */
    uint8_t *ids;   /* first id; rows are row_bytes apart */
} slice;

static wb_status get_slice(const wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                           slice *out) {
    micro_batch *b = NULL;
    WB_TRY(get_micro_batch(r, index, &b));
    int32_t first = r->options.first_layer, n = r->options.n_layers;
    if (layer < first || layer >= first + n)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: MoE layer %" PRId32 " is outside this stage's [%" PRId32 ", %" PRId32 ")",
                       layer, first, first + n);
    if (row > b->T || rows > b->T - row)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: micro-batch %" PRId32 ": %" PRIu32 " rows from row %" PRIu32
                       " go beyond its %" PRIu32,
                       index, rows, row, b->T);
    uint32_t stage_layer = (uint32_t)(layer - first);
    *out = (slice){b,
                   index,
                   (uint32_t)layer,
                   stage_layer,
                   row,
                   rows,
                   b->layer_state + (size_t)stage_layer * b->T + row,
                   b->ids + row * r->row_bytes + (uint32_t)layer * r->layer_bytes};
    return WB_OK;
}

wb_status wb_replay_layer(wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                          const void **ids_out, const uint8_t **state_out) {
    slice s = {0};
    WB_TRY(get_slice(r, index, layer, row, rows, &s));
    s.batch->used[s.stage_layer] = 1;
    *ids_out = s.ids;
    *state_out = s.state;
    return WB_OK;
}

/* The caller's ids [rows] of K, `stride` bytes apart; data NULL where not given. */
typedef struct given_ids {
    const uint8_t *data;
    size_t stride;
    const char *name;
} given_ids;

static wb_status given(const wb_replay *r, const void *data, int64_t stride, const char *name,
                       given_ids *out) {
    if (data && stride < (int64_t)r->model.top_k)
        return wb_fail(WB_INVALID_ARGUMENT, "replay: %s ids: stride %" PRId64 " is below K = %" PRIu32, name,
                       stride, r->model.top_k);
    *out = (given_ids){data, data ? (size_t)stride * wb_dtype_size(r->dtype) : 0, name};
    return WB_OK;
}

/* One row's ids in range and distinct. */
static wb_status check_row(wb_replay *r, const slice *s, uint32_t i, const given_ids *g) {
    const uint8_t *row = g->data + i * g->stride;
    uint64_t mark = ++r->mark;
    for (uint32_t k = 0; k < r->model.top_k; k++) {
        uint32_t id = wb_route_id(row, r->dtype, k);
        bool inside = id < r->model.num_experts;
        if (!inside || r->marks[id] == mark)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "replay: micro-batch %" PRId32 ", MoE layer %" PRIu32 ", row %" PRIu32
                           ": %s expert %" PRIu32 " %s",
                           s->index, s->layer, s->row + i, g->name, id,
                           inside ? "is chosen twice" : "is out of range");
        r->marks[id] = mark;
    }
    return WB_OK;
}

static wb_status check_used(wb_replay *r, const slice *s, const given_ids *used) {
    for (uint32_t i = 0; i < s->rows; i++) {
        bool native = s->state[i] == WB_ROW_NATIVE;
        if (native && !used->data)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "replay: micro-batch %" PRId32 ", MoE layer %" PRIu32 ", row %" PRIu32
                           " chose natively: the ids used are needed",
                           s->index, s->layer, s->row + i);
        if (native)
            WB_TRY(check_row(r, s, i, used));
        else if (used->data &&
                 memcmp(s->ids + i * r->row_bytes, used->data + i * used->stride, r->layer_bytes) != 0)
            return wb_fail(WB_MISMATCH,
                           "replay: micro-batch %" PRId32 ", MoE layer %" PRIu32 ", row %" PRIu32
                           " was not routed as planned",
                           s->index, s->layer, s->row + i);
    }
    return WB_OK;
}

static wb_status check_native(wb_replay *r, const slice *s, const given_ids *native) {
    for (uint32_t i = 0; native->data && i < s->rows; i++)
        if (s->state[i] == WB_ROW_FORCED) WB_TRY(check_row(r, s, i, native));
    return WB_OK;
}

/* Keeps what the rows that were not forced used: from here on they are. */
static void keep_used(const wb_replay *r, const slice *s, const given_ids *used) {
    for (uint32_t i = 0; i < s->rows; i++) {
        if (s->state[i] != WB_ROW_NATIVE) continue;
        memcpy(s->ids + i * r->row_bytes, used->data + i * used->stride, r->layer_bytes);
        s->state[i] = WB_ROW_FORCED;
        uint32_t t = s->row + i;
        if (--s->batch->pending[t] == 0) s->batch->state[t] = WB_ROW_FORCED;
    }
}

static void measure(wb_replay *r, const slice *s, const given_ids *native) {
    if (native->data)
        wb_replay_measure_rows(r, s->batch, s->stage_layer, s->row, s->rows, native->data, native->stride);
}

wb_status wb_replay_store(wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                          const void *used, int64_t used_stride, const void *native, int64_t native_stride) {
    slice s = {0};
    given_ids u = {0}, n = {0};
    WB_TRY(get_slice(r, index, layer, row, rows, &s));
    WB_TRY(given(r, used, used_stride, "used", &u));
    WB_TRY(given(r, native, native_stride, "native", &n));
    WB_TRY(check_used(r, &s, &u));
    WB_TRY(check_native(r, &s, &n));
    measure(r, &s,
            &n); /* before keeping: a row is measured against what it was forced to, not against itself */
    keep_used(r, &s, &u);
    s.batch->used[s.stage_layer] = 1;
    return WB_OK;
}

wb_status wb_replay_measure(wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                            const void *native, int64_t native_stride) {
    slice s = {0};
    given_ids n = {0};
    WB_TRY(get_slice(r, index, layer, row, rows, &s));
    WB_TRY(given(r, native, native_stride, "native", &n));
    WB_TRY(check_native(r, &s, &n));
    measure(r, &s, &n);
    s.batch->used[s.stage_layer] = 1;
    return WB_OK;
}

wb_status wb_replay_counts(const wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                           int64_t *counts_out) {
    slice s = {0};
    WB_TRY(get_slice(r, index, layer, row, rows, &s));
    memset(counts_out, 0, r->model.num_experts * sizeof *counts_out);
    for (uint32_t i = 0; i < rows; i++) {
        if (s.state[i] == WB_ROW_NATIVE) continue;
        for (uint32_t k = 0; k < r->model.top_k; k++)
            counts_out[wb_route_id(s.ids + i * r->row_bytes, r->dtype, k)]++;
    }
    return WB_OK;
}

wb_status wb_replay_end(wb_replay *r) {
    if (!r) return wb_fail(WB_INVALID_ARGUMENT, "replay: handle is NULL");
    for (int32_t i = 0; i < r->n_micro_batches; i++) {
        const micro_batch *b = &r->micro_batches[i];
        if (!b->planned) return wb_fail(WB_MISMATCH, "replay: micro-batch %" PRId32 " was not planned", i);
        for (int32_t l = 0; b->T > 0 && l < r->options.n_layers; l++) {
            int32_t layer = r->options.first_layer + l;
            if (b->used[l]) continue;
            return wb_fail(WB_MISMATCH,
                           "replay: micro-batch %" PRId32 ", MoE layer %" PRId32 " (model layer %" PRIu32
                           "): planned, but no pass used it",
                           i, layer, r->model.moe_layers[layer]);
        }
    }
    return WB_OK;
}
