/* packed_experts.c - see packed_experts.h. Refuses: the order itself (kernels, wb_pack_weights_fn). */
#include "packed_experts.h"

/* A model that is only measured has no device, and bytes do not depend on this. */
bool wb_model_packs(const wb_model *model, int64_t rows, int64_t cols) {
    return model->inference_only && model->device && model->device->pack_weights && cols > 1 &&
           rows % WB_PACKED_COLUMNS == 0;
}

/* `count` slots of each storage; 0: what that needs is reserved. */
static wb_status pack(wb_model *model, int64_t count) {
    wb_device *dev = model->device;
    for (int32_t i = 0; i < model->n_params; i++) {
        const wb_param *p = &model->params[i];
        if (!p->packed || p->shared) continue;
        const wb_weight slot = {p->memory.data, p->dtype, p->slot_elements / p->cols, p->cols, false};
        WB_TRY(dev->pack_weights(dev, count, slot));
    }
    return WB_OK;
}

wb_status wb_model_reserve_packing(wb_model *model) {
    WB_TRY(pack(model, 0));
    return model->mtp ? pack(model->mtp, 0) : WB_OK;
}

wb_status wb_model_pack_experts(wb_model *model) {
    WB_TRY(pack(model, wb_model_local_slots(model)));
    return model->mtp ? pack(model->mtp, wb_model_local_slots(model->mtp)) : WB_OK;
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
