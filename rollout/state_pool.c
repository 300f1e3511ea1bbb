/* state_pool.c - see state_pool.h. */
#include "state_pool.h"
#include "wb_check.h"

wb_status wb_state_pool_open(wb_owner *owner, int32_t n, wb_prefix_cache *cache, int32_t max_copies,
                             wb_state_pool *pool) {
    static const char what[] = "sequence state list";
    WB_TRY(wb_free_list_open(owner, n, what, &pool->free));
    WB_TRY(WB_OWN(owner, pool->block_of, (size_t)n, what));
    WB_TRY(WB_OWN(owner, pool->used, (size_t)n, what));
    WB_TRY(WB_OWN(owner, pool->copies, (size_t)max_copies, what));
    for (int32_t i = 0; i < n; i++) pool->block_of[i] = WB_NO_BLOCK;
    pool->cache = cache;
    return WB_OK;
}

/* Its block may have been forgotten, and be known again by other tokens. */
static void end_snapshot(wb_state_pool *pool, int32_t state) {
    wb_known_block *block = &pool->cache->blocks[pool->block_of[state]];
    if (block->snapshot == state) block->snapshot = WB_NO_STATE;
    pool->block_of[state] = WB_NO_BLOCK;
}

static int32_t oldest_snapshot(const wb_state_pool *pool) {
    int32_t oldest = WB_NO_STATE;
    for (int32_t i = 0; i < pool->free.n; i++)
        if (pool->block_of[i] != WB_NO_BLOCK && (oldest == WB_NO_STATE || pool->used[i] < pool->used[oldest]))
            oldest = i;
    return oldest;
}

bool wb_state_pool_take(wb_state_pool *pool, int32_t *state_out) {
    if (wb_free_list_take(&pool->free, 1, state_out)) return true;
    const int32_t oldest = oldest_snapshot(pool);
    if (oldest == WB_NO_STATE) return false;
    end_snapshot(pool, oldest);
    *state_out = oldest;
    return true;
}

void wb_state_pool_give(wb_state_pool *pool, int32_t state) {
    wb_free_list_give(&pool->free, 1, &state);
}

static void copy(wb_state_pool *pool, int32_t from, int32_t to) {
    if (from != to) pool->copies[pool->n_copies++] = (wb_state_copy){from, to};
}

void wb_state_pool_keep(wb_state_pool *pool, int32_t state, int32_t block, bool may_forget) {
    int32_t snapshot;
    if (!may_forget && pool->free.n_free == 0) return;
    if (!wb_state_pool_take(pool, &snapshot)) return;
    copy(pool, state, snapshot);
    pool->block_of[snapshot] = block;
    pool->used[snapshot] = ++pool->clock;
    pool->cache->blocks[block].snapshot = snapshot;
}

/* The one that is had may be the one that ends for it: then it is the copy itself. */
bool wb_state_pool_take_copy(wb_state_pool *pool, int32_t block, int32_t *state_out) {
    const int32_t snapshot = pool->cache->blocks[block].snapshot;
    pool->used[snapshot] = ++pool->clock;
    if (!wb_state_pool_take(pool, state_out)) return false;
    copy(pool, snapshot, *state_out);
    return true;
}

bool wb_state_pool_save(wb_state_pool *pool, int32_t state, int32_t *saved_out) {
    if (!wb_state_pool_take(pool, saved_out)) return false;
    copy(pool, state, *saved_out);
    return true;
}

void wb_state_pool_forget(wb_state_pool *pool) {
    for (int32_t i = 0; i < pool->free.n; i++) {
        if (pool->block_of[i] == WB_NO_BLOCK) continue;
        end_snapshot(pool, i);
        wb_state_pool_give(pool, i);
    }
}
