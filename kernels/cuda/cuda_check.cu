/* cuda_check.cu - CUDA's errors as a wb_status, and the current device. See cuda_device.h. */
#include "cuda/cuda_device.h"
#include "wb_check.h"

#include <cuda_runtime.h>

extern "C" {
wb_status wb_cuda_check(int code, const char *what) {
    if (code == cudaSuccess) return WB_OK;
    /* An error that can be survived must not be found again by the next op. */
    (void)cudaGetLastError();
    cudaError_t error = (cudaError_t)code;
    return wb_fail(WB_DEVICE, "%s: CUDA: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

wb_status wb_cuda_use(wb_device *dev, const char *op) {
    return wb_cuda_check(cudaSetDevice(((wb_cuda_device *)dev)->index), op);
}
}
