/* cuda_attention_bf16.cu - the forward of attention of bf16 by tensor cores, in two kernels with one
 * arithmetic (cuda_attention_warp.h): blocks of adjacent tokens that share the keys they read, and a warp for
 * each token that is alone in its sequence, as in decoding.
 *
 * Heads are of D elements in queries and keys, and of V in values. Refuses: heads of other sizes and f32
 * (cuda_attention.cu). */
#include "cuda/cuda_attention_bf16.h"
#include "cuda/cuda_attention_keys.h"

namespace {

/* Tokens that are alone have a kernel of their own up to this many tokens; it is started for each of them. */
const int64_t MAX_SINGLES = 2048;

/* What a warp has of its 16 rows. */
template <int D, int V> struct warp_state {
    uint32_t q[D / 4];
    float sum[V / 8][4];
    row_state row;
};

template <int D, int V>
__device__ __forceinline__ void begin_rows(const wb_attention &args, const lane_rows &rows,
                                           warp_state<D, V> *w) {
    load_rows<D>(args.q, rows, w->q);
#pragma unroll
    for (int j = 0; j < V / 8; j++) w->sum[j][0] = w->sum[j][1] = w->sum[j][2] = w->sum[j][3] = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) w->row.largest[r] = MINUS_INFINITY, w->row.sum[r] = 0.0f;
}

/* The rows go on over a block of keys. */
template <int D, int V>
__device__ __forceinline__ void add_block(const lane_rows &rows, int32_t j0, float factor, uint32_t k_tile,
                                          uint32_t v_tile, warp_state<D, V> *w) {
    float s[KEYS / 8][4], scale[2];
    uint32_t p[KEYS / 4];
    multiply_keys<D>(w->q, k_tile, s);
    soften(rows, j0, factor, s, &w->row, scale);
    scale_rows<V>(scale, w->sum);
    pack_rows(s, p);
    add_values_of<V>(p, v_tile, w->sum);
}

/* `first`: of the 16 rows, as find_rows has it. */
template <int D, int V>
__device__ __forceinline__ void end_rows(const wb_attention &args, int64_t kv, int first,
                                         const lane_rows &rows, wb_rows out, warp_state<D, V> &w) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        factor[r] = end_sum(args, head_of_row(args, kv, first, r), r, &w.row);
        if (rows.limit[r] == 0) factor[r] = 0.0f; /* padding: zeros */
        store_log_sum(args, rows, r, w.row);
    }
    store_rows<V>(out, rows, factor, w.sum);
}

/* ---- a token alone ----------------------------------------------------------------------------- */

__device__ __forceinline__ bool is_single(const wb_attention &args, int64_t t) {
    return (t == 0 || args.seq[t - 1] != args.seq[t]) && (t + 1 == args.T || args.seq[t + 1] != args.seq[t]);
}

/* A warp for each token and kv head. */
template <int D, int V> __global__ void __launch_bounds__(32) attend_single(wb_attention args, wb_rows out) {
    extern __shared__ __align__(128) uint8_t bytes[];
    const int64_t t = blockIdx.x / args.n_kv_heads, kv = blockIdx.x % args.n_kv_heads;
    if (!is_single(args, t)) return;
    const key_tiles<D, V> tiles = {shared_place(bytes)};
    const lane_rows rows = find_rows(args, kv, t, t + 1, 0);
    const int32_t seq = args.seq[t];
    const run_keys keys = keys_of_run(args, t, t);
    const float factor = score_factor(args);
    warp_state<D, V> w;
    begin_rows<D, V>(args, rows, &w);
    begin_block<D, V>(args, seq, kv, keys.first_block(), keys, tiles, 0, 1);
    for (int block = keys.first_block(); block < keys.blocks(); block++) {
        begin_block<D, V>(args, seq, kv, block + 1, keys, tiles, 0, 1);
        wait_for_copies<1>();
        __syncwarp();
        add_block<D, V>(rows, block * KEYS, factor, tiles.k(block), tiles.v(block), &w);
        __syncwarp();
    }
    end_rows<D, V>(args, kv, 0, rows, out, w);
}

/* ---- adjacent tokens --------------------------------------------------------------------------- */

/* A block's rows of the tokens [begin, end) of one sequence. All its threads. */
template <int D, int V>
__device__ __forceinline__ void attend_run(const wb_attention &args, int64_t kv, int64_t begin, int64_t end,
                                           const key_tiles<D, V> &tiles, wb_rows out) {
    const int warp = threadIdx.x / 32;
    const int32_t seq = args.seq[begin];
    const run_keys keys = keys_of_run(args, begin, end - 1);
    const float factor = score_factor(args);
    const lane_rows rows = find_rows(args, kv, begin, end, warp * ROWS);
    warp_state<D, V> w;
    begin_rows<D, V>(args, rows, &w);
    begin_block<D, V>(args, seq, kv, keys.first_block(), keys, tiles, warp, WARPS);
    for (int block = keys.first_block(); block < keys.blocks(); block++) {
        begin_block<D, V>(args, seq, kv, block + 1, keys, tiles, warp, WARPS);
        wait_for_copies<1>();
        __syncthreads();
        add_block<D, V>(rows, block * KEYS, factor, tiles.k(block), tiles.v(block), &w);
        __syncthreads();
    }
    end_rows<D, V>(args, kv, warp * ROWS, rows, out, w);
}

/* A block for each TILE_ROWS / group tokens and kv head, the last tokens, which see most, first. `singles`:
 * those that are alone have a kernel of their own. */
template <int D, int V>
__global__ void __launch_bounds__(WARPS * 32, 1) attend_tiles(wb_attention args, bool singles, wb_rows out) {
    extern __shared__ __align__(128) uint8_t bytes[];
    const key_tiles<D, V> tiles = {shared_place(bytes)};
    const int64_t tokens = TILE_ROWS / group_size(args), n_tiles = gridDim.x / args.n_kv_heads;
    const int64_t kv = blockIdx.x % args.n_kv_heads, number = n_tiles - 1 - blockIdx.x / args.n_kv_heads;
    const int64_t last = min((number + 1) * tokens, args.T);
    for (int64_t begin = number * tokens; begin < last;) {
        const int64_t end = end_of_run(args, begin, last);
        if (!singles || !is_single(args, begin)) attend_run<D, V>(args, kv, begin, end, tiles, out);
        begin = end;
        wait_for_copies<0>();
        __syncthreads();
    }
}

/* ---- launches ---------------------------------------------------------------------------------- */

template <int D, int V> wb_status launch(wb_device *dev, const wb_attention &args, wb_rows out) {
    const int bytes = key_tiles<D, V>::BYTES;
    const int64_t tokens = TILE_ROWS / (args.n_heads / args.n_kv_heads);
    const bool singles = args.T <= MAX_SINGLES;
    const char *op = "attention_forward";
    unsigned tiles = 0, alone = 0;
    WB_TRY(count_blocks(op, "tokens", (args.T + tokens - 1) / tokens * args.n_kv_heads, BLOCK, &tiles));
    WB_TRY(count_blocks(op, "tokens", args.T * args.n_kv_heads, BLOCK, &alone));
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(wb_cuda_check(
        cudaFuncSetAttribute(attend_tiles<D, V>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), op));
    WB_TRY(wb_cuda_check(
        cudaFuncSetAttribute(attend_single<D, V>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), op));
    const size_t shared = static_cast<size_t>(bytes);
    if (singles) attend_single<D, V><<<alone, 32, shared, stream_of(dev)>>>(args, out);
    attend_tiles<D, V><<<tiles, WARPS * 32, shared, stream_of(dev)>>>(args, singles, out);
    return wb_cuda_check(cudaGetLastError(), op);
}

} // namespace

extern "C" {

bool wb_cuda_attention_bf16_takes(const wb_attention *args, wb_rows out) {
    if (args->q.dtype != WB_BF16 || args->k.dtype != WB_BF16 || args->v.dtype != WB_BF16) return false;
    const int32_t D = args->head_dim, V = args->value_dim;
    if (!((D == 64 && V == 64) || (D == 128 && V == 128) || (D == 192 && V == 128))) return false;
    if (attention_values_in_keys(args)) return false;
    if (args->n_heads / args->n_kv_heads > ROWS) return false;
    return is_aligned(args->q) && is_aligned(args->k) && is_aligned(args->v) && is_aligned(out);
}

wb_status wb_cuda_attention_bf16_forward(wb_device *dev, const wb_attention *args, wb_rows out) {
    if (args->head_dim == 64) return launch<64, 64>(dev, *args, out);
    return args->head_dim == 128 ? launch<128, 128>(dev, *args, out) : launch<192, 128>(dev, *args, out);
}
}
