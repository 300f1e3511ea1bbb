/* scheduler.c - see scheduler.h: decodes first, then prefill chunks in the order of the line, then admission.
 *
 * Every request ends, because of four rules.
 * 1. Blocks are taken from the youngest running request only. So the oldest request is never preempted, and
 *    since the pool holds any request alone, it always finds the block that it needs.
 * 2. Decodes that do not all fit a step take turns, and prefills get what is left, in the order of
 *    the line. Only an older request decodes while a younger one still prefills, so the oldest waits for
 *    nobody's prefill and gets its token within one round of turns.
 * 3. Sampled tokens are kept over a preemption. So each token brings a request nearer to its end for good;
 *    when the oldest has ended, the next one is the oldest.
 * 4. A request is admitted only with blocks for all the tokens that it has. So no prefill stops half way to
 *    wait for a block.
 * Drafts change none of it: they get what prefills leave, and blocks that nobody holds.
 * "Older" is earlier in the line, whose running part nobody enters but at its end.
 * Without the first or the third rule, two requests could take each other's blocks for ever. */
#include "scheduler.h"
#include "sched_known.h"
#include "wb_check.h"

#include <string.h>

/* ---- open and close ------------------------------------------------------------------------------ */

static int32_t min(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* Each that runs holds a block at least. */
int32_t wb_scheduler_max_running(int32_t n_blocks, int32_t max_running) {
    return min(max_running, n_blocks);
}

/* Each entry of a step feeds a token at least. */
int32_t wb_scheduler_max_entries(int32_t n_blocks, int32_t max_batch_tokens, int32_t max_running) {
    return min(wb_scheduler_max_running(n_blocks, max_running), max_batch_tokens);
}

int32_t wb_scheduler_max_sampled(int32_t max_entries, int32_t max_batch_tokens, int32_t max_drafts) {
    const int64_t most = (int64_t)max_entries * (1 + (int64_t)max_drafts);
    return most < max_batch_tokens ? (int32_t)most : max_batch_tokens;
}

wb_status wb_scheduler_open(wb_scheduler *scheduler, const wb_scheduler_sizes *sizes) {
    const int32_t n_blocks = sizes->n_blocks, block_size = sizes->block_size;
    scheduler->max_batch_tokens = scheduler->max_prefill_tokens = sizes->max_batch_tokens;
    scheduler->block_size = block_size;
    scheduler->max_entries = wb_scheduler_max_entries(n_blocks, sizes->max_batch_tokens, sizes->max_running);
    const int64_t max_blocks = wb_kv_blocks_for(block_size, (uint64_t)sizes->max_positions);
    WB_TRY(wb_kv_blocks_open(&scheduler->memory, n_blocks, &scheduler->blocks));
    if (sizes->prefix_cache)
        WB_TRY(wb_prefix_cache_open(&scheduler->memory, n_blocks, block_size, sizes->row_bytes,
                                    &scheduler->blocks.cache));
    scheduler->max_running = wb_scheduler_max_running(n_blocks, sizes->max_running);
    scheduler->has_states = sizes->has_states;
    /* One that is kept, one that is had, and one that is saved. */
    WB_TRY(wb_state_pool_open(&scheduler->memory, sizes->n_states, &scheduler->blocks.cache,
                              3 * scheduler->max_running, &scheduler->states));
    const int32_t max_sampled =
        wb_scheduler_max_sampled(scheduler->max_entries, sizes->max_batch_tokens, sizes->max_drafts);
    return wb_step_batch_open(&scheduler->memory, (size_t)sizes->max_batch_tokens,
                              (size_t)scheduler->max_entries, (size_t)max_sampled,
                              (size_t)min(n_blocks, (int32_t)max_blocks), &scheduler->batch);
}

void wb_scheduler_close(wb_scheduler *scheduler) {
    wb_owner_close(&scheduler->memory);
    *scheduler = (wb_scheduler){0};
}

/* ---- the line ------------------------------------------------------------------------------------ */

/* The youngest of those that hold blocks: the one before the first waiting one. */
static wb_sched_entry *last_running(const wb_scheduler *scheduler) {
    wb_sched_entry *last = scheduler->first_waiting ? scheduler->first_waiting->previous : scheduler->last;
    return last && last->running ? last : NULL;
}

/* Whether a request that comes stands before one that waits. */
static bool is_before(const wb_sched_entry *entry, const wb_sched_entry *waiting) {
    if (entry->place != waiting->place) return entry->place < waiting->place;
    return entry->expected_tokens > waiting->expected_tokens;
}

void wb_scheduler_add(wb_scheduler *scheduler, wb_sched_entry *entry) {
    wb_sched_entry *previous = scheduler->last;
    while (previous && !previous->running && is_before(entry, previous)) previous = previous->previous;
    entry->previous = previous;
    entry->next = previous ? previous->next : scheduler->first;
    *(previous ? &previous->next : &scheduler->first) = entry;
    *(entry->next ? &entry->next->previous : &scheduler->last) = entry;
    if (!previous || previous->running) scheduler->first_waiting = entry;
    scheduler->waiting++;
}

static void give_saved(wb_scheduler *scheduler, wb_sched_entry *entry) {
    if (entry->saved_state != WB_NO_STATE) wb_state_pool_give(&scheduler->states, entry->saved_state);
    entry->saved_state = WB_NO_STATE;
}

/* Takes a running entry's blocks and its state. It keeps its place in the line, so it must be the last
 * running one, or leave the line. */
static void release(wb_scheduler *scheduler, wb_sched_entry *entry) {
    wb_kv_blocks_give(&scheduler->blocks, entry->n_blocks, entry->blocks);
    give_saved(scheduler, entry);
    wb_state_pool_give(&scheduler->states, entry->state);
    if (scheduler->next_decode == entry) scheduler->next_decode = wb_sched_next_running(entry);
    entry->n_blocks = entry->n_known = 0;
    entry->n_in_pool = entry->n_taken_over = entry->n_went_back = 0;
    entry->n_planned = entry->n_drafts = entry->n_accepted = 0;
    entry->running = false;
    scheduler->running--;
}

void wb_scheduler_remove(wb_scheduler *scheduler, wb_sched_entry *entry) {
    if (entry->running)
        release(scheduler, entry);
    else
        scheduler->waiting--;
    if (scheduler->first_waiting == entry) scheduler->first_waiting = entry->next;
    *(entry->previous ? &entry->previous->next : &scheduler->first) = entry->next;
    *(entry->next ? &entry->next->previous : &scheduler->last) = entry->previous;
    entry->previous = entry->next = NULL;
}

/* Gives back the blocks behind those of `end` tokens. */
static void trim(wb_scheduler *scheduler, wb_sched_entry *entry, uint32_t end) {
    const int32_t needed = (int32_t)wb_kv_blocks_for(scheduler->block_size, end);
    if (needed >= entry->n_blocks) return;
    wb_kv_blocks_give(&scheduler->blocks, entry->n_blocks - needed, entry->blocks + needed);
    entry->n_blocks = needed;
}

void wb_scheduler_trim(wb_scheduler *scheduler) {
    const wb_step_batch *batch = &scheduler->batch;
    for (int32_t i = 0; i < batch->n_entries; i++)
        trim(scheduler, batch->entries[i], batch->entries[i]->record->n_tokens);
}

void wb_scheduler_taken_back(wb_scheduler *scheduler, wb_sched_entry *entry) {
    entry->n_went_back = 0;
    trim(scheduler, entry, entry->record->n_tokens);
}

void wb_scheduler_fed(wb_scheduler *scheduler, wb_sched_entry *entry) {
    const bool drafted = entry->n_drafts > 0;
    const uint32_t end = entry->n_in_pool + wb_sched_n_kept(entry);
    const bool back = entry->saved_state != WB_NO_STATE && entry->n_accepted < entry->n_drafts;
    if (back) {
        const int32_t fed = entry->state;
        entry->state = entry->saved_state;
        entry->saved_state = fed;
    }
    give_saved(scheduler, entry);
    const uint32_t n = end - entry->n_in_pool;
    if (back)
        entry->n_went_back = n;
    else
        entry->n_went_back -= n < entry->n_went_back ? n : entry->n_went_back;
    if (!back) entry->n_in_pool = end;
    entry->n_planned = entry->n_drafts = entry->n_accepted = 0;
    /* What goes back is fed again with the token that was sampled behind it, as a prefill is. */
    if (drafted) trim(scheduler, entry, back ? end + 1 : end);
}

/* ---- preemption and admission -------------------------------------------------------------------- */

static void preempt(wb_scheduler *scheduler, wb_sched_entry *entry) {
    release(scheduler, entry);
    /* It ran: what comes later stays behind it, whatever its priority. */
    entry->place = INT64_MIN;
    scheduler->first_waiting = entry;
    scheduler->waiting++;
    scheduler->preemptions++;
}

/* Blocks for all the tokens that the entry has, of which the first ones may be known; or false and none. */
static bool take_blocks(wb_scheduler *scheduler, wb_sched_entry *entry) {
    const int32_t needed = (int32_t)wb_kv_blocks_for(scheduler->block_size, entry->record->n_tokens);
    const int32_t n_known = wb_sched_find_known(scheduler, entry);
    if (wb_sched_is_worth_waiting(scheduler, entry, n_known)) return false;
    for (int32_t i = 0; i < n_known; i++) wb_kv_blocks_share(&scheduler->blocks, entry->blocks[i]);
    if (!wb_kv_blocks_take(&scheduler->blocks, needed - n_known, entry->blocks + n_known)) {
        wb_kv_blocks_give(&scheduler->blocks, n_known, entry->blocks);
        return false;
    }
    entry->n_blocks = needed;
    entry->n_known = n_known;
    entry->n_in_pool = entry->n_taken_over = (uint32_t)n_known * (uint32_t)scheduler->block_size;
    return true;
}

/* There are more states than requests run, and no other one is taken between steps. */
static void take_state(wb_scheduler *scheduler, wb_sched_entry *entry) {
    entry->saved_state = WB_NO_STATE;
    if (scheduler->has_states && entry->n_known > 0)
        wb_state_pool_take_copy(&scheduler->states, entry->blocks[entry->n_known - 1], &entry->state);
    else
        wb_state_pool_take(&scheduler->states, &entry->state);
}

static bool admit(wb_scheduler *scheduler) {
    wb_sched_entry *entry = scheduler->first_waiting;
    if (!entry || scheduler->running == scheduler->max_running || !take_blocks(scheduler, entry))
        return false;
    take_state(scheduler, entry);
    entry->running = true;
    scheduler->first_waiting = entry->next;
    scheduler->running++;
    scheduler->waiting--;
    return true;
}

/* ---- decodes ------------------------------------------------------------------------------------- */

/* Plans a token for each entry that lacks nothing but it, at most `budget` of them, in turn. */
static void choose_decodes(wb_scheduler *scheduler, int32_t budget) {
    wb_sched_entry *entry =
        scheduler->next_decode ? scheduler->next_decode : wb_sched_first_running(scheduler);
    for (int32_t i = scheduler->running; i > 0 && budget > 0; i--) {
        entry->n_planned = wb_sched_decodes(entry);
        budget -= (int32_t)entry->n_planned;
        entry = wb_sched_next_running(entry);
        if (!entry) entry = wb_sched_first_running(scheduler);
    }
    scheduler->next_decode = entry;
}

/* Gives `entry` a block for its next token, from the youngest if need be; false when it is the youngest
 * itself and must wait. */
static bool extend_blocks(wb_scheduler *scheduler, wb_sched_entry *entry) {
    if (wb_kv_blocks_for(scheduler->block_size, entry->n_in_pool + 1) <= entry->n_blocks) return true;
    while (!wb_kv_blocks_take(&scheduler->blocks, 1, &entry->blocks[entry->n_blocks])) {
        wb_sched_entry *youngest = last_running(scheduler);
        if (youngest == entry) return false;
        preempt(scheduler, youngest);
    }
    entry->n_blocks++;
    return true;
}

/* In order of arrival: whoever is preempted is younger than the entry at hand and has taken no block for
 * this step yet. Returns the tokens planned. */
static int32_t plan_decodes(wb_scheduler *scheduler) {
    int32_t n = 0;
    choose_decodes(scheduler, scheduler->max_batch_tokens);
    for (wb_sched_entry *entry = wb_sched_first_running(scheduler); entry;
         entry = wb_sched_next_running(entry)) {
        if (entry->n_planned > 0 && !extend_blocks(scheduler, entry)) entry->n_planned = 0;
        n += (int32_t)entry->n_planned;
    }
    return n;
}

/* ---- prefills ------------------------------------------------------------------------------------ */

/* Where the entry's next chunk ends at the latest. A state is to stand at the end of what others could have
 * of it, for its snapshot: of what those could that take over no more than this one, and of all. */
static uint32_t chunk_end(const wb_scheduler *scheduler, const wb_sched_entry *entry) {
    const uint32_t size = (uint32_t)scheduler->block_size;
    const uint32_t ends[2] = {(uint32_t)wb_sched_n_takable(scheduler, entry) * size,
                              (uint32_t)wb_sched_n_sharable(scheduler, entry) * size};
    for (int i = 0; scheduler->has_states && i < 2; i++)
        if (entry->n_in_pool < ends[i]) return ends[i];
    return entry->record->n_tokens;
}

/* Plans the next chunk of an entry that has blocks for all its tokens. Returns its tokens. */
static int32_t plan_chunk(const wb_scheduler *scheduler, wb_sched_entry *entry, int32_t budget) {
    const uint32_t left = chunk_end(scheduler, entry) - entry->n_in_pool;
    entry->n_planned = left < (uint32_t)budget ? left : (uint32_t)budget;
    return (int32_t)entry->n_planned;
}

/* Returns what is left of the budget. */
static int32_t plan_prefills(wb_scheduler *scheduler, int32_t budget) {
    for (wb_sched_entry *entry = wb_sched_first_running(scheduler); entry && budget > 0;
         entry = wb_sched_next_running(entry))
        if (!wb_sched_decodes(entry)) budget -= plan_chunk(scheduler, entry, budget);
    while (budget > 0 && admit(scheduler)) budget -= plan_chunk(scheduler, last_running(scheduler), budget);
    return budget;
}

uint64_t wb_scheduler_n_decodes(const wb_scheduler *scheduler) {
    uint64_t n = 0;
    for (const wb_sched_entry *entry = wb_sched_first_running(scheduler); entry;
         entry = wb_sched_next_running(entry))
        n += wb_sched_samples(entry) || wb_sched_decodes(entry);
    return n;
}

/* ---- drafts -------------------------------------------------------------------------------------- */

void wb_scheduler_reach(wb_scheduler *scheduler, wb_sched_entry *entry, uint32_t end) {
    while (wb_kv_blocks_for(scheduler->block_size, end) > entry->n_blocks &&
           wb_kv_blocks_take(&scheduler->blocks, 1, &entry->blocks[entry->n_blocks]))
        entry->n_blocks++;
}

/* As many of the entry's drafts as fit the budget and blocks that nobody holds. Returns how many. */
static int32_t plan_entry_drafts(wb_scheduler *scheduler, wb_sched_entry *entry, int32_t budget) {
    const uint32_t end = entry->n_in_pool + entry->n_planned, size = (uint32_t)scheduler->block_size;
    const uint32_t n = entry->n_proposed < (uint32_t)budget ? entry->n_proposed : (uint32_t)budget;
    if (scheduler->has_states && !wb_state_pool_save(&scheduler->states, entry->state, &entry->saved_state))
        return 0;
    wb_scheduler_reach(scheduler, entry, end + n);
    const uint32_t room = (uint32_t)entry->n_blocks * size - end;
    entry->n_drafts = n < room ? n : room;
    return (int32_t)entry->n_drafts;
}

static void plan_drafts(wb_scheduler *scheduler, int32_t budget) {
    for (wb_sched_entry *entry = wb_sched_first_running(scheduler); entry && budget > 0;
         entry = wb_sched_next_running(entry))
        if (entry->n_planned > 0 && entry->n_proposed > 0 && wb_sched_decodes(entry))
            budget -= plan_entry_drafts(scheduler, entry, budget);
}

/* ---- a step -------------------------------------------------------------------------------------- */

void wb_scheduler_drop_plan(wb_scheduler *scheduler) {
    wb_step_batch_clear(&scheduler->batch);
    scheduler->states.n_copies = 0;
    for (wb_sched_entry *entry = wb_sched_first_running(scheduler); entry;
         entry = wb_sched_next_running(entry)) {
        give_saved(scheduler, entry);
        entry->n_planned = entry->n_drafts = entry->n_accepted = 0;
    }
}

void wb_scheduler_preempt_all(wb_scheduler *scheduler) {
    wb_scheduler_drop_plan(scheduler);
    for (wb_sched_entry *last = last_running(scheduler); last; last = last_running(scheduler))
        preempt(scheduler, last);
}

void wb_scheduler_forget_states(wb_scheduler *scheduler) {
    wb_scheduler_preempt_all(scheduler);
    wb_state_pool_forget(&scheduler->states);
}

void wb_scheduler_plan(wb_scheduler *scheduler) {
    wb_scheduler_drop_plan(scheduler);
    if (scheduler->has_states) wb_sched_keep_snapshots(scheduler);
    const int32_t left = scheduler->max_batch_tokens - plan_decodes(scheduler);
    const int32_t budget = min(left, scheduler->max_prefill_tokens);
    plan_drafts(scheduler, left - budget + plan_prefills(scheduler, budget));
    for (wb_sched_entry *entry = wb_sched_first_running(scheduler); entry;
         entry = wb_sched_next_running(entry))
        if (entry->n_planned > 0) wb_step_batch_add(&scheduler->batch, entry);
    wb_step_batch_fill_held(&scheduler->batch);
}
