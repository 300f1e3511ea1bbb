/* cuda_entries.h - the keys of one query of attention over entries: the rows of its window, then the entries
 * that it sees. What the forward and the backward share. For .cu files.
 *
 * A block has one query and head, as in cuda_attention.h, from which come the steps over keys; a key is a
 * place in the query's list. */
#ifndef WB_CUDA_ENTRIES_H
#define WB_CUDA_ENTRIES_H

#include "cuda/cuda_attention.h"
#include "cuda/cuda_fault.h"
#include "entry_check.h"
#include "entry_rules.h"

namespace {

/* A list that names what its token does not see, or twice, or something behind a -1, is a fault. The kernels
 * behind this one run all the same, and so read no place of it as a row that is not there (place_of_key). */
__global__ void __launch_bounds__(BLOCK) check_lists(wb_entry_attention args, wb_op op, wb_fault *fault) {
    const int64_t place = thread_number(), t = place / args.max_listed;
    if (t >= args.raw.T || args.raw.seq[t] < 0) return;
    const int32_t found = args.listed[place], choice = static_cast<int32_t>(place % args.max_listed);
    const int32_t limit = entries_seen(args.entries.ratio, args.raw.pos[t]);
    if (!follows_in_list(args.listed + t * args.max_listed, choice, limit))
        set_fault(fault, {WB_FAULT_ENTRY, op, t, choice, limit, found});
}

inline wb_status launch_checks(wb_device *dev, const char *name, wb_op op, const wb_entry_attention *args) {
    if (!args->listed || args->entries.ratio == 0) return WB_OK;
    LAUNCH(dev, name, args->raw.T * args->max_listed, 1, check_lists, *args, op, fault_of(dev));
}

/* One query: its rows are the positions [first, first + raw), and `entries` more keys are those of the list,
 * or the first ones. */
struct entry_list {
    const int32_t *blocks, *list;
    int64_t first, raw;
    int32_t entries, seen;
};

/* Of a token that is no padding. */
__device__ __forceinline__ entry_list find_list(const wb_entry_attention &args, int64_t t) {
    const int32_t pos = args.raw.pos[t], first = attention_first_key(&args.raw, pos);
    entry_list keys = {args.raw.blocks + static_cast<int64_t>(args.raw.seq[t]) * args.raw.max_blocks,
                       NULL,
                       first,
                       static_cast<int64_t>(pos) - first + 1,
                       0,
                       entries_seen(args.entries.ratio, pos)};
    keys.entries = keys.seen;
    if (!args.listed || args.entries.ratio == 0) return keys;
    keys.list = args.listed + t * args.max_listed;
    keys.entries = min(listed_entries(keys.list, args.max_listed), keys.seen);
    return keys;
}

__device__ __forceinline__ int64_t key_count(const entry_list &keys) {
    return keys.raw + keys.entries;
}

/* Rows among which key j lies, and its first element there. What a wrong list names is read as the
 * last entry that the query sees, a -1 before an entry as the first one. */
__device__ __forceinline__ const wb_rows &pool_of(const wb_entry_attention &args, const entry_list &keys,
                                                  int64_t j) {
    return j < keys.raw ? args.raw.k : args.entries.rows;
}
__device__ __forceinline__ int64_t place_of_key(const wb_entry_attention &args, const entry_list &keys,
                                                int64_t j) {
    if (j < keys.raw)
        return position_row(keys.blocks, args.raw.block_size, keys.first + j) * args.raw.head_dim;
    const int32_t i = static_cast<int32_t>(j - keys.raw),
                  w = keys.list ? max(0, min(keys.list[i], keys.seen - 1)) : i;
    return entry_row(keys.blocks, args.raw.block_size, args.entries.ratio, w) * args.entries.stride;
}

/* <x[head_dim], key j> */
__device__ __forceinline__ float dot_key(const wb_entry_attention &args, const entry_list &keys, int64_t j,
                                         const float *x) {
    return dot_head(x, pool_of(args, keys, j), place_of_key(args, keys, j), args.raw.head_dim);
}

/* The largest score, or the sink where that is larger; NaN as in largest_score. */
__device__ __forceinline__ float largest_of_list(const wb_entry_attention &args, const entry_list &keys,
                                                 int64_t head, const float *q) {
    float max = dot_key(args, keys, 0, q);
    for (int64_t j = threadIdx.x; j < key_count(keys); j += STEP) {
        const float score = dot_key(args, keys, j, q);
        max = score > max ? score : max;
    }
    max = block_max(max);
    return args.raw.sinks && args.raw.sinks[head] > max ? args.raw.sinks[head] : max;
}

/* The keys of a list from j0 on, as a step, all of which are seen. */
__device__ __forceinline__ key_step list_step(const entry_list &keys, int64_t j0) {
    return {j0, 0, static_cast<int>(min(key_count(keys) - j0, static_cast<int64_t>(STEP)))};
}

/* out[d] += p[j] * key j of the step, ascending: thread d, d + STEP, ... place: where each key lies. */
__device__ __forceinline__ void add_keys(const wb_entry_attention &args, const entry_list &keys,
                                         const float *p, const int64_t *place, const key_step &step,
                                         float (&out)[MAX_DIM / STEP]) {
#pragma unroll
    for (int i = 0; i < MAX_DIM / STEP; i++) {
        const int d = threadIdx.x + i * STEP;
        if (d >= args.raw.head_dim) break;
#pragma unroll 4
        for (int j = 0; j < step.end; j++)
            out[i] = wb_fma(p[j], load_element(pool_of(args, keys, step.j0 + j), place[j] + d), out[i]);
    }
}

} // namespace

#endif
