/* cuda_logprob.cu - log-probabilities of given tokens, of logits / temperature over the kept tokens, and
 * their gradient.
 *
 * A block each part of a row's kept tokens sums its exponentials; then half a warp a row makes the
 * log-probability of it, or a block each part of a row's vocabulary the gradient. Refuses: drawing tokens
 * (cuda_sample.cu). */
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/cuda_softmax_row.h"

namespace {

/* Rows of a launch: they share out the scratch. */
enum { MAX_ROWS = 1024 };

/* A call; arrays are device. */
struct logprob_call {
    int64_t T, V, n_parts; /* n_parts: of the vocabulary */
    const float *logits;
    const int32_t *targets;
    wb_distribution of;   /* NULLs where nothing is limited */
    float *largest, *sum; /* [MAX_ROWS][n_parts] of the parts of a row's kept tokens */
    const float *dlogprobs;
    float *dlogits;
};

/* One row's distribution over n tokens. */
struct softmax_row {
    const float *z;       /* [V] logits */
    const uint32_t *kept; /* [n] ids; NULL: the whole vocabulary */
    int64_t n;
    float temperature;
};

__device__ __forceinline__ softmax_row find_row(const logprob_call &call, int64_t t) {
    const wb_distribution &of = call.of;
    softmax_row row = {call.logits + t * call.V, NULL, call.V, of.temperature ? of.temperature[t] : 1.0f};
    const int64_t n = of.kept_start ? of.kept_start[t + 1] - of.kept_start[t] : 0;
    if (n > 0) row.kept = of.kept_ids + of.kept_start[t], row.n = n;
    return row;
}

__device__ __forceinline__ bool is_wide(const void *rows, int64_t V) {
    return V % 4 == 0 && reinterpret_cast<uintptr_t>(rows) % sizeof(float4) == 0;
}

__device__ __forceinline__ int64_t parts_of(int64_t n) {
    return (n + SOFTMAX_PART - 1) / SOFTMAX_PART;
}

/* A block a part of each row from `first` on. */
__global__ void __launch_bounds__(BLOCK) logprob_parts(logprob_call call, int64_t first) {
    __shared__ __align__(16) float chunk[SOFTMAX_PART];
    const int64_t t = first + blockIdx.x / call.n_parts, part = blockIdx.x % call.n_parts;
    const int64_t begin = part * SOFTMAX_PART;
    if (call.targets[t] < 0) return;
    const softmax_row row = find_row(call, t);
    const int count = static_cast<int>(min(row.n - begin, static_cast<int64_t>(SOFTMAX_PART)));
    if (count <= 0) return;
    float x[OF_THREAD];
    if (row.kept) {
#pragma unroll
        for (int i = 0; i < OF_THREAD; i++)
            x[i] = place_of(i) < count ? row.z[row.kept[begin + place_of(i)]] : -INFINITY;
    } else {
        load_part(row.z + begin, count, is_wide(call.logits, call.V), x);
    }
    divide_part(row.temperature, x);
    const float largest = block_largest(x);
    store_exponentials(x, largest, chunk);
    if (threadIdx.x >= WARP) return;
    const float sum = chunk_sum(chunk, count);
    if (threadIdx.x == 0) call.largest[blockIdx.x] = largest, call.sum[blockIdx.x] = sum;
}

/* What the parts of row t come to; by half warps. */
__device__ __forceinline__ row_sums sum_row(const logprob_call &call, const softmax_row &row,
                                            int64_t row_of_launch) {
    const int64_t at = row_of_launch * call.n_parts;
    return sum_parts(parts_of(row.n), call.largest + at, call.sum + at);
}

/* Half a warp a row, of those from `first` on. */
__global__ void __launch_bounds__(BLOCK) logprob_rows(logprob_call call, int64_t first, float *logprobs) {
    const int64_t mine = thread_number() / WB_LANES, last = min(first + MAX_ROWS, call.T) - 1;
    const int64_t t = min(first + mine, last);
    const int32_t target = call.targets[t];
    const softmax_row row = find_row(call, t);
    const row_sums of = sum_row(call, row, t - first);
    if (first + mine > last || threadIdx.x % WB_LANES > 0) return;
    logprobs[t] = target < 0
                      ? 0.0f
                      : wb_sub(wb_sub(wb_div(row.z[target], row.temperature), of.largest), wb_logf(of.sum));
}

/* The first of kept[n], ascending, that is not below id. */
__device__ int64_t find_id(const uint32_t *kept, int64_t n, int64_t id) {
    int64_t low = 0;
    while (low < n) {
        const int64_t middle = (low + n) / 2;
        if (static_cast<int64_t>(kept[middle]) < id)
            low = middle + 1;
        else
            n = middle;
    }
    return low;
}

/* chunk[SOFTMAX_PART] (=) the gradients of the vocabulary from `begin` on: of its kept tokens, and zeros. All
 * of the block's threads have read what they need of dlogits, which may be logits, at the end. */
template <typename F>
__device__ __forceinline__ void gradients_of_kept(const softmax_row &row, int64_t begin, float *chunk,
                                                  F gradient) {
    for (int i = threadIdx.x; i < SOFTMAX_PART; i += BLOCK) chunk[i] = 0.0f;
    const int64_t low = find_id(row.kept, row.n, begin),
                  high = find_id(row.kept, row.n, begin + SOFTMAX_PART);
    __syncthreads();
    for (int64_t i = low + threadIdx.x; i < high; i += BLOCK) {
        const int64_t id = row.kept[i];
        chunk[id - begin] = gradient(id, wb_div(row.z[id], row.temperature));
    }
    __syncthreads();
}

/* A block a part of the vocabulary of each row from `first` on. */
__global__ void __launch_bounds__(BLOCK) logprob_gradients(logprob_call call, int64_t first) {
    __shared__ __align__(16) float chunk[SOFTMAX_PART];
    const int64_t t = first + blockIdx.x / call.n_parts, begin = blockIdx.x % call.n_parts * SOFTMAX_PART;
    const int count = static_cast<int>(min(call.V - begin, static_cast<int64_t>(SOFTMAX_PART)));
    const int32_t target = call.targets[t];
    float *dz = call.dlogits + t * call.V + begin;
    if (target < 0) {
        for (int i = threadIdx.x; i < count; i += BLOCK) dz[i] = 0.0f;
        return;
    }
    const softmax_row row = find_row(call, t);
    const row_sums of = sum_row(call, row, t - first);
    const float d = wb_div(call.dlogprobs[t], row.temperature), factor = wb_div(-d, of.sum);
    const auto gradient = [=](int64_t id, float x) {
        const float dense = wb_mul(wb_expf(wb_sub(x, of.largest)), factor);
        return id == target ? wb_add(dense, d) : dense;
    };
    if (row.kept) {
        gradients_of_kept(row, begin, chunk, gradient);
        for (int i = threadIdx.x; i < count; i += BLOCK) dz[i] = chunk[i];
        return;
    }
    float x[OF_THREAD];
    const bool wide = is_wide(call.logits, call.V) && is_wide(call.dlogits, call.V);
    load_part(row.z + begin, count, wide, x);
    divide_part(row.temperature, x);
#pragma unroll
    for (int i = 0; i < OF_THREAD; i++) x[i] = gradient(begin + place_of(i), x[i]);
    store_part(dz, count, wide, x);
}

wb_status prepare(wb_device *dev, const char *op, const wb_distribution *of, logprob_call *call) {
    const int64_t rows = call->T < MAX_ROWS ? call->T : (int64_t)MAX_ROWS;
    unsigned blocks = 0;
    call->n_parts = (call->V + SOFTMAX_PART - 1) / SOFTMAX_PART;
    if (of) call->of = *of;
    WB_TRY(count_blocks(op, "n", rows * call->n_parts, BLOCK, &blocks));
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(reserve_scratch(dev, wb_cuda_logprob_bytes(call->V), &call->largest));
    call->sum = call->largest + MAX_ROWS * call->n_parts;
    return WB_OK;
}

} // namespace

extern "C" {

size_t wb_cuda_logprob_bytes(int64_t V) {
    return static_cast<size_t>((V + SOFTMAX_PART - 1) / SOFTMAX_PART * MAX_ROWS * 2) * sizeof(float);
}

wb_status wb_cuda_logprob_forward(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                  const int32_t *targets, const wb_distribution *of, float *logprobs) {
    logprob_call call = {};
    call.T = T, call.V = V, call.logits = logits, call.targets = targets;
    if (T == 0) return WB_OK;
    WB_TRY(prepare(dev, "logprob_forward", of, &call));
    for (int64_t first = 0; first < T; first += MAX_ROWS) {
        const int64_t rows = T - first < MAX_ROWS ? T - first : (int64_t)MAX_ROWS;
        logprob_parts<<<static_cast<unsigned>(rows * call.n_parts), BLOCK, 0, stream_of(dev)>>>(call, first);
        logprob_rows<<<static_cast<unsigned>((rows * WB_LANES + BLOCK - 1) / BLOCK), BLOCK, 0,
                       stream_of(dev)>>>(call, first, logprobs);
    }
    return wb_cuda_check(cudaGetLastError(), "logprob_forward");
}

wb_status wb_cuda_logprob_backward(wb_device *dev, int64_t T, int64_t V, const float *logits,
                                   const int32_t *targets, const wb_distribution *of, const float *dlogprobs,
                                   float *dlogits) {
    logprob_call call = {};
    call.T = T, call.V = V, call.logits = logits, call.targets = targets;
    call.dlogprobs = dlogprobs, call.dlogits = dlogits;
    if (T == 0) return WB_OK;
    WB_TRY(prepare(dev, "logprob_backward", of, &call));
    for (int64_t first = 0; first < T; first += MAX_ROWS) {
        const int64_t rows = T - first < MAX_ROWS ? T - first : (int64_t)MAX_ROWS;
        const unsigned blocks = static_cast<unsigned>(rows * call.n_parts);
        logprob_parts<<<blocks, BLOCK, 0, stream_of(dev)>>>(call, first);
        logprob_gradients<<<blocks, BLOCK, 0, stream_of(dev)>>>(call, first);
    }
    return wb_cuda_check(cudaGetLastError(), "logprob_backward");
}
}
