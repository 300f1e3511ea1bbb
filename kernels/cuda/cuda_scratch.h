/* cuda_scratch.h - device memory that an op needs for itself, between its kernels.
 *
 * One block a device, in the order of its stream: an op's scratch is free for the next op. It grows to its
 * largest use; growing waits for the stream. */
#ifndef WB_CUDA_SCRATCH_H
#define WB_CUDA_SCRATCH_H

#include "cuda/cuda_device.h"
#include "wb_check.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *scratch_out: device, at least `bytes`, 256-byte aligned, until the next op. */
wb_status wb_cuda_scratch_reserve(wb_device *dev, size_t bytes, void **scratch_out);

/* Floats that the backward of attention has of each query and head. */
enum { WB_ATTENTION_SUMS = 3 };

/* What reserve_scratch of the device makes: the largest of what ops take, which follow. Of the device the
 * multiprocessors and the capability alone are read. */
size_t wb_cuda_scratch_bytes(const wb_device *dev, const wb_op_sizes *most);
size_t wb_cuda_plan_bytes(int64_t n_pairs, int32_t n_slots);
size_t wb_cuda_group_bytes(int32_t n_sources, int32_t n_slots);
size_t wb_cuda_attention_backward_bytes(int64_t T, int32_t n_heads);
/* keys: of a query; entries: of the call */
size_t wb_cuda_entry_forward_bytes(int64_t T, int32_t n_heads, int64_t keys);
size_t wb_cuda_entry_backward_bytes(int64_t T, int32_t n_heads, int32_t head_dim, int64_t keys,
                                    int64_t entries);
size_t wb_cuda_norm_backward_bytes(int64_t n, int64_t width);
size_t wb_cuda_delta_backward_bytes(const wb_device *dev, int64_t T, wb_delta_heads heads);
size_t wb_cuda_sum_bytes(int64_t count, int64_t n);
size_t wb_cuda_sample_bytes(int64_t B, int64_t V);
size_t wb_cuda_logprob_bytes(int64_t V);
size_t wb_cuda_compress_bytes(int64_t T, int64_t channels);
size_t wb_cuda_hyper_bytes(int64_t T, int32_t n_streams);
size_t wb_cuda_indexer_bytes(int64_t T, int64_t max_entries);

/* What an op's kernels do for another op: gather_rows of the rows that there are, n or fewer where n_rows,
 * device, says so. */
wb_status wb_cuda_gather_some(wb_device *dev, int64_t n, const int32_t *n_rows, int64_t width,
                              const int32_t *index, wb_rows in, wb_rows out);

#ifdef __cplusplus
}

/* *array_out: what lies in `bytes` of scratch. */
template <typename T> inline wb_status reserve_scratch(wb_device *dev, size_t bytes, T **array_out) {
    void *scratch = NULL;
    WB_TRY(wb_cuda_scratch_reserve(dev, bytes, &scratch));
    *array_out = static_cast<T *>(scratch);
    return WB_OK;
}
#endif
#endif
