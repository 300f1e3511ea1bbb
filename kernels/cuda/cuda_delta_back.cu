/* cuda_delta_back.cu - the gradients of the gated delta rule: a block has one key head of a run, with its
 * value heads (cuda_delta_back.h), and goes back from chunk to chunk.
 *
 * Refuses: the rule itself (cuda_delta.h). */
#include "cuda/cuda_delta_back.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"

namespace {

/* ---- runs -------------------------------------------------------------------------------------- */

/* x: a query or a key as it is in qkv, d the gradient of x times inverse; to (=) that of x. */
template <int N>
__device__ __forceinline__ void length_backward(int dim, int lane, bool live, float inverse, float (&x)[N],
                                                const float (&d)[N], const wb_rows &to, int64_t first) {
#pragma unroll
    for (int n = 0; n < N; n++) x[n] = wb_mul(x[n], inverse);
    const float along = dot(d, x, dim, lane);
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int i = lane + WB_LANES * n;
        if (live && i < dim) store_element(to, first + i, wb_mul(inverse, wb_fma(-along, x[n], d[n])));
    }
}

/* The gradients of a chunk's queries and keys, a half warp a token. */
template <int N> __device__ void keys_backward(const back_args &b, const chunk &c, const block_scratch &s) {
    const int dim = b.delta.heads.key_dim;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    for (int64_t first = 0; first < c.n; first += HALVES) {
        const bool live = first + half < c.n;
        const int64_t i = live ? first + half : c.n - 1, t = c.first + i;
        delta_keys<N> keys, raw;
        float dq[N], dk[N];
        load_keys(b.delta, t, c.key_head, lane, raw);
        keys = raw;
        norm_keys(dim, lane, keys);
        load_row(s.dq + i * dim, dim, lane, dq);
        load_row(s.dk + i * dim, dim, lane, dk);
#pragma unroll
        for (int n = 0; n < N; n++) dq[n] = wb_mul(dq[n], keys.scale);
        length_backward(dim, lane, live, keys.inverse_q, raw.q, dq, b.dqkv,
                        wb_delta_query_at(b.delta.heads, t, c.key_head));
        length_backward(dim, lane, live, keys.inverse_k, raw.k, dk, b.dqkv,
                        wb_delta_key_at(b.delta.heads, t, c.key_head));
    }
}

template <int N>
__device__ void backward_run(const back_args &b, const wb_sequence_run &run, int64_t key_head,
                             const block_scratch &s, const block_shared &shared) {
    const wb_delta_heads h = b.delta.heads;
    const int64_t size = state_floats(h), group = h.n_value / h.n_key;
    for (int64_t x = threadIdx.x; x < group * size; x += BLOCK) s.dstates[x] = 0.0f;
    for (int64_t end = static_cast<int64_t>(run.start) + run.n; end > run.start;) {
        const int64_t begin = (end - 1) / WB_DELTA_CHUNK * WB_DELTA_CHUNK;
        chunk c = {max(begin, static_cast<int64_t>(run.start)), 0, key_head, 0};
        c.n = end - c.first;
        for (int64_t x = threadIdx.x; x < c.n * h.key_dim; x += BLOCK) s.dq[x] = s.dk[x] = 0.0f;
        __syncthreads();
        for (int64_t member = 0; member < group; member++) {
            c.head = key_head * group + member;
            backward_head<N>(b, run, c, s.dstates + member * size, s, shared);
        }
        keys_backward<N>(b, c, s);
        __syncthreads();
        end = c.first;
    }
}

template <int N> __global__ void __launch_bounds__(BLOCK) delta_gradients(back_args b) {
    extern __shared__ float memory[];
    const block_shared shared = shared_of(b.delta.heads, memory);
    const block_scratch s = scratch_of(b);
    for (int64_t task = blockIdx.x; task < b.n_tasks; task += gridDim.x) {
        const wb_sequence_run run = b.delta.of.runs[task / b.delta.heads.n_key];
        if (run.n > 0) backward_run<N>(b, run, task % b.delta.heads.n_key, s, shared);
    }
}

/* ---- the gates ------------------------------------------------------------------------------- */

/* da (=) from the gradients of g, and for the sums over tokens g and da as f32. */
__global__ void __launch_bounds__(BLOCK)
    gate_gradients(wb_gated_delta args, const float *dg, wb_rows da, float *g, float *gradient) {
    const int64_t at = thread_number(), t = at / args.heads.n_value, head = at % args.heads.n_value;
    if (t >= args.of.T) return;
    if (find_run(args.of, t).n == 0) {
        store_element(da, at, 0.0f);
        return;
    }
    const float A_log = args.A_log[head], bias = args.dt_bias[head], a = load_element(args.a, at);
    g[at] = wb_delta_log_decay(A_log, bias, a);
    gradient[at] = wb_delta_gradient_of_a(A_log, bias, a, dg[at]);
    store_element(da, at, gradient[at]);
}

/* A thread a value head: its sums over the tokens of all runs, ascending. */
__global__ void __launch_bounds__(BLOCK) gate_sums(wb_gated_delta args, const float *dg, const float *g,
                                                   const float *gradient, float *dA_log, float *ddt_bias) {
    const int64_t head = thread_number();
    if (head >= args.heads.n_value) return;
    float of_A = dA_log[head], of_bias = ddt_bias[head];
    for (int64_t r = 0; r < args.of.n_runs; r++) {
        const wb_sequence_run run = args.of.runs[r];
        const int64_t end = static_cast<int64_t>(run.start) + run.n;
#pragma unroll 8
        for (int64_t t = run.start; t < end; t++) {
            const int64_t at = t * args.heads.n_value + head;
            of_A = wb_fma(dg[at], g[at], of_A);
            of_bias = wb_add(of_bias, gradient[at]);
        }
    }
    dA_log[head] = of_A;
    ddt_bias[head] = of_bias;
}

/* ---- launches -------------------------------------------------------------------------------- */

struct backward_launcher {
    wb_device *dev;
    back_args b;
    unsigned blocks;

    template <int N> wb_status launch() const {
        const char *op = "gated_delta_backward";
        const void *kernel = reinterpret_cast<const void *>(delta_gradients<N>);
        const size_t bytes = shared_bytes(b.delta.heads);
        WB_TRY(wb_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(bytes)),
                             op));
        delta_gradients<N><<<blocks, BLOCK, bytes, stream_of(dev)>>>(b);
        return wb_cuda_check(cudaGetLastError(), op);
    }
};

/* The sums of a group's tokens have to fit. */
wb_status check_shared(const wb_device *dev, wb_delta_heads h) {
    const char *op = "gated_delta_backward";
    int most = 0;
    WB_TRY(wb_cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                                reinterpret_cast<const wb_cuda_device *>(dev)->index),
                         op));
    if (shared_bytes(h) <= static_cast<size_t>(most)) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "%s: key_dim %d: expected one that fits %d bytes of shared memory, found %zu", op,
                   h.key_dim, most, shared_bytes(h));
}

wb_status launch_gate_gradients(wb_device *dev, const back_args &b, wb_rows da, float *g, float *gradient) {
    LAUNCH(dev, "gated_delta_backward", b.delta.of.T * b.delta.heads.n_value, 1, gate_gradients, b.delta,
           b.dg, da, g, gradient);
}

} // namespace

extern "C" {

/* Three numbers a token and value head, and the scratch of as many blocks as run at once. */
size_t wb_cuda_delta_backward_bytes(const wb_device *dev, int64_t T, wb_delta_heads heads) {
    const int64_t blocks = reinterpret_cast<const wb_cuda_device *>(dev)->multiprocessors;
    return static_cast<size_t>(3 * T * heads.n_value + blocks * block_floats(heads)) * sizeof(float);
}

wb_status wb_cuda_gated_delta_backward(wb_device *dev, const wb_gated_delta *args, wb_rows dout, wb_rows dqkv,
                                       wb_rows db, wb_rows da, float *dA_log, float *ddt_bias) {
    const char *op = "gated_delta_backward";
    const wb_delta_heads h = args->heads;
    const int64_t T = args->of.T, gates = T * h.n_value, tasks = args->of.n_runs * h.n_key;
    const int64_t multiprocessors = reinterpret_cast<wb_cuda_device *>(dev)->multiprocessors;
    float *scratch = NULL;
    WB_TRY(gated_delta_back_check(args, dout, dqkv, db, da));
    WB_TRY(check_key_dim(op, h.key_dim));
    if (T == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(check_shared(dev, h));
    WB_TRY(reserve_scratch(dev, wb_cuda_delta_backward_bytes(dev, T, h), &scratch));
    float *const g = scratch + gates, *const gradient = g + gates;
    const back_args b = {*args, dout, dqkv, db, scratch, gradient + gates, block_floats(h), tasks};
    WB_TRY(dev->zero(dev, dqkv.data, static_cast<size_t>(T * wb_delta_width(h)) * wb_dtype_size(dqkv.dtype)));
    WB_TRY(dev->zero(dev, db.data, static_cast<size_t>(gates) * wb_dtype_size(db.dtype)));
    const unsigned blocks = static_cast<unsigned>(tasks < multiprocessors ? tasks : multiprocessors);
    const backward_launcher launcher = {dev, b, blocks};
    if (blocks > 0) WB_TRY(launch_for(h.key_dim, launcher));
    WB_TRY(launch_gate_gradients(dev, b, da, g, gradient));
    LAUNCH(dev, op, h.n_value, 1, gate_sums, *args, scratch, g, gradient, dA_log, ddt_bias);
}
}
