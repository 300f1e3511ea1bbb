/* hooks_ids.c - the trainer's own tensor of ids: read where a hash router's table or a dispatcher filled it,
 * and written with what the gate chose, in its dtype and stride. */
#include "hooks_internal.h"

#include <inttypes.h>

wb_status wb_hooks_check_ids(const wb_hooks *h, int64_t T, wb_ids ids, const char *name) {
    bool fits = ids.dtype == WB_U16 || (ids.dtype == WB_U8 && h->dtype == WB_U8);
    if (fits && ids.stride >= h->options.router.top_k && (T == 0 || ids.data)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "hooks: %s: expected %s of stride %" PRId32 " or more, found %s of %" PRId64 "%s", name,
                   h->dtype == WB_U8 ? "u8 or u16" : "u16", h->options.router.top_k, wb_dtype_name(ids.dtype),
                   ids.stride, ids.data ? "" : ", NULL");
}

/* Rows that lie together are moved together, others one by one. */
static size_t rows_at_once(const gate_call *c, wb_ids ids, size_t K) {
    return ids.stride == (int64_t)K ? c->T : 1;
}

wb_status wb_hooks_read_ids(wb_hooks *h, const gate_call *c, wb_ids from, const char *name) {
    wb_device *dev = h->options.device;
    size_t K = (size_t)h->options.router.top_k, id_bytes = wb_dtype_size(from.dtype);
    uint8_t *wide = h->wide_host.data;
    size_t step = rows_at_once(c, from, K);
    for (size_t t = 0; t < c->T; t += step)
        WB_TRY(dev->to_host(dev, wide + t * K * id_bytes,
                            (const uint8_t *)from.data + t * (size_t)from.stride * id_bytes,
                            step * K * id_bytes));
    for (size_t i = 0; i < c->T * K; i++) {
        uint32_t id = wb_route_id(wide, from.dtype, i);
        if (id >= (uint32_t)h->options.router.n_experts)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "hooks: micro-batch %" PRId32 ", MoE layer %" PRId32 ", row %zu: expert %" PRIu32
                           " of %s is out of range",
                           c->micro_batch, c->layer, c->row + i / K, id, name);
        wb_route_id_set(h->native_host.data, h->dtype, i, id);
    }
    return WB_OK;
}

/* Through the host, where the trainer's ids are wider than the plan's. */
static wb_status write_wider(wb_hooks *h, const gate_call *c, wb_ids to) {
    wb_device *dev = h->options.device;
    size_t K = (size_t)h->options.router.top_k, row_bytes = K * sizeof(uint16_t);
    WB_TRY(dev->to_host(dev, h->ids_host.data, h->ids.data, c->T * h->layer_bytes));
    for (size_t i = 0; i < c->T * K; i++)
        wb_route_id_set(h->wide_host.data, WB_U16, i, wb_route_id(h->ids_host.data, h->dtype, i));
    size_t step = rows_at_once(c, to, K);
    for (size_t t = 0; t < c->T; t += step)
        WB_TRY(dev->to_device(dev, (uint16_t *)to.data + t * (size_t)to.stride,
                              (const uint8_t *)h->wide_host.data + t * row_bytes, step * row_bytes));
    return WB_OK;
}

wb_status wb_hooks_write_ids(wb_hooks *h, const gate_call *c, wb_ids to) {
    wb_device *dev = h->options.device;
    if (to.dtype != h->dtype) return write_wider(h, c, to);
    size_t step = rows_at_once(c, to, (size_t)h->options.router.top_k);
    size_t to_bytes = (size_t)to.stride * wb_dtype_size(to.dtype);
    for (size_t t = 0; t < c->T; t += step)
        WB_TRY(dev->copy(dev, (uint8_t *)to.data + t * to_bytes,
                         (const uint8_t *)h->ids.data + t * h->layer_bytes, step * h->layer_bytes));
    return WB_OK;
}
