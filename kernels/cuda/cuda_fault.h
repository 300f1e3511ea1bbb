/* cuda_fault.h - a fault that a kernel finds (device_fault.h). For .cu files.
 *
 * The word lies in host memory that the device can write, so that nothing is copied to read it: who waits for
 * the stream has it. Refuses: which of several faults of one kernel it is. */
#ifndef WB_CUDA_FAULT_H
#define WB_CUDA_FAULT_H

#include "cuda/cuda_device.h"
#include "device_fault.h"

namespace {

/* The word of a device as kernels see it. */
inline wb_fault *fault_of(wb_device *dev) {
    return &reinterpret_cast<wb_cuda_device *>(dev)->words_on_device->fault;
}

/* Whether its stream is lost, as kernels see it. */
inline const int32_t *lost_of(wb_device *dev) {
    return &reinterpret_cast<wb_cuda_device *>(dev)->words_on_device->lost;
}

/* In a kernel: the first fault since the last report stays, others are dropped. */
__device__ __forceinline__ void set_fault(wb_fault *word, const wb_fault &fault) {
    if (atomicCAS(&word->kind, static_cast<uint32_t>(WB_FAULT_NONE), fault.kind) != WB_FAULT_NONE) return;
    word->op = fault.op;
    word->row = fault.row;
    word->choice = fault.choice;
    word->limit = fault.limit;
    word->found = fault.found;
    word->micro_batch = fault.micro_batch;
    word->layer = fault.layer;
}

} // namespace

#endif
