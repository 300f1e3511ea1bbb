/* cuda_attention_bf16.h - attention of bf16 operands by tensor cores, for heads of 64, of 128 and, with
 * values of 128, of 192. Latents have a kernel of their own (cuda_attention_latent.h), and all others have
 * those of cuda_attention.cu. */
#ifndef WB_CUDA_ATTENTION_BF16_H
#define WB_CUDA_ATTENTION_BF16_H

#include "cuda/cuda_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether these kernels take it, by dtype, head and where memory begins; never by the number of tokens.
 * `out`, of a backward each of dout, dq, dk and dv, begins at a multiple of 16 bytes too. */
bool wb_cuda_attention_bf16_takes(const wb_attention *args, wb_rows out);

/* Checked, and taken; T > 0. */
wb_status wb_cuda_attention_bf16_forward(wb_device *dev, const wb_attention *args, wb_rows out);
wb_status wb_cuda_attention_bf16_backward(wb_device *dev, const wb_attention *args, wb_rows dout, wb_rows dq,
                                          wb_rows dk, wb_rows dv, float *dsinks);

#ifdef __cplusplus
}
#endif
#endif
