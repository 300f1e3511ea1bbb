/* kv_blocks.c - see kv_blocks.h. */
#include "kv_blocks.h"
#include "wb_check.h"

wb_status wb_kv_blocks_open(wb_owner *owner, int32_t n_blocks, int32_t block_size, wb_kv_blocks *pool) {
    WB_TRY(WB_OWN(owner, pool->free, (size_t)n_blocks, "KV block list"));
    for (int32_t i = 0; i < n_blocks; i++) pool->free[i] = n_blocks - 1 - i;
    pool->n_free = pool->n_blocks = n_blocks;
    pool->block_size = block_size;
    return WB_OK;
}

int64_t wb_kv_blocks_for(int32_t block_size, uint64_t n_tokens) {
    const uint64_t size = (uint64_t)block_size;
    return (int64_t)(n_tokens / size + (n_tokens % size != 0));
}

bool wb_kv_blocks_take(wb_kv_blocks *pool, int32_t n, int32_t *out) {
    if (n > pool->n_free) return false;
    for (int32_t i = 0; i < n; i++) out[i] = pool->free[--pool->n_free];
    return true;
}

void wb_kv_blocks_give(wb_kv_blocks *pool, int32_t n, const int32_t *blocks) {
    for (int32_t i = 0; i < n; i++) pool->free[pool->n_free++] = blocks[i];
}
