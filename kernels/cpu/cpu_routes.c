/* cpu_routes.c - ids of a route tensor moved between views, and looked at after a dispatcher took them.
 * Refuses: choosing (cpu_topk.c), weights of ids (cpu_gate.c). */
#include "cpu/cpu_ids.h"
#include "cpu/cpu_ops.h"
#include "wb_exact_math.h"

#include <math.h>

wb_status WB_CPU(copy_ids)(wb_device *dev, int64_t T, int32_t K, wb_ids from, wb_ids to) {
    (void)dev;
    if (to.dtype == WB_U8 && from.dtype != WB_U8)
        return wb_fail(WB_INVALID_ARGUMENT, "copy_ids: to: expected u16, found u8");
    for (int64_t t = 0; t < T; t++)
        for (int32_t k = 0; k < K; k++) id_set(to, t, k, id_get(from, t, k));
    return WB_OK;
}

/* Whether id is among the K planned ones of row t. */
static bool is_planned(const wb_route_check *args, int64_t t, uint32_t id) {
    for (int32_t k = 0; k < args->top_k; k++)
        if (id_get(args->planned, t, k) == id) return true;
    return false;
}

static bool came_before(const wb_route_check *args, int64_t t, int32_t k) {
    for (int32_t j = 0; j < k; j++)
        if (id_get(args->taken, t, j) == id_get(args->taken, t, k)) return true;
    return false;
}

/* WB_FAULT_NONE: choice k of row t was taken as planned. */
static wb_fault look_at_choice(const wb_route_check *args, int64_t t, int32_t k) {
    wb_fault fault = {.op = WB_OP_check_routes,
                      .row = args->row + t,
                      .choice = k,
                      .limit = args->n_experts,
                      .micro_batch = args->micro_batch,
                      .layer = args->layer};
    if (args->weights && !isfinite(args->weights[t * args->top_k + k])) {
        fault.kind = WB_FAULT_WEIGHT;
        fault.found = wb_float_bits(args->weights[t * args->top_k + k]);
    }
    if (!args->taken.data) return fault;
    const uint32_t id = id_get(args->taken, t, k);
    if (id >= (uint32_t)args->n_experts)
        fault.kind = WB_FAULT_ROUTE_ID;
    else if (!is_planned(args, t, id) || came_before(args, t, k))
        fault.kind = WB_FAULT_ROUTE;
    else
        return fault;
    fault.found = id;
    return fault;
}

wb_status WB_CPU(check_routes)(wb_device *dev, const wb_route_check *args) {
    (void)dev;
    for (int64_t t = 0; t < args->T; t++)
        for (int32_t k = 0; k < args->top_k; k++) {
            const wb_fault fault = look_at_choice(args, t, k);
            if (fault.kind != WB_FAULT_NONE) return wb_fault_report(&fault);
        }
    return WB_OK;
}
