/* sched_known.c - see sched_known.h. */
#include "sched_known.h"

#include <string.h>

int32_t wb_sched_n_sharable(const wb_scheduler *scheduler, const wb_sched_entry *entry) {
    return entry->shares ? (int32_t)((entry->record->n_tokens - 1) / (uint32_t)scheduler->block_size) : 0;
}

int32_t wb_sched_n_takable(const wb_scheduler *scheduler, const wb_sched_entry *entry) {
    const int32_t n = wb_sched_n_sharable(scheduler, entry);
    const int64_t most = entry->take_limit / (uint32_t)scheduler->block_size;
    return entry->take_limit > 0 && most < n ? (int32_t)most : n;
}

int32_t wb_sched_find_known(const wb_scheduler *scheduler, wb_sched_entry *entry) {
    const int32_t n = wb_sched_n_takable(scheduler, entry);
    int32_t n_known = 0, parent = WB_NO_BLOCK;
    for (int32_t i = 0; i < n; i++) {
        const uint32_t *tokens = entry->record->tokens + (size_t)i * (size_t)scheduler->block_size;
        parent = wb_prefix_cache_find(&scheduler->blocks.cache, parent, tokens);
        if (parent == WB_NO_BLOCK) break;
        entry->blocks[i] = parent;
        if (!scheduler->has_states || scheduler->blocks.cache.blocks[parent].snapshot != WB_NO_STATE)
            n_known = i + 1;
    }
    return n_known;
}

/* Full blocks with the same first tokens. */
static int32_t n_common(const wb_scheduler *scheduler, const wb_sched_entry *a, const wb_sched_entry *b) {
    const size_t size = (size_t)scheduler->block_size;
    const int32_t n_a = wb_sched_n_sharable(scheduler, a), n_b = wb_sched_n_sharable(scheduler, b);
    int32_t i = 0;
    while (i < n_a && i < n_b &&
           memcmp(a->record->tokens + (size_t)i * size, b->record->tokens + (size_t)i * size,
                  size * sizeof *a->record->tokens) == 0)
        i++;
    return i;
}

/* How many of the entry's blocks will be known once the other one is fed. Of a state there will be snapshots
 * where its chunks end: of all that others could have of it, and of what it could take over itself. */
static int32_t n_gained(const wb_scheduler *scheduler, const wb_sched_entry *entry,
                        const wb_sched_entry *other) {
    const int32_t n = n_common(scheduler, entry, other), most = wb_sched_n_takable(scheduler, entry);
    const int32_t both = n < most ? n : most, all = wb_sched_n_sharable(scheduler, other);
    if (!scheduler->has_states || all <= both) return scheduler->has_states ? all : both;
    const int32_t first = wb_sched_n_takable(scheduler, other);
    const bool comes = other->n_in_pool < (uint32_t)first * (uint32_t)scheduler->block_size;
    return comes && first <= both ? first : 0;
}

bool wb_sched_is_worth_waiting(const wb_scheduler *scheduler, const wb_sched_entry *entry, int32_t n_known) {
    const wb_sched_entry *other =
        n_known < wb_sched_n_takable(scheduler, entry) ? wb_sched_first_running(scheduler) : NULL;
    for (; other; other = wb_sched_next_running(other))
        if (!wb_sched_decodes(other) && n_gained(scheduler, entry, other) > n_known) return true;
    return false;
}

bool wb_sched_know_next(wb_scheduler *scheduler, wb_sched_entry *entry, uint32_t *start_out,
                        uint8_t **rows_out) {
    const uint32_t size = (uint32_t)scheduler->block_size, start = (uint32_t)entry->n_known * size;
    if (!entry->shares || start + size > entry->n_in_pool) return false;
    *rows_out =
        wb_kv_blocks_know(&scheduler->blocks, entry->blocks, entry->n_known++, entry->record->tokens + start);
    *start_out = start;
    return true;
}

void wb_sched_keep_snapshots(wb_scheduler *scheduler) {
    for (wb_sched_entry *entry = wb_sched_first_running(scheduler); entry;
         entry = wb_sched_next_running(entry)) {
        const uint32_t end = (uint32_t)entry->n_known * (uint32_t)scheduler->block_size;
        const int32_t last = entry->n_known > 0 ? entry->blocks[entry->n_known - 1] : WB_NO_BLOCK;
        if (!entry->shares || last == WB_NO_BLOCK || end != entry->n_in_pool) continue;
        if (scheduler->blocks.cache.blocks[last].snapshot == WB_NO_STATE)
            wb_state_pool_keep(&scheduler->states, entry->state, last, end < entry->record->prompt_len);
    }
}
