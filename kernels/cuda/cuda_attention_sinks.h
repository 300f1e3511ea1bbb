/* cuda_attention_sinks.h - the sinks of attention: the weight of one, and its gradient, one chain over the
 * tokens for each head, for all kernels that find in their own way what a token adds. For .cu files. */
#ifndef WB_CUDA_ATTENTION_SINKS_H
#define WB_CUDA_ATTENTION_SINKS_H

#include "cuda/cuda_operands.h"

namespace {

/* Threads of the block that each head has. */
enum { SINK_THREADS = 128 };

/* exp(sink - max) of a head that has one. */
__device__ __forceinline__ float sink_weight(const wb_attention &args, int64_t head, float max) {
    return wb_expf(wb_sub(args.sinks[head], max));
}

/* dsinks[head] -= term(t) of each token t, ascending: thread 0 adds, the others bring terms. A sink's weight
 * times <dout, out> is the term, since a sink has the value 0. */
template <class TERM>
__device__ __forceinline__ void add_to_sink(const wb_attention &args, float *dsinks, int64_t head,
                                            const TERM &term) {
    __shared__ float terms[SINK_THREADS];
    float sum = dsinks[head];
    for (int64_t t0 = 0; t0 < args.T; t0 += SINK_THREADS) {
        const int64_t t = t0 + threadIdx.x;
        terms[threadIdx.x] = t < args.T && args.seq[t] >= 0 ? term(t) : 0.0f;
        __syncthreads();
        if (threadIdx.x == 0)
#pragma unroll 16
            for (int i = 0; i < SINK_THREADS; i++) sum = wb_sub(sum, terms[i]);
        __syncthreads();
    }
    if (threadIdx.x == 0) dsinks[head] = sum;
}

} // namespace

#endif
