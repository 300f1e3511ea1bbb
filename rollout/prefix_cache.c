/* prefix_cache.c - see prefix_cache.h. */
#include "prefix_cache.h"
#include "wb_check.h"
#include "wb_hash.h"

#include <string.h>

/* ---- memory -------------------------------------------------------------------------------------- */

static uint32_t buckets_for(int32_t n_blocks) {
    uint32_t n = 1;
    while (n < (uint32_t)n_blocks) n *= 2;
    return n;
}

size_t wb_prefix_cache_bytes(int32_t n_blocks, int32_t block_size, size_t row_bytes) {
    const size_t n_tokens = (size_t)n_blocks * (size_t)block_size;
    return (size_t)n_blocks * sizeof(wb_known_block) + n_tokens * (sizeof(uint32_t) + row_bytes) +
           buckets_for(n_blocks) * sizeof(int32_t);
}

wb_status wb_prefix_cache_open(wb_owner *owner, int32_t n_blocks, int32_t block_size, size_t row_bytes,
                               wb_prefix_cache *cache) {
    static const char what[] = "prefix cache";
    const size_t n_tokens = (size_t)n_blocks * (size_t)block_size;
    cache->n_buckets = buckets_for(n_blocks);
    WB_TRY(WB_OWN(owner, cache->blocks, (size_t)n_blocks, what));
    WB_TRY(WB_OWN(owner, cache->tokens, n_tokens, what));
    WB_TRY(WB_OWN_ALLOC(owner, cache->rows, n_tokens, row_bytes, what));
    WB_TRY(WB_OWN(owner, cache->buckets, cache->n_buckets, what));
    for (uint32_t i = 0; i < cache->n_buckets; i++) cache->buckets[i] = WB_NO_BLOCK;
    cache->oldest = cache->newest = WB_NO_BLOCK;
    cache->n_blocks = n_blocks;
    cache->block_size = block_size;
    cache->row_bytes = row_bytes;
    return WB_OK;
}

/* ---- keys ---------------------------------------------------------------------------------------- */

static size_t tokens_bytes(const wb_prefix_cache *cache) {
    return (size_t)cache->block_size * sizeof(uint32_t);
}

static uint32_t *tokens_of(const wb_prefix_cache *cache, int32_t block) {
    return cache->tokens + (size_t)block * (size_t)cache->block_size;
}

static uint8_t *rows_of(const wb_prefix_cache *cache, int32_t block) {
    return cache->rows + (size_t)block * (size_t)cache->block_size * cache->row_bytes;
}

static int32_t *bucket_of(const wb_prefix_cache *cache, int32_t parent, const uint32_t *tokens) {
    const uint64_t hash = wb_hash64_seeded(tokens, tokens_bytes(cache), (uint64_t)(parent - WB_NO_BLOCK));
    return &cache->buckets[hash & (cache->n_buckets - 1)];
}

int32_t wb_prefix_cache_find(const wb_prefix_cache *cache, int32_t parent, const uint32_t *tokens) {
    int32_t block = cache->n_blocks > 0 ? *bucket_of(cache, parent, tokens) : WB_NO_BLOCK;
    while (block != WB_NO_BLOCK && (cache->blocks[block].parent != parent ||
                                    memcmp(tokens_of(cache, block), tokens, tokens_bytes(cache)) != 0))
        block = cache->blocks[block].chain;
    return block;
}

uint8_t *wb_prefix_cache_add(wb_prefix_cache *cache, int32_t block, int32_t parent, const uint32_t *tokens) {
    int32_t *bucket = bucket_of(cache, parent, tokens);
    memcpy(tokens_of(cache, block), tokens, tokens_bytes(cache));
    cache->blocks[block] = (wb_known_block){parent, *bucket, WB_NO_BLOCK, WB_NO_BLOCK, WB_NO_STATE, true};
    *bucket = block;
    cache->n_known++;
    return rows_of(cache, block);
}

const uint8_t *wb_prefix_cache_rows(const wb_prefix_cache *cache, int32_t block) {
    return rows_of(cache, block);
}

static void forget(wb_prefix_cache *cache, int32_t block) {
    wb_known_block *known = &cache->blocks[block];
    int32_t *link = bucket_of(cache, known->parent, tokens_of(cache, block));
    while (*link != block) link = &cache->blocks[*link].chain;
    *link = known->chain;
    known->known = false;
    known->snapshot = WB_NO_STATE;
    cache->n_known--;
}

/* ---- blocks that nobody holds -------------------------------------------------------------------- */

void wb_prefix_cache_rest(wb_prefix_cache *cache, int32_t block) {
    cache->blocks[block].older = cache->newest;
    cache->blocks[block].newer = WB_NO_BLOCK;
    *(cache->newest == WB_NO_BLOCK ? &cache->oldest : &cache->blocks[cache->newest].newer) = block;
    cache->newest = block;
    cache->n_resting++;
}

void wb_prefix_cache_wake(wb_prefix_cache *cache, int32_t block) {
    const wb_known_block *known = &cache->blocks[block];
    *(known->older == WB_NO_BLOCK ? &cache->oldest : &cache->blocks[known->older].newer) = known->newer;
    *(known->newer == WB_NO_BLOCK ? &cache->newest : &cache->blocks[known->newer].older) = known->older;
    cache->n_resting--;
}

int32_t wb_prefix_cache_forget_oldest(wb_prefix_cache *cache) {
    const int32_t block = cache->oldest;
    wb_prefix_cache_wake(cache, block);
    forget(cache, block);
    return block;
}

int32_t wb_prefix_cache_forget(wb_prefix_cache *cache, int32_t *resting_out) {
    int32_t n = 0;
    while (cache->n_resting > 0) resting_out[n++] = wb_prefix_cache_forget_oldest(cache);
    for (int32_t block = 0; block < cache->n_blocks; block++)
        if (cache->blocks[block].known) forget(cache, block);
    return n;
}
