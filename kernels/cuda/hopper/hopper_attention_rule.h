/* hopper_attention_rule.h - the arithmetic of attention of bf16 on sm_90a, from which a query's bits follow,
 * whatever kernel serves it.
 *
 * Keys come in blocks of 128 and splits of 1,024 at absolute positions. A score is a chain of steps of 16
 * dimensions. Within a split, a block's largest score renews the largest so far, what was summed is scaled by
 * 2^(old - new), and weights are 2^(score - largest), rounded to bf16 where they multiply values; values are
 * chains of steps of 16 keys. Splits are folded in rising order, and the sum is divided last.
 *
 * A key that is not seen has the weight 0 and changes nothing, so that it does not matter how far before its
 * first key and beyond its last a kernel goes: a window is a mask, and blocks without a key that is seen may
 * be left out. A sink is folded in after the last split, as a split of one key whose value is 0.
 *
 * A row is one query and head; four lanes share it: lane l has the keys
 * 8 j + 2 (l % 4) and 1 more of a block, 32 scores. A sum is four chains in a lane, then pairs of lanes.
 *
 * Nothing here is written with operators that a compiler may contract. For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_ATTENTION_RULE_H
#define WB_HOPPER_ATTENTION_RULE_H

#include "attention_keys.h"
#include "cuda/cuda_tensor.h"
#include "cuda/hopper/hopper_ptx.h"
#include "wb_ops_attention.h"

namespace {

enum { BLOCK_KEYS = 128, SPLIT_BLOCKS = 8, SPLIT_KEYS = SPLIT_BLOCKS * BLOCK_KEYS };
/* Scores that a lane has of a row and a block. */
enum { LANE_KEYS = BLOCK_KEYS / 4 };

/* The largest score of no key. */
#define NO_SCORE __int_as_float(static_cast<int>(0xff800000u))

ASM_INLINE float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
ASM_INLINE float log2_of(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* What scores are multiplied by: exponents are of 2. */
ASM_INLINE float score_factor(const wb_attention &args) {
    return __fmul_rn(args.scale, WB_LOG2_E);
}

/* Of a row and the keys so far: the largest score times the factor, and the lane's part of the sum of
 * weights; of a split that has ended, the whole sum. */
struct row_state {
    float largest, sum;
};

ASM_INLINE row_state no_keys() {
    return {NO_SCORE, 0.0f};
}

/* Score i of row R of a lane's two, where wgmma left it. */
template <int R> ASM_INLINE float &score_at(float (&s)[2 * LANE_KEYS], int i) {
    return s[4 * (i / 2) + 2 * R + i % 2];
}

template <int R> ASM_INLINE float largest_of(float (&s)[2 * LANE_KEYS]) {
    float x[4];
#pragma unroll
    for (int i = 0; i < LANE_KEYS; i++) {
        const float y = score_at<R>(s, i);
        x[i % 4] = i < 4 ? y : fmaxf(x[i % 4], y);
    }
    float max = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
    return fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
}

/* What a block does to a row: weights are of scores above `base`, and what was summed is scaled. */
struct block_factors {
    float base, scale;
};

/* A block's largest score renews the row's. */
ASM_INLINE block_factors renew_largest(row_state *row, float largest_score, float factor) {
    const float largest = fmaxf(row->largest, __fmul_rn(largest_score, factor));
    /* Nothing was seen yet: any number will do in place of -inf - -inf. */
    const float base = largest == NO_SCORE ? 0.0f : largest;
    const float scale = exp2_of(__fsub_rn(row->largest, base));
    row->largest = largest;
    return {base, scale};
}

ASM_INLINE float weight_of(float score, float factor, const block_factors &by) {
    return exp2_of(__fmaf_rn(score, factor, -by.base));
}

/* Scores of a block, -infinity where a key is not seen, become weights; the row goes on by the block.
 * Returns what sums so far are to be multiplied by. */
template <int R> ASM_INLINE float soften(float (&s)[2 * LANE_KEYS], float factor, row_state *row) {
    const block_factors by = renew_largest(row, largest_of<R>(s), factor);
    float sum[4];
#pragma unroll
    for (int i = 0; i < LANE_KEYS; i++) {
        const float p = weight_of(score_at<R>(s, i), factor, by);
        score_at<R>(s, i) = p;
        sum[i % 4] = i < 4 ? p : __fadd_rn(sum[i % 4], p);
    }
    row->sum = __fmaf_rn(row->sum, by.scale, __fadd_rn(__fadd_rn(sum[0], sum[1]), __fadd_rn(sum[2], sum[3])));
    return by.scale;
}

/* The sum of a split that has ended, from the parts of the lanes of a row. */
ASM_INLINE float sum_of_lanes(float x) {
    x = __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/* What values of the splits before and of the next one are multiplied by. */
struct fold_factors {
    float before, next;
};

/* `row` goes on by a split. One without a key that is seen changes nothing, the first ones included. */
ASM_INLINE fold_factors fold_split(row_state *row, const row_state &split) {
    const float largest = fmaxf(row->largest, split.largest);
    const float base = largest == NO_SCORE ? 0.0f : largest;
    const fold_factors by = {exp2_of(__fsub_rn(row->largest, base)), exp2_of(__fsub_rn(split.largest, base))};
    row->sum = __fmaf_rn(split.sum, by.next, __fmul_rn(row->sum, by.before));
    row->largest = largest;
    return by;
}
ASM_INLINE float fold_value(float before, float next, const fold_factors &by) {
    return __fmaf_rn(next, by.next, __fmul_rn(before, by.before));
}

/* Adding 0 makes -0 0: whether a sum of nothing but zeros is one depends on how many keys that are not seen
 * it went over. */
ASM_INLINE float end_value(float value, float inverse) {
    return __fadd_rn(__fmul_rn(value, inverse), 0.0f);
}
/* After the last split: the head's sink joins. Returns what the row's sum of values is multiplied by. */
ASM_INLINE float end_row(const wb_attention &args, int64_t head, row_state *row) {
    float before = 1.0f;
    if (args.sinks) before = fold_split(row, {__fmul_rn(args.sinks[head], WB_LOG2_E), 1.0f}).before;
    return __fmul_rn(before, __frcp_rn(row->sum));
}
ASM_INLINE float log_of_sum(const row_state &row) {
    return __fmul_rn(__fadd_rn(row.largest, log2_of(row.sum)), WB_LN_2);
}

/* ---- keys in the pool -------------------------------------------------------------------------- */

/* The first key that token t sees. Without a window nothing is read. */
ASM_INLINE int32_t first_key_of(const wb_attention &args, int64_t t) {
    return args.window > 0 ? attention_first_key(&args, args.pos[t]) : 0;
}

/* The pool's row of key j of a sequence. */
ASM_INLINE int32_t pool_row(const wb_attention &args, int32_t seq, int32_t j) {
    const int32_t *blocks = args.blocks + static_cast<int64_t>(seq) * args.max_blocks;
    return blocks[j / args.block_size] * args.block_size + j % args.block_size;
}

/* Pages of so many keys at least come as boxes, or with one address for each 16 keys. */
enum { PAGE_GRAIN = 16 };

ASM_INLINE bool comes_in_pages(const wb_attention &args) {
    return args.block_size % PAGE_GRAIN == 0;
}

/* Whether a kernel of single tokens serves token t: it is the only one of its sequence beside it. */
ASM_INLINE bool is_single(const wb_attention &args, int64_t t) {
    return (t == 0 || args.seq[t - 1] != args.seq[t]) && (t + 1 == args.T || args.seq[t + 1] != args.seq[t]);
}

} // namespace

#endif
