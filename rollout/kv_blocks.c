/* kv_blocks.c - see kv_blocks.h. */
#include "kv_blocks.h"
#include "wb_check.h"

wb_status wb_kv_blocks_open(wb_owner *owner, int32_t n, wb_kv_blocks *blocks) {
    WB_TRY(wb_free_list_open(owner, n, "KV block list", &blocks->free));
    return WB_OWN(owner, blocks->holders, (size_t)n, "KV block list");
}

bool wb_kv_blocks_take(wb_kv_blocks *blocks, int32_t n, int32_t *out) {
    if (n > wb_kv_blocks_n_free(blocks)) return false;
    while (blocks->free.n_free < n) {
        const int32_t block = wb_prefix_cache_forget_oldest(&blocks->cache);
        wb_free_list_give(&blocks->free, 1, &block);
    }
    wb_free_list_take(&blocks->free, n, out);
    for (int32_t i = 0; i < n; i++) blocks->holders[out[i]] = 1;
    return true;
}

void wb_kv_blocks_share(wb_kv_blocks *blocks, int32_t block) {
    if (blocks->holders[block]++ == 0) wb_prefix_cache_wake(&blocks->cache, block);
}

static void give(wb_kv_blocks *blocks, int32_t block) {
    if (--blocks->holders[block] > 0) return;
    if (wb_prefix_cache_knows(&blocks->cache, block))
        wb_prefix_cache_rest(&blocks->cache, block);
    else
        wb_free_list_give(&blocks->free, 1, &block);
}

void wb_kv_blocks_give(wb_kv_blocks *blocks, int32_t n, const int32_t *held) {
    while (n-- > 0) give(blocks, held[n]);
}

uint8_t *wb_kv_blocks_know(wb_kv_blocks *blocks, int32_t *held, int32_t i, const uint32_t *tokens) {
    const int32_t parent = i > 0 ? held[i - 1] : WB_NO_BLOCK;
    const int32_t known = wb_prefix_cache_find(&blocks->cache, parent, tokens);
    if (known == WB_NO_BLOCK) return wb_prefix_cache_add(&blocks->cache, held[i], parent, tokens);
    wb_kv_blocks_share(blocks, known);
    give(blocks, held[i]);
    held[i] = known;
    return NULL;
}

void wb_kv_blocks_forget(wb_kv_blocks *blocks) {
    /* What rests becomes free, and the list of free blocks has the room for it. */
    blocks->free.n_free += wb_prefix_cache_forget(&blocks->cache, blocks->free.free + blocks->free.n_free);
}
