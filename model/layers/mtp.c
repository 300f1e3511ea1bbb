/* mtp.c - see mtp.h. Refuses: the block, which is a layer like any other (block.c), and the head (head.c). */
#include "layers/mtp.h"
#include "layers/head.h"
#include "packed_weights.h"

/* In place. */
static wb_status norm(const wb_model *owner, int32_t weight, int64_t T, wb_rows x) {
    wb_device *dev = owner->device;
    return dev->rmsnorm_forward(dev, T, owner->config.hidden_size, x, wb_model_norm(owner, weight), x);
}

/* x (=, then +=) what the columns of eh_proj from `first` on make of the input that they meet. */
static wb_status multiply_half(const wb_model *mtp, int32_t eh_proj, int64_t first, int64_t T, wb_rows input,
                               wb_rows x) {
    wb_device *dev = mtp->device;
    const wb_weight w = wb_model_weight(mtp, eh_proj);
    wb_weight half;
    WB_TRY(wb_weight_columns(w, first, mtp->config.hidden_size, &half));
    wb_matmul product = wb_matmul_forward(T, input, half, x);
    product.b_col = w.cols;
    product.accumulate = first > 0;
    return dev->matmul(dev, 1, &product);
}

wb_status wb_mtp_input(const wb_model *mtp, int32_t l, int64_t T, const int32_t *tokens,
                       const wb_model *before, wb_rows hidden, wb_rows scratch, wb_rows x) {
    const wb_mtp_layer *layer = &mtp->mtp_layers[l];
    WB_TRY(wb_embed_forward(mtp, T, tokens, x, scratch));
    WB_TRY(norm(mtp, layer->enorm, T, scratch));
    WB_TRY(norm(before, before->final_norm, T, hidden));
    WB_TRY(norm(mtp, layer->hnorm, T, hidden));
    WB_TRY(multiply_half(mtp, layer->eh_proj, 0, T, scratch, x));
    return multiply_half(mtp, layer->eh_proj, mtp->config.hidden_size, T, hidden, x);
}
