/* cuda_rows.cu - ops on rows: embedding, RMSNorm, rotary embedding.
 *
 * A row's sum lies over the 16 lanes of a half warp, in the CPU's order; gradients of shared weights sum over
 * rows ascending, a thread a column, and of bf16 a thread a column of a part of the rows. Refuses: products
 * of matrices, routing, moving rows (cuda_move_rows.cu), ops on elements (cuda_elements.cu). */
#include "cuda/cuda_fault.h"
#include "cuda/cuda_norm.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/cuda_vector.h"
#include "rope_check.h"

namespace {

/* ---- embedding ------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(BLOCK)
    embed_rows(int64_t T, const int32_t *tokens, wb_weight table, wb_rows y, wb_fault *fault) {
    const int64_t i = thread_number(), t = i / table.cols;
    const wb_rows rows = {table.data, table.dtype};
    if (t >= T) return;
    const int32_t token = tokens[t];
    if (token >= 0 && token < table.rows)
        store_element(y, i, load_element(rows, token * table.cols + i % table.cols));
    else
        set_fault(fault,
                  {WB_FAULT_TOKEN, WB_OP_embed_forward, t, 0, static_cast<int32_t>(table.rows), token});
}

/* A block a token: that of a token's first place adds the rows of all of its places, ascending. */
__global__ void __launch_bounds__(BLOCK)
    embed_gradients(int64_t T, int64_t H, const int32_t *tokens, wb_rows dy, float *dtable) {
    const int64_t t = blockIdx.x;
    const int32_t token = tokens[t];
    bool before = false;
    for (int64_t u = threadIdx.x; u < t && !before; u += BLOCK) before = tokens[u] == token;
    if (__syncthreads_or(before)) return;
    __shared__ unsigned here[BLOCK / WARP];
    float *to = dtable + token * H;
    for (int64_t begin = t; begin < T; begin += BLOCK) {
        const int64_t u = begin + threadIdx.x;
        const unsigned found = __ballot_sync(ALL_LANES, u < T && tokens[u] == token);
        if (threadIdx.x % WARP == 0) here[threadIdx.x / WARP] = found;
        __syncthreads();
        for (int warp = 0; warp < BLOCK / WARP; warp++)
            for (unsigned left = here[warp]; left != 0; left &= left - 1) {
                const int64_t row = begin + warp * WARP + __ffs(static_cast<int>(left)) - 1;
                for (int64_t i = threadIdx.x; i < H; i += BLOCK)
                    to[i] = wb_add(to[i], load_element(dy, row * H + i));
            }
        __syncthreads();
    }
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(BLOCK)
    rmsnorm_rows(int64_t n, int64_t width, wb_rows x, wb_norm norm, wb_rows y) {
    const row_place place = find_row(n);
    const float r = inverse_rms(x, place.row, width, norm.eps, place.lane);
    if (!place.live) return;
    for (int64_t i = place.lane; i < width; i += WB_LANES) {
        const int64_t at = place.row * width + i;
        store_element(y, at, wb_mul(wb_mul(load_element(x, at), r), wb_norm_factor(norm, i)));
    }
}

/* A block a wide row, which lies in shared memory, so that the 16 lanes of its sum wait for no other. */
__global__ void __launch_bounds__(BLOCK)
    rmsnorm_wide_rows(int64_t width, wb_rows x, wb_norm norm, wb_rows y) {
    extern __shared__ float row[];
    __shared__ float inverse;
    const int64_t first = blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += BLOCK) row[i] = load_element(x, first + i);
    __syncthreads();
    if (threadIdx.x < WARP) { /* both halves make the same sum */
        float sum = 0.0f;
#pragma unroll 8
        for (int i = threadIdx.x % WB_LANES; i < width; i += WB_LANES) sum = wb_fma(row[i], row[i], sum);
        const float mean = wb_div(fold_lanes(sum), static_cast<float>(width));
        if (threadIdx.x == 0) inverse = wb_div(1.0f, wb_sqrt(wb_add(mean, norm.eps)));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += BLOCK)
        store_element(y, first + i, wb_mul(wb_mul(row[i], inverse), wb_norm_factor(norm, i)));
}

/* Rows for that kernel: what a block's shared memory holds without being asked for more. */
bool is_wide(int64_t width) {
    return width >= 256 && width <= 8192;
}

/* dw += sum over rows of dy x r, ascending */
__global__ void __launch_bounds__(BLOCK)
    rmsnorm_columns(int64_t n, int64_t width, wb_rows x, wb_rows dy, const float *r, float *dw) {
    const int64_t column = thread_number();
    if (column >= width) return;
    float sum = dw[column];
#pragma unroll 8
    for (int64_t row = 0; row < n; row++) {
        const int64_t at = row * width + column;
        sum = wb_fma(load_element(dy, at), wb_mul(load_element(x, at), r[row]), sum);
    }
    dw[column] = sum;
}

/* The sums over the rows of a part, ascending: of the first part from dw on, of the others from 0. Half a
 * million rows, as heads of a batch have, would be one chain of as many steps. */
__global__ void __launch_bounds__(BLOCK)
    rmsnorm_parts(int64_t n, int64_t width, const uint16_t *x, const uint16_t *dy, const float *r,
                  const float *dw, float *parts) {
    const int64_t place = thread_number(), part = place / width, column = place % width;
    const int64_t begin = part * NORM_PART, end = min(begin + NORM_PART, n);
    if (begin >= n) return;
    float sum = part == 0 ? dw[column] : 0.0f;
#pragma unroll 8
    for (int64_t row = begin; row < end; row++) {
        const int64_t at = row * width + column;
        sum = wb_fma(wb_bf16_to_f32(dy[at]), wb_mul(wb_bf16_to_f32(x[at]), r[row]), sum);
    }
    parts[place] = sum;
}

/* dx = r w dy - x r^3 <w dy, x> / width */
__global__ void __launch_bounds__(BLOCK) rmsnorm_gradients(int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                                           const float *scales, wb_rows dy, wb_rows dx) {
    const row_place place = find_row(n);
    const int64_t begin = place.row * width;
    const float r = scales[place.row];
    float sum = 0.0f;
    for (int64_t i = place.lane; i < width; i += WB_LANES)
        sum = wb_fma(wb_mul(wb_norm_factor(norm, i), load_element(dy, begin + i)), load_element(x, begin + i),
                     sum);
    sum = fold_lanes(sum);
    if (!place.live) return;
    const float shrink = wb_div(wb_mul(wb_mul(wb_mul(r, r), r), sum), static_cast<float>(width));
    for (int64_t i = place.lane; i < width; i += WB_LANES) {
        const float d = wb_mul(wb_mul(r, wb_norm_factor(norm, i)), load_element(dy, begin + i));
        store_element(dx, begin + i, wb_fma(-shrink, load_element(x, begin + i), d));
    }
}

/* ---- rotary embedding ------------------------------------------------------------------------ */

__global__ void __launch_bounds__(BLOCK) rotate_pairs(wb_rope args) {
    const int64_t half = args.rot_dim / 2, pair = thread_number(), head = pair / half,
                  t = head / args.n_heads;
    if (t >= args.T) return;
    const int64_t i = pair % half, angle = rope_position(&args, t) * half + i,
                  x = head * args.head_dim + args.first;
    const int64_t low = args.interleaved ? x + 2 * i : x + i, high = args.interleaved ? low + 1 : low + half;
    const float c = args.cos_table[angle], sine = wb_mul(args.inverse ? -1.0f : 1.0f, args.sin_table[angle]);
    const float a = load_element(args.x, low), b = load_element(args.x, high);
    store_element(args.x, low, wb_fma(a, c, -wb_mul(b, sine)));
    store_element(args.x, high, wb_fma(b, c, wb_mul(a, sine)));
}

/* Eight pairs a thread, of bf16, whose halves lie apart. */
__global__ void __launch_bounds__(BLOCK) rotate_eights(wb_rope args) {
    const int64_t half = args.rot_dim / 2, eights = half / 8, place = thread_number(), head = place / eights;
    const int64_t t = head / args.n_heads, i = place % eights * 8;
    if (t >= args.T) return;
    const int64_t angle = rope_position(&args, t) * half + i;
    const float sign = args.inverse ? -1.0f : 1.0f;
    uint16_t *const low = static_cast<uint16_t *>(args.x.data) + head * args.head_dim + args.first + i;
    float a[8], b[8], c[8], sine[8];
    widen_eight(load_eight(low), a);
    widen_eight(load_eight(low + half), b);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        c[k] = args.cos_table[angle + k], sine[k] = wb_mul(sign, args.sin_table[angle + k]);
        const float first = wb_fma(a[k], c[k], -wb_mul(b[k], sine[k]));
        b[k] = wb_fma(b[k], c[k], wb_mul(a[k], sine[k]));
        a[k] = first;
    }
    store_eight(low, a);
    store_eight(low + half, b);
}

} // namespace

extern "C" {

/* A scale a row, and of bf16 the sums of the parts. */
size_t wb_cuda_norm_backward_bytes(int64_t n, int64_t width) {
    return static_cast<size_t>(n + (n + NORM_PART - 1) / NORM_PART * width) * sizeof(float);
}

wb_status wb_cuda_embed_forward(wb_device *dev, int64_t T, const int32_t *tokens, wb_weight table,
                                wb_rows y) {
    WB_TRY(operand_check("embed_forward", "y", y.dtype));
    WB_TRY(operand_check("embed_forward", "table", table.dtype));
    LAUNCH(dev, "embed_forward", T * table.cols, 1, embed_rows, T, tokens, table, y, fault_of(dev));
}

wb_status wb_cuda_embed_backward(wb_device *dev, int64_t T, int64_t H, const int32_t *tokens, wb_rows dy,
                                 float *dtable) {
    WB_TRY(operand_check("embed_backward", "dy", dy.dtype));
    LAUNCH(dev, "embed_backward", T, BLOCK, embed_gradients, T, H, tokens, dy, dtable);
}

wb_status wb_cuda_rmsnorm_forward(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                  wb_rows y) {
    WB_TRY(operand_check("rmsnorm_forward", "x", x.dtype));
    WB_TRY(operand_check_like("rmsnorm_forward", "y", y.dtype, "x", x.dtype));
    if (!is_wide(width)) LAUNCH(dev, "rmsnorm_forward", n, WB_LANES, rmsnorm_rows, n, width, x, norm, y);
    unsigned blocks = 0;
    WB_TRY(prepare_launch(dev, "rmsnorm_forward", n, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    const size_t bytes = static_cast<size_t>(width) * sizeof(float);
    rmsnorm_wide_rows<<<blocks, BLOCK, bytes, stream_of(dev)>>>(width, x, norm, y);
    return wb_cuda_check(cudaGetLastError(), "rmsnorm_forward");
}

static wb_status launch_scales(wb_device *dev, int64_t n, int64_t width, wb_rows x, float eps, float *r) {
    LAUNCH(dev, "rmsnorm_backward", n, WB_LANES, rmsnorm_scales, n, width, x, eps, r);
}

static wb_status launch_columns(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows dy,
                                const float *r, float *dw) {
    LAUNCH(dev, "rmsnorm_backward", width, 1, rmsnorm_columns, n, width, x, dy, r, dw);
}

static wb_status launch_parts(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_rows dy, const float *r,
                              float *dw, float *parts) {
    const int64_t n_parts = (n + NORM_PART - 1) / NORM_PART;
    const uint16_t *from = static_cast<const uint16_t *>(x.data);
    const uint16_t *gradients = static_cast<const uint16_t *>(dy.data);
    unsigned blocks = 0;
    WB_TRY(prepare_launch(dev, "rmsnorm_backward", n_parts * width, 1, &blocks));
    if (blocks == 0) return WB_OK;
    rmsnorm_parts<<<blocks, BLOCK, 0, stream_of(dev)>>>(n, width, from, gradients, r, dw, parts);
    LAUNCH(dev, "rmsnorm_backward", width, 1, rmsnorm_sum_parts, n_parts, width, parts, dw);
}

wb_status wb_cuda_rmsnorm_backward(wb_device *dev, int64_t n, int64_t width, wb_rows x, wb_norm norm,
                                   wb_rows dy, wb_rows dx, float *dw) {
    float *r = NULL;
    WB_TRY(operand_check("rmsnorm_backward", "x", x.dtype));
    WB_TRY(operand_check_like("rmsnorm_backward", "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like("rmsnorm_backward", "dx", dx.dtype, "x", x.dtype));
    WB_TRY(reserve_scratch(dev, wb_cuda_norm_backward_bytes(n, width), &r));
    WB_TRY(launch_scales(dev, n, width, x, norm.eps, r));
    /* Before dx, which may be dy. */
    if (dw && x.dtype == WB_F32) WB_TRY(launch_columns(dev, n, width, x, dy, r, dw));
    if (dw && x.dtype == WB_BF16) WB_TRY(launch_parts(dev, n, width, x, dy, r, dw, r + n));
    LAUNCH(dev, "rmsnorm_backward", n, WB_LANES, rmsnorm_gradients, n, width, x, norm, r, dy, dx);
}

wb_status wb_cuda_rope(wb_device *dev, const wb_rope *args) {
    WB_TRY(rope_check(args));
    const int64_t half = args->rot_dim / 2, pairs = args->T * args->n_heads * half;
    if (half % 8 == 0 && args->first % 8 == 0 && !args->interleaved && in_eights(args->head_dim, args->x))
        LAUNCH(dev, "rope", pairs / 8, 1, rotate_eights, *args);
    LAUNCH(dev, "rope", pairs, 1, rotate_pairs, *args);
}
}
