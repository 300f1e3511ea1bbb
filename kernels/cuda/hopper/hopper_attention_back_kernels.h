/* hopper_attention_back_kernels.h - the kernels of the backward of attention on sm_90a, a .cu file each: what
 * they are given, and how they are launched, as many blocks as multiprocessors.
 *
 * Two kernels make each the products that it needs: one for dq, over the keys that a query sees, one for dk
 * and dv, over the queries that see a key. So no two blocks add to one element. An element is one chain: of
 * dq over keys by position, of dk and dv over the heads of the group and, in each, over the run's tokens; it
 * is the same chain whatever else is in the call. */
#ifndef WB_HOPPER_ATTENTION_BACK_KERNELS_H
#define WB_HOPPER_ATTENTION_BACK_KERNELS_H

#include "cuda/cuda_operands.h"
#include "cuda/hopper/hopper_attention_back_call.h"

#include <cuda.h>

/* Queries, or keys, of a piece of work. */
enum { WB_BACK_TILE = 128 };

/* The tokens [begin, end), a run, have `levels` tiles. The larger `level`, 1..levels, the more work: it is
 * tile level - 1 of the queries, and of the keys tile levels - level. */
struct wb_back_item {
    int32_t begin, end, level, levels;
};

/* Pointers are device memory. */
struct wb_attention_back {
    /* boxes of 64 rows and 64 columns */
    CUtensorMap q_map, dout_map, k_map, v_map;
    wb_attention args;
    wb_rows dout, dq, dk, dv;
    /* pieces of work by falling level, T at most */
    wb_back_item *items;
    /* [n_heads, T]: args.log_sums in units of log2, and <dout, out> */
    float *log2_sums, *dots;
    /* [T]: of each run, its first token and the one behind its last */
    int32_t *begins, *ends;
    int32_t *n_items;
};

/* items, n_items, log2_sums and dots, and zeros into dq's rows of padding */
wb_status wb_hopper_attention_back_prepare(wb_device *dev, const char *op, const wb_attention_back &call);
wb_status wb_hopper_attention_back_queries(wb_device *dev, const char *op, const wb_attention_back &call);
wb_status wb_hopper_attention_back_keys(wb_device *dev, const char *op, const wb_attention_back &call);

/* dsinks from log2_sums and dots (hopper_attention_back_prepare.cu). */
wb_status wb_hopper_attention_back_sinks(wb_device *dev, const char *op, const wb_attention_back &call,
                                         float *dsinks);

#endif
