/* hopper_attention_back_call.h - the backward of attention of bf16 on sm_90a, from what the forward left: out
 * and the logarithms of the sums. For .cu files of any architecture. */
#ifndef WB_HOPPER_ATTENTION_BACK_CALL_H
#define WB_HOPPER_ATTENTION_BACK_CALL_H

#include "cuda/cuda_device.h"

#ifdef WB_HAVE_HOPPER
/* For a call that wb_cuda_attention_bf16_takes: whether `dev` has the kernels and the forward has left what
 * they read. */
bool wb_hopper_attention_back_takes(const wb_device *dev, const wb_attention *args);

/* Checked, and taken; T > 0. */
wb_status wb_hopper_attention_back(wb_device *dev, const char *op, const wb_attention &args, wb_rows dout,
                                   wb_rows dq, wb_rows dk, wb_rows dv, float *dsinks);
#else
/* Built for other GPUs alone. */
inline bool wb_hopper_attention_back_takes(const wb_device *, const wb_attention *) {
    return false;
}
inline wb_status wb_hopper_attention_back(wb_device *, const char *, const wb_attention &, wb_rows, wb_rows,
                                          wb_rows, wb_rows, float *) {
    return WB_UNSUPPORTED;
}
#endif

#endif
