/* kv_blocks.c - which blocks of the KV pool are free. Owns numbers only; refuses the keys and values
 * themselves. */
#include <stdlib.h>
#include <string.h>

#include "engine_internal.h"
#include "wb_memory.h"

wb_status wb_kv_blocks_open(int32_t n_blocks, int32_t block_size, wb_kv_blocks *pool) {
    void *memory;
    WB_TRY(WB_ALLOC(memory, (size_t)n_blocks, sizeof(int32_t), "KV block list"));
    *pool = (wb_kv_blocks){memory, n_blocks, n_blocks, block_size};
    for (int32_t i = 0; i < n_blocks; i++) pool->free[i] = n_blocks - 1 - i;
    return WB_OK;
}

void wb_kv_blocks_close(wb_kv_blocks *pool) {
    free(pool->free);
    memset(pool, 0, sizeof *pool);
}

int64_t wb_kv_blocks_for(const wb_kv_blocks *pool, uint64_t n_tokens) {
    const uint64_t block_size = (uint64_t)pool->block_size;
    return (int64_t)(n_tokens / block_size + (n_tokens % block_size != 0));
}

bool wb_kv_blocks_take(wb_kv_blocks *pool, int32_t n, int32_t *out) {
    if (n > pool->n_free) return false;
    for (int32_t i = 0; i < n; i++) out[i] = pool->free[--pool->n_free];
    return true;
}

void wb_kv_blocks_give(wb_kv_blocks *pool, int32_t n, const int32_t *blocks) {
    for (int32_t i = 0; i < n; i++) pool->free[pool->n_free++] = blocks[i];
}
