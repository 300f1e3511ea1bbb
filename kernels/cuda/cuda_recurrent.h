/* cuda_recurrent.h - what the kernels of recurrent layers share: which run a token is of, and the state of a
 * run. For .cu files. */
#ifndef WB_CUDA_RECURRENT_H
#define WB_CUDA_RECURRENT_H

#include "cuda/cuda_operands.h"
#include "recurrent_check.h"

namespace {

/* The run of token t; n 0: it has none. */
__device__ __forceinline__ wb_sequence_run find_run(const wb_sequences &of, int64_t t) {
    const wb_sequence_run none = {0, 0, -1};
    int64_t low = 0,
            high = of.n_runs; /* runs before `low` begin at t or before it, those from `high` on behind it */
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (of.runs[middle].start <= t)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0) return none;
    const wb_sequence_run run = of.runs[low - 1];
    return t < run.start + run.n ? run : none;
}

/* of.states is there. */
__device__ __forceinline__ float *run_state(const wb_sequences &of, const wb_sequence_run &run) {
    return reinterpret_cast<float *>(of.states + run.state * of.state_stride);
}

} // namespace

#endif
