/* hooks_choose.c - the ids that a gate routes by: the plan's where a row is forced or padding, what the
 * device's topk or the hash table says where it is native. Refuses: choosing by itself. */
#include "hooks_internal.h"

#include <string.h>

/* The plan's ids of this layer, rows together. */
static void gather_plan(wb_hooks *h, const gate_call *c) {
    uint8_t *to = h->ids_host.data;
    const uint8_t *from = c->slice.ids;
    size_t row_bytes = (size_t)c->slice.stride * wb_dtype_size(h->dtype);
    for (size_t t = 0; t < c->T; t++) memcpy(to + t * c->layer_bytes, from + t * row_bytes, c->layer_bytes);
}

/* What the table says, of the rows that choose. */
static void take_table_ids(wb_hooks *h, const gate_call *c) {
    uint8_t *to = h->ids_host.data;
    const uint8_t *from = h->native_host.data;
    for (size_t t = 0; t < c->T; t++) {
        if (c->slice.direction && c->slice.direction[t] != WB_ROW_NATIVE) continue;
        memcpy(to + t * c->layer_bytes, from + t * c->layer_bytes, c->layer_bytes);
    }
}

/* The device's ids of the native rows, and what every row would choose where that is wanted. */
static wb_status select_ids(wb_hooks *h, const gate_call *c) {
    wb_device *dev = h->options.device;
    wb_topk args = {.router = c->router,
                    .T = c->T,
                    .logits = c->logits,
                    .bias = h->options.bias ? h->options.bias[c->layer] : NULL,
                    .direction = c->slice.any_forced ? h->direction.data : NULL,
                    .ids = hooks_ids(h, c, &h->ids)};
    if (c->slice.want_native) args.native = hooks_ids(h, c, &h->native);
    return dev->topk(dev, &args);
}

/* Choices cross to the host in the middle of a step here alone, of rows that nobody forced and for the
 * metrics: those of resident micro-batches do when it ends. */
static wb_status bring_back(wb_hooks *h, const gate_call *c) {
    wb_device *dev = h->options.device;
    size_t bytes = c->T * c->layer_bytes;
    if (c->slice.want_chosen) WB_TRY(dev->to_host(dev, h->ids_host.data, h->ids.data, bytes));
    if (c->slice.want_native) WB_TRY(dev->to_host(dev, h->native_host.data, h->native.data, bytes));
    return WB_OK;
}

wb_status wb_hooks_choose(wb_hooks *h, const gate_call *c, wb_ids table) {
    wb_device *dev = h->options.device;
    bool hash = h->options.router.type == WB_ROUTER_HASH;
    bool choosing = c->slice.any_native || c->slice.want_native;
    if (c->slice.any_forced) {
        gather_plan(h, c);
        WB_TRY(wb_upload(&h->workspace, &h->direction, c->slice.direction, c->T, 1));
    }
    if (hash && choosing) {
        WB_TRY(wb_hooks_read_ids(h, c, table, "the hash table"));
        take_table_ids(h, c);
    }
    if (hash || c->slice.any_forced)
        WB_TRY(dev->to_device(dev, h->ids.data, h->ids_host.data, c->T * c->layer_bytes));
    if (hash || !choosing) return WB_OK;
    WB_TRY(select_ids(h, c));
    return bring_back(h, c);
}
