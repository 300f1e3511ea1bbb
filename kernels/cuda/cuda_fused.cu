/* cuda_fused.cu - ops that make several steps of a row at once: the residual sum with the norm behind it, and
 * what lies between the projections of attention and attention itself.
 *
 * A block a row, which lies in shared memory between the steps. Bits are those of the ops that make one step
 * each (cuda_rows.cu, cuda_elements.cu): a sum lies over the 16 lanes of a half warp, and what these ops
 * write to bf16 memory between two steps is rounded here at the same place. Refuses: steps that look at
 * several rows. */
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "fused_check.h"
#include "norm_rules.h"

namespace {

/* As if it had been written to memory of `dtype` and read again. */
__device__ __forceinline__ float rounded(wb_dtype dtype, float value) {
    return dtype == WB_F32 ? value : wb_bf16_to_f32(wb_f32_to_bf16(value));
}

/* 1 / the root mean square of each of n adjacent parts of `row`, which is in shared memory, into inverse[n].
 * A half warp a part; those without one repeat the last, so that every lane takes part in the exchanges. */
__device__ void find_inverses(const float *row, int n, int width, float eps, float *inverse) {
    const int halves = BLOCK / WB_LANES, half = threadIdx.x / WB_LANES, lane = threadIdx.x % WB_LANES;
    for (int first = 0; first < n; first += halves) {
        const int part = min(first + half, n - 1);
        const float *x = row + part * width;
        float sum = 0.0f;
#pragma unroll 8
        for (int i = lane; i < width; i += WB_LANES) sum = wb_fma(x[i], x[i], sum);
        const float mean = wb_div(fold_lanes(sum), static_cast<float>(width));
        if (lane == 0 && first + half < n) inverse[part] = wb_div(1.0f, wb_sqrt(wb_add(mean, eps)));
    }
    __syncthreads();
}

__global__ void __launch_bounds__(BLOCK)
    add_rmsnorm_rows(int width, wb_rows x, wb_rows y, wb_norm norm, wb_rows normed) {
    extern __shared__ float row[];
    float *inverse = row + width;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * width;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        row[i] = rounded(y.dtype, wb_add(load_element(y, first + i), load_element(x, first + i)));
        store_element(y, first + i, row[i]);
    }
    __syncthreads();
    find_inverses(row, 1, width, norm.eps, inverse);
    for (int i = threadIdx.x; i < width; i += BLOCK)
        store_element(normed, first + i, wb_mul(wb_mul(row[i], inverse[0]), wb_norm_factor(norm, i)));
}

/* ---- q, k and v ------------------------------------------------------------------------------ */

/* What q, k or v of a token goes through. */
struct heads {
    wb_rows x; /* [T, n * head_dim] */
    int n;
    wb_norm norm; /* w NULL: none */
    bool rotates;
    wb_rows cache; /* data NULL: none */
};

struct prepare_args {
    heads parts[3];
    int head_dim, half;
    bool norm_whole;
    float clip;
    const int32_t *pos;
    const float *cos_table, *sin_table;
    const int64_t *rows;
};

/* row[n * head_dim] of shared memory: normed and clamped. */
__device__ void norm_and_clamp(const prepare_args &args, const heads &part, float *row, float *inverse) {
    const int width = part.n * args.head_dim, of_norm = args.norm_whole ? width : args.head_dim;
    if (part.norm.w) find_inverses(row, width / of_norm, of_norm, part.norm.eps, inverse);
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float value = row[i];
        if (part.norm.w)
            value = rounded(part.x.dtype, wb_mul(wb_mul(value, inverse[i / of_norm]),
                                                 wb_norm_factor(part.norm, i % of_norm)));
        if (args.clip > 0) {
            const float above = value < -args.clip ? -args.clip : value;
            value = rounded(part.x.dtype, above > args.clip ? args.clip : above);
        }
        row[i] = value;
    }
    __syncthreads();
}

__device__ void rotate_heads(const prepare_args &args, const heads &part, int64_t t, float *row) {
    const int64_t angle = args.pos[t] * static_cast<int64_t>(args.half);
    for (int pair = threadIdx.x; pair < part.n * args.half; pair += BLOCK) {
        const int i = pair % args.half, low = pair / args.half * args.head_dim + i, high = low + args.half;
        const float c = args.cos_table[angle + i], sine = args.sin_table[angle + i];
        const float a = row[low], b = row[high];
        row[low] = wb_fma(a, c, -wb_mul(b, sine));
        row[high] = wb_fma(b, c, wb_mul(a, sine));
    }
    __syncthreads();
}

/* Attention may look where its keys lie and ask for those of earlier tokens (wb_attention.one_a_sequence). */
__device__ __forceinline__ void let_attention_begin() {
#if __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

/* Block (t, i): part i of token t. */
__global__ void __launch_bounds__(BLOCK) prepare_rows(prepare_args args) {
    extern __shared__ float row[];
    const heads part = args.parts[blockIdx.y];
    const int width = part.n * args.head_dim;
    const int64_t t = blockIdx.x, first = t * width;
    let_attention_begin();
    for (int i = threadIdx.x; i < width; i += BLOCK) row[i] = load_element(part.x, first + i);
    __syncthreads();
    if (part.norm.w || args.clip > 0) norm_and_clamp(args, part, row, row + width);
    if (part.rotates && args.half > 0) rotate_heads(args, part, t, row);
    const int64_t at = part.cache.data ? args.rows[t] : -1;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        store_element(part.x, first + i, row[i]);
        if (at >= 0) store_element(part.cache, at * width + i, row[i]);
    }
}

/* Shared memory of a block: `floats` of them. */
wb_status allow_floats(const char *op, const void *kernel, int64_t floats, size_t *bytes_out) {
    const size_t without_asking = 48 << 10;
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
    if (bytes > without_asking)
        WB_TRY(wb_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(bytes)),
                             op));
    *bytes_out = bytes;
    return WB_OK;
}

prepare_args args_of(const wb_attention_inputs &a) {
    const wb_rows none = {};
    const wb_norm no_norm = {};
    const bool writes = a.rows != NULL;
    return {{{a.q, a.n_heads, a.q_norm, true, none},
             {a.k, a.n_kv_heads, a.k_norm, true, writes ? a.k_cache : none},
             {a.v, a.n_kv_heads, no_norm, false, writes ? a.v_cache : none}},
            a.head_dim,
            a.rot_dim / 2,
            a.norm_whole,
            a.clip,
            a.pos,
            a.cos_table,
            a.sin_table,
            a.rows};
}

} // namespace

extern "C" {

wb_status wb_cuda_add_rmsnorm(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows y, wb_norm norm,
                              wb_rows normed) {
    const char *op = "add_rmsnorm";
    unsigned blocks = 0;
    size_t bytes = 0;
    WB_TRY(operand_check(op, "x", x.dtype));
    WB_TRY(operand_check_like(op, "y", y.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "normed", normed.dtype, "x", x.dtype));
    WB_TRY(prepare_launch(dev, op, n, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    WB_TRY(allow_floats(op, reinterpret_cast<const void *>(add_rmsnorm_rows), width + 1, &bytes));
    add_rmsnorm_rows<<<blocks, BLOCK, bytes, stream_of(dev)>>>(static_cast<int>(width), x, y, norm, normed);
    return wb_cuda_check(cudaGetLastError(), op);
}

wb_status wb_cuda_attention_prepare(wb_device *dev, const wb_attention_inputs *args) {
    const char *op = "attention_prepare";
    const int64_t heads = args->n_heads > args->n_kv_heads ? args->n_heads : args->n_kv_heads;
    unsigned blocks = 0;
    size_t bytes = 0;
    WB_TRY(fused_check_inputs(args));
    WB_TRY(prepare_launch(dev, op, args->T, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    WB_TRY(
        allow_floats(op, reinterpret_cast<const void *>(prepare_rows), heads * (args->head_dim + 1), &bytes));
    prepare_rows<<<dim3(blocks, 3), BLOCK, bytes, stream_of(dev)>>>(args_of(*args));
    return wb_cuda_check(cudaGetLastError(), op);
}
}
