/* kv_blocks.h - which blocks of the KV pool are free. Refuses: the keys and values themselves. */
#ifndef WB_KV_BLOCKS_H
#define WB_KV_BLOCKS_H

#include "wb_base.h"
#include "wb_memory.h"

typedef struct wb_kv_blocks {
    int32_t *free; /* [n_blocks], the first n_free are free: a stack; owner: as given at open */
    int32_t n_free, n_blocks;
    int32_t block_size; /* tokens */
} wb_kv_blocks;

wb_status wb_kv_blocks_open(wb_owner *owner, int32_t n_blocks, int32_t block_size, wb_kv_blocks *pool);

/* Blocks that the keys of n_tokens tokens fill. */
int64_t wb_kv_blocks_for(int32_t block_size, uint64_t n_tokens);

/* n blocks into out[n], or false and none. */
bool wb_kv_blocks_take(wb_kv_blocks *pool, int32_t n, int32_t *out);
void wb_kv_blocks_give(wb_kv_blocks *pool, int32_t n, const int32_t *blocks);

#endif
