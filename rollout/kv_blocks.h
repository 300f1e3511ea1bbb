/* kv_blocks.h - the blocks of the KV pool: who holds which. Several requests may hold one block, if it is
 * full and its content is known (prefix_cache.h); a block that nobody holds is free, or rests as long as
 * nobody needs it for something else. Refuses: who is to have a block (scheduler.c). */
#ifndef WB_KV_BLOCKS_H
#define WB_KV_BLOCKS_H

#include "free_list.h"
#include "prefix_cache.h"

typedef struct wb_kv_blocks {
    wb_free_list free;
    int32_t *holders; /* [n] of each block */
    wb_prefix_cache cache;
} wb_kv_blocks;

/* n blocks, all free. Their content is never known: no request takes over what another one has. */
wb_status wb_kv_blocks_open(wb_owner *owner, int32_t n, wb_kv_blocks *blocks);

/* Blocks that can be taken. */
static inline int32_t wb_kv_blocks_n_free(const wb_kv_blocks *blocks) {
    return blocks->free.n_free + blocks->cache.n_resting;
}

/* n blocks with one holder into out[n], or false and none. What has rested for the longest is forgotten
 * first, and only when no block is free. */
bool wb_kv_blocks_take(wb_kv_blocks *blocks, int32_t n, int32_t *out);

/* One more holder of a known block. */
void wb_kv_blocks_share(wb_kv_blocks *blocks, int32_t block);

/* One holder less of each of the n blocks of a chain. */
void wb_kv_blocks_give(wb_kv_blocks *blocks, int32_t n, const int32_t *held);

/* Makes the full block held[i] known by `tokens` and the block before it; returns where its rows are to be
 * put. Where another block is known by them already, held[i] becomes that one, and NULL is returned: their
 * keys are the same, bit for bit. */
uint8_t *wb_kv_blocks_know(wb_kv_blocks *blocks, int32_t *held, int32_t i, const uint32_t *tokens);

/* Nothing is known any more; who holds a block keeps it. */
void wb_kv_blocks_forget(wb_kv_blocks *blocks);

#endif
