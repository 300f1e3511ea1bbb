/* load_count.c - see load_count.h. */
#include "load_count.h"
#include "wb_check.h"

#include <string.h>

wb_status wb_load_count_open(wb_owner *owner, wb_rebalance *manager, const wb_route_model *routes,
                             size_t max_tokens, wb_load_count *count) {
    const size_t bytes = (max_tokens + 7) / 8;
    count->manager = manager;
    if (!manager) return WB_OK;
    WB_TRY(wb_rebalance_check_shape(manager, routes->n_moe_layers, wb_route_weighted(routes)));
    WB_TRY(WB_OWN(owner, count->prefill, bytes, "load of a step"));
    return WB_OWN(owner, count->decode, bytes, "load of a step");
}

static void mark_rows(const wb_load_count *count, const wb_step_batch *batch) {
    const size_t bytes = ((size_t)batch->n_tokens + 7) / 8;
    memset(count->prefill, 0, bytes);
    memset(count->decode, 0, bytes);
    for (int64_t t = 0; t < batch->n_tokens; t++) {
        const wb_sched_entry *entry = batch->entries[batch->seq[t]];
        const uint32_t step_row = (uint32_t)batch->pos[t] - entry->n_in_pool;
        uint8_t *bits = step_row < wb_sched_n_prefilled(entry) ? count->prefill : count->decode;
        if (step_row < entry->n_went_back || step_row >= wb_sched_n_kept(entry)) continue;
        bits[t / 8] |= (uint8_t)(1u << t % 8);
    }
}

wb_status wb_load_count_step(const wb_load_count *count, const wb_route_model *routes,
                             const wb_step_batch *batch, const uint8_t *rows) {
    if (!count->manager || batch->n_tokens == 0) return WB_OK;
    const wb_dtype dtype = wb_route_dtype(routes->num_experts);
    mark_rows(count, batch);
    for (uint32_t l = 0; l < routes->n_moe_layers; l++) {
        wb_routed_rows of_layer = {.ids = rows + wb_route_layer_first(routes, l) * wb_dtype_size(dtype),
                                   .dtype = dtype,
                                   .row_stride = wb_route_row_bytes(routes),
                                   .T = (uint32_t)batch->n_tokens,
                                   .K = wb_route_layer_k(routes, l),
                                   .valid = count->prefill};
        WB_TRY(wb_rebalance_record(count->manager, WB_PHASE_PREFILL, (int32_t)l, &of_layer));
        of_layer.valid = count->decode;
        WB_TRY(wb_rebalance_record(count->manager, WB_PHASE_DECODE, (int32_t)l, &of_layer));
    }
    return WB_OK;
}
