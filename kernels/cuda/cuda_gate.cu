/* cuda_gate.cu - the weights of given ids on CUDA, and their backward.
 *
 * Owns: the kernels of gate_forward and gate_backward and their launches. Refuses: the gate of a row
 * (cuda_gate_row.h); shapes are the caller's promise.
 */
#include "cuda/cuda_device.h"
#include "cuda/cuda_gate_row.h"
#include "cuda/cuda_ops.h"

#include <cuda_runtime.h>

namespace {

enum { MAX_CHOICES = 64, MAX_GATE_LANES = 16 };

/* ---- all types but SOFTMAX --------------------------------------------------------- */

template <int N>
__global__ void __launch_bounds__(BLOCK) gate_forward_chosen(gate_args args, float *weights) {
    gate_place place = find_place(args);
    uint32_t id[N];
    float z[N], w[N];
    load_choices<N>(args, place, id, z);
    gate_choices<N>(args.router, args.lanes, z, w);
    store_weights<N>(args, place, w, weights);
}

/* Writes zeros to the rows of this warp, which are adjacent. */
__device__ __forceinline__ void zero_rows(const gate_args &args, float *dlogits) {
    int lane = threadIdx.x % WARP, rows = WARP / args.lanes;
    int64_t first = (static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x - lane) / args.lanes;
    if (first >= args.T) return;
    float *to = dlogits + first * args.router.n_experts;
    int64_t left = args.T - first;
    int32_t count = args.router.n_experts * static_cast<int32_t>(left < rows ? left : rows);
    int32_t done = 0;
    if (reinterpret_cast<uintptr_t>(to) % sizeof(float4) == 0) {
        done = count / 4 * 4;
#pragma unroll 4
        for (int32_t i = lane * 4; i < done; i += WARP * 4)
            *reinterpret_cast<float4 *>(to + i) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    for (int32_t i = done + lane; i < count; i += WARP) to[i] = 0.0f;
}

template <int N>
__global__ void __launch_bounds__(BLOCK)
    gate_backward_chosen(gate_args args, const float *dweights, float *dlogits) {
    gate_place place = find_place(args);
    uint32_t id[N];
    float z[N], g[N], dz[N], total[N];
    load_choices<N>(args, place, id, z);
    load_weights<N>(args, place, dweights, g);
    zero_rows(args, dlogits);
    gate_choices_backward<N>(args.router, args.lanes, z, g, dz);
#pragma unroll
    for (int n = 0; n < N; n++) total[n] = 0.0f;
    store_choices<N>(args, place, id, dz, total, dlogits,
                     [](float sum, float more, int) { return wb_add(sum, more); });
}

/* ---- SOFTMAX ---------------------------------------------------------------------------------- */

template <int N, int M>
__global__ void __launch_bounds__(BLOCK) gate_forward_dense(gate_args args, float *weights) {
    gate_place place = find_place(args);
    dense_row<M> row = load_row<M>(args, place);
    uint32_t id[N];
    float z[N], w[N];
    load_choices<N>(args, place, id, z);
#pragma unroll
    for (int n = 0; n < N; n++) w[n] = wb_mul(args.router.scale, wb_gate_dense_p(z[n], row.largest, row.sum));
    store_weights<N>(args, place, w, weights);
}

template <int N, int M>
__global__ void __launch_bounds__(BLOCK)
    gate_backward_dense(gate_args args, const float *dweights, float *dlogits) {
    gate_place place = find_place(args);
    uint32_t id[N];
    float z[N], g[N], p[N], total[N];
    float c = args.router.scale;
    load_choices<N>(args, place, id, z);
    load_weights<N>(args, place, dweights, g);
    dense_row<M> row = load_row<M>(args, place);
#pragma unroll
    for (int n = 0; n < N; n++) p[n] = wb_gate_dense_p(z[n], row.largest, row.sum);
    float dot = dot_choices<N>(args.router.top_k, args.lanes, g, p);
#pragma unroll
    for (int n = 0; n < N; n++) total[n] = wb_gate_dense_dz(p[n], c, dot);
    float *dz_row = dlogits + place.t * args.router.n_experts;
    if (place.live && place.padding) row.store_zeros(dz_row);
    if (place.live && !place.padding) row.store_unchosen(c, dot, dz_row);
    store_choices<N>(args, place, id, g, total, dlogits, [&](float dz, float g_choice, int n) {
        return wb_gate_dense_dz_chosen(dz, p[n], c, g_choice);
    });
}

/* ---- launches --------------------------------------------------------------------------------- */

/* Fills `args_out` and the grid, or says what is wrong. */
wb_status prepare_gate(wb_device *dev, wb_op op, const wb_router *router, int64_t T, const float *logits,
                       const uint8_t *direction, wb_ids ids, gate_args *args_out, unsigned *blocks_out) {
    WB_TRY(wb_router_check(router));
    WB_TRY(check_ids(wb_op_name(op), "ids", ids, router));
    int lanes = MAX_GATE_LANES;
    if (router->type != WB_ROUTER_SOFTMAX && router->top_k < lanes) lanes = power_of_2_from(router->top_k);
    WB_TRY(count_blocks(wb_op_name(op), "T", T, lanes, blocks_out));
    gate_args args = {*router, T, logits, direction, ids, lanes, fault_of(dev), op};
    *args_out = args;
    return WB_OK;
}

template <int N>
void launch_forward(const gate_args &args, float *weights, unsigned blocks, cudaStream_t stream) {
    int32_t E = args.router.n_experts;
    if (args.router.type != WB_ROUTER_SOFTMAX)
        gate_forward_chosen<N><<<blocks, BLOCK, 0, stream>>>(args, weights);
    else if (E <= 8 * WB_LANES)
        gate_forward_dense<N, 8><<<blocks, BLOCK, 0, stream>>>(args, weights);
    else if (E <= 16 * WB_LANES)
        gate_forward_dense<N, 16><<<blocks, BLOCK, 0, stream>>>(args, weights);
    else
        gate_forward_dense<N, 0><<<blocks, BLOCK, 0, stream>>>(args, weights);
}

template <int N>
void launch_backward(const gate_args &args, const float *dweights, float *dlogits, unsigned blocks,
                     cudaStream_t stream) {
    int32_t E = args.router.n_experts;
    if (args.router.type != WB_ROUTER_SOFTMAX)
        gate_backward_chosen<N><<<blocks, BLOCK, 0, stream>>>(args, dweights, dlogits);
    else if (E <= 8 * WB_LANES)
        gate_backward_dense<N, 8><<<blocks, BLOCK, 0, stream>>>(args, dweights, dlogits);
    else if (E <= 16 * WB_LANES)
        gate_backward_dense<N, 16><<<blocks, BLOCK, 0, stream>>>(args, dweights, dlogits);
    else
        gate_backward_dense<N, 0><<<blocks, BLOCK, 0, stream>>>(args, dweights, dlogits);
}

} // namespace

extern "C" {

wb_status wb_cuda_gate_forward(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                               const uint8_t *direction, wb_ids ids, float *weights) {
    gate_args args;
    unsigned blocks = 0;
    WB_TRY(prepare_gate(dev, WB_OP_gate_forward, router, T, logits, direction, ids, &args, &blocks));
    if (T == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "gate_forward"));
    cudaStream_t stream = static_cast<cudaStream_t>(dev->stream);
    if (router->top_k <= MAX_GATE_LANES)
        launch_forward<1>(args, weights, blocks, stream);
    else
        launch_forward<MAX_CHOICES / MAX_GATE_LANES>(args, weights, blocks, stream);
    return wb_cuda_check(cudaGetLastError(), "gate_forward");
}

wb_status wb_cuda_gate_backward(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                const uint8_t *direction, wb_ids ids, const float *dweights, float *dlogits) {
    gate_args args;
    unsigned blocks = 0;
    WB_TRY(prepare_gate(dev, WB_OP_gate_backward, router, T, logits, direction, ids, &args, &blocks));
    if (T == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "gate_backward"));
    cudaStream_t stream = static_cast<cudaStream_t>(dev->stream);
    if (router->top_k <= MAX_GATE_LANES)
        launch_backward<1>(args, dweights, dlogits, blocks, stream);
    else
        launch_backward<MAX_CHOICES / MAX_GATE_LANES>(args, dweights, dlogits, blocks, stream);
    return wb_cuda_check(cudaGetLastError(), "gate_backward");
}
}
