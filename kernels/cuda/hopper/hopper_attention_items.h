/* hopper_attention_items.h - a block of threads' share of the items of single tokens: splits are folded where
 * one block of threads has them from the first on, and through device memory where several have a part.
 *
 * A block of threads waits for others with smaller numbers alone, and after it has left what they do not wait
 * for, so that no two wait for each other. For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_ATTENTION_ITEMS_H
#define WB_HOPPER_ATTENTION_ITEMS_H

#include "cuda/hopper/hopper_attention_single.h"

namespace {

/* Heads of an item. */
struct item_heads {
    int32_t kv, n, head; /* head: the first one's number */
    int64_t first;       /* of all heads of all tokens */
};

template <class S> ASM_INLINE item_heads find_heads(const wb_attention &args, const item &i) {
    const int32_t group = args.n_heads / args.n_kv_heads, tiles = (group + S::HEADS - 1) / S::HEADS;
    const int32_t kv = i.number / tiles, first = i.number % tiles * S::HEADS, head = kv * group + first;
    return {kv, min(group - first, static_cast<int32_t>(S::HEADS)), head,
            static_cast<int64_t>(i.token) * args.n_heads + head};
}

/* ---- parts in device memory -------------------------------------------------------------------- */

/* Part 0 of a block of threads: the first splits of its last item, folded. Part 1 + i: split i of those of
 * its first item, which began before. */
ASM_INLINE int64_t part_number(const single_call &call, int64_t block, int32_t part) {
    return block * (call.parts + 1) + part;
}

template <class S>
ASM_INLINE void store_part(const single_call &call, int32_t part,
                           const float (&sum)[S::HEAD_TILES][S::VALUE_TILES][4],
                           const row_state (&row)[S::HEAD_TILES][2]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t first = part_number(call, blockIdx.x, part) * S::HEADS;
#pragma unroll
    for (int h = 0; h < S::HEAD_TILES; h++) {
        for (int c = 0; c < 2; c++)
            if (warp == 0 && lane < 4) call.states[first + 8 * h + lane * 2 + c] = row[h][c];
        if (warp * S::VALUE_TILES * 16 >= S::D) continue;
#pragma unroll
        for (int i = 0; i < S::VALUE_TILES * 4; i++) {
            const int e = i % 4, d = (warp * S::VALUE_TILES + i / 4) * 16 + lane / 4 + e / 2 * 8;
            call.sums[(first + 8 * h + lane % 4 * 2 + e % 2) * S::D + d] = sum[h][i / 4][e];
        }
    }
}

/* All that this block of threads has left of its last item is there. All its threads. */
ASM_INLINE void publish(const single_call &call) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(call.flags + blockIdx.x) : "memory");
    }
}

/* Waits for block of threads `block`, and leaves its flag as it was before the kernel. One thread, that which
 * has the block's first part. */
ASM_INLINE void await(const single_call &call, int32_t block) {
    int32_t there;
    do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                     : "=r"(there)
                     : "l"(call.flags + block)
                     : "memory");
    } while (!there);
    call.flags[block] = 0;
}

/* ---- results ----------------------------------------------------------------------------------- */

template <class S>
ASM_INLINE void store_item(const single_call &call, const item_heads &heads, const single_state<S> &w) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint16_t *out = static_cast<uint16_t *>(call.out.data) + heads.first * S::D;
#pragma unroll
    for (int h = 0; h < S::HEAD_TILES; h++) {
        float by[2];
        for (int c = 0; c < 2; c++) {
            const int32_t head = 8 * h + lane % 4 * 2 + c;
            row_state row = w.all[h][c];
            by[c] = end_row(call.args, heads.head + min(head, heads.n - 1), &row);
            if (call.args.log_sums && warp == 0 && lane < 4 && head < heads.n)
                call.args.log_sums[heads.first + head] = log_of_sum(row);
        }
        if (warp * S::VALUE_TILES * 16 >= S::D) continue;
#pragma unroll
        for (int i = 0; i < S::VALUE_TILES * 4; i++) {
            const int e = i % 4, head = 8 * h + lane % 4 * 2 + e % 2;
            const int d = (warp * S::VALUE_TILES + i / 4) * 16 + lane / 4 + e / 2 * 8;
            const uint32_t value = pack_pair(end_value(w.all_sum[h][i / 4][e], by[e % 2]), 0.0f);
            if (head < heads.n) out[head * S::D + d] = static_cast<uint16_t>(value);
        }
    }
}

/* The numbers of all parts of an item, in the order of its splits, once they are there. Returns how many. All
 * threads. */
template <class S>
ASM_INLINE int32_t list_parts(const single_call &call, const line &all, const item &i, int32_t *numbers) {
    const int32_t first = all.owner(i.base), folded = all.splits_end(i, first);
    const int32_t parts = 1 + i.splits() - folded;
    __syncthreads();
    for (int p = threadIdx.x; p < parts; p += S::THREADS) {
        const int32_t number = folded + p - 1;
        const int32_t owner = p == 0 ? first : all.owner(i.place_of(number));
        const int32_t part = p == 0 ? 0 : 1 + number - all.split_from(i, all.share(owner));
        numbers[p] = static_cast<int32_t>(part_number(call, owner, part));
        if (part <= 1 && owner != static_cast<int32_t>(blockIdx.x)) await(call, owner);
    }
    __syncthreads();
    return parts;
}

/* Folds all parts of an item whose last split this block of threads has. All its threads. */
template <class S>
ASM_INLINE void fold_item(const single_call &call, const single_memory<S> &shared, const line &all,
                          const item &i) {
    const item_heads heads = find_heads<S>(call.args, i);
    int32_t *numbers = reinterpret_cast<int32_t *>(shared.weights(0));
    const int32_t parts = list_parts<S>(call, all, i, numbers);
    for (int at = threadIdx.x; at < heads.n * (S::D / 4); at += S::THREADS) {
        const int head = at / (S::D / 4), d = at % (S::D / 4) * 4;
        float4 sum = {};
        row_state row = {};
#pragma unroll 4
        for (int p = 0; p < parts; p++) {
            const int64_t from = static_cast<int64_t>(numbers[p]) * S::HEADS + head;
            const float4 next = __ldcg(reinterpret_cast<const float4 *>(call.sums + from * S::D + d));
            const float2 state = __ldcg(reinterpret_cast<const float2 *>(call.states + from));
            if (p == 0) {
                sum = next, row = {state.x, state.y};
                continue;
            }
            const fold_factors by = fold_split(&row, {state.x, state.y});
            sum = {fold_value(sum.x, next.x, by), fold_value(sum.y, next.y, by),
                   fold_value(sum.z, next.z, by), fold_value(sum.w, next.w, by)};
        }
        const float inverse = end_row(call.args, heads.head + head, &row);
        uint2 packed = {pack_pair(end_value(sum.x, inverse), end_value(sum.y, inverse)),
                        pack_pair(end_value(sum.z, inverse), end_value(sum.w, inverse))};
        *reinterpret_cast<uint2 *>(static_cast<uint16_t *>(call.out.data) + (heads.first + head) * S::D + d) =
            packed;
        if (call.args.log_sums && d == 0) call.args.log_sums[heads.first + head] = log_of_sum(row);
    }
}

/* ---- the kernel -------------------------------------------------------------------------------- */

/* The split that has been computed is folded into those before it, in registers. */
template <class S> ASM_INLINE void fold_in(single_state<S> &w, bool first) {
#pragma unroll
    for (int h = 0; h < S::HEAD_TILES; h++) {
        fold_factors by[2] = {};
#pragma unroll
        for (int c = 0; c < 2; c++) {
            if (first)
                w.all[h][c] = w.row[h][c];
            else
                by[c] = fold_split(&w.all[h][c], w.row[h][c]);
        }
#pragma unroll
        for (int i = 0; i < S::VALUE_TILES * 4; i++) {
            float &sum = w.all_sum[h][i / 4][i % 4];
            const float next = w.sum[h][i / 4][i % 4];
            sum = first ? next : fold_value(sum, next, by[i % 2]);
        }
    }
}

/* Split `number` of an item. */
ASM_INLINE split split_of(const single_call &call, const item &i, int32_t kv, int32_t number) {
    const int32_t keys = call.args.pos[i.token] + 1, begin = attention_first_key(&call.args, keys - 1);
    const int32_t first = (begin / SPLIT_KEYS + number) * SPLIT_KEYS;
    return {call.args.seq[i.token], kv, first, max(begin - first, 0),
            min(keys - first, static_cast<int32_t>(SPLIT_KEYS))};
}

/* Splits [from, end) of an item; begun: the first one's tiles are on their way. Returns whether its parts are
 * left to be folded by this block of threads. */
template <class S>
ASM_INLINE bool attend_item(const single_call &call, const single_memory<S> &shared, const item &i,
                            int32_t from, int32_t end, bool begun, float factor, single_state<S> &w) {
    const item_heads heads = find_heads<S>(call.args, i);
    load_queries<S>(call.args, heads.first, heads.n, w);
    for (int32_t number = from; number < end; number++) {
        const split s = split_of(call, i, heads.kv, number);
        if (number > from || !begun) begin_keys<S>(call.args, shared, s);
        attend_split<S>(call.args, shared, s, factor, w);
        if (from == 0)
            fold_in<S>(w, number == 0);
        else
            store_part<S>(call, 1 + number - from, w.sum, w.row);
    }
    if (from == 0 && end == i.splits()) store_item<S>(call, heads, w);
    if (from == 0 && end < i.splits()) store_part<S>(call, 0, w.all_sum, w.all);
    if (end < i.splits()) publish(call);
    return from > 0 && end == i.splits();
}

/* Zeros for the padding that is served here, a warp for each 32 tokens. */
template <class S> ASM_INLINE void clear_padding(const single_call &call) {
    const wb_attention &args = call.args;
    const int lane = threadIdx.x % 32, parts = args.n_heads * S::D / 8;
    const int32_t step = static_cast<int32_t>(gridDim.x) * S::WARPS * TOKEN_GROUP;
    int32_t first = static_cast<int32_t>(blockIdx.x * S::WARPS + threadIdx.x / 32) * TOKEN_GROUP;
    for (; first < args.T; first += step) {
        const bool mine =
            first + lane < args.T && args.seq[first + lane] < 0 && is_served(call, first + lane);
        for (unsigned left = __ballot_sync(0xffffffffu, mine); left; left &= left - 1) {
            const int64_t t = first + __ffs(static_cast<int>(left)) - 1;
            for (int i = lane; i < parts; i += 32)
                static_cast<uint4 *>(call.out.data)[t * parts + i] = make_uint4(0, 0, 0, 0);
            for (int i = lane; call.args.log_sums && i < args.n_heads; i += 32)
                call.args.log_sums[t * args.n_heads + i] = 0.0f;
        }
    }
}

/* Asks for the first keys of a block of threads before the kernel before this one has ended, if that one
 * writes none of them (wb_attention): they stand before a token that is the only one of its sequence. */
template <class S>
ASM_INLINE bool begin_early(const single_call &call, const single_memory<S> &shared, const item &i,
                            int32_t number) {
    if (call.all && !call.args.one_a_sequence) return false;
    const split s = split_of(call, i, find_heads<S>(call.args, i).kv, number);
    if (begun_keys_end<S>(s) > call.args.pos[i.token]) return false;
    begin_keys<S>(call.args, shared, s);
    return true;
}

template <class S>
__global__ void __launch_bounds__(S::THREADS) attend_singles(const __grid_constant__ single_call call) {
    extern __shared__ __align__(128) uint8_t bytes[];
    const single_memory<S> shared = {bytes};
    const line all = make_line<S::THREADS>(call, shared.before(), shared.of_warp());
    const int32_t share = all.share(blockIdx.x), end = all.share(blockIdx.x + 1);
    const float factor = score_factor(call.args);
    item i = share < end ? all.find_item(share) : item{}, to_fold = {};
    int32_t from = share < end ? all.split_from(i, share) : 0;
    int32_t splits_end = share < end ? all.splits_end(i, blockIdx.x) : 0;
    /* Of the first item it may be that no split begins here, or that it is another's as a whole. */
    bool has_splits = from < splits_end && !(all.whole && from > 0), folds = false;
    bool begun = has_splits && begin_early<S>(call, shared, i, from);
    wait_for_kernels_before();
    let_next_begin();
    clear_padding<S>(call);
    if (share >= end) return;
    single_state<S> w;
    for (;;) {
        if (has_splits && attend_item<S>(call, shared, i, from, splits_end, begun, factor, w))
            folds = true, to_fold = i;
        i = all.next_item(i);
        if (i.base >= end) break;
        from = 0, splits_end = all.splits_end(i, blockIdx.x), has_splits = splits_end > 0, begun = false;
    }
    if (folds) fold_item<S>(call, shared, all, to_fold);
}

} // namespace

#endif
