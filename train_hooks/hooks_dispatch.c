/* hooks_dispatch.c - what a foreign trainer's dispatcher did with the ids that the gate handed out, compared
 * with the plan. Refuses: rows that no gate has routed. */
#include "hooks_internal.h"

#include <inttypes.h>
#include <string.h>

/* Puts the trainer's ids in h->native_host into the plan's order, where they are the same experts; what is
 * not stays, for the replay to refuse. */
static void order_as_planned(wb_hooks *h, const gate_call *c) {
    uint8_t *told = h->native_host.data;
    const uint8_t *planned = c->slice.ids;
    size_t row_bytes = (size_t)c->slice.stride * wb_dtype_size(h->dtype);
    for (size_t t = 0; t < c->T; t++, told += c->layer_bytes, planned += row_bytes) {
        if (wb_route_same_experts(planned, told, h->dtype, (uint32_t)c->router.top_k))
            memcpy(told, planned, c->layer_bytes);
    }
}

wb_status wb_hooks_dispatched(wb_hooks *h, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T,
                              wb_ids ids) {
    gate_call c = {0};
    WB_TRY(wb_hooks_start_call(h, micro_batch, layer, row, T, "dispatched", &c));
    WB_TRY(wb_hooks_check_ids(h, &c, ids, "ids dispatched"));
    if (h->mode == WB_REPLAY_OFF) return WB_OK;
    hooks_batch *batch;
    WB_TRY(wb_hooks_find_resident(h, &c, &batch));
    if (batch) return wb_hooks_resident_dispatched(h, batch, &c, ids);
    if (c.slice.undecided)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "hooks: micro-batch %" PRId32 ", MoE layer %" PRId32
                       ": dispatched rows that no forward has routed",
                       micro_batch, layer);
    WB_TRY(wb_hooks_reserve(h, T));
    WB_TRY(wb_hooks_read_ids(h, &c, ids, "the dispatcher"));
    order_as_planned(h, &c);
    return wb_replay_store(h->options.replay, micro_batch, layer, row, c.T, h->native_host.data,
                           c.router.top_k, NULL, 0);
}
