/* hopper_attention_forward.cu - launches the kernel of adjacent tokens. See hopper_attention_forward.h. */
#include "cuda/hopper/hopper_attention_forward.h"
#include "cuda/hopper/hopper_attention_launch.h"
#include "cuda/hopper/hopper_maps.h"

namespace {

/* Rows of the pool that a box brings: the largest power of 2 in a page; 128 where pages are smaller than the
 * smallest box, for rows that lie one after the other. */
int32_t rows_of_a_box(const wb_attention &args) {
    int32_t rows = BLOCK_KEYS;
    if (args.block_size % PAGE_GRAIN != 0) return rows;
    while (args.block_size % rows != 0) rows /= 2;
    return rows;
}

/* Boxes of 64 columns, 8 rows, all parts of 64 columns of a head, and as many groups of 8 rows as a box has.
 * The second dimension is longer than a step of the fourth, so that a box may begin at any row. The pool's
 * size is not known: no row is asked for that no table names. */
wb_status make_pool_map(const wb_attention &args, wb_rows pool, int32_t box_rows, CUtensorMap *map_out) {
    const int64_t width = static_cast<int64_t>(args.n_kv_heads) * args.head_dim;
    const tensor t = {
        static_cast<const uint16_t *>(pool.data),
        4,
        {64, 16, size_of(width / 64), INT32_MAX / 8},
        {1, width, 64, 8 * width},
        {64, 8, static_cast<cuuint32_t>(args.head_dim / 64), static_cast<cuuint32_t>(box_rows / 8)}};
    return make_map(t, map_out);
}

wb_status make_query_map(const wb_attention &args, int32_t tokens, CUtensorMap *map_out) {
    const int64_t width = static_cast<int64_t>(args.n_heads) * args.head_dim;
    const cuuint32_t group = static_cast<cuuint32_t>(args.n_heads / args.n_kv_heads);
    const tensor t = {static_cast<const uint16_t *>(args.q.data),
                      4,
                      {size_of(args.head_dim), size_of(args.n_heads), size_of(args.T), 1},
                      {1, args.head_dim, width, width},
                      {64, group, static_cast<cuuint32_t>(tokens), 1}};
    return make_map(t, map_out);
}

template <int D> wb_status launch_tiles(wb_device *dev, const tile_call &call) {
    const char *op = "attention_forward";
    const wb_cuda_device *cuda = reinterpret_cast<const wb_cuda_device *>(dev);
    const int64_t tiles = (call.args.T + call.tokens - 1) / call.tokens * call.args.n_kv_heads;
    const int bytes = tile_memory<D>::BYTES;
    const unsigned blocks =
        static_cast<unsigned>(tiles < cuda->multiprocessors ? tiles : cuda->multiprocessors);
    CUtensorMap map_q, map_k, map_v;
    WB_TRY(make_query_map(call.args, call.tokens, &map_q));
    WB_TRY(make_pool_map(call.args, call.args.k, call.box_rows, &map_k));
    WB_TRY(make_pool_map(call.args, call.args.v, call.box_rows, &map_v));
    WB_TRY(wb_cuda_check(
        cudaFuncSetAttribute(attend_tiles<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), op));
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute early = early_begin();
    config.gridDim = dim3(blocks), config.blockDim = dim3(3 * GROUP_THREADS);
    config.dynamicSmemBytes = static_cast<size_t>(bytes);
    config.stream = static_cast<cudaStream_t>(dev->stream);
    config.attrs = &early, config.numAttrs = call.skips_singles ? 1 : 0;
    return wb_cuda_check(cudaLaunchKernelEx(&config, attend_tiles<D>, map_q, map_k, map_v, call), op);
}

} // namespace

wb_status wb_hopper_attend_tiles(wb_device *dev, const wb_attention &args, wb_rows out, bool skips_singles) {
    const tile_call call = {args,
                            out,
                            TILE_ROWS / (args.n_heads / args.n_kv_heads),
                            rows_of_a_box(args),
                            skips_singles,
                            reinterpret_cast<const wb_cuda_device *>(dev)->counters};
    return args.head_dim == 64 ? launch_tiles<64>(dev, call) : launch_tiles<128>(dev, call);
}
