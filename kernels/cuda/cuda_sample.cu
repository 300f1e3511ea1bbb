/* cuda_sample.cu - drawing tokens: temperature, top-k, top-p and the inverse of the cumulative distribution.
 *
 * A block each part of a row sums its exponentials, and a block a row draws from the parts' sums. Sums are
 * in the CPU's order, so that tokens, kept sets and log-probabilities are the CPU's bits. Refuses: random
 * numbers (the caller brings one for each row). */
#include "cuda/cuda_fault.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_sample_draw.h"
#include "cuda/cuda_sample_top.h"
#include "cuda/cuda_scratch.h"

namespace {

/* Rows of a launch that have a limit: they share out the scratch. */
enum { MAX_TOP_ROWS = 64 };

/* ---- parts ------------------------------------------------------------------------------------- */

/* The place in its part of the first element that is `largest`, in the first thread. */
__device__ __forceinline__ int first_place(const float *x, float largest) {
    __shared__ int first;
    if (threadIdx.x == 0) first = SOFTMAX_PART;
    __syncthreads();
#pragma unroll
    for (int i = OF_THREAD - 1; i >= 0; i--)
        if (x[i] == largest) atomicMin(&first, place_of(i));
    __syncthreads();
    return first;
}

/* sums[DRAW_BLOCKS] (=) those of blocks of the chunk; half a warp a block. */
__device__ __forceinline__ void sum_blocks(const float *chunk, int count, float *sums) {
    const int lane = threadIdx.x % WB_LANES, block = threadIdx.x / WB_LANES;
    float sum = 0.0f;
#pragma unroll
    for (int i = lane; i < DRAW_BLOCK; i += WB_LANES)
        if (block * DRAW_BLOCK + i < count) sum = wb_add(sum, chunk[block * DRAW_BLOCK + i]);
    sum = fold_lanes(sum);
    if (lane == 0) sums[block] = sum;
}
static_assert(DRAW_BLOCKS * WB_LANES == BLOCK, "half a warp a block of a part");

/* A block a part of each row. */
__global__ void __launch_bounds__(BLOCK) draw_parts(draw_call call) {
    __shared__ __align__(16) float chunk[SOFTMAX_PART];
    const int64_t at = blockIdx.x, b = at / call.n_parts, begin = at % call.n_parts * SOFTMAX_PART;
    const int count = static_cast<int>(min(call.V - begin, static_cast<int64_t>(SOFTMAX_PART)));
    const float temperature = call.params[b].temperature;
    const bool wide = call.V % 4 == 0 && reinterpret_cast<uintptr_t>(call.logits) % sizeof(float4) == 0;
    float x[OF_THREAD];
    bool bad = false;
    load_part(call.logits + b * call.V + begin, count, wide, x);
#pragma unroll
    for (int i = 0; i < OF_THREAD; i++) bad = bad || !(x[i] < INFINITY);
    if (__syncthreads_or(bad)) {
        if (threadIdx.x == 0) call.largest[at] = NAN;
        return;
    }
    if (temperature != 0.0f) divide_part(temperature, x);
    const float largest = block_largest(x);
    if (threadIdx.x == 0) call.largest[at] = largest;
    if (temperature == 0.0f) {
        const int place = first_place(x, largest);
        if (threadIdx.x == 0) call.first[at] = static_cast<int32_t>(begin) + place;
        return;
    }
    store_exponentials(x, largest, chunk);
    sum_blocks(chunk, count, call.sums + at * DRAW_BLOCKS);
    if (threadIdx.x >= WARP) return;
    const float sum = chunk_sum(chunk, count);
    if (threadIdx.x == 0) call.sum[at] = sum;
}

/* ---- rows -------------------------------------------------------------------------------------- */

/* Whether row b has a NaN or +inf, or nothing but -inf: then there is no distribution. */
__device__ bool is_bad(const draw_call &call, int64_t b, float largest) {
    bool bad = !(largest > -INFINITY);
    for (int64_t part = threadIdx.x; part < call.n_parts; part += BLOCK)
        bad = bad || isnan(call.largest[b * call.n_parts + part]);
    return __syncthreads_or(bad);
}

__device__ void sample_greedily(const draw_call &call, int64_t b, float largest) {
    __shared__ int32_t token;
    if (threadIdx.x == 0) token = INT32_MAX;
    __syncthreads();
    for (int64_t part = threadIdx.x; part < call.n_parts; part += BLOCK)
        if (call.largest[b * call.n_parts + part] == largest)
            atomicMin(&token, call.first[b * call.n_parts + part]);
    __syncthreads();
    if (threadIdx.x > 0) return;
    call.tokens[b] = token;
    call.logprobs[b] = 0.0f;
    uint32_t *ids = room_of(call, b);
    if (ids) ids[0] = static_cast<uint32_t>(token), call.kept_counts[b] = 1;
}

/* A block a row: those without a limit, and the bad ones. */
__global__ void __launch_bounds__(BLOCK) draw_rows(draw_call call) {
    const int64_t b = blockIdx.x, at = b * call.n_parts;
    const row_sums of = sum_parts(call.n_parts, call.largest + at, call.sum + at);
    if (call.start && threadIdx.x == 0) call.kept_counts[b] = 0;
    if (is_bad(call, b, of.largest)) {
        if (threadIdx.x == 0) {
            atomicMin(call.bad, static_cast<counter>(b));
            call.tokens[b] = -1;
        }
    } else if (call.params[b].temperature == 0.0f) {
        sample_greedily(call, b, of.largest);
    } else if (!has_limit(call.params[b], call.V)) {
        sample_all(call, b, make_draw(call, b, of.largest), of.sum);
    }
}

/* A block a row of those from `first` on: those with a limit. */
__global__ void __launch_bounds__(BLOCK) draw_top_rows(draw_call call, int64_t first) {
    const int64_t b = first + blockIdx.x, at = b * call.n_parts;
    if (!has_limit(call.params[b], call.V)) return;
    const row_sums of = sum_parts(call.n_parts, call.largest + at, call.sum + at);
    if (is_bad(call, b, of.largest)) return;
    sample_from_top(call, b, make_draw(call, b, of.largest), call.orders + blockIdx.x * call.room);
}

/* Of all rows, so that it is the first one that is told. */
__global__ void report_bad(const counter *bad, counter B, wb_fault *word) {
    wb_fault fault = {};
    if (*bad >= B) return;
    fault.kind = WB_FAULT_LOGITS;
    fault.op = WB_OP_sample;
    fault.row = static_cast<int64_t>(*bad);
    set_fault(word, fault);
}

/* ---- a call ---------------------------------------------------------------------------------- */

draw_call call_of(int64_t V) {
    draw_call call = {};
    call.V = V, call.n_parts = (V + SOFTMAX_PART - 1) / SOFTMAX_PART, call.room = 1;
    while (call.room < V) call.room *= 2;
    return call;
}

/* Places `bytes` of scratch at *at, which moves on. */
char *place(char **at, size_t bytes) {
    char *here = *at;
    *at += (bytes + 15) / 16 * 16;
    return here;
}

/* Fills the arrays of `call` from `memory` on; NULL: returns only how many bytes they take. */
size_t lay_out(draw_call *call, int64_t B, char *memory) {
    char *at = memory;
    const size_t parts = (size_t)(B * call->n_parts), room = (size_t)(MAX_TOP_ROWS * call->room);
    call->bad = (counter *)place(&at, sizeof *call->bad);
    call->params = (const wb_sample_params *)place(&at, (size_t)B * sizeof *call->params);
    call->start = (const int64_t *)place(&at, ((size_t)B + 1) * sizeof *call->start);
    call->largest = (float *)place(&at, parts * sizeof *call->largest);
    call->sum = (float *)place(&at, parts * sizeof *call->sum);
    call->first = (int32_t *)place(&at, parts * sizeof *call->first);
    call->mass = (double *)place(&at, parts * sizeof *call->mass);
    call->sums = (float *)place(&at, parts * DRAW_BLOCKS * sizeof *call->sums);
    call->orders = (uint64_t *)place(&at, room * sizeof *call->orders);
    return (size_t)(at - memory);
}

wb_status launch_draws(wb_device *dev, int64_t B, const wb_sample_params *params, const draw_call &call) {
    unsigned blocks = 0;
    WB_TRY(count_blocks("sample", "rows", B * call.n_parts, BLOCK, &blocks));
    draw_parts<<<blocks, BLOCK, 0, stream_of(dev)>>>(call);
    draw_rows<<<static_cast<unsigned>(B), BLOCK, 0, stream_of(dev)>>>(call);
    bool limited = false;
    for (int64_t b = 0; b < B; b++) limited = limited || has_limit(params[b], call.V);
    for (int64_t first = 0; first < B && limited; first += MAX_TOP_ROWS) {
        const int64_t left = B - first, rows = left < MAX_TOP_ROWS ? left : (int64_t)MAX_TOP_ROWS;
        draw_top_rows<<<static_cast<unsigned>(rows), BLOCK, 0, stream_of(dev)>>>(call, first);
    }
    return wb_cuda_check(cudaGetLastError(), "sample");
}

} // namespace

extern "C" {

size_t wb_cuda_sample_bytes(int64_t B, int64_t V) {
    draw_call call = call_of(V);
    return lay_out(&call, B, NULL);
}

wb_status wb_cuda_sample(wb_device *dev, int64_t B, int64_t V, const float *logits,
                         const wb_sample_params *params, const wb_sample_kept *kept, int32_t *tokens,
                         float *logprobs) {
    draw_call call = {};
    void *memory = NULL;
    WB_TRY(wb_sample_check(B, V, params, kept));
    if (B == 0) return WB_OK;
    call = call_of(V);
    call.logits = logits, call.tokens = tokens, call.logprobs = logprobs;
    WB_TRY(wb_cuda_use(dev, "sample"));
    WB_TRY(wb_cuda_scratch_reserve(dev, lay_out(&call, B, NULL), &memory));
    lay_out(&call, B, (char *)memory);
    /* No row is. */
    WB_TRY(wb_cuda_check(cudaMemsetAsync(call.bad, 0xff, sizeof *call.bad, stream_of(dev)), "sample"));
    WB_TRY(dev->to_device(dev, (void *)call.params, params, (size_t)B * sizeof *params));
    if (kept) {
        WB_TRY(dev->to_device(dev, (void *)call.start, kept->start, ((size_t)B + 1) * sizeof *kept->start));
        call.kept_ids = kept->ids, call.kept_counts = kept->counts;
    } else {
        call.start = NULL;
    }
    WB_TRY(launch_draws(dev, B, params, call));
    report_bad<<<1, 1, 0, stream_of(dev)>>>(call.bad, (counter)B, fault_of(dev));
    return wb_cuda_check(cudaGetLastError(), "sample");
}
}
