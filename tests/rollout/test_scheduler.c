/* test_scheduler.c - the scheduler alone, without a model: random arrivals, lengths, pools and aborts.
 * Nothing overtakes but by its place, blocks and states are conserved, the batch is what was planned, and
 * every request ends. What is taken over from the prefix cache are the rows of the same tokens.
 *
 * Each round is made from its seed; `test_scheduler --seed N` runs one of them. */
#include "sched_known.h"
#include "wb_check.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_ROUNDS 2000
#define FIRST_SEED 4100
#define MAX_REQUESTS 12
#define MAX_TOKENS 40 /* prompt and new ones of a request */
#define MAX_STEPS 5000

typedef struct request {
    wb_record record; /* tokens: those below */
    wb_sched_entry entry;
    uint32_t tokens[MAX_TOKENS];
    uint64_t rows[MAX_TOKENS]; /* each a hash of the tokens up to its own, and of the version */
    uint64_t stands;           /* what its state is to be, a hash of the tokens that were fed to it */
    int32_t blocks[MAX_TOKENS];
    uint32_t max_len;
    uint64_t arrival, end; /* step; end UINT64_MAX: ends at max_len, else it is aborted */
    bool arrived, fed, ended;
} request;

typedef struct round_state {
    uint64_t seed, state;
    wb_scheduler scheduler;
    int32_t n_blocks, block_size, max_batch_tokens, max_running;
    bool prefix_cache, has_states;
    int32_t n_states;
    uint64_t states[2 * MAX_REQUESTS]; /* what stands in each */
    uint32_t max_drafts;
    uint64_t drafts, rejected;
    uint64_t version, taken_over, went_back;
    uint32_t n, n_ended;
    request requests[MAX_REQUESTS]; /* in order of arrival */
    uint32_t n_line;
    const request *line[MAX_REQUESTS]; /* as the scheduler's is to be */
    uint64_t step;
    int failures;
} round_state;

#define EXPECT(condition)                                \
    do {                                                 \
        if (!(condition)) fail(r, __LINE__, #condition); \
    } while (0)

static void fail(round_state *r, int line, const char *condition) {
    fprintf(stderr, "seed %" PRIu64 ", step %" PRIu64 ", line %d: expected %s\n", r->seed, r->step, line,
            condition);
    r->failures++;
}

/* min .. max, both included. */
static uint32_t pick(round_state *r, uint32_t min, uint32_t max) {
    return min + wb_random_below(&r->state, max - min + 1);
}

/* ---- making a round ------------------------------------------------------------------------------ */

static void make_request(round_state *r, request *q, uint64_t arrival) {
    q->arrival = arrival;
    q->entry.place = (int64_t)arrival - (pick(r, 0, 2) == 0 ? (int64_t)pick(r, 0, 20) - 10 : 0);
    q->entry.expected_tokens = pick(r, 0, 1) == 0 ? 0 : pick(r, 0, 3);
    q->end = pick(r, 0, 7) == 0 ? arrival + pick(r, 0, 30) : UINT64_MAX;
    q->record.prompt_len = q->record.n_tokens = pick(r, 1, MAX_TOKENS / 2);
    q->record.tokens = q->tokens;
    q->max_len = q->record.n_tokens + pick(r, 1, MAX_TOKENS / 2);
    /* Many begin with the same tokens. */
    const uint32_t n_common = pick(r, 0, 1) == 0 ? 0 : pick(r, 0, MAX_TOKENS);
    for (uint32_t i = 0; i < MAX_TOKENS; i++) q->tokens[i] = i < n_common ? i : pick(r, 0, 1 << 20);
    q->entry.record = &q->record;
    q->entry.blocks = q->blocks;
}

static wb_status make_round(round_state *r, uint64_t seed) {
    memset(r, 0, sizeof *r);
    r->seed = seed;
    r->state = wb_mix64(seed);
    r->n = pick(r, 1, MAX_REQUESTS);
    uint32_t longest = 1;
    uint64_t arrival = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        make_request(r, &r->requests[i], arrival += pick(r, 0, 6));
        const uint32_t fed = r->requests[i].max_len - 1;
        longest = fed > longest ? fed : longest;
    }
    r->block_size = (int32_t)pick(r, 1, 9);
    const int32_t min_blocks = (int32_t)wb_kv_blocks_for(r->block_size, longest);
    r->n_blocks = min_blocks + (pick(r, 0, 1) == 0 ? 0 : (int32_t)pick(r, 0, 2 * (uint32_t)min_blocks));
    r->max_batch_tokens = (int32_t)(pick(r, 0, 2) == 0 ? pick(r, 1, 4) : pick(r, 1, 64));
    r->max_running = (int32_t)pick(r, 1, MAX_REQUESTS);
    r->prefix_cache = pick(r, 0, 1) == 0;
    r->max_drafts = pick(r, 0, 1) == 0 ? 0 : pick(r, 1, 6);
    r->has_states = pick(r, 0, 1) == 0;
    r->n_states = wb_scheduler_max_running(r->n_blocks, r->max_running);
    if (r->has_states && (r->prefix_cache || r->max_drafts > 0))
        r->n_states += (int32_t)pick(r, 1, (uint32_t)r->n_states);
    const wb_scheduler_sizes sizes = {.prefix_cache = r->prefix_cache,
                                      .row_bytes = sizeof(uint64_t),
                                      .max_drafts = (int32_t)r->max_drafts,
                                      .n_blocks = r->n_blocks,
                                      .block_size = r->block_size,
                                      .max_batch_tokens = r->max_batch_tokens,
                                      .max_running = r->max_running,
                                      .n_states = r->n_states,
                                      .has_states = r->has_states,
                                      .max_positions = MAX_TOKENS};
    return wb_scheduler_open(&r->scheduler, &sizes);
}

/* ---- what must hold after each plan -------------------------------------------------------------- */

/* Of two places, the earlier one; of one place, what is not expected to be shorter. */
static bool stands_before(const wb_sched_entry *waiting, const wb_sched_entry *comes) {
    return waiting->place < comes->place ||
           (waiting->place == comes->place && waiting->expected_tokens >= comes->expected_tokens);
}

/* A new request stands behind those that run and behind the waiting ones that stand before it. */
static void stand_in_line(round_state *r, const request *q) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < r->n_line; i++)
        if (r->line[i]->entry.running || stands_before(&r->line[i]->entry, &q->entry)) at = i + 1;
    memmove(&r->line[at + 1], &r->line[at], (r->n_line - at) * sizeof *r->line);
    r->line[at] = q;
    r->n_line++;
}

static void leave_line(round_state *r, const request *q) {
    uint32_t at = 0;
    while (r->line[at] != q) at++;
    r->n_line--;
    memmove(&r->line[at], &r->line[at + 1], (r->n_line - at) * sizeof *r->line);
}

/* The line is as it is to be, those that run are its head, and the counts are theirs. */
static void check_line(round_state *r) {
    const wb_scheduler *s = &r->scheduler;
    const wb_sched_entry *entry = s->first, *previous = NULL;
    int32_t running = 0, waiting = 0;
    for (uint32_t i = 0; i < r->n_line; i++) {
        const request *q = r->line[i];
        EXPECT(entry == &q->entry);
        if (entry != &q->entry) return;
        EXPECT(entry->previous == previous);
        EXPECT(!entry->running || waiting == 0);
        if (!entry->running && waiting == 0) EXPECT(s->first_waiting == entry);
        *(entry->running ? &running : &waiting) += 1;
        previous = entry;
        entry = entry->next;
    }
    EXPECT(!entry && s->last == previous);
    EXPECT(running == s->running && waiting == s->waiting && running <= r->max_running);
    EXPECT((waiting == 0) == !s->first_waiting);
}

/* Each block of the pool is free once, or held by as many requests as it has holders, or known and held by
 * nobody. */
static void check_blocks(round_state *r) {
    const wb_kv_blocks *pool = &r->scheduler.blocks;
    int32_t *seen = calloc((size_t)r->n_blocks, sizeof *seen), n_resting = 0;
    if (!seen) abort();
    for (uint32_t i = 0; i < r->n; i++) {
        const wb_sched_entry *entry = &r->requests[i].entry;
        EXPECT(entry->running || (entry->n_blocks == 0 && entry->n_in_pool == 0));
        EXPECT(entry->n_in_pool + wb_sched_n_fed(entry) <= (uint32_t)(entry->n_blocks * r->block_size));
        for (int32_t k = 0; k < entry->n_blocks; k++) seen[entry->blocks[k]]++;
        for (int32_t k = 0; k < entry->n_known; k++)
            EXPECT(!entry->shares || wb_prefix_cache_knows(&pool->cache, entry->blocks[k]));
    }
    for (int32_t i = 0; i < r->n_blocks; i++) {
        EXPECT(seen[i] == pool->holders[i]);
        n_resting += seen[i] == 0 && wb_prefix_cache_knows(&pool->cache, i);
    }
    for (int32_t i = 0; i < pool->free.n_free; i++) {
        EXPECT(seen[pool->free.free[i]] == 0 && !wb_prefix_cache_knows(&pool->cache, pool->free.free[i]));
        seen[pool->free.free[i]]++;
    }
    EXPECT(n_resting == pool->cache.n_resting);
    int32_t n = n_resting;
    for (int32_t i = 0; i < r->n_blocks; i++) n += seen[i] > 0;
    EXPECT(n == r->n_blocks);
    free(seen);
}

/* Likewise each state is free, a snapshot, or a running request's: its state, or while a step with drafts is
 * made what it may have to go back to. */
static void check_states(round_state *r) {
    const wb_state_pool *pool = &r->scheduler.states;
    uint8_t seen[2 * MAX_REQUESTS] = {0};
    EXPECT(pool->free.n == r->n_states);
    for (int32_t i = 0; i < pool->free.n_free; i++) seen[pool->free.free[i]]++;
    for (int32_t i = 0; i < r->n_states; i++)
        if (pool->block_of[i] != WB_NO_BLOCK) seen[i]++;
    for (uint32_t i = 0; i < r->n; i++) {
        const wb_sched_entry *entry = &r->requests[i].entry;
        if (!entry->running) continue;
        seen[entry->state]++;
        if (entry->saved_state != WB_NO_STATE) seen[entry->saved_state]++;
        EXPECT(entry->saved_state != WB_NO_STATE || !r->has_states || entry->n_drafts == 0);
    }
    for (int32_t i = 0; i < r->n_states; i++) EXPECT(seen[i] == 1);
}

static uint64_t hash_token(const round_state *r, uint64_t hash, uint32_t token) {
    return wb_mix64(hash + token + r->version * 977 + 1);
}

/* The copies of the plan; then each that is fed has its own state. */
static void copy_states(round_state *r) {
    const wb_state_pool *pool = &r->scheduler.states;
    for (int32_t i = 0; i < pool->n_copies; i++)
        r->states[pool->copies[i].to] = r->states[pool->copies[i].from];
    for (uint32_t i = 0; i < r->n && r->has_states; i++) {
        const request *q = &r->requests[i];
        if (q->entry.running && q->entry.n_in_pool > 0) EXPECT(r->states[q->entry.state] == q->stands);
    }
}

/* Feeds what is planned; a draft that will be rejected leaves its mark too. */
static void feed_state(round_state *r, request *q) {
    const uint32_t start = q->entry.n_in_pool, end = start + wb_sched_n_kept(&q->entry);
    uint64_t *state = &r->states[q->entry.state];
    if (start == 0) *state = 0;
    for (uint32_t i = start; i < end; i++) *state = hash_token(r, *state, q->tokens[i]);
    const uint64_t kept = *state;
    if (q->entry.n_accepted < q->entry.n_drafts) *state = ~kept;
    const bool back = r->has_states && q->entry.n_accepted < q->entry.n_drafts;
    if (!back) q->stands = kept;
    r->went_back += back;
}

static void check_entry(round_state *r, int32_t i, int64_t *t, int64_t *n_sampled) {
    const wb_step_batch *batch = &r->scheduler.batch;
    const wb_sched_entry *entry = batch->entries[i];
    EXPECT(entry->running && entry->n_planned > 0);
    EXPECT(entry->n_drafts == 0 || (wb_sched_samples(entry) && entry->n_drafts <= entry->n_proposed));
    for (uint32_t k = 0; k < wb_sched_n_fed(entry); k++, ++*t) {
        EXPECT(batch->pos[*t] == (int32_t)(entry->n_in_pool + k));
        EXPECT(batch->tokens[*t] == (int32_t)entry->record->tokens[entry->n_in_pool + k]);
        EXPECT(batch->seq[*t] == i);
    }
    for (int32_t k = 0; k < batch->max_blocks; k++)
        EXPECT(batch->blocks[i * batch->max_blocks + k] == (k < entry->n_blocks ? entry->blocks[k] : 0));
    EXPECT(batch->states[i] == entry->state);
    if (!wb_sched_samples(entry)) return;
    for (uint32_t k = 0; k <= entry->n_drafts; k++, ++*n_sampled) {
        EXPECT(*n_sampled < batch->n_sampled && batch->sampled[*n_sampled] == entry);
        EXPECT(wb_step_batch_position(batch, *n_sampled) == entry->record->n_tokens + k);
    }
}

/* Its rows as the present weights choose them. */
static void choose_rows(const round_state *r, request *q) {
    uint64_t hash = r->version;
    for (uint32_t i = 0; i < MAX_TOKENS; i++) q->rows[i] = hash = wb_mix64(hash + q->tokens[i]);
}

static request *request_of(wb_sched_entry *entry) {
    return (request *)(void *)((char *)entry - offsetof(request, entry));
}

/* What an entry was admitted with has the rows that it would have chosen. */
static void check_taken_over(round_state *r) {
    const uint32_t size = (uint32_t)r->block_size;
    for (uint32_t i = 0; i < r->n; i++) {
        wb_sched_entry *entry = &r->requests[i].entry;
        EXPECT(entry->n_taken_over == 0 || (entry->n_taken_over == entry->n_in_pool && entry->shares));
        if (entry->n_taken_over > 0) choose_rows(r, request_of(entry));
        if (entry->n_taken_over > 0) request_of(entry)->stands = 0;
        for (uint32_t t = 0; t < entry->n_taken_over; t++)
            request_of(entry)->stands =
                hash_token(r, request_of(entry)->stands, request_of(entry)->tokens[t]);
        for (uint32_t t = 0; t < entry->n_taken_over; t += size)
            EXPECT(memcmp(wb_prefix_cache_rows(&r->scheduler.blocks.cache, entry->blocks[t / size]),
                          request_of(entry)->rows + t, size * sizeof(uint64_t)) == 0);
        r->taken_over += entry->n_taken_over;
        entry->n_taken_over = 0;
    }
}

/* The batch is the planned tokens in the order of the line, no prefill is passed by one behind it, and
 * prefills keep to their budget. */
static void check_batch(round_state *r) {
    const wb_step_batch *batch = &r->scheduler.batch;
    int64_t t = 0, n_sampled = 0;
    int32_t n_planned = 0, n_prefill = 0;
    bool a_prefill_waits = false;
    for (const wb_sched_entry *entry = r->scheduler.first; entry; entry = entry->next) {
        const uint32_t lacks = entry->record->n_tokens - entry->n_in_pool;
        const bool prefills = lacks > 1;
        if (prefills && a_prefill_waits) EXPECT(entry->n_planned == 0);
        const uint32_t sharable = (entry->record->n_tokens - 1) / (uint32_t)r->block_size;
        const bool stops = r->has_states && entry->shares && entry->n_planned > 0 &&
                           entry->n_in_pool + entry->n_planned == sharable * (uint32_t)r->block_size;
        if (prefills && entry->n_planned < lacks && !stops) a_prefill_waits = true;
        if (entry->n_planned == 0) continue;
        EXPECT(n_planned < batch->n_entries && batch->entries[n_planned] == entry);
        n_prefill += prefills ? (int32_t)entry->n_planned : 0;
        n_planned++;
    }
    EXPECT(n_prefill <= r->scheduler.max_prefill_tokens);
    EXPECT(batch->n_entries == n_planned && n_planned <= r->scheduler.max_entries);
    for (int32_t i = 0; i < batch->n_entries; i++) check_entry(r, i, &t, &n_sampled);
    EXPECT(batch->n_tokens == t && t <= r->max_batch_tokens);
    EXPECT(batch->n_sampled == n_sampled);
    EXPECT(t > 0 || !r->scheduler.first); /* a step with work does some */
}

/* ---- a step as the engine makes it --------------------------------------------------------------- */

static void end_request(round_state *r, request *q) {
    leave_line(r, q);
    wb_scheduler_remove(&r->scheduler, &q->entry);
    q->ended = true;
    r->n_ended++;
}

static void arrive_and_abort(round_state *r) {
    for (uint32_t i = 0; i < r->n; i++) {
        request *q = &r->requests[i];
        if (!q->arrived && q->arrival <= r->step) {
            q->entry.shares = r->prefix_cache;
            stand_in_line(r, q);
            wb_scheduler_add(&r->scheduler, &q->entry);
            q->arrived = true;
        }
        if (!q->arrived || q->ended || q->end > r->step) continue;
        end_request(r, q);
    }
}

/* Keys of the old weights are not for whom the new ones answer. */
static void change_weights(round_state *r) {
    r->version++;
    wb_kv_blocks_forget(&r->scheduler.blocks);
    for (uint32_t i = 0; i < r->n; i++)
        if (r->requests[i].entry.n_in_pool > 0 || r->requests[i].fed) r->requests[i].entry.shares = false;
}

/* Some of those that were fed, from the first on. */
static void accept_drafts(round_state *r, request *q) {
    q->entry.n_accepted = pick(r, 0, q->entry.n_drafts);
    r->drafts += q->entry.n_drafts;
    r->rejected += q->entry.n_drafts - q->entry.n_accepted;
}

/* As many as the request can still take, or fewer. */
static void propose_drafts(round_state *r, request *q) {
    const uint32_t left = q->max_len - q->record.n_tokens;
    q->entry.n_proposed = left > 1 ? pick(r, 0, left - 1 < r->max_drafts ? left - 1 : r->max_drafts) : 0;
}

static void commit(round_state *r) {
    const wb_step_batch *batch = &r->scheduler.batch;
    for (int32_t i = 0; i < batch->n_entries; i++) {
        request *q = request_of(batch->entries[i]);
        const bool samples = wb_sched_samples(&q->entry);
        if (q->entry.shares) choose_rows(r, q);
        accept_drafts(r, q);
        const uint32_t n_accepted = q->entry.n_accepted, start_of_step = q->entry.n_in_pool;
        const bool back = r->has_states && n_accepted < q->entry.n_drafts;
        feed_state(r, q);
        wb_scheduler_fed(&r->scheduler, &q->entry);
        EXPECT(!samples || back || q->entry.n_in_pool == q->record.n_tokens + n_accepted);
        EXPECT(!back || q->entry.n_in_pool == start_of_step);
        uint32_t start;
        for (uint8_t *rows; wb_sched_know_next(&r->scheduler, &q->entry, &start, &rows);)
            if (rows) memcpy(rows, q->rows + start, (size_t)r->block_size * sizeof *q->rows);
        q->fed = true;
        if (!samples) continue;
        q->record.n_tokens += 1 + n_accepted;
        propose_drafts(r, q);
        if (q->record.n_tokens == q->max_len) end_request(r, q);
    }
}

typedef struct tally {
    uint64_t preemptions, taken_over, drafts, rejected, went_back, had_snapshots;
} tally;

/* Copies or not, and whatever was fed: no state is what it was. */
static void fail_step(round_state *r) {
    for (int32_t i = 0; i < r->n_states; i++) r->states[i] = 77;
    wb_scheduler_forget_states(&r->scheduler);
}

/* Now and then a step is not made after its plan, and states are lost with some of these: the next plan must
 * do as well. */
static int run_round(uint64_t seed, tally *t) {
    static round_state state;
    round_state *r = &state;
    if (make_round(r, seed) != WB_OK) abort();
    for (r->step = 0; r->n_ended < r->n && r->failures == 0; r->step++) {
        EXPECT(r->step < MAX_STEPS);
        arrive_and_abort(r);
        if (pick(r, 0, 19) == 0) change_weights(r);
        const uint64_t before = r->scheduler.preemptions;
        r->scheduler.max_prefill_tokens =
            pick(r, 0, 1) == 0 ? r->max_batch_tokens : (int32_t)pick(r, 1, (uint32_t)r->max_batch_tokens);
        wb_scheduler_plan(&r->scheduler);
        t->preemptions += r->scheduler.preemptions - before;
        check_line(r);
        check_blocks(r);
        check_states(r);
        check_batch(r);
        check_taken_over(r);
        if (pick(r, 0, 15) > 0 || !r->has_states)
            copy_states(r);
        else
            fail_step(r);
        if (pick(r, 0, 31) == 0)
            wb_scheduler_preempt_all(&r->scheduler);
        else if (!r->has_states && pick(r, 0, 15) == 0)
            wb_scheduler_drop_plan(&r->scheduler);
        else
            commit(r);
    }
    EXPECT(wb_kv_blocks_n_free(&r->scheduler.blocks) == r->n_blocks || r->failures > 0);
    t->taken_over += r->taken_over;
    t->drafts += r->drafts;
    t->rejected += r->rejected;
    t->went_back += r->went_back;
    t->had_snapshots += r->has_states ? r->taken_over : 0;
    check_states(r);
    wb_scheduler_close(&r->scheduler);
    return r->failures > 0;
}

int main(int argc, char **argv) {
    const bool one = argc == 3 && strcmp(argv[1], "--seed") == 0;
    const uint64_t first = one ? strtoull(argv[2], NULL, 10) : FIRST_SEED, n = one ? 1 : N_ROUNDS;
    tally t = {0};
    int failures = 0;
    for (uint64_t seed = first; seed < first + n; seed++) failures += run_round(seed, &t);
    printf("test_scheduler: seeds %" PRIu64 "..%" PRIu64 ", %" PRIu64 " preemptions, %" PRIu64
           " tokens taken over, %" PRIu64 " of them behind snapshots, %" PRIu64 " drafts, %" PRIu64
           " rejected, %" PRIu64 " times back, %d of %" PRIu64 " rounds failed\n",
           first, first + n - 1, t.preemptions, t.taken_over, t.had_snapshots, t.drafts, t.rejected,
           t.went_back, failures, n);
    if (!one && (t.preemptions < n / 10 || t.taken_over < n || t.drafts < n || t.rejected < n ||
                 t.went_back < n / 4 || t.had_snapshots < n / 2)) {
        printf("expected more of each: the rounds are too easy to show anything\n");
        return 1;
    }
    return failures > 0;
}
