/* router_cuda.cu - the router on CUDA: topk, gate_forward, gate_backward.
 *
 * Owns: the kernels and their launches. Refuses: rules. Order, ties, functions and the order of sums are
 * those of router_rules.h, so that ids, weights and dlogits are the CPU's bits; shapes are the caller's
 * promise.
 *
 * Shapes of the work: selection gives a warp to each row, a run of adjacent experts to each lane. The gate
 * gives a row a power of two of at most 16 lanes, slot j to lane j mod lanes, and sums over slots in
 * ascending order.
 */
#include "cuda_ops.h"
#include "router_rules.h"

#include <cuda_runtime.h>

extern "C" {
#include "wb_check.h"
}

namespace {

enum { WARP = 32, BLOCK = 256, MAX_SLOTS = 64, MAX_GATE_LANES = 16 };
const unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ uint32_t load_id(wb_ids ids, int64_t t, int32_t k) {
    int64_t at = t * ids.stride + k;
    return ids.dtype == WB_U8 ? static_cast<const uint8_t *>(ids.data)[at]
                              : static_cast<const uint16_t *>(ids.data)[at];
}

__device__ __forceinline__ void store_id(wb_ids ids, int64_t t, int32_t k, uint32_t id) {
    int64_t at = t * ids.stride + k;
    if (ids.dtype == WB_U8)
        static_cast<uint8_t *>(ids.data)[at] = static_cast<uint8_t>(id);
    else
        static_cast<uint16_t *>(ids.data)[at] = static_cast<uint16_t>(id);
}

/* ---- selection: a row in registers, E <= 1024 ------------------------------------------------ */

/* Reads the logits of experts lane * V .. lane * V + V - 1. `wide`: rows allow 16-byte (V = 2: 8-byte)
 * loads, and then a load lies in the row as a whole or not at all. Experts beyond E are left as they are. */
template <int V>
__device__ __forceinline__ void load_logits(const float *row, int32_t E, int lane, bool wide, float *z) {
    int32_t first = lane * V;
    if (V >= 4 && wide) {
#pragma unroll
        for (int i = 0; i < V; i += 4)
            if (first + i < E) {
                float4 four = *reinterpret_cast<const float4 *>(row + first + i);
                z[i] = four.x, z[i + 1] = four.y, z[i + 2] = four.z, z[i + 3] = four.w;
            }
    } else if (V == 2 && wide) {
        if (first < E) {
            float2 two = *reinterpret_cast<const float2 *>(row + first);
            z[0] = two.x, z[1] = two.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < V; i++)
            if (first + i < E) z[i] = row[first + i];
    }
}

/* Batcher's odd-even merge sort, largest first: the steps from (RUN, GAP) on. A template for each step,
 * since a loop over steps is not unrolled for large V, and then the ranks leave the registers. */
template <int V, int RUN = 1, int GAP = 1> __device__ __forceinline__ void sort_ranks(uint64_t *rank) {
    if constexpr (RUN < V) {
#pragma unroll
        for (int i = GAP % RUN; i + GAP < V; i++)
            if ((i - GAP % RUN) / GAP % 2 == 0 && i / (2 * RUN) == (i + GAP) / (2 * RUN)) {
                uint64_t a = rank[i], b = rank[i + GAP];
                rank[i] = a > b ? a : b;
                rank[i + GAP] = a > b ? b : a;
            }
        if constexpr (GAP > 1)
            sort_ranks<V, RUN, GAP / 2>(rank);
        else
            sort_ranks<V, 2 * RUN, 2 * RUN>(rank);
    }
}

/* Sets the ranks outside the row's topk_group best groups to 0. Needs groups that fill a power of two of
 * lanes. */
template <int V>
__device__ __forceinline__ void keep_best_groups(const wb_router &router, int lane, uint64_t *rank) {
    int32_t group_size = router.n_experts / router.n_group;
    int lanes = group_size / V;
    uint32_t first = 0, second = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        uint32_t order = static_cast<uint32_t>(rank[i] >> 32);
        second = max(second, min(first, order));
        first = max(first, order);
    }
    for (int step = 1; step < lanes; step *= 2) {
        uint32_t other_first = __shfl_xor_sync(ALL_LANES, first, step);
        uint32_t other_second = __shfl_xor_sync(ALL_LANES, second, step);
        second = max(min(first, other_first), max(second, other_second));
        first = max(first, other_first);
    }
    uint32_t order = wb_key_order(wb_router_group_score(router.type, first, second, group_size));
    uint32_t group = static_cast<uint32_t>(lane / lanes);
    uint64_t mine = wb_rank(order, group);
    int32_t better = 0;
    for (int32_t g = 0; g < router.n_group; g++) {
        uint32_t other = __shfl_sync(ALL_LANES, order, g * lanes);
        better += wb_rank(other, static_cast<uint32_t>(g)) > mine;
    }
#pragma unroll
    for (int i = 0; i < V; i++)
        if (better >= router.topk_group) rank[i] = 0;
}

/* One warp a row, V = experts a lane. A rank of 0 is no expert: an expert's rank ends in 32 bits that are
 * not 0. */
template <int V, bool SOFTMAX> __global__ void __launch_bounds__(BLOCK) topk_rows(wb_topk args, bool wide) {
    const wb_router &router = args.router;
    int32_t E = router.n_experts, K = router.top_k;
    int lane = threadIdx.x % WARP;
    int64_t t = static_cast<int64_t>(blockIdx.x) * (BLOCK / WARP) + threadIdx.x / WARP;
    if (t >= args.T) return;
    bool forced = args.forced && args.forced[t];
    if (forced && !args.native.data) return;

    float z[V];
    uint64_t rank[V];
    load_logits<V>(args.logits + t * E, E, lane, wide, z);
#pragma unroll
    for (int i = 0; i < V; i++) {
        int32_t e = lane * V + i;
        rank[i] = 0;
        if (e < E) {
            float bias = !SOFTMAX && args.bias ? args.bias[e] : 0.0f;
            float key = SOFTMAX ? z[i] : wb_router_key(router.type, z[i], bias);
            rank[i] = wb_rank(wb_key_order(key), static_cast<uint32_t>(e));
        }
    }
    if (router.n_group > 1) keep_best_groups<V>(router, lane, rank);
    sort_ranks<V>(rank);

    /* The lane with the largest first rank gives it away, K times. Lanes are in the order of their ids, so
     * that the lowest lane wins a tie of keys. */
    uint32_t chosen_low = 0, chosen_high = 0; /* lane k: slots k and 32 + k */
    for (int32_t k = 0; k < K; k++) {
        uint32_t order = static_cast<uint32_t>(rank[0] >> 32);
        uint32_t largest = __reduce_max_sync(ALL_LANES, order);
        int winner = __ffs(__ballot_sync(ALL_LANES, order == largest && rank[0] != 0)) - 1;
        uint32_t id = __shfl_sync(ALL_LANES, wb_rank_id(rank[0]), winner);
        if (k == lane) chosen_low = id;
        if (k == lane + WARP) chosen_high = id;
        if (lane == winner) {
#pragma unroll
            for (int i = 0; i + 1 < V; i++) rank[i] = rank[i + 1];
            rank[V - 1] = 0;
        }
    }
    for (int32_t k = lane; k < K; k += WARP) {
        uint32_t id = k < WARP ? chosen_low : chosen_high;
        if (!forced) store_id(args.ids, t, k, id);
        if (args.native.data) store_id(args.native, t, k, id);
    }
}

/* ---- selection: any E, any groups ------------------------------------------------------------ */

__device__ __forceinline__ uint64_t warp_max(uint64_t rank) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        uint64_t other = __shfl_xor_sync(ALL_LANES, rank, step);
        rank = other > rank ? other : rank;
    }
    return rank;
}

__device__ __forceinline__ uint64_t expert_rank(const wb_topk &args, const float *row, int32_t e) {
    float key = wb_router_key(args.router.type, row[e], args.bias ? args.bias[e] : 0.0f);
    return wb_rank(wb_key_order(key), static_cast<uint32_t>(e));
}

__device__ uint64_t group_rank(const wb_topk &args, const float *row, int32_t g, int32_t group_size) {
    uint32_t first = 0, second = 0;
    for (int32_t e = g * group_size; e < (g + 1) * group_size; e++) {
        uint32_t order = static_cast<uint32_t>(expert_rank(args, row, e) >> 32);
        second = max(second, min(first, order));
        first = max(first, order);
    }
    float score = wb_router_group_score(args.router.type, first, second, group_size);
    return wb_rank(wb_key_order(score), static_cast<uint32_t>(g));
}

/* One warp a row, which reads the row again for every slot: the largest rank below the last one. Lanes
 * take groups in turn; without groups, every expert is one. */
__global__ void __launch_bounds__(BLOCK) topk_any(wb_topk args) {
    const wb_router &router = args.router;
    int lane = threadIdx.x % WARP;
    int64_t t = static_cast<int64_t>(blockIdx.x) * (BLOCK / WARP) + threadIdx.x / WARP;
    if (t >= args.T) return;
    bool forced = args.forced && args.forced[t];
    if (forced && !args.native.data) return;
    const float *row = args.logits + t * router.n_experts;
    bool grouped = router.n_group > 1;
    int32_t groups = grouped ? router.n_group : router.n_experts;
    int32_t group_size = router.n_experts / groups;

    uint64_t last_group = UINT64_MAX; /* the rank of the worst group that is kept */
    for (int32_t i = 0; grouped && i < router.topk_group; i++) {
        uint64_t best = 0;
        for (int32_t g = lane; g < groups; g += WARP) {
            uint64_t rank = group_rank(args, row, g, group_size);
            if (rank < last_group && rank > best) best = rank;
        }
        last_group = warp_max(best);
    }
    uint64_t last = UINT64_MAX;
    for (int32_t k = 0; k < router.top_k; k++) {
        uint64_t best = 0;
        for (int32_t g = lane; g < groups; g += WARP) {
            if (grouped && group_rank(args, row, g, group_size) < last_group) continue;
            for (int32_t e = g * group_size; e < (g + 1) * group_size; e++) {
                uint64_t rank = expert_rank(args, row, e);
                if (rank < last && rank > best) best = rank;
            }
        }
        last = warp_max(best);
        if (lane > 0) continue;
        if (!forced) store_id(args.ids, t, k, wb_rank_id(last));
        if (args.native.data) store_id(args.native, t, k, wb_rank_id(last));
    }
}

/* HASH: one thread a slot. */
__global__ void __launch_bounds__(BLOCK) topk_table(wb_topk args) {
    int32_t K = args.router.top_k;
    int64_t at = static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x;
    if (at >= args.T * K) return;
    int64_t t = at / K;
    int32_t k = static_cast<int32_t>(at % K);
    uint32_t id = static_cast<uint32_t>(args.table[static_cast<int64_t>(args.tokens[t]) * K + k]);
    if (!(args.forced && args.forced[t])) store_id(args.ids, t, k, id);
    if (args.native.data) store_id(args.native, t, k, id);
}

/* ---- the gate: slots over lanes -------------------------------------------------------------- */

struct gate_args {
    wb_router router;
    int64_t T;
    const float *logits; /* [T, E] */
    wb_ids ids;
    int lanes; /* of a row: the power of two >= K, at most 16; SOFTMAX: 16, which its sum over experts needs */
};

/* The place of a thread: its row and the first of its slots. Rows beyond T repeat the last row and write
 * nothing, so that every lane of a warp takes part in the exchanges. */
struct gate_place {
    int64_t t;
    int slot; /* and slot + lanes, slot + 2 lanes, ... */
    bool live;
};

__device__ __forceinline__ gate_place find_place(const gate_args &args) {
    int64_t thread = static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x;
    int64_t t = thread / args.lanes;
    gate_place place = {t < args.T ? t : args.T - 1, static_cast<int>(threadIdx.x % args.lanes), t < args.T};
    return place;
}

/* Calls f(n, r) for every slot of the row ascending: it is value n of lane r. */
template <int N, typename F> __device__ __forceinline__ void for_slots(int32_t K, int lanes, F f) {
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int r = 0; r < lanes && n * lanes + r < K; r++) f(n, r);
}

template <int N> __device__ __forceinline__ float sum_slots(int32_t K, int lanes, const float *value) {
    float sum = 0.0f;
    for_slots<N>(K, lanes,
                 [&](int n, int r) { sum = wb_add(sum, __shfl_sync(ALL_LANES, value[n], r, lanes)); });
    return sum;
}

template <int N>
__device__ __forceinline__ float dot_slots(int32_t K, int lanes, const float *a, const float *b) {
    float dot = 0.0f;
    for_slots<N>(K, lanes, [&](int n, int r) {
        float a_r = __shfl_sync(ALL_LANES, a[n], r, lanes), b_r = __shfl_sync(ALL_LANES, b[n], r, lanes);
        dot = wb_fma(a_r, b_r, dot);
    });
    return dot;
}

/* The ids and logits of this lane's slots. A slot beyond K reads as the last one. The caller promises ids
 * below E; the logit of another is a NaN, so that a broken promise shows and touches no foreign memory. */
template <int N>
__device__ __forceinline__ void load_slots(const gate_args &args, const gate_place &place, uint32_t *id,
                                           float *z) {
    uint32_t E = static_cast<uint32_t>(args.router.n_experts);
    const float *row = args.logits + place.t * args.router.n_experts;
#pragma unroll
    for (int n = 0; n < N; n++)
        id[n] = load_id(args.ids, place.t, min(place.slot + n * args.lanes, args.router.top_k - 1));
#pragma unroll
    for (int n = 0; n < N; n++) z[n] = id[n] < E ? row[id[n]] : __int_as_float(0x7fc00000);
}

template <int N>
__device__ __forceinline__ void load_weights(const gate_args &args, const gate_place &place,
                                             const float *dweights, float *g) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        int slot = min(place.slot + n * args.lanes, args.router.top_k - 1);
        g[n] = dweights[place.t * args.router.top_k + slot];
    }
}

/* wb_gate_softmax over lanes. The repeated last slot changes no maximum. */
template <int N>
__device__ __forceinline__ void softmax_slots(int32_t K, int lanes, const float *z, float *q) {
    float largest = z[0];
#pragma unroll
    for (int n = 1; n < N; n++) largest = fmaxf(largest, z[n]);
    for (int step = lanes / 2; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
#pragma unroll
    for (int n = 0; n < N; n++) q[n] = wb_expf(wb_sub(z[n], largest));
    float sum = sum_slots<N>(K, lanes, q);
#pragma unroll
    for (int n = 0; n < N; n++) q[n] = wb_div(q[n], sum);
}

/* wb_gate_divisor over lanes. */
template <int N>
__device__ __forceinline__ float divisor_slots(const wb_router &router, int lanes, const float *s) {
    return router.normalize ? wb_add(sum_slots<N>(router.top_k, lanes, s), 1e-20f) : 1.0f;
}

/* wb_gate_row over lanes. */
template <int N>
__device__ __forceinline__ void gate_slots(const wb_router &router, int lanes, const float *z, float *w) {
    float c = router.scale;
    if (wb_router_is_softmax(router.type)) {
        softmax_slots<N>(router.top_k, lanes, z, w);
#pragma unroll
        for (int n = 0; n < N; n++) w[n] = wb_mul(c, w[n]);
        return;
    }
#pragma unroll
    for (int n = 0; n < N; n++) w[n] = wb_router_score(router.type, z[n]);
    float divisor = divisor_slots<N>(router, lanes, w);
#pragma unroll
    for (int n = 0; n < N; n++) w[n] = wb_div(wb_mul(c, w[n]), divisor);
}

/* wb_gate_row_backward over lanes. */
template <int N>
__device__ __forceinline__ void gate_slots_backward(const wb_router &router, int lanes, const float *z,
                                                    const float *g, float *dz) {
    int32_t K = router.top_k;
    float c = router.scale, dot = 0.0f;
    if (wb_router_is_softmax(router.type)) {
        softmax_slots<N>(K, lanes, z, dz);
        dot = dot_slots<N>(K, lanes, g, dz);
#pragma unroll
        for (int n = 0; n < N; n++) dz[n] = wb_mul(wb_mul(c, dz[n]), wb_sub(g[n], dot));
        return;
    }
#pragma unroll
    for (int n = 0; n < N; n++) dz[n] = wb_router_score(router.type, z[n]);
    float divisor = divisor_slots<N>(router, lanes, dz);
    if (router.normalize) dot = wb_div(dot_slots<N>(K, lanes, g, dz), divisor);
#pragma unroll
    for (int n = 0; n < N; n++) {
        float s = dz[n], ds = wb_mul(wb_div(c, divisor), wb_sub(g[n], dot));
        if (router.type == WB_ROUTER_SIGMOID) {
            dz[n] = wb_mul(ds, wb_mul(s, wb_sub(1.0f, s)));
        } else {
            float slope = wb_div(wb_sigmoid(z[n]), wb_add(s, s));
            dz[n] = s == 0.0f ? 0.0f : wb_mul(ds, slope);
        }
    }
}

/* Writes the slots' values of a [T, K] matrix. */
template <int N>
__device__ __forceinline__ void store_weights(const gate_args &args, const gate_place &place, const float *w,
                                              float *weights) {
    int32_t K = args.router.top_k;
#pragma unroll
    for (int n = 0; n < N; n++) {
        int slot = place.slot + n * args.lanes;
        if (place.live && slot < K) weights[place.t * K + slot] = w[n];
    }
}

/* dlogits[id] = the slot's `total` after add(total, value, n) for the values of all slots with that id,
 * ascending: the whole of that element, so that slots with the same id write the same. Overwrites what the
 * warp wrote before. */
template <int N, typename F>
__device__ __forceinline__ void store_slots(const gate_args &args, const gate_place &place,
                                            const uint32_t *id, const float *value, float *total,
                                            float *dlogits, F add) {
    int32_t E = args.router.n_experts, K = args.router.top_k;
    for_slots<N>(K, args.lanes, [&](int n, int r) {
        uint32_t other = __shfl_sync(ALL_LANES, id[n], r, args.lanes);
        float more = __shfl_sync(ALL_LANES, value[n], r, args.lanes);
#pragma unroll
        for (int m = 0; m < N; m++) total[m] = other == id[m] ? add(total[m], more, m) : total[m];
    });
    float *row = dlogits + place.t * E;
    __syncwarp(); /* orders the warp's earlier writes before these */
#pragma unroll
    for (int n = 0; n < N; n++)
        if (place.live && place.slot + n * args.lanes < K && id[n] < static_cast<uint32_t>(E))
            row[id[n]] = total[n];
}

/* ---- the gate: all types but SOFTMAX --------------------------------------------------------- */

template <int N>
__global__ void __launch_bounds__(BLOCK) gate_forward_chosen(gate_args args, float *weights) {
    gate_place place = find_place(args);
    uint32_t id[N];
    float z[N], w[N];
    load_slots<N>(args, place, id, z);
    gate_slots<N>(args.router, args.lanes, z, w);
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
    load_slots<N>(args, place, id, z);
    load_weights<N>(args, place, dweights, g);
    zero_rows(args, dlogits);
    gate_slots_backward<N>(args.router, args.lanes, z, g, dz);
#pragma unroll
    for (int n = 0; n < N; n++) total[n] = 0.0f;
    store_slots<N>(args, place, id, dz, total, dlogits,
                   [](float sum, float more, int) { return wb_add(sum, more); });
}

/* ---- the gate: SOFTMAX, whose sum and whose gradient run over all experts -------------------- */

/* A row over WB_LANES lanes: lane l has the experts l, l + 16, ..., i counting them. With M > 0 the row
 * has at most 16 M experts and exp(z - largest) stays in registers; with M = 0 it is computed again
 * wherever it is needed. */
template <int M> struct dense_row {
    const float *z; /* [E] */
    int32_t E;
    int lane;
    float largest, sum;
    float kept[M > 0 ? M : 1];

    __device__ __forceinline__ int32_t expert(int i) const {
        return lane + i * WB_LANES;
    }

    __device__ __forceinline__ float exponential(float logit) const {
        return wb_expf(wb_sub(logit, largest));
    }

    __device__ __forceinline__ void load() {
        const float below_all = __int_as_float(0xff800000); /* -inf, whose exponential adds 0 */
        largest = below_all;
        sum = 0.0f;
        if constexpr (M > 0) {
#pragma unroll
            for (int i = 0; i < M; i++) kept[i] = expert(i) < E ? z[expert(i)] : below_all;
#pragma unroll
            for (int i = 0; i < M; i++) largest = fmaxf(largest, kept[i]);
        } else {
            for (int i = 0; expert(i) < E; i++) largest = fmaxf(largest, z[expert(i)]);
        }
        for (int step = WB_LANES / 2; step > 0; step /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
        if constexpr (M > 0) {
#pragma unroll
            for (int i = 0; i < M; i++) {
                kept[i] = exponential(kept[i]);
                sum = wb_add(sum, kept[i]);
            }
        } else {
            for (int i = 0; expert(i) < E; i++) sum = wb_add(sum, exponential(z[expert(i)]));
        }
        for (int step = WB_LANES / 2; step > 0; step /= 2) /* wb_lanes_sum: the same pairs at each step */
            sum = wb_add(sum, __shfl_xor_sync(ALL_LANES, sum, step));
    }

    /* dz of every expert as if none were chosen. */
    __device__ __forceinline__ void store_unchosen(float c, float dot, float *dz) const {
        if constexpr (M > 0) {
#pragma unroll
            for (int i = 0; i < M; i++)
                if (expert(i) < E) dz[expert(i)] = wb_gate_dense_dz(wb_div(kept[i], sum), c, dot);
        } else {
            for (int i = 0; expert(i) < E; i++)
                dz[expert(i)] = wb_gate_dense_dz(wb_gate_dense_p(z[expert(i)], largest, sum), c, dot);
        }
    }
};

template <int M>
__device__ __forceinline__ dense_row<M> load_row(const gate_args &args, const gate_place &place) {
    dense_row<M> row;
    row.E = args.router.n_experts;
    row.z = args.logits + place.t * row.E;
    row.lane = place.slot;
    row.load();
    return row;
}

template <int N, int M>
__global__ void __launch_bounds__(BLOCK) gate_forward_dense(gate_args args, float *weights) {
    gate_place place = find_place(args);
    dense_row<M> row = load_row<M>(args, place);
    uint32_t id[N];
    float z[N], w[N];
    load_slots<N>(args, place, id, z);
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
    load_slots<N>(args, place, id, z);
    load_weights<N>(args, place, dweights, g);
    dense_row<M> row = load_row<M>(args, place);
#pragma unroll
    for (int n = 0; n < N; n++) p[n] = wb_gate_dense_p(z[n], row.largest, row.sum);
    float dot = dot_slots<N>(args.router.top_k, args.lanes, g, p);
#pragma unroll
    for (int n = 0; n < N; n++) total[n] = wb_gate_dense_dz(p[n], c, dot);
    if (place.live) row.store_unchosen(c, dot, dlogits + place.t * args.router.n_experts);
    store_slots<N>(args, place, id, g, total, dlogits, [&](float dz, float g_slot, int n) {
        return wb_gate_dense_dz_chosen(dz, p[n], c, g_slot);
    });
}

/* ---- launches -------------------------------------------------------------------------------- */

wb_status check_ids(const char *op, const char *name, wb_ids ids, const wb_router *router) {
    if (ids.dtype != WB_U8 && ids.dtype != WB_U16)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: %s.dtype: expected u8 or u16, found %s", op, name,
                       wb_dtype_name(ids.dtype));
    if (ids.dtype == WB_U8 && router->n_experts > 256)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: %s.dtype: expected u16 for %d experts, found u8", op, name,
                       router->n_experts);
    return WB_OK;
}

/* The blocks of BLOCK threads for T rows. */
wb_status count_blocks(const char *op, int64_t T, int32_t threads_per_row, unsigned *blocks_out) {
    const int64_t most = INT32_MAX; /* of a grid's first dimension */
    if (T < 0 || T > most * BLOCK / threads_per_row)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: T: expected 0..%lld, found %lld", op,
                       static_cast<long long>(most * BLOCK / threads_per_row), static_cast<long long>(T));
    *blocks_out = static_cast<unsigned>((T * threads_per_row + BLOCK - 1) / BLOCK);
    return WB_OK;
}

int power_of_2_from(int least) {
    int power = 1;
    while (power < least) power *= 2;
    return power;
}

/* Whether topk_rows serves this router with V experts a lane: see keep_best_groups. */
bool fits_rows(const wb_router &router, int V) {
    if (V * WARP > 1024) return false;
    if (router.n_group <= 1) return true;
    int32_t group_size = router.n_experts / router.n_group;
    return group_size % V == 0 && power_of_2_from(group_size / V) == group_size / V && group_size / V <= WARP;
}

template <int V> void launch_rows(const wb_topk &args, unsigned blocks, cudaStream_t stream) {
    int unit = V < 4 ? V : 4;
    bool wide = args.router.n_experts % unit == 0 &&
                reinterpret_cast<uintptr_t>(args.logits) % (static_cast<unsigned>(unit) * sizeof(float)) == 0;
    if (wb_router_is_softmax(args.router.type))
        topk_rows<V, true><<<blocks, BLOCK, 0, stream>>>(args, wide);
    else
        topk_rows<V, false><<<blocks, BLOCK, 0, stream>>>(args, wide);
}

void launch_topk(const wb_topk &args, unsigned blocks, cudaStream_t stream) {
    int V = power_of_2_from((args.router.n_experts + WARP - 1) / WARP);
    if (args.router.type == WB_ROUTER_HASH)
        topk_table<<<blocks, BLOCK, 0, stream>>>(args);
    else if (!fits_rows(args.router, V))
        topk_any<<<blocks, BLOCK, 0, stream>>>(args);
    else if (V == 1)
        launch_rows<1>(args, blocks, stream);
    else if (V == 2)
        launch_rows<2>(args, blocks, stream);
    else if (V == 4)
        launch_rows<4>(args, blocks, stream);
    else if (V == 8)
        launch_rows<8>(args, blocks, stream);
    else if (V == 16)
        launch_rows<16>(args, blocks, stream);
    else
        launch_rows<32>(args, blocks, stream);
}

/* Fills `args_out` and the grid, or says what is wrong. */
wb_status prepare_gate(const char *op, const wb_router *router, int64_t T, const float *logits, wb_ids ids,
                       gate_args *args_out, unsigned *blocks_out) {
    WB_TRY(wb_router_check(router));
    WB_TRY(check_ids(op, "ids", ids, router));
    int lanes = MAX_GATE_LANES;
    if (router->type != WB_ROUTER_SOFTMAX && router->top_k < lanes) lanes = power_of_2_from(router->top_k);
    WB_TRY(count_blocks(op, T, lanes, blocks_out));
    gate_args args = {*router, T, logits, ids, lanes};
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

wb_status wb_topk_cuda(wb_device *dev, const wb_topk *args) {
    const wb_router *router = &args->router;
    WB_TRY(wb_router_check(router));
    WB_TRY(check_ids("topk", "ids", args->ids, router));
    if (args->native.data) WB_TRY(check_ids("topk", "native", args->native, router));
    if (router->type == WB_ROUTER_HASH && (!args->table || !args->tokens))
        return wb_fail(WB_INVALID_ARGUMENT, "topk: a hash router needs table and tokens");
    unsigned blocks = 0;
    WB_TRY(count_blocks("topk", args->T, router->type == WB_ROUTER_HASH ? router->top_k : WARP, &blocks));
    if (args->T == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "topk"));
    launch_topk(*args, blocks, static_cast<cudaStream_t>(dev->stream));
    return wb_cuda_check(cudaGetLastError(), "topk");
}

wb_status wb_gate_forward_cuda(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                               wb_ids ids, float *weights) {
    gate_args args;
    unsigned blocks = 0;
    WB_TRY(prepare_gate("gate_forward", router, T, logits, ids, &args, &blocks));
    if (T == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "gate_forward"));
    cudaStream_t stream = static_cast<cudaStream_t>(dev->stream);
    if (router->top_k <= MAX_GATE_LANES)
        launch_forward<1>(args, weights, blocks, stream);
    else
        launch_forward<MAX_SLOTS / MAX_GATE_LANES>(args, weights, blocks, stream);
    return wb_cuda_check(cudaGetLastError(), "gate_forward");
}

wb_status wb_gate_backward_cuda(wb_device *dev, const wb_router *router, int64_t T, const float *logits,
                                wb_ids ids, const float *dweights, float *dlogits) {
    gate_args args;
    unsigned blocks = 0;
    WB_TRY(prepare_gate("gate_backward", router, T, logits, ids, &args, &blocks));
    if (T == 0) return WB_OK;
    WB_TRY(wb_cuda_use(dev, "gate_backward"));
    cudaStream_t stream = static_cast<cudaStream_t>(dev->stream);
    if (router->top_k <= MAX_GATE_LANES)
        launch_backward<1>(args, dweights, dlogits, blocks, stream);
    else
        launch_backward<MAX_SLOTS / MAX_GATE_LANES>(args, dweights, dlogits, blocks, stream);
    return wb_cuda_check(cudaGetLastError(), "gate_backward");
}
}
