/* cuda_hyper.cu - hyper-connections: a block a token for its weights and their gradients, of which S * S
 * threads have an element of the mixing matrix each; a thread a column where streams are mixed.
 *
 * Sums over H lie over the 16 lanes of a half warp, in the CPU's order; the weights' rules are those of
 * hyper_rules.h. Refuses: the products of the streams with fn (cuda_matmul.cu). */
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "hyper_check.h"
#include "hyper_rules.h"

namespace {

enum { MATRIX = WB_MAX_STREAMS * WB_MAX_STREAMS, MOST_WEIGHTS = MATRIX + 2 * WB_MAX_STREAMS, SCALES = 3 };
static_assert(static_cast<int>(MOST_WEIGHTS) <= BLOCK, "a thread a weight");

/* <n elements of a from i on, those of b from j on>, by the 16 lanes of a half warp, both of whose warp's
 * come. */
__device__ __forceinline__ float dot_lanes(const wb_rows &a, int64_t i, const wb_rows &b, int64_t j,
                                           int64_t n) {
    float sum = 0.0f;
#pragma unroll 4
    for (int64_t k = threadIdx.x % WB_LANES; k < n; k += WB_LANES)
        sum = wb_fma(load_element(a, i + k), load_element(b, j + k), sum);
    return fold_lanes(sum);
}

/* One divided by the root of the mean square of this block's token, in all threads. */
__device__ __forceinline__ float find_scale(const wb_hyper &args) {
    __shared__ float scale;
    const int64_t row = args.n_streams * args.H, at = blockIdx.x * row;
    if (threadIdx.x < WARP) { /* both halves make the same sum */
        const float mean = wb_div(dot_lanes(args.x, at, args.x, at, row), static_cast<float>(row));
        if (threadIdx.x == 0) scale = wb_div(1.0f, wb_sqrt(wb_add(mean, args.norm_eps)));
    }
    __syncthreads();
    return scale;
}

/* z[M] (shared) of this block's token. */
__device__ __forceinline__ void find_logits(const wb_hyper &args, int M, float r, float *z) {
    const int c = threadIdx.x;
    if (c < M)
        z[c] = hyper_logit(args.products[static_cast<int64_t>(blockIdx.x) * M + c], r,
                           args.scale[hyper_kind(args.n_streams, c)], args.base[c]);
    __syncthreads();
}

/* ---- what a part reads ------------------------------------------------------------------------- */

__global__ void __launch_bounds__(BLOCK) read_streams(wb_hyper args, int M, wb_rows in, float *weights) {
    __shared__ float z[MOST_WEIGHTS], C[MATRIX], pre[WB_MAX_STREAMS];
    const int S = args.n_streams, e = threadIdx.x;
    const int64_t t = blockIdx.x, x = t * S * args.H;
    float *to = weights + t * M;
    find_logits(args, M, find_scale(args), z);
    if (e < S) to[e] = pre[e] = hyper_pre(z[e], args.eps);
    if (args.iterations > 0) {
        if (e < S) to[S + e] = hyper_post(z[S + e]);
        if (e < S * S) C[e] = wb_add(hyper_softmax(z + 2 * S, S, e / S, e % S), args.eps);
        __syncthreads();
        for (int step = 0; step < hyper_steps(args.iterations); step++) {
            float divided = 0.0f;
            if (e < S * S) divided = wb_div(C[e], hyper_divisor(C, S, step, e / S, e % S, args.eps));
            __syncthreads();
            if (e < S * S) C[e] = divided;
            __syncthreads();
        }
        if (e < S * S) to[2 * S + e] = C[e];
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < args.H; i += BLOCK) {
        float sum = 0.0f;
        for (int n = 0; n < S; n++) sum = wb_fma(pre[n], load_element(args.x, x + n * args.H + i), sum);
        store_element(in, t * args.H + i, sum);
    }
}

/* dz[S * S] from dC, both shared: the steps again and then backwards. `steps`: shared, what each step made
 * and what it divided by, 2 S * S floats a step. */
__device__ __forceinline__ void mix_backward(const wb_hyper &args, const float *z, const float *dC,
                                             float *steps, float *dz) {
    __shared__ float softmax[MATRIX], first[MATRIX], d[MATRIX];
    const int S = args.n_streams, n = S * S, e = threadIdx.x, last = hyper_steps(args.iterations) - 1;
    if (e < n) {
        softmax[e] = hyper_softmax(z, S, e / S, e % S);
        first[e] = wb_add(softmax[e], args.eps);
        d[e] = dC[e];
    }
    __syncthreads();
    for (int step = 0; step <= last; step++) {
        const float *C = step == 0 ? first : steps + (step - 1) * 2 * n;
        float *divided = steps + step * 2 * n, *divisors = divided + n;
        if (e < n) {
            divisors[e] = hyper_divisor(C, S, step, e / S, e % S, args.eps);
            divided[e] = wb_div(C[e], divisors[e]);
        }
        __syncthreads();
    }
    for (int step = last; step >= 0; step--) {
        const float *divided = steps + step * 2 * n, *divisors = divided + n;
        float before = 0.0f;
        if (e < n) before = hyper_step_gradient(divided, d, S, step, e / S, e % S, divisors[e]);
        __syncthreads();
        if (e < n) d[e] = before;
        __syncthreads();
    }
    if (e < n) dz[e] = hyper_softmax_gradient(softmax, d, S, e / S, e % S);
}

/* dz[M] (shared) of this block's token from dpre[S] and dweights[M], both shared. */
__device__ __forceinline__ void logits_backward(const wb_hyper &args, const float *z, const float *dpre,
                                                const float *dweights, float *steps, float *dz) {
    const int S = args.n_streams, e = threadIdx.x;
    if (e < S) dz[e] = hyper_sigmoid_gradient(z[e], 1.0f, dpre[e]);
    if (args.iterations > 0) {
        if (e < S) dz[S + e] = hyper_sigmoid_gradient(z[S + e], 2.0f, dweights[S + e]);
        mix_backward(args, z + 2 * S, dweights + 2 * S, steps, dz + 2 * S);
    }
    __syncthreads();
}

/* terms: [T, M + SCALES] what a token adds to the gradients of base and scale. */
__global__ void __launch_bounds__(BLOCK)
    read_streams_back(wb_hyper args, int M, wb_rows din, const float *dweights, wb_rows dx, float *dproducts,
                      float *terms) {
    extern __shared__ float steps[];
    __shared__ float z[MOST_WEIGHTS], dz[MOST_WEIGHTS], d[MOST_WEIGHTS], dpre[WB_MAX_STREAMS], shrink;
    const int S = args.n_streams, c = threadIdx.x, half = threadIdx.x / WB_LANES;
    const int64_t t = blockIdx.x, row = S * args.H, x = t * row;
    const float *products = args.products + t * M;
    const float r = find_scale(args);
    find_logits(args, M, r, z);
    /* a half warp a stream; those beyond the last repeat it */
    const int stream = half < S ? half : S - 1;
    const float dot = dot_lanes(din, t * args.H, args.x, x + stream * args.H, args.H);
    if (half < S && threadIdx.x % WB_LANES == 0) dpre[half] = dot;
    /* before dproducts, which may be dweights */
    if (args.iterations > 0 && c < M) d[c] = dweights[t * M + c];
    __syncthreads();
    logits_backward(args, z, dpre, d, steps, dz);
    if (c < SCALES) {
        float sum = 0.0f;
        for (int i = 0; i < M; i++)
            if (hyper_kind(S, i) == c) sum = wb_fma(dz[i], wb_mul(products[i], r), sum);
        terms[t * (M + SCALES) + M + c] = sum;
    }
    if (c < M) {
        terms[t * (M + SCALES) + c] = dz[c];
        dproducts[t * M + c] = wb_mul(wb_mul(dz[c], args.scale[hyper_kind(S, c)]), r);
    }
    if (c == 0) {
        float dr = 0.0f;
        for (int i = 0; i < M; i++) dr = wb_fma(wb_mul(dz[i], args.scale[hyper_kind(S, i)]), products[i], dr);
        shrink = wb_div(wb_mul(wb_mul(wb_mul(r, r), r), dr), static_cast<float>(row));
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < row; i += BLOCK) {
        const float pre = hyper_pre(z[i / args.H], args.eps);
        const float sum = wb_fma(pre, load_element(din, t * args.H + i % args.H), load_element(dx, x + i));
        store_element(dx, x + i, wb_fma(-shrink, load_element(args.x, x + i), sum));
    }
}

/* A thread a column of terms, over ascending tokens. */
__global__ void __launch_bounds__(BLOCK)
    sum_terms(int64_t T, int M, int n_scales, const float *terms, float *dscale, float *dbase) {
    const int c = threadIdx.x;
    if (c >= M + n_scales) return;
    float *to = c < M ? dbase + c : dscale + c - M, sum = *to;
#pragma unroll 8
    for (int64_t t = 0; t < T; t++) sum = wb_add(sum, terms[t * (M + SCALES) + c]);
    *to = sum;
}

/* ---- and what it gives back -------------------------------------------------------------------- */

/* y may be x: a thread reads a column of all streams before it writes it. */
__global__ void __launch_bounds__(BLOCK)
    mix_streams(int64_t T, int S, int64_t H, const float *weights, wb_rows x, wb_rows out, wb_rows y) {
    const int64_t place = thread_number(), t = place / H, i = place % H, first = t * S * H + i;
    if (t >= T) return;
    const float *post = weights + t * (S * (S + 2)) + S, *C = post + S, from_out = load_element(out, place);
    float from[WB_MAX_STREAMS];
#pragma unroll
    for (int j = 0; j < WB_MAX_STREAMS; j++) from[j] = j < S ? load_element(x, first + j * H) : 0.0f;
    for (int k = 0; k < S; k++) {
        float sum = wb_mul(post[k], from_out);
#pragma unroll
        for (int j = 0; j < WB_MAX_STREAMS; j++)
            if (j < S) sum = wb_fma(C[j * S + k], from[j], sum);
        store_element(y, first + k * H, sum);
    }
}

/* A block a token, whose half warps have a weight each, one after the other; those beyond the last repeat
 * it. */
__global__ void __launch_bounds__(BLOCK)
    mix_weights_back(int S, int64_t H, wb_rows x, wb_rows out, wb_rows dy, float *dweights) {
    enum { HALVES = BLOCK / WB_LANES };
    const int n = S * (S + 1), half = threadIdx.x / WB_LANES;
    const int64_t t = blockIdx.x, row = t * S * H;
    float *to = dweights + t * (S * (S + 2));
    if (threadIdx.x < S) to[threadIdx.x] = 0.0f;
    for (int first = 0; first < n; first += HALVES) {
        const int weight = min(first + half, n - 1), j = weight / S - 1, k = weight % S;
        const float dot = dot_lanes(dy, row + k * H, j < 0 ? out : x, j < 0 ? t * H : row + j * H, H);
        if (first + half < n && threadIdx.x % WB_LANES == 0) to[S + weight] = dot;
    }
}

/* dx may be dy. */
__global__ void __launch_bounds__(BLOCK) mix_streams_back(int64_t T, int S, int64_t H, const float *weights,
                                                          wb_rows dy, wb_rows dout, wb_rows dx) {
    const int64_t place = thread_number(), t = place / H, i = place % H, first = t * S * H + i;
    if (t >= T) return;
    const float *post = weights + t * (S * (S + 2)) + S, *C = post + S;
    float d[WB_MAX_STREAMS], to_out = 0.0f;
#pragma unroll
    for (int k = 0; k < WB_MAX_STREAMS; k++) {
        d[k] = k < S ? load_element(dy, first + k * H) : 0.0f;
        if (k < S) to_out = wb_fma(post[k], d[k], to_out);
    }
    store_element(dout, place, to_out);
    for (int j = 0; j < S; j++) {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < WB_MAX_STREAMS; k++)
            if (k < S) sum = wb_fma(C[j * S + k], d[k], sum);
        store_element(dx, first + j * H, sum);
    }
}

/* Shared memory of a backward: what the steps made and divided by. */
size_t step_bytes(const wb_hyper *args) {
    if (args->iterations == 0) return 0;
    const int S = args->n_streams;
    return static_cast<size_t>(hyper_steps(args->iterations)) * 2 * S * S * sizeof(float);
}
static_assert((2 * WB_MAX_SINKHORN - 1) * 2 * MATRIX * sizeof(float) <= 40 << 10,
              "with what a block has besides, below the 48 KiB that it has without being asked for more");

} // namespace

extern "C" {

size_t wb_cuda_hyper_bytes(int64_t T, int32_t n_streams) {
    return static_cast<size_t>(T * (wb_hyper_width(n_streams, 1) + SCALES)) * sizeof(float);
}

wb_status wb_cuda_hyper_pre_forward(wb_device *dev, const wb_hyper *args, wb_rows in, float *weights) {
    WB_TRY(hyper_check("hyper_pre_forward", args, "in", in));
    const int M = static_cast<int>(wb_hyper_width(args->n_streams, args->iterations));
    LAUNCH(dev, "hyper_pre_forward", args->T, BLOCK, read_streams, *args, M, in, weights);
}

wb_status wb_cuda_hyper_pre_backward(wb_device *dev, const wb_hyper *args, wb_rows din, const float *dweights,
                                     wb_rows dx, float *dproducts, float *dscale, float *dbase) {
    const char *op = "hyper_pre_backward";
    float *terms = NULL;
    unsigned blocks = 0;
    WB_TRY(hyper_check(op, args, "din", din));
    WB_TRY(operand_check_like(op, "dx", dx.dtype, "x", args->x.dtype));
    const int M = static_cast<int>(wb_hyper_width(args->n_streams, args->iterations));
    WB_TRY(prepare_launch(dev, op, args->T, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    WB_TRY(reserve_scratch(dev, wb_cuda_hyper_bytes(args->T, args->n_streams), &terms));
    read_streams_back<<<blocks, BLOCK, step_bytes(args), stream_of(dev)>>>(*args, M, din, dweights, dx,
                                                                           dproducts, terms);
    sum_terms<<<1, BLOCK, 0, stream_of(dev)>>>(args->T, M, args->iterations > 0 ? SCALES : 1, terms, dscale,
                                               dbase);
    return wb_cuda_check(cudaGetLastError(), op);
}

wb_status wb_cuda_hyper_post_forward(wb_device *dev, int64_t T, int32_t S, int64_t H, const float *weights,
                                     wb_rows x, wb_rows out, wb_rows y) {
    const char *op = "hyper_post_forward";
    WB_TRY(hyper_check_streams(op, S));
    WB_TRY(operand_check(op, "x", x.dtype));
    WB_TRY(operand_check_like(op, "out", out.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "y", y.dtype, "x", x.dtype));
    LAUNCH(dev, op, T * H, 1, mix_streams, T, S, H, weights, x, out, y);
}

wb_status wb_cuda_hyper_post_backward(wb_device *dev, int64_t T, int32_t S, int64_t H, const float *weights,
                                      wb_rows x, wb_rows out, wb_rows dy, wb_rows dout, wb_rows dx,
                                      float *dweights) {
    const char *op = "hyper_post_backward";
    unsigned blocks = 0;
    WB_TRY(hyper_check_streams(op, S));
    WB_TRY(operand_check(op, "x", x.dtype));
    WB_TRY(operand_check_like(op, "out", out.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dy", dy.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dout", dout.dtype, "x", x.dtype));
    WB_TRY(operand_check_like(op, "dx", dx.dtype, "x", x.dtype));
    WB_TRY(prepare_launch(dev, op, T, BLOCK, &blocks));
    if (blocks == 0) return WB_OK;
    /* Before dx, which may be dy. */
    mix_weights_back<<<blocks, BLOCK, 0, stream_of(dev)>>>(S, H, x, out, dy, dweights);
    LAUNCH(dev, op, T * H, 1, mix_streams_back, T, S, H, weights, dy, dout, dx);
}
}
