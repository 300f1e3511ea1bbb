/* cuda_ops.h - the ops on CUDA.
 *
 * Owns: the names and the declarations. Refuses: CUDA types, so that C files can include it.
 *
 * Contracts and shapes are those of wb_ops_*.h. From the same operands the ops write the same bits as the
 * CPU's: both follow the same rules and sum in the same order. What is wrong in the contents of operands is a
 * fault (cuda_fault.h).
 */
#ifndef WB_CUDA_OPS_H
#define WB_CUDA_OPS_H

#include "wb_device.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WB_CUDA_DECLARE(op) extern wb_##op##_fn wb_cuda_##op;
WB_COMPUTE_OPS(WB_CUDA_DECLARE)
WB_MAILBOX_OPS(WB_CUDA_DECLARE)
#undef WB_CUDA_DECLARE

#ifdef __cplusplus
}
#endif
#endif
