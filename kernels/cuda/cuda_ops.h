/* cuda_ops.h - the CUDA backend as the rest of kernels/ sees it.
 *
 * Owns: the declarations of everything in kernels/cuda/. Refuses: CUDA types, which stay inside the .cu
 * files; what must cross (a stream, an error code) crosses as void * or int.
 *
 * The ops have the arguments, the shapes and the errors of wb_kernels.h. They are enqueued on
 * device->stream and return at once; a fault of the kernel itself shows at the next to_host as WB_DEVICE.
 * Only to_host waits for the device; to_device is done with the host's memory when it returns. From the
 * same ids and logits they write the same bits as the CPU's ops: both follow router_rules.h and sum in the
 * same order. Contents are not checked, for that would wait for the device: an id of E or more gives its
 * slot a NaN weight and no dlogit where the CPU's gate returns an error, and tables must hold ids below E.
 */
#ifndef WB_CUDA_OPS_H
#define WB_CUDA_OPS_H

#include "wb_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* wb_device_close of a CUDA device: waits for its ops, then frees it. (wb_device_open_cuda is also defined
 * here.) */
void wb_cuda_close(wb_device *device);

/* `code` is a cudaError_t: WB_OK for cudaSuccess, else DEVICE with CUDA's words for it after `what`. */
wb_status wb_cuda_check(int code, const char *what);

/* Makes `dev` this thread's current CUDA device; every op starts with it. `op` names the op in the
 * message. */
wb_status wb_cuda_use(wb_device *dev, const char *op);

wb_status wb_topk_cuda(wb_device *dev, const wb_topk *args);
wb_status wb_gate_forward_cuda(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                               wb_ids ids, float *weights);
wb_status wb_gate_backward_cuda(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                wb_ids ids, const float *dweights, float *dlogits);

#ifdef __cplusplus
}
#endif
#endif
