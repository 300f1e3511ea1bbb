/* cuda_attention_latent.h - attention of bf16 over latents, keys of 576 whose first 512 elements are the
 * values, by tensor cores: forward alone. */
#ifndef WB_CUDA_ATTENTION_LATENT_H
#define WB_CUDA_ATTENTION_LATENT_H

#include "cuda/cuda_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether this kernel takes it, by dtype, widths, where values lie and memory begins, and whether the device
 * has the shared memory; never by the number of tokens. */
bool wb_cuda_attention_latent_takes(const wb_device *dev, const wb_attention *args, wb_rows out);

/* Checked, and taken; T > 0. */
wb_status wb_cuda_attention_latent_forward(wb_device *dev, const wb_attention *args, wb_rows out);

#ifdef __cplusplus
}
#endif
#endif
