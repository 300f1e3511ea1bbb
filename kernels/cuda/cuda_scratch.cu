/* cuda_scratch.cu - see cuda_scratch.h; and the scratch of the ops for the largest calls that a user of the
 * device announces. */
#include "cuda/cuda_scratch.h"

extern "C" {

wb_status wb_cuda_scratch_reserve(wb_device *dev, size_t bytes, void **scratch_out) {
    wb_cuda_device *cuda = (wb_cuda_device *)dev;
    if (bytes > cuda->scratch_bytes) {
        dev->mem_free(dev, cuda->scratch);
        cuda->scratch = NULL;
        cuda->scratch_bytes = 0;
        WB_TRY(dev->mem_alloc(dev, bytes, &cuda->scratch));
        cuda->scratch_bytes = bytes;
    }
    *scratch_out = cuda->scratch;
    return WB_OK;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

size_t wb_cuda_scratch_bytes(const wb_op_sizes *most) {
    const int64_t heads = most->n_heads > 0 ? most->n_heads : 1;
    size_t bytes = wb_cuda_sum_bytes(most->summed);
    if (most->router.n_experts > 0)
        bytes = larger(bytes, wb_cuda_plan_bytes(most->tokens * most->router.top_k, most->n_slots));
    if (most->samples) bytes = larger(bytes, wb_cuda_sample_bytes(most->vocab_size));
    if (!most->backward) return bytes;
    bytes = larger(bytes, (size_t)(most->tokens * heads) * sizeof(float)); /* of a norm */
    return larger(bytes, wb_cuda_attention_bytes(most->tokens * heads));
}
}
