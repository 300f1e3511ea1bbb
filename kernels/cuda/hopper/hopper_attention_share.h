/* hopper_attention_share.h - how the splits of single tokens are shared out among the blocks of threads of a
 * launch. Every block finds the same shares from the positions alone, without the host.
 *
 * An item is a token and a kv head, or 8 or 16 of the heads that share it. Items lie one after the other, a
 * block of 128 keys a step, and a block of threads has the splits that begin in its part of the line. Shares
 * change which block of threads computes a split and nothing of its bits.
 *
 * For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_ATTENTION_SHARE_H
#define WB_HOPPER_ATTENTION_SHARE_H

#include "cuda/hopper/hopper_attention_rule.h"

namespace {

/* What a kernel of single tokens is about. */
struct single_call {
    wb_attention args;
    wb_rows out;
    /* every token is served, or else those that are the only ones of their sequence */
    bool all;
    /* items of a token */
    int32_t token_items;
    /* splits of one item that a block of threads leaves to another to be folded, at most; may_exceed: a share
     * may have more of one item, and then items are not cut */
    int32_t parts;
    bool may_exceed;
    /* of each block of threads and part, [rows, D] and [rows] */
    float *sums;
    row_state *states;
    /* of each block of threads: its parts of its last item are there; zeros before and after */
    int32_t *flags;
};

ASM_INLINE bool is_served(const single_call &call, int64_t t) {
    return call.all || is_single(call.args, t);
}

/* Blocks with a key that token t sees. */
ASM_INLINE int32_t blocks_of_token(const single_call &call, int64_t t) {
    if (!is_served(call, t) || call.args.seq[t] < 0) return 0;
    return call.args.pos[t] / BLOCK_KEYS + 1 - first_key_of(call.args, t) / BLOCK_KEYS;
}

/* The sum of the lanes up to this one. */
ASM_INLINE int32_t sum_to_lane(int32_t x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int32_t other = __shfl_up_sync(0xffffffffu, x, step);
        x += lane >= step ? other : 0;
    }
    return x;
}

/* x[i] becomes the sum of those before it, x[n] of all, which is returned. All threads. */
template <int THREADS> ASM_INLINE int32_t sum_before(int32_t *x, int32_t n, int32_t *of_warp) {
    const int32_t each = (n + THREADS - 1) / THREADS;
    const int32_t begin = min(n, static_cast<int32_t>(threadIdx.x) * each), end = min(n, begin + each);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t own = 0, all = 0;
    for (int32_t i = begin; i < end; i++) own += x[i];
    const int32_t to_lane = sum_to_lane(own);
    if (lane == 31) of_warp[warp] = to_lane;
    __syncthreads();
    int32_t sum = to_lane - own;
    for (int i = 0; i < THREADS / 32; i++) {
        sum += i < warp ? of_warp[i] : 0;
        all += of_warp[i];
    }
    for (int32_t i = begin; i < end; i++) {
        const int32_t next = sum + x[i];
        x[i] = sum, sum = next;
    }
    if (threadIdx.x == 0) x[n] = all;
    __syncthreads();
    return all;
}

/* An item: base is where it begins in the line. Its first split has `skipped` blocks less than the others, of
 * keys before the window. */
struct item {
    int32_t token, number, blocks, base, skipped;
    ASM_INLINE int32_t splits() const {
        return (skipped + blocks + SPLIT_BLOCKS - 1) / SPLIT_BLOCKS;
    }
    /* Where split `split` begins in the line. */
    ASM_INLINE int64_t place_of(int32_t split) const {
        return split == 0 ? base : base + static_cast<int64_t>(split) * SPLIT_BLOCKS - skipped;
    }
};

/* Tokens are looked up by the lanes of a warp, so many at a time. */
enum { TOKEN_GROUP = 32 };

/* The line, as every block of threads sees it. Its calls are of whole warps. */
struct line {
    const single_call *call;
    /* shared memory, [groups of tokens + 1]: blocks of keys of the groups before */
    const int32_t *before;
    int32_t groups, length;
    /* items are not cut */
    bool whole;

    /* The first place of block of threads `b`. */
    ASM_INLINE int32_t share(int64_t b) const {
        return static_cast<int32_t>((b * length + gridDim.x - 1) / gridDim.x);
    }
    ASM_INLINE int32_t owner(int64_t place) const {
        return static_cast<int32_t>(place * gridDim.x / length);
    }
    /* The first split of an item that begins at `place` or later. */
    ASM_INLINE int32_t split_from(const item &i, int32_t place) const {
        return place <= i.base ? 0 : (place - i.base + i.skipped + SPLIT_BLOCKS - 1) / SPLIT_BLOCKS;
    }
    /* The end of the splits of an item that block of threads `b` has. */
    ASM_INLINE int32_t splits_end(const item &i, int64_t b) const {
        return whole ? i.splits() : min(i.splits(), split_from(i, share(b + 1)));
    }
    /* The group of tokens that `place` is in. */
    ASM_INLINE int32_t find_group(int32_t place) const {
        int32_t low = 0, high = groups;
        while (high - low > 1) {
            const int32_t middle = (low + high) / 2;
            if (before[middle] * call->token_items <= place)
                low = middle;
            else
                high = middle;
        }
        return low;
    }
    /* The item at `place`, below `length`. */
    ASM_INLINE item find_item(int32_t place) const {
        const int32_t group = find_group(place), items = call->token_items;
        const int32_t t = group * TOKEN_GROUP + static_cast<int32_t>(threadIdx.x % 32);
        const int32_t own = t < call->args.T ? blocks_of_token(*call, t) : 0, sum = sum_to_lane(own);
        const unsigned beyond = __ballot_sync(0xffffffffu, (before[group] + sum) * items > place);
        const int lane = __ffs(static_cast<int>(beyond)) - 1;
        const int32_t blocks = __shfl_sync(0xffffffffu, own, lane);
        const int32_t base = (before[group] + __shfl_sync(0xffffffffu, sum, lane) - blocks) * items;
        const int32_t number = (place - base) / blocks, token = group * TOKEN_GROUP + lane;
        const int32_t skipped = first_key_of(call->args, token) / BLOCK_KEYS % SPLIT_BLOCKS;
        return {token, number, blocks, base + number * blocks, skipped};
    }
    /* The item after it begins where it ends. */
    ASM_INLINE item next_item(const item &i) const {
        const int32_t place = i.base + i.blocks;
        if (i.number + 1 < call->token_items) return {i.token, i.number + 1, i.blocks, place, i.skipped};
        return place < length ? find_item(place) : item{0, 0, 0, length, 0};
    }
};

/* Counts the blocks of keys of all tokens. before: shared memory, [groups + 1]; of_warp: [warps]. All
 * threads. */
template <int THREADS> ASM_INLINE line make_line(const single_call &call, int32_t *before, int32_t *of_warp) {
    const int32_t groups = (static_cast<int32_t>(call.args.T) + TOKEN_GROUP - 1) / TOKEN_GROUP;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 4
    for (int32_t group = warp; group < groups; group += THREADS / 32) {
        const int32_t t = group * TOKEN_GROUP + lane;
        const int32_t own = t < call.args.T ? blocks_of_token(call, t) : 0;
        const int32_t sum = __reduce_add_sync(0xffffffffu, own);
        if (lane == 0) before[group] = sum;
    }
    __syncthreads();
    const int32_t all = sum_before<THREADS>(before, groups, of_warp);
    const int32_t length = all * call.token_items;
    const int32_t most = (length + static_cast<int32_t>(gridDim.x) - 1) / static_cast<int32_t>(gridDim.x);
    const bool whole = call.may_exceed && (most + SPLIT_BLOCKS - 1) / SPLIT_BLOCKS > call.parts;
    return {&call, before, groups, length, whole};
}

} // namespace

#endif
