/* hopper_attention_back.cu - the backward of attention on sm_90a, from its parts: where its scratch lies, and
 * the order of its kernels. */
#include "cuda/cuda_scratch.h"
#include "cuda/hopper/hopper_attention_back_kernels.h"
#include "cuda/hopper/hopper_maps.h"

namespace {

/* Boxes of 64 x 64 of a matrix of this many columns. Of a pool nobody says how many rows there are: no more
 * than can be numbered. */
wb_status make_rows_map(const wb_rows &rows, int64_t n, int64_t columns, CUtensorMap *map_out) {
    const tensor t = {
        static_cast<const uint16_t *>(rows.data), 2, {size_of(columns), size_of(n)}, {1, columns}, {64, 64}};
    return make_map(t, map_out);
}

wb_status make_maps(wb_attention_back *call) {
    const wb_attention &args = call->args;
    const int64_t wide = static_cast<int64_t>(args.n_heads) * args.head_dim;
    const int64_t narrow = static_cast<int64_t>(args.n_kv_heads) * args.head_dim;
    WB_TRY(make_rows_map(args.q, args.T, wide, &call->q_map));
    WB_TRY(make_rows_map(call->dout, args.T, wide, &call->dout_map));
    WB_TRY(make_rows_map(args.k, INT32_MAX, narrow, &call->k_map));
    return make_rows_map(args.v, INT32_MAX, narrow, &call->v_map);
}

} // namespace

bool wb_hopper_attention_back_takes(const wb_device *dev, const wb_attention *args) {
    const bool aligned = reinterpret_cast<uintptr_t>(args->out.data) % 16 == 0;
    return reinterpret_cast<const wb_cuda_device *>(dev)->capability == 9 && args->head_dim <= 128 &&
           args->log_sums && args->out.data && args->out.dtype == WB_BF16 && aligned &&
           args->T * args->n_heads <= INT32_MAX / 2; /* pieces of work are counted */
}

wb_status wb_hopper_attention_back(wb_device *dev, const char *op, const wb_attention &args, wb_rows dout,
                                   wb_rows dq, wb_rows dk, wb_rows dv, float *dsinks) {
    wb_attention_back call = {};
    char *scratch = NULL;
    call.args = args, call.dout = dout, call.dq = dq, call.dk = dk, call.dv = dv;
    WB_TRY(wb_cuda_use(dev, op));
    WB_TRY(make_maps(&call));
    WB_TRY(reserve_scratch(dev, wb_cuda_attention_backward_bytes(args.T, args.n_heads), &scratch));
    call.items = reinterpret_cast<wb_back_item *>(scratch);
    call.log2_sums = reinterpret_cast<float *>(call.items + args.T);
    call.dots = call.log2_sums + args.T * args.n_heads;
    call.begins = reinterpret_cast<int32_t *>(call.dots + args.T * args.n_heads);
    call.ends = call.begins + args.T;
    call.n_items = call.ends + args.T;
    WB_TRY(wb_hopper_attention_back_prepare(dev, op, call));
    if (dsinks) WB_TRY(wb_hopper_attention_back_sinks(dev, op, call, dsinks));
    WB_TRY(wb_hopper_attention_back_queries(dev, op, call));
    return wb_hopper_attention_back_keys(dev, op, call);
}
