/* packed_weights.c - see packed_weights.h. Refuses: packing, which is the device's (wb_pack_weights_fn).
 * Where an element or a part then lies is here too. */
#include "packed_weights.h"

#include <inttypes.h>

/* A model that is only measured has no device, and bytes do not depend on this. */
bool wb_model_packs(const wb_model *model, int64_t rows, int64_t cols) {
    return model->inference_only && model->device && model->device->pack_weights && cols > 1 &&
           rows % WB_PACKED_COLUMNS == 0;
}

/* The storages' matrices, or none of them: then what that needs is reserved. */
static wb_status pack(wb_model *model, bool none) {
    wb_device *dev = model->device;
    for (int32_t i = 0; i < model->n_params; i++) {
        const wb_param *p = &model->params[i];
        if (!p->packed || p->shared) continue;
        const bool of_experts = p->moe_layer >= 0;
        const int64_t count = of_experts ? wb_model_local_slots(model) : 1,
                      rows = of_experts ? p->slot_elements / p->cols : p->rows;
        const wb_weight first = {p->memory.data, p->dtype, rows, p->cols, false};
        WB_TRY(dev->pack_weights(dev, none ? 0 : count, first));
    }
    return WB_OK;
}

wb_status wb_model_reserve_packing(wb_model *model) {
    WB_TRY(pack(model, true));
    return model->mtp ? pack(model->mtp, true) : WB_OK;
}

wb_status wb_model_pack_weights(wb_model *model) {
    WB_TRY(pack(model, false));
    return model->mtp ? pack(model->mtp, false) : WB_OK;
}

/* Where element i of packed rows of `cols` lies: [row / 16][column][row % 16]. */
static int64_t packed_place(int64_t i, int64_t cols) {
    const int64_t row = i / cols, column = i % cols;
    return (row / WB_PACKED_COLUMNS * cols + column) * WB_PACKED_COLUMNS + row % WB_PACKED_COLUMNS;
}

wb_status wb_model_read(const wb_model *model, const wb_tensor *tensor, int64_t first, int64_t n,
                        void *host) {
    wb_device *dev = model->device;
    const wb_param *p = &model->params[tensor->param];
    const size_t size = wb_dtype_size(tensor->dtype);
    if (!tensor->data) return wb_fail(WB_NOT_FOUND, "%s is on another rank", tensor->name);
    if (first < 0 || n < 0 || first > tensor->n - n)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s: elements: expected some of %" PRId64 ", found %" PRId64 " from %" PRId64 " on",
                       tensor->name, tensor->n, n, first);
    if (!p->packed)
        return dev->to_host(dev, host, (char *)tensor->data + (size_t)first * size, (size_t)n * size);
    /* Slots are packed each by itself, and begin with whole groups of rows. */
    for (int64_t i = 0; i < n; i++) {
        const int64_t place = packed_place(tensor->offset + first + i, p->cols);
        WB_TRY(dev->to_host(dev, (char *)host + (size_t)i * size,
                            (char *)p->memory.data + (size_t)place * size, size));
    }
    return WB_OK;
}

wb_status wb_weight_rows(wb_weight w, int64_t first, int64_t n, wb_weight *part_out) {
    if (w.packed && (first % WB_PACKED_COLUMNS != 0 || n % WB_PACKED_COLUMNS != 0))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "packed weights: expected rows in whole groups of %d, found %" PRId64
                       " from row %" PRId64 " on",
                       WB_PACKED_COLUMNS, n, first);
    const wb_rows from = wb_rows_from((wb_rows){w.data, w.dtype}, first * w.cols);
    *part_out = (wb_weight){from.data, w.dtype, n, w.cols, w.packed};
    return WB_OK;
}

wb_status wb_weight_columns(wb_weight w, int64_t first, int64_t n, wb_weight *part_out) {
    if (w.packed)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "packed weights: expected all of %" PRId64 " columns, found %" PRId64
                       " from column %" PRId64 " on",
                       w.cols, n, first);
    const wb_rows from = wb_rows_from((wb_rows){w.data, w.dtype}, first);
    *part_out = (wb_weight){from.data, w.dtype, w.rows, n, false};
    return WB_OK;
}

/* Where the device has no order of its own, too: what is refused does not depend on the device. */
wb_status wb_model_check_rows(const wb_model *model, const char *who) {
    if (!model->inference_only) return WB_OK;
    return wb_fail(
        WB_UNSUPPORTED,
        "%s: expected a model for all uses, found one for inference only: open or clone it without "
        "inference_only",
        who);
}
