/* cuda_delta_back.cu - the gradients of the gated delta rule: a block has one key head of a run, with its
 * value heads, and goes back from chunk to chunk, and in a chunk from token to token.
 *
 * The states of a chunk's tokens are computed again, from the forward's checkpoint on, into the block's
 * scratch; the gradient of the state is in shared memory. Half warp i has the values i, i + 16, ..., so that
 * sums over values are in lane order too. Refuses: the rule itself (cuda_delta.h). */
#include "cuda/cuda_delta.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"

namespace {

struct back_args {
    wb_gated_delta delta;
    wb_rows dout, dqkv, db;
    float *dg; /* [T, n_value] out */
    float *scratch;
    int64_t block_floats, n_tasks; /* of scratch; runs times key heads */
};

/* A block's part of scratch. */
struct block_scratch {
    float *states;  /* [WB_DELTA_CHUNK + 1] S^T before each token, and behind the last, of one value head */
    float *dstates; /* of each value head: the gradient of S^T behind the next token, between chunks */
    float *errors;  /* [WB_DELTA_CHUNK, value_dim] what delta_step returned */
    float *dq, *dk; /* [WB_DELTA_CHUNK, key_dim] sums over the value heads so far */
};

__host__ __device__ inline int64_t state_floats(wb_delta_heads h) {
    return static_cast<int64_t>(h.key_dim) * h.value_dim;
}

int64_t block_floats(wb_delta_heads h) {
    const int64_t chunk = WB_DELTA_CHUNK;
    return (chunk + 1 + h.n_value / h.n_key) * state_floats(h) +
           chunk * (h.value_dim + 2 * static_cast<int64_t>(h.key_dim));
}

__device__ __forceinline__ block_scratch scratch_of(const back_args &b) {
    const wb_delta_heads h = b.delta.heads;
    const int64_t size = state_floats(h);
    block_scratch s;
    s.states = b.scratch + blockIdx.x * b.block_floats;
    s.dstates = s.states + (WB_DELTA_CHUNK + 1) * size;
    s.errors = s.dstates + h.n_value / h.n_key * size;
    s.dq = s.errors + static_cast<int64_t>(WB_DELTA_CHUNK) * h.value_dim;
    s.dk = s.dq + static_cast<int64_t>(WB_DELTA_CHUNK) * h.key_dim;
    return s;
}

/* A block's shared memory. Rows of ds are 16 elements longer than they need to be, so that the two half warps
 * of a warp, which have neighbours, meet in no bank where key_dim is a multiple of 32. */
struct block_shared {
    float *ds;                /* [value_dim][stride] */
    float *lanes_q, *lanes_k; /* [HALVES][key_dim] */
    float *lanes_b, *lanes_g; /* [HALVES] */
    int stride;
};

size_t shared_bytes(wb_delta_heads h) {
    const int64_t stride = h.key_dim + WB_LANES;
    return static_cast<size_t>(h.value_dim * stride + 2 * HALVES * (static_cast<int64_t>(h.key_dim) + 1)) *
           sizeof(float);
}

__device__ __forceinline__ block_shared shared_of(wb_delta_heads h, float *memory) {
    block_shared s;
    s.stride = h.key_dim + WB_LANES;
    s.ds = memory;
    s.lanes_q = memory + h.value_dim * s.stride;
    s.lanes_k = s.lanes_q + HALVES * h.key_dim;
    s.lanes_b = s.lanes_k + HALVES * h.key_dim;
    s.lanes_g = s.lanes_b + HALVES;
    return s;
}

/* The tokens [first, first + n) of a run, in one value head. */
struct chunk {
    int64_t first, n, key_head, head;
};

/* Value `wanted` of a half warp, or the last one where there are fewer. */
struct value_place {
    int j;
    bool live;
};
__device__ __forceinline__ value_place place_of(int wanted, int n) {
    return {min(wanted, n - 1), wanted < n};
}

template <int N>
__device__ __forceinline__ delta_gates load_token(const back_args &b, const chunk &c, int64_t t, int lane,
                                                  delta_keys<N> &keys) {
    const int64_t at = t * b.delta.heads.n_value + c.head;
    load_keys(b.delta, t, c.key_head, lane, keys);
    norm_keys(b.delta.heads.key_dim, lane, keys);
    return gates_of(b.delta, c.head, load_element(b.delta.b, at), load_element(b.delta.a, at));
}

/* Fills states and errors. A row is read and written by the same threads throughout. */
template <int N>
__device__ void compute_again(const back_args &b, const wb_sequence_run &run, const chunk &c,
                              const block_scratch &s) {
    const int dim = b.delta.heads.key_dim, n = b.delta.heads.value_dim;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    const int64_t size = state_floats(b.delta.heads);
    const float *from =
        b.delta.checkpoints + (c.first / WB_DELTA_CHUNK * b.delta.heads.n_value + c.head) * size;
    float row[N] = {};
    for (int j = half; j < n; j += HALVES) {
        if (c.first > run.start) load_row(from + static_cast<int64_t>(j) * dim, dim, lane, row);
        store_row(row, dim, lane, s.states + static_cast<int64_t>(j) * dim);
    }
    for (int64_t i = 0; i < c.n; i++) {
        delta_keys<N> keys;
        const delta_gates gates = load_token(b, c, c.first + i, lane, keys);
        const int64_t values = value_at(b.delta, c.first + i, c.head);
        for (int first = 0; first < n; first += HALVES) {
            const value_place at = place_of(first + half, n);
            float *const before = s.states + i * size + static_cast<int64_t>(at.j) * dim;
            load_row(before, dim, lane, row);
            const float error =
                delta_step(dim, lane, gates, keys.k, load_element(b.delta.qkv, values + at.j), row);
            if (!at.live) continue;
            store_row(row, dim, lane, before + size);
            if (lane == 0) s.errors[i * n + at.j] = error;
        }
    }
}

/* A token's sums over the values of a half warp. */
template <int N> struct value_sums { float dq[N], dk[N], db, dg; };

/* Value `at` of token i: its row of ds, from behind the token to before it. */
template <int N>
__device__ __forceinline__ void backward_value(const back_args &b, const chunk &c, int64_t i, value_place at,
                                               const delta_keys<N> &keys, delta_gates gates,
                                               const block_scratch &s, float *ds, value_sums<N> &sums) {
    const int dim = b.delta.heads.key_dim, n = b.delta.heads.value_dim, lane = threadIdx.x % WB_LANES;
    const int64_t size = state_floats(b.delta.heads), t = c.first + i;
    const float dout = load_element(b.dout, (t * b.delta.heads.n_value + c.head) * n + at.j);
    const float error = s.errors[i * n + at.j], d = wb_mul(gates.beta, error);
    const float *const row = s.states + i * size + static_cast<int64_t>(at.j) * dim;
    float before[N], behind[N], g[N], sum = 0.0f;
    load_row(row, dim, lane, before);
    load_row(row + size, dim, lane, behind);
    load_row(ds, dim, lane, g);
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (at.live) sums.dq[k] = wb_fma(behind[k], dout, sums.dq[k]);
        g[k] = wb_fma(keys.q[k], dout, g[k]);
    }
    const float dd = dot(g, keys.k, dim, lane), dv = wb_mul(gates.beta, dd), dm = -dv;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float faded = wb_mul(gates.decay, before[k]);
        if (at.live) sums.dk[k] = wb_fma(faded, dm, wb_fma(g[k], d, sums.dk[k]));
        g[k] = wb_fma(keys.k[k], dm, g[k]);
        if (lane + WB_LANES * k < dim) sum = wb_fma(g[k], faded, sum);
        g[k] = wb_mul(g[k], gates.decay);
    }
    sum = fold_lanes(sum);
    if (!at.live) return;
    store_row(g, dim, lane, ds);
    sums.db = wb_fma(dd, error, sums.db);
    sums.dg = wb_add(sums.dg, sum);
    if (lane == 0) store_element(b.dqkv, value_at(b.delta, t, c.head) + at.j, dv);
}

/* The fold of lanes[HALVES], `stride` apart. */
__device__ __forceinline__ float fold_halves(const float *lanes, int stride) {
    float x[HALVES];
#pragma unroll
    for (int m = 0; m < HALVES; m++) x[m] = lanes[m * stride];
    return wb_lanes_sum(x);
}
static_assert(BLOCK == WB_LANES * WB_LANES, "a half warp for each lane of a sum over values");

template <int N>
__device__ void backward_token(const back_args &b, const chunk &c, int64_t i, const block_scratch &s,
                               const block_shared &shared) {
    const int dim = b.delta.heads.key_dim, n = b.delta.heads.value_dim;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES;
    delta_keys<N> keys;
    value_sums<N> sums = {};
    const delta_gates gates = load_token(b, c, c.first + i, lane, keys);
    for (int first = 0; first < n; first += HALVES) {
        const value_place at = place_of(first + half, n);
        backward_value(b, c, i, at, keys, gates, s, shared.ds + at.j * shared.stride, sums);
    }
    store_row(sums.dq, dim, lane, shared.lanes_q + half * dim);
    store_row(sums.dk, dim, lane, shared.lanes_k + half * dim);
    if (lane == 0) shared.lanes_b[half] = sums.db, shared.lanes_g[half] = sums.dg;
    __syncthreads();
    for (int x = threadIdx.x; x < dim; x += BLOCK) {
        s.dq[i * dim + x] = wb_add(s.dq[i * dim + x], fold_halves(shared.lanes_q + x, dim));
        s.dk[i * dim + x] = wb_add(s.dk[i * dim + x], fold_halves(shared.lanes_k + x, dim));
    }
    if (threadIdx.x == 0) {
        const int64_t at = (c.first + i) * b.delta.heads.n_value + c.head;
        const float slope = wb_mul(gates.beta, wb_sub(1.0f, gates.beta));
        store_element(b.db, at, wb_mul(fold_halves(shared.lanes_b, 1), slope));
        b.dg[at] = fold_halves(shared.lanes_g, 1);
    }
    __syncthreads();
}

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
        length_backward(dim, lane, live, keys.inverse_q, raw.q, dq, b.dqkv, query_at(b.delta, t, c.key_head));
        length_backward(dim, lane, live, keys.inverse_k, raw.k, dk, b.dqkv, key_at(b.delta, t, c.key_head));
    }
}

/* A chunk's tokens in one value head, whose dstates come to shared memory and go back. */
template <int N>
__device__ void backward_head(const back_args &b, const wb_sequence_run &run, const chunk &c, float *dstates,
                              const block_scratch &s, const block_shared &shared) {
    const int dim = b.delta.heads.key_dim, n = b.delta.heads.value_dim;
    compute_again<N>(b, run, c, s);
    for (int x = threadIdx.x; x < n * dim; x += BLOCK)
        shared.ds[x / dim * shared.stride + x % dim] = dstates[x];
    __syncthreads();
    for (int64_t i = c.n - 1; i >= 0; i--) backward_token<N>(b, c, i, s, shared);
    for (int x = threadIdx.x; x < n * dim; x += BLOCK)
        dstates[x] = shared.ds[x / dim * shared.stride + x % dim];
    __syncthreads();
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

/* The gradient of a head's state has to fit. */
wb_status check_shared(const wb_device *dev, wb_delta_heads h) {
    const char *op = "gated_delta_backward";
    int most = 0;
    WB_TRY(wb_cuda_check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                                reinterpret_cast<const wb_cuda_device *>(dev)->index),
                         op));
    if (shared_bytes(h) <= static_cast<size_t>(most)) return WB_OK;
    return wb_fail(
        WB_INVALID_ARGUMENT,
        "%s: key_dim %d and value_dim %d: expected a head that fits %d bytes of shared memory, found %zu", op,
        h.key_dim, h.value_dim, most, shared_bytes(h));
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
