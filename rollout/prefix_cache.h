/* prefix_cache.h - which full blocks of the KV pool are known by their tokens, with the routes of these:
 * what a request that begins with the same tokens takes over instead of being fed.
 *
 * A block is known by the block before it and by its own tokens, both compared whole: two blocks of one
 * hash are never taken for each other. So a chain of known blocks is a prefix, and whoever holds a block
 * holds those before it. All of them are of one weight version: new weights forget every block.
 *
 * Owns: keys, rows, and the order in which blocks that nobody holds are to go. Refuses: who holds a block,
 * and which are free (kv_blocks.h). */
#ifndef WB_PREFIX_CACHE_H
#define WB_PREFIX_CACHE_H

#include "wb_base.h"
#include "wb_memory.h"

/* In place of a block: before the first one, or none found. */
enum { WB_NO_BLOCK = -1 };

/* In place of a state of fixed size. */
enum { WB_NO_STATE = -1 };

/* A block of the pool, as far as it is known. */
typedef struct wb_known_block {
    int32_t parent;       /* the block before it, or WB_NO_BLOCK */
    int32_t chain;        /* the next one of its bucket */
    int32_t older, newer; /* of those that rest; WB_NO_BLOCK at the ends */
    int32_t snapshot;     /* of a known block: number of its snapshot (state_pool.h), or WB_NO_STATE */
    bool known;
} wb_known_block;

typedef struct wb_prefix_cache {
    int32_t n_blocks, block_size; /* of the pool; n_blocks 0: nothing is ever known */
    size_t row_bytes;
    wb_known_block *blocks; /* [n_blocks] */
    uint32_t *tokens;       /* [n_blocks, block_size], of known blocks */
    uint8_t *rows;          /* [n_blocks, block_size] of row_bytes, of known blocks, all of them valid */
    int32_t *buckets;       /* [n_buckets] the first block of each */
    uint32_t n_buckets;     /* a power of two */
    /* Of the known blocks that nobody holds, which rest, in the order in which they came to. */
    int32_t oldest, newest;
    int32_t n_known, n_resting;
} wb_prefix_cache;

/* Host bytes of a cache; a row of routes takes row_bytes a token of the pool and no more. */
size_t wb_prefix_cache_bytes(int32_t n_blocks, int32_t block_size, size_t row_bytes);

/* Makes the memory, which is the owner's, in a zeroed struct. All numbers are at least 1, but for
 * row_bytes. */
wb_status wb_prefix_cache_open(wb_owner *owner, int32_t n_blocks, int32_t block_size, size_t row_bytes,
                               wb_prefix_cache *cache);

/* The known block of `tokens` [block_size] behind `parent`, or WB_NO_BLOCK. */
int32_t wb_prefix_cache_find(const wb_prefix_cache *cache, int32_t parent, const uint32_t *tokens);

/* Makes known a block that is not, whose content is not known by another one. Returns where the rows of its
 * tokens are to be put, [block_size] of row_bytes, before anybody asks for them. */
uint8_t *wb_prefix_cache_add(wb_prefix_cache *cache, int32_t block, int32_t parent, const uint32_t *tokens);

static inline bool wb_prefix_cache_knows(const wb_prefix_cache *cache, int32_t block) {
    return cache->n_blocks > 0 && cache->blocks[block].known;
}

/* Rows of a known block's tokens, [block_size]. */
const uint8_t *wb_prefix_cache_rows(const wb_prefix_cache *cache, int32_t block);

/* Nobody holds a known block any more; somebody does again. */
void wb_prefix_cache_rest(wb_prefix_cache *cache, int32_t block);
void wb_prefix_cache_wake(wb_prefix_cache *cache, int32_t block);

/* Forgets the block that has rested for the longest, of n_resting > 0. It is the last one of its chain: a
 * holder gives back the blocks of a chain from its end, so that none rests for longer than what follows
 * it. */
int32_t wb_prefix_cache_forget_oldest(wb_prefix_cache *cache);

/* Forgets all blocks. Those that rested are in resting_out, their number is returned. */
int32_t wb_prefix_cache_forget(wb_prefix_cache *cache, int32_t *resting_out);

#endif
