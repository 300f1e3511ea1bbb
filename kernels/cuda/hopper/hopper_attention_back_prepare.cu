/* hopper_attention_back_prepare.cu - what the kernels of the backward of attention on sm_90a need before they
 * begin: which pieces of work there are, and of each query and head log2 of its sum and <dout, out>. */
#include "cuda/cuda_attention_sinks.h"
#include "cuda/hopper/hopper_attention_back.h"

namespace {

/* ---- the list of work -------------------------------------------------------------------------- */

/* Threads of the one block that makes the list, tokens that a thread looks at in one step, and levels that
 * are told apart: larger ones are of no order among themselves. */
enum { PLANNERS = 1024, LOOKED_AT = 8, LEVELS = PLANNERS };

/* The sum of `x` over the threads before this one; *all_out: over all. All threads. */
__device__ __forceinline__ int sum_before(int x, int *all_out) {
    __shared__ int of_warp[PLANNERS / 32];
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    int sum = x, before = 0, all = 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane >= step ? other : 0;
    }
    __syncthreads();
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    for (int i = 0; i < PLANNERS / 32; i++) before += i < warp ? of_warp[i] : 0, all += of_warp[i];
    *all_out = all;
    return before + sum - x;
}

/* begins and ends of the runs of adjacent tokens of one sequence, in order; returns how many. */
__device__ __forceinline__ int find_runs(const wb_attention_back &call) {
    const int T = static_cast<int>(call.args.T);
    int n_begins = 0, n_ends = 0, all;
    for (int from = 0; from < T; from += PLANNERS * LOOKED_AT) {
        const int first = from + static_cast<int>(threadIdx.x) * LOOKED_AT;
        uint32_t begins = 0, ends = 0;
        int32_t before = first > 0 && first < T ? call.args.seq[first - 1] : -1;
        for (int i = 0; i < LOOKED_AT && first + i < T; i++) {
            const int32_t seq = call.args.seq[first + i];
            const int32_t after = first + i + 1 < T ? call.args.seq[first + i + 1] : -1;
            begins |= static_cast<uint32_t>(seq >= 0 && seq != before) << i;
            ends |= static_cast<uint32_t>(seq >= 0 && seq != after) << i;
            before = seq;
        }
        int to = n_begins + sum_before(__popc(begins), &all);
        n_begins += all;
        for (; begins; begins &= begins - 1) call.begins[to++] = first + __ffs(static_cast<int>(begins)) - 1;
        to = n_ends + sum_before(__popc(ends), &all);
        n_ends += all;
        for (; ends; ends &= ends - 1) call.ends[to++] = first + __ffs(static_cast<int>(ends));
    }
    __syncthreads();
    return n_begins;
}

/* A warp for each run; `place`: of a level, how many pieces there are, then where the next one goes. */
template <bool STORES>
__device__ __forceinline__ void walk_runs(const wb_attention_back &call, int n_runs, int *place) {
    for (int run = static_cast<int>(threadIdx.x) / 32; run < n_runs; run += PLANNERS / 32) {
        const int begin = call.begins[run], end = call.ends[run];
        const int levels = (end - begin + WB_BACK_TILE - 1) / WB_BACK_TILE;
        for (int level = 1 + static_cast<int>(threadIdx.x) % 32; level <= levels; level += 32) {
            const int at = atomicAdd(&place[min(level, LEVELS) - 1], 1);
            if (STORES) call.items[at] = {begin, end, level, levels};
        }
    }
    __syncthreads();
}

__global__ void __launch_bounds__(PLANNERS) list_work(const __grid_constant__ wb_attention_back call) {
    __shared__ int place[LEVELS];
    int all;
    place[threadIdx.x] = 0;
    const int n_runs = find_runs(call);
    walk_runs<false>(call, n_runs, place);
    /* the highest level first */
    const int level = LEVELS - 1 - static_cast<int>(threadIdx.x);
    const int before = sum_before(place[level], &all);
    place[level] = before;
    __syncthreads();
    walk_runs<true>(call, n_runs, place);
    if (threadIdx.x == 0) *call.n_items = all;
}

/* ---- rows -------------------------------------------------------------------------------------- */

__device__ __forceinline__ float dot_pair(uint32_t a, uint32_t b, float sum) {
    sum = wb_fma(__uint_as_float(a << 16), __uint_as_float(b << 16), sum);
    return wb_fma(__uint_as_float(a & 0xffff0000u), __uint_as_float(b & 0xffff0000u), sum);
}

/* D / 8 threads for each token and head. */
template <int D>
__global__ void __launch_bounds__(BLOCK) find_sums(const __grid_constant__ wb_attention_back call) {
    const int64_t thread = thread_number(), row = thread / (D / 8), t = row / call.args.n_heads;
    if (t >= call.args.T) return; /* in whole warps, or with the lanes beside it that fold with this one */
    const int64_t head = row % call.args.n_heads, at = head * call.args.T + t, part = thread;
    if (call.args.seq[t] < 0) {
        reinterpret_cast<uint4 *>(call.dq.data)[part] = make_uint4(0, 0, 0, 0);
        return;
    }
    const uint4 a = reinterpret_cast<const uint4 *>(call.dout.data)[part];
    const uint4 b = reinterpret_cast<const uint4 *>(call.args.out.data)[part];
    float sum = dot_pair(a.w, b.w, dot_pair(a.z, b.z, dot_pair(a.y, b.y, dot_pair(a.x, b.x, 0.0f))));
    const uint32_t lanes =
        D == 64 ? 0xffu << threadIdx.x % 32 / 8 * 8 : 0xffffu << threadIdx.x % 32 / 16 * 16;
    for (int step = D / 16; step > 0; step /= 2) sum = wb_add(sum, __shfl_xor_sync(lanes, sum, step));
    if (thread % (D / 8) != 0) return;
    call.dots[at] = sum;
    call.log2_sums[at] = wb_mul(call.args.log_sums[row], WB_LOG2_E);
}

__global__ void __launch_bounds__(SINK_THREADS)
    find_sinks(const __grid_constant__ wb_attention_back call, float *dsinks) {
    const int64_t head = blockIdx.x;
    const float sink = wb_mul(call.args.sinks[head], WB_LOG2_E);
    add_to_sink(call.args, dsinks, head, [&](int64_t t) {
        const int64_t at = head * call.args.T + t;
        return wb_mul(exp2_of(wb_sub(sink, call.log2_sums[at])), call.dots[at]);
    });
}

} // namespace

wb_status wb_hopper_attention_back_sinks(wb_device *dev, const char *op, const wb_attention_back &call,
                                         float *dsinks) {
    find_sinks<<<static_cast<unsigned>(call.args.n_heads), SINK_THREADS, 0, stream_of(dev)>>>(call, dsinks);
    return wb_cuda_check(cudaGetLastError(), op);
}

wb_status wb_hopper_attention_back_prepare(wb_device *dev, const char *op, const wb_attention_back &call) {
    unsigned blocks = 0;
    WB_TRY(count_blocks(op, "tokens", call.args.T * call.args.n_heads, call.args.head_dim / 8, &blocks));
    list_work<<<1, PLANNERS, 0, stream_of(dev)>>>(call);
    WB_TRY(wb_cuda_check(cudaGetLastError(), op));
    if (call.args.head_dim == 64)
        find_sums<64><<<blocks, BLOCK, 0, stream_of(dev)>>>(call);
    else
        find_sums<128><<<blocks, BLOCK, 0, stream_of(dev)>>>(call);
    return wb_cuda_check(cudaGetLastError(), op);
}
