/* cuda_sample_draw.h - a row's sums over its parts (sample_rules.h), and drawing from all its tokens, for the
 * kernels of cuda_sample.cu.
 *
 * Owns: the description of a call, what a part's block leaves, and the inverse of the cumulative distribution
 * in the order of ids. Sums in f64 are made by one thread, in the CPU's order. Refuses: top-k and top-p
 * (cuda_sample_top.h). */
#ifndef WB_CUDA_SAMPLE_DRAW_H
#define WB_CUDA_SAMPLE_DRAW_H

#include "cuda/cuda_softmax_row.h"

namespace {

/* What atomics take. */
typedef unsigned long long counter;

/* A call; arrays are device. */
struct draw_call {
    int64_t V, n_parts, room; /* room: V rounded up to a power of two */
    const float *logits;
    const wb_sample_params *params;
    const int64_t *start; /* NULL: no kept tokens are told */
    uint32_t *kept_ids;
    int32_t *kept_counts, *tokens;
    float *logprobs;
    counter *bad; /* the first row that is no distribution */
    /* [B][n_parts]: the largest z / temperature of a part (of a greedy row: z), NaN where a logit is none;
     * the sum of exp(z / temperature - that); the first token that is the largest, of a greedy row; the sum
     * for drawing, scaled, and of those before it */
    float *largest, *sum;
    int32_t *first;
    double *mass;
    float *sums;      /* [B][n_parts][DRAW_BLOCKS] of the exponentials */
    uint64_t *orders; /* [MAX_TOP_ROWS][room] of rows of a launch */
};

/* A row that is drawn from by a block. */
struct draw {
    const float *z; /* [V] */
    wb_sample_params params;
    int64_t V, n_parts;
    float top; /* the largest z / temperature */
    const float *largest, *sums;
    double *mass;
};

__host__ __device__ inline bool has_limit(const wb_sample_params &params, int64_t V) {
    return params.temperature != 0.0f && ((params.top_k > 0 && params.top_k < V) || params.top_p < 1.0f);
}

__device__ __forceinline__ draw make_draw(const draw_call &call, int64_t b, float top) {
    const int64_t at = b * call.n_parts;
    const draw d = {
        call.logits + b * call.V,     call.params[b], call.V, call.n_parts, top, call.largest + at,
        call.sums + at * DRAW_BLOCKS, call.mass + at};
    return d;
}

/* Where a row's kept tokens are told; NULL: they are not wanted. */
__device__ __forceinline__ uint32_t *room_of(const draw_call &call, int64_t b) {
    if (!call.start || call.start[b + 1] == call.start[b]) return NULL;
    return call.kept_ids + call.start[b];
}

__device__ __forceinline__ float scale_of(const draw &d, int64_t part) {
    return wb_expf(wb_sub(d.largest[part], d.top));
}

__device__ __forceinline__ float scaled_logit(const draw &d, int64_t id) {
    return wb_div(d.z[id], d.params.temperature);
}

__device__ __forceinline__ float drawn_logprob(const draw &d, int64_t id, float sum) {
    return wb_sub(wb_sub(scaled_logit(d, id), d.top), wb_logf(sum));
}

/* mass (=) the running sum over parts, by the whole block; returns the last one. */
__device__ double sum_masses(const draw &d) {
    enum { AT_ONCE = 8 };
    for (int64_t part = threadIdx.x; part < d.n_parts; part += BLOCK) {
        double mass = 0.0;
#pragma unroll
        for (int b = 0; b < DRAW_BLOCKS; b++)
            mass = __dadd_rn(mass, static_cast<double>(d.sums[part * DRAW_BLOCKS + b]));
        d.mass[part] = __dmul_rn(mass, static_cast<double>(scale_of(d, part)));
    }
    __syncthreads();
    double below = 0.0;
    for (int64_t first = 0; first < d.n_parts && threadIdx.x == 0; first += AT_ONCE) {
        double mass[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) mass[i] = first + i < d.n_parts ? d.mass[first + i] : 0.0;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            below = __dadd_rn(below, mass[i]);
            if (first + i < d.n_parts) d.mass[first + i] = below;
        }
    }
    __syncthreads();
    return d.mass[d.n_parts - 1];
}

/* The part where the running sum passes uniform * total, in all threads. */
__device__ int64_t draw_part(const draw &d, double target) {
    __shared__ int64_t drawn;
    for (int64_t part = threadIdx.x; part < d.n_parts; part += BLOCK)
        if (d.mass[part] > target && (part == 0 || d.mass[part - 1] <= target)) drawn = part;
    __syncthreads();
    return drawn;
}

/* One thread: the block of a part where the running sum passes `target`, or its last one with p > 0;
 * *below_out: the sum before it. */
__device__ int64_t draw_block(const draw &d, int64_t part, double target, double *below_out) {
    double below = 0.0;
    int drawn = 0;
    *below_out = 0.0;
    for (int b = 0; b < DRAW_BLOCKS; b++) {
        const float sum = d.sums[part * DRAW_BLOCKS + b];
        if (sum > 0.0f) drawn = b, *below_out = below;
        below = __dadd_rn(below, static_cast<double>(sum));
        if (below > target) break;
    }
    return part * DRAW_BLOCKS + drawn;
}

/* The token that is drawn from all, in the first thread. */
__device__ int64_t draw_in_id_order(const draw &d, double total) {
    __shared__ float p[DRAW_BLOCK];
    __shared__ int64_t shared_block;
    const double wanted = __dmul_rn(static_cast<double>(d.params.uniform), total);
    const int64_t part = draw_part(d, wanted);
    const double before = part > 0 ? d.mass[part - 1] : 0.0;
    const double target = __ddiv_rn(__dsub_rn(wanted, before), static_cast<double>(scale_of(d, part)));
    double below = 0.0;
    if (threadIdx.x == 0) shared_block = draw_block(d, part, target, &below);
    __syncthreads();
    const int64_t begin = shared_block * DRAW_BLOCK, mine = begin + threadIdx.x;
    if (threadIdx.x < DRAW_BLOCK)
        p[threadIdx.x] =
            mine < d.V ? wb_expf(wb_sub(scaled_logit(d, mine), softmax_origin(d.largest[part]))) : 0.0f;
    __syncthreads();
    int64_t last = begin;
#pragma unroll 8
    for (int i = 0; i < DRAW_BLOCK && threadIdx.x == 0; i++) {
        below = __dadd_rn(below, static_cast<double>(p[i]));
        if (p[i] > 0.0f) last = begin + i;
        if (below > target) break;
    }
    return last;
}

/* From all tokens: a limit that keeps them all is told like any other. */
__device__ void sample_all(const draw_call &call, int64_t b, const draw &d, float sum) {
    uint32_t *ids = d.params.top_k > 0 ? room_of(call, b) : NULL; /* wb_sample_max_kept */
    const int64_t id = draw_in_id_order(d, sum_masses(d));
    for (int64_t i = threadIdx.x; i < d.V && ids; i += BLOCK) ids[i] = static_cast<uint32_t>(i);
    if (threadIdx.x > 0) return;
    call.tokens[b] = static_cast<int32_t>(id);
    call.logprobs[b] = drawn_logprob(d, id, sum);
    if (ids) call.kept_counts[b] = static_cast<int32_t>(d.V);
}

} // namespace

#endif
