/* cuda_ops.h - the ops that CUDA has.
 *
 * Owns: the names and the declarations. Refuses: CUDA types, so that C files can include it.
 *
 * Contracts and shapes are those of wb_kernels.h. From the same ids and logits the ops write the same bits as
 * the CPU's: both follow router_rules.h and sum in the same order. What is wrong in the
 * contents of operands is a fault (cuda_fault.h).
 */
#ifndef WB_CUDA_OPS_H
#define WB_CUDA_OPS_H

#include "wb_device.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WB_CUDA_OPS(X) X(topk) X(gate_forward) X(gate_backward)

#define WB_CUDA_DECLARE(op) extern wb_##op##_fn wb_cuda_##op;
WB_CUDA_OPS(WB_CUDA_DECLARE)
#undef WB_CUDA_DECLARE

#ifdef __cplusplus
}
#endif
#endif
