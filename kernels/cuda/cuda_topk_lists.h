/* cuda_topk_lists.h - the selection of up to 8 of up to 256 experts by eight lanes a row, for cuda_topk.cu.
 *
 * A lane has N experts in registers, sorts them in lists of 8 and keeps the best 8; lists are merged, first
 * in a lane and then between lanes, with as many comparisons for the four rows of a warp as for one. What is
 * compared is one word: an expert's order of router_rules.h whose low bits give way to its id. Two neighbours
 * among the best and the ninth that differ in those low bits alone are compared by their whole orders. Where
 * three are so close, or a key is a NaN, the row is told to the caller. Refuses: such rows.
 */
#ifndef WB_CUDA_TOPK_LISTS_H
#define WB_CUDA_TOPK_LISTS_H

#include "cuda/cuda_grid.h"
#include "router_rules.h"

namespace {

/* Choices of a list; lanes of a row, lane k being the one that choice k comes to; groups that experts may be
 * in where N = 32. */
enum { LIST = 8, LIST_LANES = 8, LIST_GROUPS = 8 };

/* Batcher's odd-even merge sort, largest first: the steps from (RUN, GAP) on. A template for each step,
 * since a loop over steps is not unrolled for large V, and then the orders leave the registers. */
template <int V, int RUN = 1, int GAP = 1, typename T>
__device__ __forceinline__ void sort_choices(T *choice) {
    if constexpr (RUN < V) {
#pragma unroll
        for (int i = GAP % RUN; i + GAP < V; i++)
            if ((i - GAP % RUN) / GAP % 2 == 0 && i / (2 * RUN) == (i + GAP) / (2 * RUN)) {
                const T a = choice[i], b = choice[i + GAP];
                choice[i] = max(a, b);
                choice[i + GAP] = min(a, b);
            }
        if constexpr (GAP > 1)
            sort_choices<V, RUN, GAP / 2>(choice);
        else
            sort_choices<V, 2 * RUN, 2 * RUN>(choice);
    }
}

/* best[LIST], sorted, becomes the sorted best of it and `other`, whose i-th is other(i). */
template <typename F> __device__ __forceinline__ void merge_lists(uint32_t *best, F other) {
    uint32_t both[LIST];
#pragma unroll
    for (int i = 0; i < LIST; i++) both[i] = max(best[i], other(LIST - 1 - i));
        /* The larger ones of each pair are the best of both lists, and rise once and fall once. */
#pragma unroll
    for (int gap = LIST / 2; gap > 0; gap /= 2)
#pragma unroll
        for (int i = 0; i < LIST; i++)
            if (i / gap % 2 == 0) {
                const uint32_t a = both[i], b = both[i + gap];
                both[i] = max(a, b);
                both[i + gap] = min(a, b);
            }
#pragma unroll
    for (int i = 0; i < LIST; i++) best[i] = both[i];
}

/* wb_key_order but for a NaN, which is above all others here: an addition makes it the positive one. */
__device__ __forceinline__ uint32_t plain_order(float key) {
    const uint32_t bits = wb_float_bits(wb_add(key, 0.0f));
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

/* Of the largest number that is none. */
const uint32_t ORDER_OF_INFINITY = 0xff800000u;

/* A row: element i of a lane is expert id(i), four adjacent ones for each load. */
template <int N> struct list_row {
    static constexpr uint32_t LOW = N * LIST_LANES - 1;
    uint32_t order[N]; /* that of -inf, or 0: no expert that can be chosen */
    int lane;          /* of the row */
    bool unsure;       /* the choices may be others */

    __device__ __forceinline__ int32_t id(int i) const {
        return (i / 4 * LIST_LANES + lane) * 4 + i % 4;
    }

    /* values[N] (=) those of `from`, [E], where there are such experts; `wide`: 16 bytes at a time, which lie
     * in the row as a whole or not at all. */
    __device__ __forceinline__ void load(const float *from, int32_t E, bool wide, float *values) const {
        if (wide) {
#pragma unroll
            for (int i = 0; i < N; i += 4)
                if (id(i) < E) {
                    const float4 four = *reinterpret_cast<const float4 *>(from + id(i));
                    values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z,
                    values[i + 3] = four.w;
                }
        } else {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (id(i) < E) values[i] = from[id(i)];
        }
    }

    template <bool SOFTMAX>
    __device__ __forceinline__ void load_orders(const wb_topk &args, int64_t t, bool wide) {
        const int32_t E = args.router.n_experts;
        float key[N], bias[N];
#pragma unroll
        for (int i = 0; i < N; i++) key[i] = -INFINITY, bias[i] = 0.0f;
        load(args.logits + t * E, E, wide, key);
        if (!SOFTMAX && args.bias) load(args.bias, E, wide, bias);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (!SOFTMAX && id(i) < E) key[i] = wb_router_key(args.router.type, key[i], bias[i]);
            order[i] = plain_order(key[i]);
        }
        unsure = false;
    }

    /* Sets the orders outside the row's best groups to 0: load i has the experts of group i, lane i comes to
     * know its two largest. */
    __device__ __forceinline__ void keep_best_groups(const wb_router &router) {
        uint32_t first[LIST_GROUPS], second[LIST_GROUPS];
#pragma unroll
        for (int g = 0; g < LIST_GROUPS; g++) {
            const uint32_t *of = order + 4 * g;
            const uint32_t high = max(of[0], of[1]), low = min(of[0], of[1]);
            const uint32_t high_2 = max(of[2], of[3]), low_2 = min(of[2], of[3]);
            first[g] = max(high, high_2);
            second[g] = max(min(high, high_2), max(low, low_2));
        }
#pragma unroll
        for (int half = LIST_GROUPS / 2; half > 0; half /= 2) {
            const bool upper = lane & half;
#pragma unroll
            for (int g = 0; g < half; g++) {
                const uint32_t a = upper ? first[g + half] : first[g],
                               b = upper ? second[g + half] : second[g];
                const uint32_t give_a = upper ? first[g] : first[g + half];
                const uint32_t give_b = upper ? second[g] : second[g + half];
                const uint32_t other_a = __shfl_xor_sync(ALL_LANES, give_a, half);
                const uint32_t other_b = __shfl_xor_sync(ALL_LANES, give_b, half);
                first[g] = max(a, other_a);
                second[g] = max(min(a, other_a), max(b, other_b));
            }
        }
        keep_groups(router, first[0], second[0]);
    }

    /* first, second: those of group `lane`. */
    __device__ __forceinline__ void keep_groups(const wb_router &router, uint32_t first, uint32_t second) {
        const float score = wb_router_group_score(router.type, first, second, router.n_experts / LIST_GROUPS);
        const uint32_t mine = wb_key_order(score);
        int better = 0;
#pragma unroll
        for (int g = 0; g < LIST_GROUPS; g++) {
            const uint32_t other = __shfl_sync(ALL_LANES, mine, g, LIST_LANES);
            better += other > mine || (other == mine && g < lane);
        }
        const int shift = threadIdx.x % WARP - lane;
        const unsigned kept = __ballot_sync(ALL_LANES, better < router.topk_group) >> shift;
        unsure = (__ballot_sync(ALL_LANES, first > ORDER_OF_INFINITY) >> shift & 0xffu) != 0;
#pragma unroll
        for (int i = 0; i < N; i++)
            if ((kept >> (i / 4) & 1u) == 0) order[i] = 0;
    }

    /* The ids of a lane's experts differ from each other in the bits beside these. */
    __device__ __forceinline__ uint32_t lane_bits() const {
        return static_cast<uint32_t>(LIST_LANES - 1 - lane) * 4;
    }

    /* Each order's low bits become LOW - id, but for the bits of the lane, which all in a lane have alike. */
    __device__ __forceinline__ void put_ids() {
#pragma unroll
        for (int i = 0; i < N; i++)
            order[i] =
                (order[i] & ~LOW) | static_cast<uint32_t>((N / 4 - 1 - i / 4) * LIST_LANES * 4 + 3 - i % 4);
    }

    /* The choice of the number of this lane. */
    __device__ __forceinline__ uint32_t sort() const {
        uint32_t best[N];
#pragma unroll
        for (int i = 0; i < N; i++) best[i] = order[i];
#pragma unroll
        for (int list = 0; list < N; list += LIST) sort_choices<LIST>(best + list);
#pragma unroll
        for (int run = LIST; run < N; run *= 2)
#pragma unroll
            for (int at = 0; at < N; at += 2 * run) {
                const uint32_t *other = best + at + run;
                merge_lists(best + at, [=](int i) { return other[i]; });
            }
#pragma unroll
        for (int i = 0; i < LIST; i++) best[i] |= lane_bits();
#pragma unroll
        for (int step = 1; step < LIST_LANES / 2; step *= 2) {
            uint32_t mine[LIST];
#pragma unroll
            for (int i = 0; i < LIST; i++) mine[i] = best[i];
            merge_lists(best, [&](int i) { return __shfl_xor_sync(ALL_LANES, mine[i], step); });
        }
        return sort_lanes(best);
    }

    /* The last merge, of the lists of both halves of the lanes: a choice a lane. */
    __device__ __forceinline__ uint32_t sort_lanes(const uint32_t *best) const {
        uint32_t both[LIST];
        const bool lower = (lane & LIST_LANES / 2) == 0;
#pragma unroll
        for (int i = 0; i < LIST; i++)
            both[i] = max(best[i], __shfl_xor_sync(ALL_LANES, best[LIST - 1 - i], LIST_LANES / 2));
        /* The upper lanes have the same pairs the other way round: they are read backwards. */
        uint32_t mine = of_lane(both, lower ? lane : LIST - 1 - lane);
#pragma unroll
        for (int gap = LIST / 2; gap > 0; gap /= 2) {
            const uint32_t other = __shfl_xor_sync(ALL_LANES, mine, gap);
            mine = lane & gap ? min(mine, other) : max(mine, other);
        }
        return mine;
    }

    /* of[i]: by halves, since an array with an index leaves the registers. */
    static __device__ __forceinline__ uint32_t of_lane(const uint32_t *of, int i) {
        const bool odd = i & 1, second = i & 2, upper = i & 4;
        const uint32_t a = odd ? of[1] : of[0], b = odd ? of[3] : of[2];
        const uint32_t c = odd ? of[5] : of[4], d = odd ? of[7] : of[6];
        const uint32_t low = second ? b : a, high = second ? d : c;
        return upper ? high : low;
    }

    /* The row's next one after `last`: what is above that is, as a difference, below all differences that
     * wrap around. */
    __device__ __forceinline__ uint32_t next_after(uint32_t last) const {
        const uint32_t without_lane = last - lane_bits();
        uint32_t nearest = 0;
#pragma unroll
        for (int i = 0; i < N; i++) nearest = max(nearest, order[i] - without_lane);
#pragma unroll
        for (int step = 1; step < LIST_LANES; step *= 2)
            nearest = max(nearest, __shfl_xor_sync(ALL_LANES, nearest, step));
        return last + nearest;
    }

    static __device__ __forceinline__ bool is_close(uint32_t a, uint32_t b) {
        return (a ^ b) <= LOW;
    }

    static __device__ __forceinline__ uint32_t id_of(uint32_t choice) {
        return ~choice & LOW;
    }

    /* The whole order of an expert of the row, which is read again. */
    template <bool SOFTMAX>
    __device__ __forceinline__ uint32_t whole_order(const wb_topk &args, int64_t t, uint32_t id) const {
        const int32_t E = args.router.n_experts, e = min(static_cast<int32_t>(id), E - 1);
        const float z = args.logits[t * E + e], bias = !SOFTMAX && args.bias ? args.bias[e] : 0.0f;
        return plain_order(SOFTMAX ? z : wb_router_key(args.router.type, z, bias));
    }

    /* The id that this lane stores, *choice_out being which choice it is. Two neighbours that are close may
     * have to change places. */
    template <bool SOFTMAX>
    __device__ __forceinline__ uint32_t choose(const wb_topk &args, int64_t t, int *choice_out) {
        put_ids();
        const uint32_t mine = sort(), last = __shfl_sync(ALL_LANES, mine, LIST - 1, LIST_LANES);
        const uint32_t ninth = next_after(last), next = __shfl_down_sync(ALL_LANES, mine, 1, LIST_LANES);
        const uint32_t after = lane == LIST - 1 ? ninth : next;
        const int shift = threadIdx.x % WARP - lane;
        const bool close = is_close(mine, after);
        unsigned pairs = __ballot_sync(ALL_LANES, close) >> shift & 0xffu;
        const unsigned nan = __ballot_sync(ALL_LANES, mine > (ORDER_OF_INFINITY | LOW)) >> shift & 0xffu;
        if (__any_sync(ALL_LANES, is_close(last, ninth)))
            pairs |= static_cast<unsigned>(is_close(ninth, next_after(ninth))) << LIST;
        unsure |= (pairs & pairs >> 1) != 0 || nan != 0;
        const bool swap =
            close && whole_order<SOFTMAX>(args, t, id_of(after)) > whole_order<SOFTMAX>(args, t, id_of(mine));
        const unsigned swaps = __ballot_sync(ALL_LANES, swap) >> shift & 0x7fu;
        *choice_out = lane + static_cast<int>(swaps >> lane & 1u) - static_cast<int>(swaps << 1 >> lane & 1u);
        return id_of(swap && lane == LIST - 1 ? after : mine);
    }
};

} // namespace

#endif
