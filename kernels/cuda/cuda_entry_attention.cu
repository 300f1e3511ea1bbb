/* cuda_entry_attention.cu - the forward of attention whose heads share one row, over a window and over
 * compressed entries (cuda_entries.h). Refuses: gradients (cuda_entry_attention_back.cu). */
#include "cuda/cuda_entries.h"
#include "cuda/cuda_ops.h"

namespace {

template <class Q, class K>
__global__ void __launch_bounds__(TILE_THREADS)
    attend_to_entries(wb_entry_attention args, query_band band, wb_rows out) {
    __shared__ entry_tiles tiles;
    __shared__ float inverse[TILE_ROWS];
    const query_heads q = heads_of_block(band, args.raw);
    const int hd = args.raw.head_dim, half = threadIdx.x / WB_LANES;
    const int64_t at = first_element(args.raw, q);
    if (args.raw.seq[q.t] < 0) {
        for (int i = threadIdx.x; i < q.heads * hd; i += TILE_THREADS) store_element(out, at + i, 0.0f);
        return;
    }
    const entry_list keys = find_list(args, q.t);
    multiply_keys<Q, K>(args, keys, q, args.raw.q, args.raw.scale, band.most_keys, q.weights, tiles);
    __syncthreads();
    for (int m0 = 0; m0 < q.heads; m0 += HALVES_OF_TILE) {
        const int m = min(m0 + half, q.heads - 1);
        const bool live = m0 + half < q.heads;
        const row_factors row =
            soften_row(args.raw, q.head + m, live ? key_count(keys) : 0, q.weights + m * band.most_keys);
        if (live) inverse[m] = row.inverse;
    }
    __syncthreads();
    add_keys<K>(args, keys, q, band.most_keys, q.weights, tiles, [&](int m, int d, float x) {
        store_element(out, at + static_cast<int64_t>(m) * hd + d, wb_mul(x, inverse[m]));
    });
}

/* Queries and keys may be of unlike dtypes. */
typedef void attend_kernel(wb_entry_attention args, query_band band, wb_rows out);

attend_kernel *kernel_for(wb_dtype q, wb_dtype k) {
    if (q == WB_F32)
        return k == WB_F32 ? attend_to_entries<float, float> : attend_to_entries<float, uint16_t>;
    return k == WB_F32 ? attend_to_entries<uint16_t, float> : attend_to_entries<uint16_t, uint16_t>;
}

} // namespace

extern "C" {

size_t wb_cuda_entry_forward_bytes(int64_t T, int32_t n_heads, int64_t keys) {
    const int64_t each = query_bytes(n_heads, keys, 1);
    return static_cast<size_t>(band_queries(T, each) * each);
}

wb_status wb_cuda_entry_attention_forward(wb_device *dev, const wb_entry_attention *args, wb_rows out) {
    const char *op = "entry_attention_forward";
    const wb_attention *raw = &args->raw;
    unsigned blocks = 0;
    char *nothing = NULL;
    query_band band;
    WB_TRY(entry_attention_check(op, args));
    WB_TRY(operand_check_like(op, "out", out.dtype, "q", raw->q.dtype));
    WB_TRY(prepare_launch(dev, op, raw->T * head_groups(raw->n_heads), BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    attend_kernel *const attend = kernel_for(raw->q.dtype, raw->k.dtype);
    WB_TRY(launch_checks(dev, op, WB_OP_entry_attention_forward, args));
    WB_TRY(open_band(dev, raw, most_keys_of(args, positions_of(raw)), 1, 0, &nothing, &band));
    for (const int64_t most = band.n; band.first < raw->T; band.first += most) {
        band.n = std::min(most, raw->T - band.first);
        blocks = static_cast<unsigned>(band.n * head_groups(raw->n_heads));
        attend<<<blocks, TILE_THREADS, 0, stream_of(dev)>>>(*args, band, out);
    }
    return wb_cuda_check(cudaGetLastError(), op);
}
}
