/* cuda_attention.cu - the forward of attention: which kernels a call has, and those of f32 and of heads for
 * which there are no tensor cores (cuda_attention.h). Refuses: writing the cache (kv_write). */
#include "cuda/cuda_attention.h"
#include "cuda/cuda_attention_bf16.h"
#include "cuda/cuda_attention_latent.h"
#include "cuda/cuda_ops.h"
#include "cuda/hopper/hopper_attention.h"

namespace {

__global__ void __launch_bounds__(STEP) attend(wb_attention args, wb_rows out) {
    __shared__ float q[MAX_DIM], p[STEP], inverse;
    __shared__ int64_t key[STEP];
    const query a = find_query(args);
    const int64_t to = a.row * args.value_dim;
    const int j = threadIdx.x;
    float sum = 0.0f, value[MAX_DIM / STEP] = {};
    if (a.keys == 0) {
        for (int d = threadIdx.x; d < args.value_dim; d += STEP) store_element(out, to + d, 0.0f);
        return;
    }
    load_head(args.q, a.row * args.head_dim, args.head_dim, args.scale, q);
    __syncthreads();
    const float max = largest_score(args, a, q);
    for (int64_t j0 = first_step(a); j0 < a.keys; j0 += STEP) {
        const key_step step = step_from(a, j0);
        p[j] = 0.0f;
        if (sees(step)) {
            key[j] = key_head(args, a.t, j0 + j, a.kv);
            p[j] = wb_expf(wb_sub(score_of(args, q, key[j]), max));
        }
        __syncthreads();
        add_lanes(p, step, sum);
        add_values(args.v, attention_value_step(&args), args.value_dim, p, key, step, value);
        __syncthreads();
    }
    if (threadIdx.x < WARP) sum = fold_lanes(sum);
    if (threadIdx.x == 0 && args.sinks) sum = wb_add(sum, sink_weight(args, a.head, max));
    if (threadIdx.x == 0) inverse = wb_div(1.0f, sum);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d < args.value_dim) store_element(out, to + d, wb_mul(value[i], inverse));
    }
}

} // namespace

extern "C" {

wb_status wb_cuda_attention_forward(wb_device *dev, const wb_attention *args, wb_rows out) {
    const char *op = "attention_forward";
    unsigned blocks = 0;
    WB_TRY(attention_check(op, args));
    WB_TRY(check_widths(op, args));
    WB_TRY(operand_check_like(op, "out", out.dtype, "q", args->q.dtype));
    WB_TRY(prepare_launch(dev, op, args->T * args->n_heads, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    if (wb_hopper_attention_takes(dev, args, out)) return wb_hopper_attention_forward(dev, args, out);
    if (wb_cuda_attention_bf16_takes(args, out)) return wb_cuda_attention_bf16_forward(dev, args, out);
    if (wb_cuda_attention_latent_takes(dev, args, out))
        return wb_cuda_attention_latent_forward(dev, args, out);
    attend<<<blocks, STEP, 0, stream_of(dev)>>>(*args, out);
    return wb_cuda_check(cudaGetLastError(), op);
}
}
