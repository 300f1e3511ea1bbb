/* logit_gradient.c - see logit_gradient.h. */
#include "layers/logit_gradient.h"

void wb_logit_gradient_place(wb_arena *arena, const wb_model *model, wb_buffer *rounded, int64_t rows,
                             int64_t width) {
    if (model->activations == WB_BF16) wb_place_activations(arena, model, rounded, rows, width);
}

wb_status wb_logit_gradient(const wb_model *model, int64_t n, const float *dlogits, const wb_buffer *rounded,
                            wb_rows *operand_out) {
    wb_device *dev = model->device;
    const bool rounds = model->activations == WB_BF16;
    const wb_rows exact = wb_f32_rows(dlogits), operand = {rounded->data, WB_BF16};
    if (rounds) WB_TRY(dev->cast(dev, n, exact, operand));
    *operand_out = rounds ? operand : exact;
    return WB_OK;
}
