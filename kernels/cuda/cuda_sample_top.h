/* cuda_sample_top.h - drawing from the tokens that top-k and top-p keep, for the kernels of cuda_sample.cu.
 *
 * Tokens that may be kept are gathered and sorted; one thread adds up their probabilities in the CPU's order.
 * Refuses: rows without a limit (cuda_sample_draw.h). */
#ifndef WB_CUDA_SAMPLE_TOP_H
#define WB_CUDA_SAMPLE_TOP_H

#include "cuda/cuda_sample_draw.h"
#include "router_rules.h"

namespace {

/* Orders that shared memory holds; bins of tokens by their distance from the largest. */
enum { SHARED_ORDERS = 4096, BINS = 1024 };

/* A step of a bitonic sort by the block, of values[n] that are those from `begin` on of all. */
__device__ __forceinline__ void sort_step(uint64_t *values, int64_t n, int64_t begin, int64_t run,
                                          int64_t gap) {
    for (int64_t i = threadIdx.x; i < n / 2; i += BLOCK) {
        const int64_t low = i / gap * gap + i, high = low + gap;
        const uint64_t a = values[low], b = values[high];
        if ((a < b) == (((begin + low) & run) == 0)) values[low] = b, values[high] = a;
    }
    __syncthreads();
}

/* The steps from (first_run, gaps below SHARED_ORDERS) to last_run, in shared memory, a part of values[n]
 * after the other. */
__device__ void sort_parts(uint64_t *values, int64_t n, int64_t first_run, int64_t last_run,
                           uint64_t *shared) {
    for (int64_t begin = 0; begin < n; begin += SHARED_ORDERS) {
        for (int i = threadIdx.x; i < SHARED_ORDERS; i += BLOCK) shared[i] = values[begin + i];
        __syncthreads();
        for (int64_t run = first_run; run <= last_run; run *= 2)
            for (int64_t gap = min(run, static_cast<int64_t>(SHARED_ORDERS)) / 2; gap > 0; gap /= 2)
                sort_step(shared, SHARED_ORDERS, begin, run, gap);
        for (int i = threadIdx.x; i < SHARED_ORDERS; i += BLOCK) values[begin + i] = shared[i];
        __syncthreads();
    }
}

/* values[n], n a power of two, descending. shared: [SHARED_ORDERS], or values, which then are no more. */
__device__ void sort_descending(uint64_t *values, int64_t n, uint64_t *shared) {
    const int64_t part = min(n, static_cast<int64_t>(SHARED_ORDERS));
    if (values == shared) {
        for (int64_t run = 2; run <= n; run *= 2)
            for (int64_t gap = run / 2; gap > 0; gap /= 2) sort_step(values, n, 0, run, gap);
        return;
    }
    sort_parts(values, n, 2, part, shared);
    for (int64_t run = 2 * part; run <= n; run *= 2) {
        for (int64_t gap = run / 2; gap >= part; gap /= 2) sort_step(values, n, 0, run, gap);
        sort_parts(values, n, run, run, shared);
    }
}

/* Zeros, which come last in order, up to a power of two; returns that. */
__device__ int64_t pad_orders(uint64_t *values, int64_t n) {
    int64_t room = 1;
    while (room < n) room *= 2;
    for (int64_t i = n + threadIdx.x; i < room; i += BLOCK) values[i] = 0;
    __syncthreads();
    return room;
}

/* exp(z / temperature - top) of a token. */
__device__ __forceinline__ float p_of(const draw &d, int64_t id) {
    return wb_expf(wb_sub(scaled_logit(d, id), d.top));
}

/* Puts the orders of all tokens with z >= lowest into orders, in any order; how many, and the sum of their
 * p. */
__device__ int64_t gather_from(const draw &d, float lowest, uint64_t *orders, double *sum_out) {
    __shared__ counter count;
    __shared__ double sums[BLOCK];
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    double sum = 0.0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < d.V; i += BLOCK) {
        const float z = d.z[i];
        if (!(z >= lowest)) continue;
        orders[atomicAdd(&count, 1ull)] = wb_choice_order(wb_key_order(z), static_cast<uint32_t>(i));
        sum += static_cast<double>(p_of(d, i));
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    *sum_out = 0.0;
    for (int i = 0; i < BLOCK; i++) *sum_out += sums[i];
    const int64_t n = static_cast<int64_t>(count);
    __syncthreads();
    return n;
}

/* A logit from which on there should be enough tokens for the top_k, or for the top_p by the least that their
 * bins say of them; -inf where there are none. */
__device__ float find_lowest(const draw &d, int64_t limit, double total) {
    __shared__ int32_t counts[BINS];
    __shared__ float lowest;
    const float width = 20.0f / BINS, scale = 1.0f / (width * d.params.temperature);
    const float largest = d.top * d.params.temperature;
    for (int bin = threadIdx.x; bin < BINS; bin += BLOCK) counts[bin] = 0;
    __syncthreads();
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < d.V; i += BLOCK) {
        const float bin = fmaxf((largest - d.z[i]) * scale, 0.0f);
        if (bin < BINS) atomicAdd(&counts[static_cast<int>(bin)], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const double wanted = d.params.top_p * total * (1.0 + 1e-6), factor = wb_expf(-width);
        double p = factor, sum = 0.0;
        int64_t n = 0;
        int bin = 0;
        for (; bin < BINS && (limit < d.V ? n < limit : sum <= wanted); bin++, p *= factor)
            n += counts[bin], sum += p * counts[bin];
        const bool enough = limit < d.V ? n >= limit : sum > wanted;
        lowest =
            enough ? (d.top - (static_cast<float>(bin) + 0.01f) * width) * d.params.temperature : -INFINITY;
    }
    __syncthreads();
    return lowest;
}

/* The tokens in order, at least those that are kept: all, or from a logit on where they are certainly enough
 * for the top_k or for the top_p; how many. *orders: where they are gathered, and then where they lie: there
 * or, few, in `shared`, [SHARED_ORDERS]. */
__device__ int64_t order_tokens(const draw &d, int64_t limit, double total, uint64_t *shared,
                                uint64_t **orders) {
    double sum;
    int64_t n = gather_from(d, find_lowest(d, limit, total), *orders, &sum);
    const bool enough = limit < d.V ? n >= limit : sum > d.params.top_p * total * (1.0 + 1e-9);
    if (!enough) n = gather_from(d, -INFINITY, *orders, &sum);
    if (n <= SHARED_ORDERS) {
        for (int64_t i = threadIdx.x; i < n; i += BLOCK) shared[i] = (*orders)[i];
        *orders = shared;
        __syncthreads();
    }
    sort_descending(*orders, pad_orders(*orders, n), shared);
    return n;
}

/* The upper half of each order, whose work is done, becomes its p. */
__device__ void put_probabilities(const draw &d, int64_t n, uint64_t *orders) {
    for (int64_t i = threadIdx.x; i < n; i += BLOCK) {
        const float p = p_of(d, wb_choice_order_id(orders[i]));
        orders[i] = static_cast<uint64_t>(wb_float_bits(p)) << 32 | (orders[i] & 0xffffffffu);
    }
    __syncthreads();
}

__device__ __forceinline__ double probability(const uint64_t *orders, int64_t i) {
    return static_cast<double>(wb_bits_float(static_cast<uint32_t>(orders[i] >> 32)));
}

/* Calls each(i, p) of the ordered tokens until it is false; how many were true before. Reads several at a
 * time, since a thread alone would wait for each. */
template <typename F> __device__ __forceinline__ int64_t walk(const uint64_t *orders, int64_t size, F each) {
    enum { AT_ONCE = 8 };
    for (int64_t first = 0; first < size; first += AT_ONCE) {
        double p[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) p[i] = first + i < size ? probability(orders, first + i) : 0.0;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + i >= size || !each(first + i, p[i])) return first + i;
    }
    return size;
}

/* One thread: how many of `size` ordered tokens are kept, those that reach top_p of the first `limit`, and
 * which one is drawn. */
__device__ int64_t draw_ordered(const draw &d, int64_t size, int64_t limit, double total,
                                const uint64_t *orders, int64_t *n_out) {
    double kept = 0.0, sum = 0.0;
    if (limit < d.V) {
        total = 0.0;
        walk(orders, limit, [&](int64_t, double p) {
            total = __dadd_rn(total, p);
            return true;
        });
        size = limit;
    }
    const double wanted = __dmul_rn(static_cast<double>(d.params.top_p), total);
    *n_out = walk(orders, size, [&](int64_t i, double p) {
        if (i > 0 && kept >= wanted) return false;
        kept = __dadd_rn(kept, p);
        return true;
    });
    const double target = __dmul_rn(static_cast<double>(d.params.uniform), kept);
    int64_t last = 0;
    walk(orders, *n_out, [&](int64_t i, double p) {
        sum = __dadd_rn(sum, p);
        if (p > 0.0) last = i;
        return sum <= target;
    });
    return wb_choice_order_id(orders[last]);
}

/* The ids of the first n orders, ascending: orders (=) their complements, which descend. */
__device__ void order_ids(int64_t n, uint64_t *orders, uint64_t *shared) {
    for (int64_t i = threadIdx.x; i < n; i += BLOCK)
        orders[i] = ~static_cast<uint64_t>(wb_choice_order_id(orders[i]));
    __syncthreads();
    sort_descending(orders, pad_orders(orders, n), shared);
}

__device__ __forceinline__ int64_t ordered_id(const uint64_t *orders, int64_t i) {
    return static_cast<int64_t>(~orders[i]);
}

/* The sum of the exponentials of n kept tokens in the order of their ids, in the first thread: as of a row
 * that has no others. */
__device__ float kept_sum(const draw &d, int64_t n, const uint64_t *orders) {
    __shared__ __align__(16) float chunk[SOFTMAX_PART];
    float sum = 0.0f;
    for (int64_t begin = 0; begin < n; begin += SOFTMAX_PART) {
        const int count = static_cast<int>(min(n - begin, static_cast<int64_t>(SOFTMAX_PART)));
        float x[OF_THREAD];
#pragma unroll
        for (int i = 0; i < OF_THREAD; i++)
            x[i] = place_of(i) < count ? scaled_logit(d, ordered_id(orders, begin + place_of(i))) : -INFINITY;
        const float largest = block_largest(x);
        store_exponentials(x, largest, chunk);
        if (threadIdx.x >= WARP) continue;
        const float part = wb_mul(chunk_sum(chunk, count), wb_expf(wb_sub(largest, d.top)));
        if (threadIdx.x == begin / SOFTMAX_PART % WB_LANES) sum = wb_add(sum, part);
    }
    return fold_lanes(sum);
}

__device__ void sample_from_top(const draw_call &call, int64_t b, const draw &d, uint64_t *orders) {
    __shared__ uint64_t shared[SHARED_ORDERS];
    __shared__ int64_t drawn, kept;
    const int64_t limit = d.params.top_k > 0 && d.params.top_k < d.V ? d.params.top_k : d.V;
    const double total = sum_masses(d);
    const int64_t size = order_tokens(d, limit, total, shared, &orders);
    put_probabilities(d, size, orders);
    if (threadIdx.x == 0) drawn = draw_ordered(d, size, limit, total, orders, &kept);
    __syncthreads();
    const int64_t n = kept;
    order_ids(n, orders, shared);
    const float sum = kept_sum(d, n, orders);
    uint32_t *ids = room_of(call, b);
    for (int64_t i = threadIdx.x; i < n && ids; i += BLOCK)
        ids[i] = static_cast<uint32_t>(ordered_id(orders, i));
    if (threadIdx.x > 0) return;
    call.tokens[b] = static_cast<int32_t>(drawn);
    call.logprobs[b] = drawn_logprob(d, drawn, sum);
    if (ids) call.kept_counts[b] = static_cast<int32_t>(n);
}

} // namespace

#endif
