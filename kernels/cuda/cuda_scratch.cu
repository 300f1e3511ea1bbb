/* cuda_scratch.cu - see cuda_scratch.h. Refuses: how much an op needs (cuda_scratch_sizes.cu asks them), but
 * for attention, whose kernels of two files share it. */
#include "cuda/cuda_scratch.h"

extern "C" {

size_t wb_cuda_attention_backward_bytes(int64_t T, int32_t n_heads) {
    /* sums of rows; tokens have a piece of work each at most, of 16 bytes, and a run with two ends */
    return static_cast<size_t>(T * n_heads) * WB_ATTENTION_SUMS * sizeof(float) +
           static_cast<size_t>(T) * 24 + 16;
}

wb_status wb_cuda_scratch_reserve(wb_device *dev, size_t bytes, void **scratch_out) {
    wb_cuda_device *cuda = (wb_cuda_device *)dev;
    if (bytes > cuda->scratch_bytes) {
        dev->mem_free(dev, cuda->scratch);
        cuda->scratch = NULL;
        cuda->scratch_bytes = 0;
        dev->scratch_moves++;
        WB_TRY(dev->mem_alloc(dev, bytes, &cuda->scratch));
        cuda->scratch_bytes = bytes;
    }
    *scratch_out = cuda->scratch;
    return WB_OK;
}
}
