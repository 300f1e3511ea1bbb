/* hopper_attention.h - the forward of attention of bf16 on sm_90a: which calls it takes and what it needs.
 *
 * Two kernels with one arithmetic (hopper_attention_rule.h): tiles of adjacent tokens by wgmma, and single
 * tokens, as in decoding, by splits of their keys that are shared out among all multiprocessors. For .cu
 * files of any architecture. */
#ifndef WB_HOPPER_ATTENTION_H
#define WB_HOPPER_ATTENTION_H

#include "cuda/cuda_device.h"

/* Heads of 64 and of 128, and an alignment of 16 bytes; it does not depend on the number of tokens, so that a
 * token's bits are the same in every call. */
#ifdef WB_HAVE_HOPPER
bool wb_hopper_attention_takes(const wb_device *dev, const wb_attention *args, wb_rows out);

/* For a call that is taken; T > 0. */
wb_status wb_hopper_attention_forward(wb_device *dev, const wb_attention *args, wb_rows out);

/* The scratch of calls up to `most`. */
size_t wb_hopper_attention_bytes(const wb_device *dev, const wb_op_sizes *most);
#else
/* Built for other GPUs alone. */
inline bool wb_hopper_attention_takes(const wb_device *, const wb_attention *, wb_rows) {
    return false;
}
inline wb_status wb_hopper_attention_forward(wb_device *, const wb_attention *, wb_rows) {
    return WB_UNSUPPORTED;
}
inline size_t wb_hopper_attention_bytes(const wb_device *, const wb_op_sizes *) {
    return 0;
}
#endif

#endif
