/* cuda_logprob.cu - log-probabilities of given tokens, of logits / temperature over the kept tokens, and
 * their gradient. A block a row. Refuses: drawing tokens (cuda_sample.cu). */
#include "cuda/cuda_ops.h"
#include "cuda/cuda_softmax_row.h"

namespace {

/* One row's distribution over n tokens. */
struct softmax_row {
    const float *z;       /* [V] logits */
    const uint32_t *kept; /* [n] ids; NULL: the whole vocabulary */
    int64_t n;
    float temperature;

    __device__ __forceinline__ float scaled(int64_t i) const {
        return wb_div(z[kept ? kept[i] : i], temperature);
    }
};

/* A description that is passed by value; `of` NULL is all zeros. */
__device__ __forceinline__ softmax_row find_row(const wb_distribution &of, const float *logits, int64_t V,
                                                int64_t t) {
    softmax_row row = {logits + t * V, NULL, V, of.temperature ? of.temperature[t] : 1.0f};
    const int64_t n = of.kept_start ? of.kept_start[t + 1] - of.kept_start[t] : 0;
    if (n > 0) row.kept = of.kept_ids + of.kept_start[t], row.n = n;
    return row;
}

__global__ void __launch_bounds__(BLOCK) logprob_rows(int64_t V, const float *logits, const int32_t *targets,
                                                      wb_distribution of, float *logprobs) {
    __shared__ float chunk[CHUNK];
    const int64_t t = blockIdx.x;
    const int32_t target = targets[t];
    if (target < 0) {
        if (threadIdx.x == 0) logprobs[t] = 0.0f;
        return;
    }
    const softmax_row row = find_row(of, logits, V, t);
    const float max = block_max(row.n, [&](int64_t i) { return row.scaled(i); });
    const float sum =
        block_lanes_sum(row.n, chunk, [&](int64_t i) { return wb_expf(wb_sub(row.scaled(i), max)); });
    if (threadIdx.x == 0)
        logprobs[t] = wb_sub(wb_sub(wb_div(row.z[target], row.temperature), max), wb_logf(sum));
}

/* dlogits may be logits: an element of it is written by the thread that has read it last, and the rest of a
 * limited row when no logit of it is needed any more. */
__global__ void __launch_bounds__(BLOCK)
    logprob_gradients(int64_t V, const float *logits, const int32_t *targets, wb_distribution of,
                      const float *dlogprobs, float *dlogits) {
    __shared__ float chunk[CHUNK];
    const int64_t t = blockIdx.x;
    const int32_t target = targets[t];
    float *dz = dlogits + t * V;
    if (target < 0) {
        for (int64_t i = threadIdx.x; i < V; i += BLOCK) dz[i] = 0.0f;
        return;
    }
    const softmax_row row = find_row(of, logits, V, t);
    const float max = block_max(row.n, [&](int64_t i) { return row.scaled(i); });
    const float sum =
        block_lanes_sum(row.n, chunk, [&](int64_t i) { return wb_expf(wb_sub(row.scaled(i), max)); });
    const float d = wb_div(dlogprobs[t], row.temperature), factor = wb_div(-d, sum);
    for (int64_t i = threadIdx.x; i < row.n; i += BLOCK) {
        const int64_t id = row.kept ? row.kept[i] : i;
        const float dense = wb_mul(wb_expf(wb_sub(row.scaled(i), max)), factor);
        dz[id] = id == target ? wb_add(dense, d) : dense;
    }
    if (!row.kept) return;
    /* Zeros between the kept ids, which ascend. */
    for (int64_t i = threadIdx.x; i <= row.n; i += BLOCK) {
        const int64_t begin = i == 0 ? 0 : static_cast<int64_t>(row.kept[i - 1]) + 1;
        const int64_t end = i == row.n ? V : static_cast<int64_t>(row.kept[i]);
        for (int64_t id = begin; id < end; id++) dz[id] = 0.0f;
    }
}

wb_status count_rows(wb_device *dev, const char *op, int64_t T, unsigned *blocks_out) {
    return prepare_launch(dev, op, T, BLOCK, blocks_out);
}

} // namespace

extern "C" {

wb_status wb_cuda_logprob_forward(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                  const int32_t *targets, const wb_distribution *of, float *logprobs) {
    const wb_distribution all = {};
    unsigned blocks = 0;
    WB_TRY(count_rows(dev, "logprob_forward", T, &blocks));
    if (blocks == 0) return WB_OK;
    logprob_rows<<<blocks, BLOCK, 0, stream_of(dev)>>>(V, logits, targets, of ? *of : all, logprobs);
    return wb_cuda_check(cudaGetLastError(), "logprob_forward");
}

wb_status wb_cuda_logprob_backward(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                   const int32_t *targets, const wb_distribution *of, const float *dlogprobs,
                                   float *dlogits) {
    const wb_distribution all = {};
    unsigned blocks = 0;
    WB_TRY(count_rows(dev, "logprob_backward", T, &blocks));
    if (blocks == 0) return WB_OK;
    logprob_gradients<<<blocks, BLOCK, 0, stream_of(dev)>>>(V, logits, targets, of ? *of : all, dlogprobs,
                                                            dlogits);
    return wb_cuda_check(cudaGetLastError(), "logprob_backward");
}
}
