/* cuda_sample.cu - drawing tokens: temperature, top-k, top-p and the inverse of the cumulative distribution.
 *
 * A block a row. Sums are in f64 in the CPU's order, one thread taking the last steps, so that tokens, kept
 * sets and log-probabilities are the CPU's bits. Refuses: random numbers (the caller brings one for each
 * row). */
#include "cuda/cuda_fault.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"
#include "cuda/cuda_softmax_row.h"
#include "router_rules.h"
#include "sample_rules.h"

namespace {

/* Rows of a launch: they share out the scratch. */
enum { MAX_ROWS = 64 };

/* What atomics take. */
typedef unsigned long long counter;

/* A call; arrays are device. */
struct draw_call {
    int64_t V, room; /* room: V rounded up to a power of two */
    const float *logits;
    const wb_sample_params *params;
    const int64_t *start; /* NULL: no kept tokens are told */
    uint32_t *kept_ids;
    int32_t *kept_counts, *tokens;
    float *logprobs;
    counter *bad; /* the first row that is no distribution */
    /* of a row of a launch */
    uint64_t *orders; /* [MAX_ROWS][room] */
    double *sums;     /* [MAX_ROWS][V / DRAW_BLOCK + 1] */
    float *p;         /* [MAX_ROWS][V] exp(z / temperature - top) */
};

struct draw {
    int64_t V, room;
    const float *z;
    wb_sample_params params;
    float top; /* the largest z / temperature */
    uint64_t *orders;
    double *sums;
    float *p;
    int64_t n_sums;

    __device__ __forceinline__ float p_of(int64_t i) const { /* of the i-th in order */
        return p[wb_choice_order_id(orders[i])];
    }
};

__device__ __forceinline__ draw make_draw(const draw_call &call, int64_t b, float max) {
    draw d;
    d.V = call.V, d.room = call.room, d.params = call.params[b], d.z = call.logits + b * call.V;
    d.top = wb_div(max, d.params.temperature);
    d.n_sums = (d.V + DRAW_BLOCK - 1) / DRAW_BLOCK;
    d.orders = call.orders + static_cast<int64_t>(blockIdx.x) * call.room;
    d.sums = call.sums + static_cast<int64_t>(blockIdx.x) * (d.V / DRAW_BLOCK + 1);
    d.p = call.p + static_cast<int64_t>(blockIdx.x) * d.V;
    for (int64_t i = threadIdx.x; i < d.V; i += BLOCK)
        d.p[i] = wb_expf(wb_sub(wb_div(d.z[i], d.params.temperature), d.top));
    __syncthreads();
    const int lane = threadIdx.x % WB_LANES;
    for (int64_t first = 0; first < d.n_sums; first += BLOCK / WB_LANES) {
        const int64_t block = first + threadIdx.x / WB_LANES, begin = block * DRAW_BLOCK;
        float sum = 0.0f;
        for (int64_t i = begin + lane; i < min(begin + DRAW_BLOCK, d.V); i += WB_LANES)
            sum = wb_add(sum, d.p[i]);
        sum = fold_lanes(sum);
        if (block < d.n_sums && lane == 0) d.sums[block] = static_cast<double>(sum);
    }
    __syncthreads();
    return d;
}

__device__ double total_of(const draw &d) {
    double total = 0.0;
    for (int64_t b = 0; b < d.n_sums; b++) total = __dadd_rn(total, d.sums[b]);
    return total;
}

/* One thread: the block, then the token, where the running sum passes uniform * total; where rounding leaves
 * a remainder, the block's last token with p > 0. */
__device__ int64_t draw_in_id_order(const draw &d) {
    const double target = __dmul_rn(static_cast<double>(d.params.uniform), total_of(d));
    double below = 0.0;
    int64_t b = 0;
    while (__dadd_rn(below, d.sums[b]) <= target) below = __dadd_rn(below, d.sums[b++]); /* target < total */
    const int64_t end = min((b + 1) * DRAW_BLOCK, d.V);
    int64_t last = b * DRAW_BLOCK;
    for (int64_t i = b * DRAW_BLOCK; i < end; i++) {
        below = __dadd_rn(below, static_cast<double>(d.p[i]));
        if (d.p[i] > 0.0f) last = i;
        if (below > target) break;
    }
    return last;
}

/* ---- the largest ----------------------------------------------------------------------------- */

/* values[n], n a power of two, descending: a bitonic sort by the block. */
__device__ void sort_descending(uint64_t *values, int64_t n) {
    for (int64_t run = 2; run <= n; run *= 2)
        for (int64_t gap = run / 2; gap > 0; gap /= 2) {
            for (int64_t i = threadIdx.x; i < n / 2; i += BLOCK) {
                const int64_t low = 2 * gap * (i / gap) + i % gap, high = low + gap;
                const uint64_t a = values[low], b = values[high];
                if ((a < b) == ((low & run) == 0)) values[low] = b, values[high] = a;
            }
            __syncthreads();
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

/* Puts the orders of all tokens with z >= lowest into d.orders, in any order; how many, and the sum of their
 * p. */
__device__ int64_t gather_from(const draw &d, float lowest, double *sum_out) {
    __shared__ counter count;
    __shared__ double sums[BLOCK];
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < d.V; i += BLOCK) {
        if (!(d.z[i] >= lowest)) continue;
        d.orders[atomicAdd(&count, 1ull)] = wb_choice_order(wb_key_order(d.z[i]), static_cast<uint32_t>(i));
        sum += static_cast<double>(d.p[i]);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    *sum_out = 0.0;
    for (int i = 0; i < BLOCK; i++) *sum_out += sums[i];
    const int64_t n = static_cast<int64_t>(count);
    __syncthreads();
    return n;
}

/* The tokens in order at d.orders, at least those that are kept: all, or those within a factor exp(7) of the
 * largest where they are certainly enough for the top_k or for the top_p; how many. */
__device__ int64_t order_tokens(const draw &d, int64_t limit, double total) {
    double sum;
    const float lowest = wb_mul(wb_sub(d.top, 7.0f), d.params.temperature);
    int64_t n = gather_from(d, lowest, &sum);
    const bool enough = limit < d.V ? n >= limit : sum > d.params.top_p * total * (1.0 + 1e-9);
    if (!enough) n = gather_from(d, -INFINITY, &sum);
    sort_descending(d.orders, pad_orders(d.orders, n));
    return n;
}

/* One thread: how many of `size` ordered tokens are kept, those that reach top_p of the first `limit`, and
 * which one is drawn. */
__device__ int64_t draw_ordered(const draw &d, int64_t size, int64_t limit, double total, int64_t *n_out) {
    double kept = 0.0, sum = 0.0;
    if (limit < d.V) {
        total = 0.0;
        for (int64_t i = 0; i < limit; i++) total = __dadd_rn(total, static_cast<double>(d.p_of(i)));
        size = limit;
    }
    const double wanted = __dmul_rn(static_cast<double>(d.params.top_p), total);
    int64_t n = 0;
    for (; n < size && (n == 0 || kept < wanted); n++) kept = __dadd_rn(kept, static_cast<double>(d.p_of(n)));
    const double target = __dmul_rn(static_cast<double>(d.params.uniform), kept);
    int64_t last = wb_choice_order_id(d.orders[0]);
    for (int64_t i = 0; i < n; i++) {
        const float p = d.p_of(i);
        sum = __dadd_rn(sum, static_cast<double>(p));
        if (p > 0.0f) last = wb_choice_order_id(d.orders[i]);
        if (sum > target) break;
    }
    *n_out = n;
    return last;
}

/* ---- one row --------------------------------------------------------------------------------- */

/* Where a row's kept tokens are told; NULL: they are not wanted. */
__device__ __forceinline__ uint32_t *room_of(const draw_call &call, int64_t b) {
    if (!call.start || call.start[b + 1] == call.start[b]) return NULL;
    return call.kept_ids + call.start[b];
}

__device__ void sample_greedily(const draw_call &call, int64_t b, float max) {
    __shared__ counter first;
    if (threadIdx.x == 0) first = call.V;
    __syncthreads();
    const float *z = call.logits + b * call.V;
    for (int64_t i = threadIdx.x; i < call.V; i += BLOCK)
        if (z[i] == max) {
            atomicMin(&first, static_cast<counter>(i));
            break;
        }
    __syncthreads();
    if (threadIdx.x > 0) return;
    call.tokens[b] = static_cast<int32_t>(first);
    call.logprobs[b] = 0.0f;
    uint32_t *ids = room_of(call, b);
    if (ids) ids[0] = static_cast<uint32_t>(first), call.kept_counts[b] = 1;
}

/* The ids of the first n orders, ascending: d.orders (=) their complements, which descend. */
__device__ void order_ids(const draw &d, int64_t n) {
    for (int64_t i = threadIdx.x; i < n; i += BLOCK)
        d.orders[i] = ~static_cast<uint64_t>(wb_choice_order_id(d.orders[i]));
    __syncthreads();
    sort_descending(d.orders, pad_orders(d.orders, n));
}

__device__ __forceinline__ int64_t ordered_id(const draw &d, int64_t i) {
    return static_cast<int64_t>(~d.orders[i]);
}

__device__ __forceinline__ float drawn_logprob(const draw &d, int64_t id, float sum) {
    return wb_sub(wb_sub(wb_div(d.z[id], d.params.temperature), d.top), wb_logf(sum));
}

/* From all tokens: a limit that keeps them all is told like any other. */
__device__ void sample_all(const draw_call &call, int64_t b, const draw &d, float *chunk) {
    const float sum = block_lanes_sum(d.V, chunk, [&](int64_t i) { return d.p[i]; });
    uint32_t *ids = d.params.top_k > 0 ? room_of(call, b) : NULL; /* wb_sample_max_kept */
    for (int64_t i = threadIdx.x; i < d.V && ids; i += BLOCK) ids[i] = static_cast<uint32_t>(i);
    if (threadIdx.x > 0) return;
    const int64_t id = draw_in_id_order(d);
    call.tokens[b] = static_cast<int32_t>(id);
    call.logprobs[b] = drawn_logprob(d, id, sum);
    if (ids) call.kept_counts[b] = static_cast<int32_t>(d.V);
}

__device__ void sample_from_top(const draw_call &call, int64_t b, const draw &d, float *chunk) {
    __shared__ int64_t drawn, kept;
    const int64_t limit = d.params.top_k > 0 && d.params.top_k < d.V ? d.params.top_k : d.V;
    const double total = total_of(d);
    const int64_t size = order_tokens(d, limit, total);
    if (threadIdx.x == 0) drawn = draw_ordered(d, size, limit, total, &kept);
    __syncthreads();
    const int64_t n = kept;
    order_ids(d, n);
    const float sum = block_lanes_sum(n, chunk, [&](int64_t i) { return d.p[ordered_id(d, i)]; });
    uint32_t *ids = room_of(call, b);
    for (int64_t i = threadIdx.x; i < n && ids; i += BLOCK) ids[i] = static_cast<uint32_t>(ordered_id(d, i));
    if (threadIdx.x > 0) return;
    call.tokens[b] = static_cast<int32_t>(drawn);
    call.logprobs[b] = drawn_logprob(d, drawn, sum);
    if (ids) call.kept_counts[b] = static_cast<int32_t>(n);
}

/* No NaN, and a largest logit that is finite: otherwise there is no distribution. */
__device__ bool is_usable(int64_t V, const float *z, float max) {
    bool bad = !(max > -INFINITY);
    for (int64_t i = threadIdx.x; i < V; i += BLOCK) bad = bad || !(z[i] < INFINITY);
    return !__syncthreads_or(bad);
}

__global__ void __launch_bounds__(BLOCK) sample_rows(draw_call call, int64_t first) {
    __shared__ float chunk[CHUNK];
    const int64_t b = first + blockIdx.x;
    const float *z = call.logits + b * call.V;
    const wb_sample_params params = call.params[b];
    if (call.start && threadIdx.x == 0) call.kept_counts[b] = 0;
    const float max = block_max(call.V, [&](int64_t i) { return z[i]; });
    if (!is_usable(call.V, z, max)) {
        if (threadIdx.x == 0) {
            atomicMin(call.bad, static_cast<counter>(b));
            call.tokens[b] = -1;
        }
        return;
    }
    if (params.temperature == 0.0f) {
        sample_greedily(call, b, max);
        return;
    }
    const draw d = make_draw(call, b, max);
    if ((params.top_k == 0 || params.top_k >= call.V) && params.top_p >= 1.0f)
        sample_all(call, b, d, chunk);
    else
        sample_from_top(call, b, d, chunk);
}

/* Of all rows, so that it is the first one that is told. */
__global__ void report_bad(const counter *bad, counter B, wb_fault *word) {
    wb_fault fault = {};
    if (*bad >= B) return;
    fault.kind = WB_FAULT_LOGITS;
    fault.op = WB_OP_sample;
    fault.row = static_cast<int64_t>(*bad);
    set_fault(word, fault);
}

/* ---- a call ---------------------------------------------------------------------------------- */

draw_call call_of(int64_t V) {
    draw_call call = {};
    call.V = V, call.room = 1;
    while (call.room < V) call.room *= 2;
    return call;
}

/* Places `bytes` of scratch at *at, which moves on. */
char *place(char **at, size_t bytes) {
    char *here = *at;
    *at += (bytes + 15) / 16 * 16;
    return here;
}

/* Fills the arrays of `call` from `memory` on; NULL: returns only how many bytes they take. */
size_t lay_out(draw_call *call, int64_t B, char *memory) {
    char *at = memory;
    const int64_t V = call->V;
    call->bad = (counter *)place(&at, sizeof *call->bad);
    call->params = (const wb_sample_params *)place(&at, (size_t)B * sizeof *call->params);
    call->start = (const int64_t *)place(&at, ((size_t)B + 1) * sizeof *call->start);
    call->orders = (uint64_t *)place(&at, (size_t)(MAX_ROWS * call->room) * sizeof *call->orders);
    call->sums = (double *)place(&at, (size_t)(MAX_ROWS * (V / DRAW_BLOCK + 1)) * sizeof *call->sums);
    call->p = (float *)place(&at, (size_t)(MAX_ROWS * V) * sizeof *call->p);
    return (size_t)(at - memory);
}

wb_status launch_rows(wb_device *dev, int64_t B, const draw_call &call) {
    for (int64_t first = 0; first < B; first += MAX_ROWS) {
        const int64_t left = B - first, rows = left < MAX_ROWS ? left : (int64_t)MAX_ROWS;
        sample_rows<<<static_cast<unsigned>(rows), BLOCK, 0, stream_of(dev)>>>(call, first);
    }
    return wb_cuda_check(cudaGetLastError(), "sample");
}

} // namespace

extern "C" {

size_t wb_cuda_sample_bytes(int64_t B, int64_t V) {
    draw_call call = call_of(V);
    return lay_out(&call, B, NULL);
}

wb_status wb_cuda_sample(wb_device *dev, int64_t B, int64_t V, const float *logits,
                         const wb_sample_params *params, const wb_sample_kept *kept, int32_t *tokens,
                         float *logprobs) {
    draw_call call = {};
    void *memory = NULL;
    counter bad = (counter)B;
    WB_TRY(wb_sample_check(B, V, params, kept));
    if (B == 0) return WB_OK;
    call = call_of(V);
    call.logits = logits, call.tokens = tokens, call.logprobs = logprobs;
    WB_TRY(wb_cuda_use(dev, "sample"));
    WB_TRY(wb_cuda_scratch_reserve(dev, lay_out(&call, B, NULL), &memory));
    lay_out(&call, B, (char *)memory);
    WB_TRY(dev->to_device(dev, call.bad, &bad, sizeof bad));
    WB_TRY(dev->to_device(dev, (void *)call.params, params, (size_t)B * sizeof *params));
    if (kept) {
        WB_TRY(dev->to_device(dev, (void *)call.start, kept->start, ((size_t)B + 1) * sizeof *kept->start));
        call.kept_ids = kept->ids, call.kept_counts = kept->counts;
    } else {
        call.start = NULL;
    }
    WB_TRY(launch_rows(dev, B, call));
    report_bad<<<1, 1, 0, stream_of(dev)>>>(call.bad, bad, fault_of(dev));
    return wb_cuda_check(cudaGetLastError(), "sample");
}
}
