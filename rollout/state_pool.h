/* state_pool.h - states of fixed size by their numbers: one for each request that runs; one more for a
 * request with drafts while a step is made, which has it again as it was when a draft is wrong; and
 * snapshots, which are what a state was behind the last token of a known block, for requests that take that
 * block over. A state cannot be cut into blocks, nor take a token back: so it is copied.
 *
 * Owns: which numbers are free, which are snapshots, and the copies that are to be made before the next
 * step. Refuses: to make them (wb_infer_copy_state), and who is to have what (scheduler.c). */
#ifndef WB_STATE_POOL_H
#define WB_STATE_POOL_H

#include "free_list.h"
#include "prefix_cache.h"

typedef struct wb_state_copy {
    int32_t from, to;
} wb_state_copy;

typedef struct wb_state_pool {
    wb_free_list free;
    wb_prefix_cache *cache; /* of which a known block names its snapshot */
    int32_t *block_of;      /* [n] of a snapshot, the block; else WB_NO_BLOCK */
    uint64_t *used;         /* [n] when a snapshot was taken or had, by `clock` */
    uint64_t clock;
    wb_state_copy *copies; /* [max_copies], to be made in this order */
    int32_t n_copies;
} wb_state_pool;

/* n states, all free. max_copies: in a plan. */
wb_status wb_state_pool_open(wb_owner *owner, int32_t n, wb_prefix_cache *cache, int32_t max_copies,
                             wb_state_pool *pool);

/* A free one; where none is, the snapshot that nobody has had for the longest ends, or false is returned. */
bool wb_state_pool_take(wb_state_pool *pool, int32_t *state_out);
void wb_state_pool_give(wb_state_pool *pool, int32_t state);

/* What `state` is now becomes the snapshot of a known block that has none, if a state can be had for it; by
 * the end of another snapshot only where may_forget. */
void wb_state_pool_keep(wb_state_pool *pool, int32_t state, int32_t block, bool may_forget);

/* A state that becomes what the snapshot of `block` is, which has one. False: none can be had. */
bool wb_state_pool_take_copy(wb_state_pool *pool, int32_t block, int32_t *state_out);

/* A state that becomes what `state` is before the step. False: none can be had. */
bool wb_state_pool_save(wb_state_pool *pool, int32_t state, int32_t *saved_out);

/* No block has a snapshot any more: copies may not have been made, or were made by other weights. */
void wb_state_pool_forget(wb_state_pool *pool);

#endif
