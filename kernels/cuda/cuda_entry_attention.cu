/* cuda_entry_attention.cu - the forward of attention whose heads share one row, over a window and over
 * compressed entries (cuda_entries.h). Refuses: gradients (cuda_entry_attention_back.cu). */
#include "cuda/cuda_entries.h"
#include "cuda/cuda_ops.h"

namespace {

__global__ void __launch_bounds__(STEP) attend_to_entries(wb_entry_attention args, wb_rows out) {
    __shared__ float q[MAX_DIM], p[STEP], inverse;
    __shared__ int64_t place[STEP];
    const int64_t t = blockIdx.x / args.raw.n_heads, head = blockIdx.x % args.raw.n_heads;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * args.raw.head_dim;
    const int j = threadIdx.x;
    float sum = 0.0f, value[MAX_DIM / STEP] = {};
    if (args.raw.seq[t] < 0) {
        for (int d = threadIdx.x; d < args.raw.head_dim; d += STEP) store_element(out, row + d, 0.0f);
        return;
    }
    const entry_list keys = find_list(args, t);
    load_head(args.raw.q, row, args.raw.head_dim, args.raw.scale, q);
    __syncthreads();
    const float max = largest_of_list(args, keys, head, q);
    for (int64_t j0 = 0; j0 < key_count(keys); j0 += STEP) {
        const key_step step = list_step(keys, j0);
        p[j] = 0.0f;
        if (sees(step)) {
            place[j] = place_of_key(args, keys, j0 + j);
            p[j] = wb_expf(wb_sub(dot_key(args, keys, j0 + j, q), max));
        }
        __syncthreads();
        add_lanes(p, step, sum);
        add_keys(args, keys, p, place, step, value);
        __syncthreads();
    }
    if (threadIdx.x < WARP) sum = fold_lanes(sum);
    if (threadIdx.x == 0 && args.raw.sinks) sum = wb_add(sum, sink_weight(args.raw, head, max));
    if (threadIdx.x == 0) inverse = wb_div(1.0f, sum);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.raw.head_dim) store_element(out, row + d, wb_mul(value[i], inverse));
    }
}

} // namespace

extern "C" {

wb_status wb_cuda_entry_attention_forward(wb_device *dev, const wb_entry_attention *args, wb_rows out) {
    const char *op = "entry_attention_forward";
    unsigned blocks = 0;
    WB_TRY(entry_attention_check(op, args));
    WB_TRY(check_widths(op, &args->raw));
    WB_TRY(operand_check_like(op, "out", out.dtype, "q", args->raw.q.dtype));
    WB_TRY(prepare_launch(dev, op, args->raw.T * args->raw.n_heads, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    WB_TRY(launch_checks(dev, op, WB_OP_entry_attention_forward, args));
    attend_to_entries<<<blocks, STEP, 0, stream_of(dev)>>>(*args, out);
    return wb_cuda_check(cudaGetLastError(), op);
}
}
