/* hooks_ids.c - the trainer's own tensor of ids: read where a hash router's table or a dispatcher filled it.
 * Refuses: writing it, which is the device's copy_ids. */
#include "hooks_internal.h"

#include <inttypes.h>

wb_status wb_hooks_check_ids(const wb_hooks *h, const gate_call *c, wb_ids ids, const char *name) {
    bool fits = ids.dtype == WB_U16 || (ids.dtype == WB_U8 && h->dtype == WB_U8);
    if (fits && ids.stride >= c->router.top_k && (c->T == 0 || ids.data)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "hooks: %s: expected %s of stride %" PRId32 " or more, found %s of %" PRId64 "%s", name,
                   h->dtype == WB_U8 ? "u8 or u16" : "u16", c->router.top_k, wb_dtype_name(ids.dtype),
                   ids.stride, ids.data ? "" : ", NULL");
}

wb_status wb_hooks_read_ids(wb_hooks *h, const gate_call *c, wb_ids from, const char *name) {
    wb_device *dev = h->options.device;
    const int32_t K = c->router.top_k;
    const size_t n = c->T * (size_t)K;
    const uint16_t *wide = h->wide_host.data;
    WB_TRY(dev->copy_ids(dev, c->T, K, from, (wb_ids){h->wide.data, WB_U16, K}));
    WB_TRY(dev->to_host(dev, h->wide_host.data, h->wide.data, n * sizeof *wide));
    for (size_t i = 0; i < n; i++) {
        if (wide[i] >= (uint32_t)c->router.n_experts)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "hooks: micro-batch %" PRId32 ", MoE layer %" PRId32 ", row %zu: expert %" PRIu16
                           " of %s is out of range",
                           c->micro_batch, c->layer, c->row + i / (size_t)K, wide[i], name);
        wb_route_id_set(h->native_host.data, h->dtype, i, wide[i]);
    }
    return WB_OK;
}
