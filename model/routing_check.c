/* routing_check.c - see routing_check.h. */
#include "routing_check.h"
#include "host_view.h"

#include <inttypes.h>

/* The ids of a row that is not native. */
static wb_status check_row(const wb_route_model *routes, int64_t t, const void *ids, wb_dtype dtype) {
    size_t at = (size_t)t * wb_route_row_ids(routes);
    for (uint32_t l = 0; l < routes->n_moe_layers; l++)
        for (uint32_t k = 0; k < wb_route_layer_k(routes, l); k++, at++) {
            const uint32_t id = wb_route_id(ids, dtype, at);
            if (id >= routes->num_experts)
                return wb_fail(WB_INVALID_ARGUMENT,
                               "routing: token %" PRId64 ", MoE layer %" PRIu32 ", choice %" PRIu32
                               ": expected a forced id below %" PRIu32 ", found %" PRIu32,
                               t, l, k, routes->num_experts, id);
        }
    return WB_OK;
}

/* A maximum, which is found of many bytes at a time: the device waits for this check. */
static uint32_t largest_id(const uint8_t *ids, wb_dtype dtype, int64_t n) {
    uint8_t largest = 0;
    uint32_t wide = 0;
    if (dtype == WB_U8)
        for (int64_t i = 0; i < n; i++) largest = ids[i] > largest ? ids[i] : largest;
    for (int64_t i = 0; i < n && dtype != WB_U8; i++) {
        const uint32_t id = wb_route_id(ids, dtype, (size_t)i);
        wide = id > wide ? id : wide;
    }
    return dtype == WB_U8 ? largest : wide;
}

/* Of the rows that are not native; names the first id that is no expert's. */
static wb_status check_ids(const wb_route_model *routes, int64_t T, const uint8_t *direction, const void *ids,
                           wb_dtype dtype) {
    const int64_t n = (int64_t)wb_route_row_ids(routes);
    const size_t row_bytes = wb_route_row_bytes(routes);
    for (int64_t t = 0; t < T; t++) {
        const uint8_t *row = (const uint8_t *)ids + (size_t)t * row_bytes;
        if (direction[t] != WB_ROW_NATIVE && largest_id(row, dtype, n) >= routes->num_experts)
            return check_row(routes, t, ids, dtype);
    }
    return WB_OK;
}

static wb_status check_directions(int64_t T, const uint8_t *direction) {
    for (int64_t t = 0; t < T; t++)
        if (direction[t] > WB_ROW_PADDING)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "routing: token %" PRId64 ": expected a direction of %d, %d or %d, found %d", t,
                           WB_ROW_NATIVE, WB_ROW_FORCED, WB_ROW_PADDING, direction[t]);
    return WB_OK;
}

static void find_padding(wb_row_run *runs, int64_t T, const uint8_t *direction, wb_pass *pass) {
    int64_t n = 0;
    for (int64_t t = 0; t < T; t++) {
        if (direction[t] != WB_ROW_PADDING) continue;
        if (t == 0 || direction[t - 1] != WB_ROW_PADDING) runs[n++] = (wb_row_run){t, 0};
        runs[n - 1].n++;
    }
    pass->padding = runs;
    pass->n_padding = n;
}

static size_t routes_bytes(const wb_route_model *routes, int64_t T) {
    return (size_t)T * wb_route_row_bytes(routes);
}

void wb_routing_layout(const wb_model *model, int64_t max_tokens, wb_routing_stage *stage, wb_arena *arena) {
    const int64_t row_bytes = (int64_t)wb_route_row_bytes(&model->route_model);
    wb_host_view_place(arena, &stage->direction, max_tokens, 1);
    wb_host_view_place(arena, &stage->ids, max_tokens * row_bytes, 1);
    wb_host_view_place(arena, &stage->used, max_tokens * row_bytes, 1);
    WB_PLACE_HOST(arena, stage->padding, (max_tokens + 1) / 2);
    wb_planned_layout(model, max_tokens, &stage->planned, arena);
}

static wb_status check_forced(int64_t T, const uint8_t *direction) {
    for (int64_t t = 0; t < T; t++)
        if (!direction || direction[t] == WB_ROW_NATIVE)
            return wb_fail(
                WB_INVALID_ARGUMENT,
                "planned: token %" PRId64 ": expected a forced or a padding row, found a native one", t);
    return WB_OK;
}

/* *direction_out: host [T], as it is on the device. */
static wb_status take_directions(const wb_model *model, const wb_routing_stage *stage, int64_t T,
                                 const wb_routing *routing, wb_pass *pass, const uint8_t **direction_out) {
    wb_device *dev = model->device;
    const wb_route_model *routes = &model->route_model;
    const wb_dtype dtype = wb_route_dtype(routes->num_experts);
    const void *host, *ids;
    WB_TRY(wb_host_view_read(dev, stage->direction, routing->direction, (size_t)T, &host));
    const uint8_t *direction = *direction_out = host;
    WB_TRY(check_directions(T, direction));
    find_padding(stage->padding, T, direction, pass);
    /* Where every value of the dtype is an expert, no id can be wrong. */
    if (routes->num_experts == (dtype == WB_U8 ? 256 : 65536)) return WB_OK;
    WB_TRY(wb_host_view_read(dev, stage->ids, routing->ids, routes_bytes(routes, T), &ids));
    return check_ids(routes, T, direction, ids, dtype);
}

static wb_status check_listed(const wb_route_model *routes, const wb_routing *routing) {
    if (!routing) return WB_OK;
    if (routing->listed && routes->n_indexer_layers == 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "routing: listed: expected NULL for a model without indexers, found lists");
    if (!routing->listed && (routing->listed_direction || routing->listed_native))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "routing: listed: expected lists for listed_direction and listed_native, found NULL");
    return WB_OK;
}

wb_status wb_routing_take(const wb_model *model, const wb_routing_stage *stage, int64_t T,
                          const wb_routing *routing, wb_pass *pass) {
    const wb_route_model *routes = &model->route_model;
    const uint8_t *direction = NULL;
    pass->routing = routing;
    WB_TRY(check_listed(routes, routing));
    if (routes->n_moe_layers == 0) return WB_OK;
    if (!routing || (!routing->ids && T > 0))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "routing: expected ids [%" PRId64 "][%" PRIu32 "][%" PRIu32 "], found NULL", T,
                       routes->n_moe_layers, routes->top_k);
    if (T > 0 && routing->used) pass->used = wb_host_view_write(model->device, stage->used, routing->used);
    if (T > 0 && routing->direction) WB_TRY(take_directions(model, stage, T, routing, pass, &direction));
    return routing->planned ? check_forced(T, direction) : WB_OK;
}

/* Layers leave the rows of padding tokens alone, which have their ids as they stand. */
wb_status wb_routing_give(const wb_model *model, const wb_pass *pass) {
    if (!pass->used) return WB_OK;
    wb_device *dev = model->device;
    const wb_routing *routing = pass->routing;
    const size_t row_bytes = routes_bytes(&model->route_model, 1);
    WB_TRY(wb_host_view_commit(dev, routing->used, pass->used, (size_t)pass->T * row_bytes));
    for (int64_t i = 0; i < pass->n_padding; i++) {
        const wb_row_run run = pass->padding[i];
        const size_t at = (size_t)run.start * row_bytes;
        WB_TRY(dev->copy(dev, (uint8_t *)routing->used + at, (const uint8_t *)routing->ids + at,
                         (size_t)run.n * row_bytes));
    }
    return WB_OK;
}
