/* cuda_delta.cu - the gated delta rule: a block has sixteen values of a head of a run, a half warp each,
 * whose rows of the state are in registers while it goes from token to token.
 *
 * Values see nothing of each other, so that blocks need not meet. Refuses: gradients (cuda_delta_back.cu). */
#include "cuda/cuda_delta.h"
#include "cuda/cuda_ops.h"

namespace {

/* What is read of a token; the next one's is on its way while a token is computed. */
template <int N> struct token {
    delta_keys<N> keys;
    float v, b, a;
};

template <int N>
__device__ __forceinline__ token<N> load_token(const wb_gated_delta &a, int64_t t, int64_t head, int64_t j,
                                               int lane) {
    token<N> x;
    const int64_t at = t * a.heads.n_value + head;
    load_keys(a, t, head / (a.heads.n_value / a.heads.n_key), lane, x.keys);
    x.v = load_element(a.qkv, wb_delta_value_at(a.heads, t, head) + j);
    x.b = load_element(a.b, at);
    x.a = load_element(a.a, at);
    return x;
}

template <int N>
__global__ void __launch_bounds__(BLOCK)
    delta_values(wb_gated_delta args, wb_rows o, int32_t blocks_of_head) {
    const wb_delta_heads h = args.heads;
    const int lane = threadIdx.x % WB_LANES, dim = h.key_dim;
    const int64_t task = blockIdx.x / blocks_of_head, head = task % h.n_value;
    const int64_t wanted =
        static_cast<int64_t>(blockIdx.x % blocks_of_head) * HALVES + threadIdx.x / WB_LANES;
    const int64_t j = min(wanted, static_cast<int64_t>(h.value_dim) - 1);
    const bool live = wanted < h.value_dim;
    const wb_sequence_run run = args.of.runs[task / h.n_value];
    if (run.n == 0) return;
    const int64_t size = static_cast<int64_t>(dim) * h.value_dim, row = j * dim;
    const int64_t end = static_cast<int64_t>(run.start) + run.n;
    float *const kept = args.of.states ? run_state(args.of, run) + head * size + row : NULL;
    float s[N] = {};
    if (kept) load_row(kept, dim, lane, s);
    token<N> next = load_token<N>(args, run.start, head, j, lane);
    for (int64_t t = run.start; t < end; t++) {
        token<N> now = next;
        if (t + 1 < end) next = load_token<N>(args, t + 1, head, j, lane);
        if (args.checkpoints && !kept && live && t % WB_DELTA_CHUNK == 0)
            store_row(s, dim, lane, args.checkpoints + (t / WB_DELTA_CHUNK * h.n_value + head) * size + row);
        norm_keys(dim, lane, now.keys);
        delta_step(dim, lane, gates_of(args, head, now.b, now.a), now.keys.k, now.v, s);
        const float out = dot(s, now.keys.q, dim, lane);
        if (live && lane == 0) store_element(o, (t * h.n_value + head) * h.value_dim + j, out);
    }
    if (kept && live) store_row(s, dim, lane, kept);
}

struct forward_launcher {
    wb_device *dev;
    const wb_gated_delta *args;
    wb_rows o;

    template <int N> wb_status launch() const {
        const char *op = "gated_delta_forward";
        const int32_t of_head = (args->heads.value_dim + HALVES - 1) / HALVES;
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
