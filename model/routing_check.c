/* routing_check.c - see routing_check.h. */
#include "routing_check.h"
#include "host_view.h"

#include <inttypes.h>

/* The ids [L][K] of a row that is not native. */
static wb_status check_row(const wb_route_model *routes, int64_t t, const void *ids, wb_dtype dtype) {
    const int64_t L = routes->n_moe_layers, K = routes->top_k;
    for (int64_t i = 0; i < L * K; i++) {
        const uint32_t id = wb_route_id(ids, dtype, (size_t)(t * L * K + i));
        if (id >= routes->num_experts)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "routing: token %" PRId64 ", MoE layer %" PRId64 ", choice %" PRId64
                           ": expected a forced id below %" PRIu32 ", found %" PRIu32,
                           t, i / K, i % K, routes->num_experts, id);
    }
    return WB_OK;
}

wb_status wb_routing_check(const wb_model *model, wb_workspace *memory, wb_routing_stage *stage, int64_t T,
                           const wb_routing *routing) {
    const wb_route_model *routes = &model->route_model;
    const int64_t L = routes->n_moe_layers, K = routes->top_k;
    const wb_dtype dtype = wb_route_dtype(routes->num_experts);
    if (L == 0) return WB_OK;
    if (!routing || (!routing->ids && T > 0))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "routing: expected ids [%" PRId64 "][%" PRId64 "][%" PRId64 "], found NULL", T, L, K);
    /* Where every value of the dtype is an expert, no id can be wrong. */
    if (T == 0 || !routing->direction || routes->num_experts == (dtype == WB_U8 ? 256 : 65536)) return WB_OK;

    const void *direction, *ids;
    WB_TRY(wb_host_view_read(memory, &stage->direction, routing->direction, (size_t)T, &direction));
    WB_TRY(wb_host_view_read(memory, &stage->ids, routing->ids, (size_t)(T * L * K) * wb_dtype_size(dtype),
                             &ids));
    for (int64_t t = 0; t < T; t++)
        if (((const uint8_t *)direction)[t] != WB_ROW_NATIVE) WB_TRY(check_row(routes, t, ids, dtype));
    return WB_OK;
}
