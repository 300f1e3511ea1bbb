/* replay_store.c - taking back what a forward did: native choices become the routes of later passes, and
 * feed the metrics. Everything is checked before anything is changed. Refuses: ids out of range or repeated,
 * forced rows that went elsewhere. */
#include "replay_state.h"

#include <inttypes.h>
#include <string.h>

/* The caller's ids, [rows] of K for one layer or of a whole row for all; data NULL where it has none. */
typedef struct caller_ids {
    const uint8_t *data; /* of the first layer that is looked at */
    size_t stride;       /* bytes from a row to the next */
    const char *name;
} caller_ids;

static wb_status read_ids(const wb_replay *r, const void *data, int64_t stride, int32_t layer,
                          const char *name, caller_ids *out) {
    const int64_t width = layer == WB_ALL_LAYERS ? (int64_t)wb_route_row_ids(&r->model)
                                                 : (int64_t)wb_route_layer_k(&r->model, (uint32_t)layer);
    if (data && stride < width)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "replay: %s ids: expected a stride of %" PRId64 " ids or more, found %" PRId64, name,
                       width, stride);
    size_t skipped = layer == WB_ALL_LAYERS ? r->layer_at[r->options.first_layer] : 0;
    *out = (caller_ids){data ? (const uint8_t *)data + skipped : NULL,
                        data ? (size_t)stride * wb_dtype_size(r->dtype) : 0, name};
    return WB_OK;
}

/* The same of the layer after that of `rows`. */
static caller_ids next_layer(const layer_rows *rows, caller_ids ids) {
    if (ids.data) ids.data += rows->layer_bytes;
    return ids;
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* One row's ids in range and distinct. */
static wb_status check_row(wb_replay *r, const layer_rows *s, uint32_t i, const caller_ids *ids) {
    const uint8_t *row = ids->data + i * ids->stride;
    uint64_t mark = ++r->mark;
    for (uint32_t k = 0; k < s->K; k++) {
        uint32_t id = wb_route_id(row, r->dtype, k);
        bool inside = id < r->model.num_experts;
        if (!inside || r->marks[id] == mark)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "replay: micro-batch %" PRId32 ", MoE layer %" PRIu32 ", row %" PRIu32
                           ": %s expert %" PRIu32 " %s",
                           s->index, s->layer, s->row + i, ids->name, id,
                           inside ? "is chosen twice" : "is out of range");
        r->marks[id] = mark;
    }
    return WB_OK;
}

/* Rows that chose have ids that can be kept (under OFF nothing is kept), the others went as planned. */
static wb_status check_used(wb_replay *r, const layer_rows *s, const caller_ids *used) {
    for (uint32_t i = 0; i < s->rows; i++) {
        bool native = s->direction[i] == WB_ROW_NATIVE;
        if (native && r->mode == WB_REPLAY_OFF) continue;
        if (native && !used->data)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "replay: micro-batch %" PRId32 ", MoE layer %" PRIu32 ", row %" PRIu32
                           " chose natively: the ids used are needed",
                           s->index, s->layer, s->row + i);
        if (native)
            WB_TRY(check_row(r, s, i, used));
        else if (used->data &&
                 memcmp(s->ids + i * r->row_bytes, used->data + i * used->stride, s->layer_bytes) != 0)
            return wb_fail(WB_MISMATCH,
                           "replay: micro-batch %" PRId32 ", MoE layer %" PRIu32 ", row %" PRIu32
                           " was not routed as planned",
                           s->index, s->layer, s->row + i);
    }
    return WB_OK;
}

/* The rows that may be measured: those whose ids the plan has. */
static wb_status check_native(wb_replay *r, const layer_rows *s, const caller_ids *native) {
    for (uint32_t i = 0; native->data && i < s->rows; i++) {
        bool replayed = (s->batch->flags[s->row + i] & ROW_REPLAYED) != 0;
        if (replayed || s->direction[i] == WB_ROW_FORCED) WB_TRY(check_row(r, s, i, native));
    }
    return WB_OK;
}

/* ---- changes --------------------------------------------------------------------------------- */

/* Keeps what the rows that were not forced used: from here on they are. */
static void keep_used(const wb_replay *r, const layer_rows *s, const caller_ids *used) {
    for (uint32_t i = 0; i < s->rows; i++) {
        if (s->direction[i] != WB_ROW_NATIVE) continue;
        memcpy(s->ids + i * r->row_bytes, used->data + i * used->stride, s->layer_bytes);
        s->direction[i] = WB_ROW_FORCED;
        uint32_t t = s->row + i;
        if (--s->batch->pending[t] == 0) s->batch->direction[t] = WB_ROW_FORCED;
    }
}

static void note_followed(const layer_rows *s) {
    uint32_t more = 0;
    if (s->batch->followed[s->stage_layer] == s->batch->T) return;
    for (uint32_t i = 0; i < s->rows; i++) {
        more += (s->noted[i] & NOTED_FOLLOWED) == 0;
        s->noted[i] |= NOTED_FOLLOWED;
    }
    s->batch->followed[s->stage_layer] += more;
}

/* Measures before it keeps: a row is compared with what it was forced to, not with its own choice. */
static void take(wb_replay *r, const layer_rows *s, const caller_ids *used, const caller_ids *native) {
    if (native->data) wb_replay_measure_rows(r, s, native->data, native->stride);
    if (r->mode != WB_REPLAY_OFF) keep_used(r, s, used);
}

/* `sent`: the ids used are those that the rows were sent to, not only what a gate has chosen. */
static wb_status tell(wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                      const void *used, int64_t used_stride, const void *native, int64_t native_stride,
                      bool sent) {
    if (r && r->mode == WB_REPLAY_OFF && !wb_replay_planned(r, index)) return WB_OK;
    layer_rows first = {0}, s;
    caller_ids u = {0}, n = {0}, u_layer, n_layer;
    uint32_t n_layers = 0, l;
    WB_TRY(wb_replay_find_rows(r, index, layer, row, rows, &first, &n_layers));
    WB_TRY(read_ids(r, used, used_stride, layer, "used", &u));
    WB_TRY(read_ids(r, native, native_stride, layer, "native", &n));
    /* Under OFF a row goes where it would go by itself. */
    if (r->mode == WB_REPLAY_OFF && !native) n = u;
    for (l = 0, s = first, u_layer = u, n_layer = n; l < n_layers; l++) {
        WB_TRY(check_used(r, &s, &u_layer));
        WB_TRY(check_native(r, &s, &n_layer));
        u_layer = next_layer(&s, u_layer);
        n_layer = next_layer(&s, n_layer);
        wb_replay_next_layer(r, &s);
    }
    for (l = 0, s = first; l < n_layers; l++) {
        take(r, &s, &u, &n);
        if (sent && u.data) note_followed(&s);
        u = next_layer(&s, u);
        n = next_layer(&s, n);
        wb_replay_next_layer(r, &s);
    }
    return WB_OK;
}

wb_status wb_replay_store(wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                          const void *used, int64_t used_stride, const void *native, int64_t native_stride) {
    return tell(r, index, layer, row, rows, used, used_stride, native, native_stride, true);
}

wb_status wb_replay_choose(wb_replay *r, int32_t index, int32_t layer, uint32_t row, uint32_t rows,
                           const void *chosen, int64_t chosen_stride, const void *native,
                           int64_t native_stride) {
    return tell(r, index, layer, row, rows, chosen, chosen_stride, native, native_stride, false);
}
