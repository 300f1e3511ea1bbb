/* cuda_delta.cu - the gated delta rule: a block has sixteen values of a head of a run, a half warp each,
 * whose row of the state is in registers while it goes from token to token.
 *
 * Values see nothing of each other, so that blocks need not meet. Queries, keys and gates, which all
 * values share, come to shared memory for sixteen tokens at a time, a half warp a token. Refuses:
 * gradients (cuda_delta_back.cu). */
#include "cuda/cuda_delta.h"
#include "cuda/cuda_ops.h"

namespace {

/* Tokens that are in shared memory at a time, as the rule takes them. */
enum { STAGED = HALVES };

template <int N> struct staged_tokens {
    float q[STAGED][N * WB_LANES], k[STAGED][N * WB_LANES];
    delta_gates gates[STAGED];
};

/* What a half warp reads of its token; the next one is on its way while those before it are computed. */
template <int N> struct token {
    delta_keys<N> keys;
    float b, a;
};

template <int N>
__device__ __forceinline__ token<N> load_token(const wb_gated_delta &a, int64_t t, int64_t head, int lane) {
    token<N> x;
    const int64_t at = t * a.heads.n_value + head;
    load_keys(a, t, head / (a.heads.n_value / a.heads.n_key), lane, x.keys);
    x.b = load_element(a.b, at);
    x.a = load_element(a.a, at);
    return x;
}

template <int N>
__device__ __forceinline__ void stage(const wb_gated_delta &args, int64_t head, int half, int lane,
                                      token<N> &x, staged_tokens<N> &s) {
    const int dim = args.heads.key_dim;
    norm_keys(dim, lane, x.keys);
    store_row(x.keys.q, dim, lane, s.q[half]);
    store_row(x.keys.k, dim, lane, s.k[half]);
    if (lane == 0) s.gates[half] = gates_of(args, head, x.b, x.a);
}

/* The tokens of a run in one value, `state` being its row. By the block, whose half warps may have none
 * that is live. */
template <int N>
__device__ __forceinline__ void go_over_run(const wb_gated_delta &args, const wb_rows &o,
                                            const wb_sequence_run &run, int64_t head, int64_t j, bool live,
                                            bool is_staged, staged_tokens<N> &s, float (&state)[N]) {
    const wb_delta_heads h = args.heads;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES, dim = h.key_dim;
    const int64_t end = static_cast<int64_t>(run.start) + run.n, row = j * dim;
    const auto value = [&](int64_t t) {
        return t < end ? load_element(args.qkv, wb_delta_value_at(h, t, head) + j) : 0.0f;
    };
    token<N> next = load_token<N>(args, min(static_cast<int64_t>(run.start) + half, end - 1), head, lane);
    float next_v = value(static_cast<int64_t>(run.start) + lane);
    for (int64_t t0 = run.start; t0 < end; t0 += STAGED) {
        const int n = static_cast<int>(min(end - t0, static_cast<int64_t>(STAGED)));
        const float v = next_v;
        float mine = 0.0f;
        __syncthreads();
        if (!is_staged) stage(args, head, half, lane, next, s);
        __syncthreads();
        if (t0 + STAGED < end) {
            next = load_token<N>(args, min(t0 + STAGED + half, end - 1), head, lane);
            next_v = value(t0 + STAGED + lane);
        }
        for (int i = 0; i < n; i++) {
            const int64_t t = t0 + i;
            float q[N], k[N];
            if (args.checkpoints && !args.of.states && live && t % WB_DELTA_CHUNK == 0)
                store_row(state, dim, lane,
                          args.checkpoints + (t / WB_DELTA_CHUNK * h.n_value + head) * dim * h.value_dim +
                              row);
            load_row(s.k[i], dim, lane, k);
            load_row(s.q[i], dim, lane, q);
            delta_step(dim, lane, s.gates[i], k, __shfl_sync(ALL_LANES, v, i, WB_LANES), state);
            const float out = dot(state, q, dim, lane);
            mine = lane == i ? out : mine;
        }
        if (live && lane < n) store_element(o, ((t0 + lane) * h.n_value + head) * h.value_dim + j, mine);
    }
}

template <int N>
__global__ void __launch_bounds__(BLOCK)
    delta_values(wb_gated_delta args, wb_rows o, int32_t blocks_of_head) {
    __shared__ staged_tokens<N> staged;
    const wb_delta_heads h = args.heads;
    const int lane = threadIdx.x % WB_LANES, half = threadIdx.x / WB_LANES, dim = h.key_dim;
    const int64_t task = blockIdx.x / blocks_of_head, head = task % h.n_value;
    const int begin = static_cast<int>(blockIdx.x % blocks_of_head) * HALVES;
    const wb_sequence_run run = args.of.runs[task / h.n_value];
    if (run.n == 0) return;
    for (int first = begin; first < h.value_dim; first += blocks_of_head * HALVES) {
        const int64_t j = min(first + half, h.value_dim - 1);
        const bool live = first + half < h.value_dim;
        float *const kept = args.of.states ? run_state(args.of, run) + wb_delta_state_at(h, head, j) : NULL;
        float state[N] = {};
        if (kept) load_row(kept, live ? dim : 0, lane, state);
        go_over_run(args, o, run, head, j, live, first > begin && run.n <= STAGED, staged, state);
        if (kept && live) store_row(state, dim, lane, kept);
    }
}

struct forward_launcher {
    wb_device *dev;
    const wb_gated_delta *args;
    wb_rows o;

    /* A head of a run of few tokens, which has the state to move and little more, is one block's. */
    template <int N> wb_status launch() const {
        const char *op = "gated_delta_forward";
        const bool few = args->of.T <= 2 * args->of.n_runs;
        const int32_t of_head = few ? 1 : (args->heads.value_dim + HALVES - 1) / HALVES;
        unsigned blocks = 0;
        WB_TRY(prepare_launch(dev, op, args->of.n_runs * args->heads.n_value * of_head, BLOCK, &blocks));
        if (blocks == 0) return WB_OK;
        delta_values<N><<<blocks, BLOCK, 0, stream_of(dev)>>>(*args, o, of_head);
        return wb_cuda_check(cudaGetLastError(), op);
    }
};

} // namespace

extern "C" {

wb_status wb_cuda_gated_delta_forward(wb_device *dev, const wb_gated_delta *args, wb_rows o) {
    const char *op = "gated_delta_forward";
    const int64_t n = args->of.T * args->heads.n_value * args->heads.value_dim;
    WB_TRY(gated_delta_check(op, args));
    WB_TRY(operand_check_like(op, "o", o.dtype, "qkv", args->qkv.dtype));
    WB_TRY(check_key_dim(op, args->heads.key_dim));
    WB_TRY(dev->zero(dev, o.data, static_cast<size_t>(n) * wb_dtype_size(o.dtype)));
    const forward_launcher launcher = {dev, args, o};
    return launch_for(args->heads.key_dim, launcher);
}
}
