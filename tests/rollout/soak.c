/* soak.c - the engine for as long as one likes: two ranks, one engine each from begin to end, small pools,
 * and everything at once that schedules.c does one schedule of: chunks, hits, preemptions, drafts, aborts,
 * pauses, weights that change, records that go on, requests lent. Now and then a thread is refused an
 * allocation, where that can be (support/alloc_fail.h); the call is made again. Nothing may grow: not the
 * memory in use, not what the engine counts as unfinished, and all blocks come back. What requests return
 * is schedules.c's business.
 *
 * soak [--seconds N] [--seed SEED]           10 seconds of seed 1, and 64 rounds
 *
 * The exit code is the verdict; tests/soak.sh runs it for minutes, under the address sanitizer too. */
#include "engine_fixture.h"
#include "support/alloc_fail.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

enum { N_RANKS = 2, MAX_ASKS = 24, N_KEPT = 6, BUSY_STEPS = 60, LONGEST = 110 };

/* However slow the program is: the first few rounds bring buffers to their sizes. */
enum { MIN_ROUNDS = 64 };

/* What a sanitizer's allocator has given and not got back. */
size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static size_t bytes_in_use(void) {
    if (&__sanitizer_get_current_allocated_bytes) return __sanitizer_get_current_allocated_bytes();
    return mallinfo2().uordblks;
}

typedef struct counts {
    uint64_t rounds, submitted, refused, ended, aborted, failed_steps;
    /* At the end of a round at most: up to half of the time and half of MIN_ROUNDS, and after it. */
    size_t high_bytes, late_bytes;
} counts;

typedef struct soaker {
    wb_comm *comm;
    double seconds;
    dice own, common; /* of this rank; the same on all */
    rig shard, weights[2];
    wb_engine *engine;
    wb_engine_options options;
    ask asks[MAX_ASKS];
    uint32_t n_asks, n_tried;
    uint64_t next_rid, version;
    wb_completion *kept[N_KEPT]; /* to go on from */
    counts n;
} soaker;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void expect(const soaker *s, bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "soak: rank %d, round %" PRIu64 ": expected %s; the latest message: %s\n",
            wb_comm_rank(s->comm), s->n.rounds, what, wb_error_message());
    exit(1);
}

/* ---- calls of which memory may be refused --------------------------------------------------------- */

static void refuse_some(soaker *s) {
    if (ALLOC_FAIL_AT_WORKS && pick(&s->own, 0, 9) == 0) alloc_fail_this_thread_at((long)pick(&s->own, 0, 6));
}

static void refuse_none(void) {
    alloc_fail_this_thread_left();
}

static void submit_one(soaker *s) {
    ask *a = &s->asks[s->n_tried++];
    snprintf(a->rid, sizeof a->rid, "r%" PRIu64, s->next_rid++);
    refuse_some(s);
    const wb_status status = wb_engine_submit(s->engine, ask_request(a));
    refuse_none();
    expect(s, status == WB_OK || status == WB_OUT_OF_MEMORY || status == WB_CAPACITY,
           "a request or a refusal");
    *(status == WB_OK ? &s->n.submitted : &s->n.refused) += 1;
}

static void set_weights(soaker *s) {
    wb_status status;
    s->version++;
    do {
        refuse_some(s);
        status = wb_engine_set_weights(s->engine, s->weights[s->version % 2].model, s->version);
        refuse_none();
        expect(s, status == WB_OK || status == WB_OUT_OF_MEMORY, "weights");
    } while (status != WB_OK);
}

/* busy_out: where the step was not made, true. */
static void step(soaker *s, bool *busy_out) {
    refuse_some(s);
    const wb_status status = wb_engine_step(s->engine, busy_out);
    refuse_none();
    expect(s, status == WB_OK || status == WB_OUT_OF_MEMORY || status == WB_PEER, "a step");
    s->n.failed_steps += status != WB_OK;
    if (status != WB_OK) *busy_out = true;
}

/* ---- a round --------------------------------------------------------------------------------------- */

/* Half of them begin alike; some go on from what has ended. */
static void make_asks(soaker *s) {
    s->n_asks = pick(&s->own, 0, MAX_ASKS);
    s->n_tried = 0;
    for (uint32_t i = 0; i < s->n_asks; i++) {
        ask *a = &s->asks[i];
        *a = ask_random(&s->own, i, 61, 24, 18);
        const wb_completion *earlier = s->kept[pick(&s->own, 0, N_KEPT - 1)];
        if (pick(&s->own, 0, 1) == 0)
            for (uint32_t k = 0; k < a->request.n_tokens; k++) a->prompt[k] = k % 5;
        a->request.priority = (int32_t)pick(&s->own, 0, 6) - 3;
        a->request.expected_tokens = pick(&s->own, 0, 1) == 0 ? 0 : a->request.max_tokens;
        if (earlier && pick(&s->own, 0, 3) == 0) a->request.continues = &earlier->record;
    }
}

/* Whether a request that has yet to be submitted goes on from it. */
static bool is_needed(const soaker *s, const wb_completion *c) {
    for (uint32_t i = s->n_tried; c && i < s->n_asks; i++)
        if (s->asks[i].request.continues == &c->record) return true;
    return false;
}

/* In place of another one. */
static void keep(soaker *s, wb_completion *c) {
    wb_completion **place = &s->kept[pick(&s->own, 0, N_KEPT - 1)];
    const bool fits = c->record.finish != WB_FINISH_ABORT && c->record.n_tokens + 42 < LONGEST;
    if (fits && !is_needed(s, *place)) {
        wb_completion *before = *place;
        *place = c;
        c = before;
    }
    wb_completion_free(c);
}

static void poll(soaker *s) {
    for (wb_completion *c; (c = wb_engine_poll(s->engine));) {
        const bool aborted = c->record.finish == WB_FINISH_ABORT;
        expect(s, wb_record_check(wb_model_routes(s->shard.model), &c->record, !aborted) == WB_OK,
               "a record");
        *(aborted ? &s->n.aborted : &s->n.ended) += 1;
        keep(s, c);
    }
}

static void disturb(soaker *s) {
    const uint32_t what = pick(&s->own, 0, 19);
    char rid[24];
    if (what == 0) wb_engine_pause(s->engine);
    if (what <= 3) wb_engine_resume(s->engine);
    if (what > 5 || s->next_rid == 0) return;
    snprintf(rid, sizeof rid, "r%" PRIu64, s->next_rid - 1 - pick(&s->own, 0, 8) % s->next_rid);
    const wb_status status = wb_engine_abort(s->engine, rid);
    expect(s, status == WB_OK || status == WB_NOT_FOUND, "an abort");
}

static void check_accounts(const soaker *s) {
    const wb_engine_stats stats = wb_engine_get_stats(s->engine);
    expect(s, stats.waiting == 0 && stats.running == 0 && stats.away == 0 && stats.guests == 0, "no request");
    expect(s, stats.unfinished_tokens == 0 && stats.unfinished_bytes == 0, "nothing unfinished");
    expect(s, stats.free_blocks == stats.n_blocks, "all blocks");
    expect(s, stats.finished == s->n.ended && stats.aborted == s->n.aborted, "all counted");
    expect(s, s->n.submitted == s->n.ended + s->n.aborted, "all requests");
}

static void run_round(soaker *s) {
    bool busy = true;
    make_asks(s);
    for (int i = 0; busy || i < BUSY_STEPS; i++) {
        expect(s, i < 100000, "an end of the round");
        for (; s->n_tried < s->n_asks && i < BUSY_STEPS && pick(&s->own, 0, 2) == 0;) submit_one(s);
        if (i < BUSY_STEPS) disturb(s);
        if (i == BUSY_STEPS) wb_engine_resume(s->engine);
        if (pick(&s->common, 0, 39) == 0) set_weights(s);
        step(s, &busy);
        poll(s);
    }
    s->n.rounds++;
    check_accounts(s);
}

/* ---- the ranks ------------------------------------------------------------------------------------- */

/* The ranks' clocks may differ: rank 0's counts. */
static bool goes_on(soaker *s, double begin) {
    const double seconds = now() - begin;
    uint64_t over = wb_comm_rank(s->comm) == 0 && seconds >= s->seconds && s->n.rounds >= MIN_ROUNDS;
    must(wb_comm_all_reduce_max_u64(s->comm, &over), "all ranks");
    const bool early = seconds < s->seconds / 2 || s->n.rounds <= MIN_ROUNDS / 2;
    size_t *high = early ? &s->n.high_bytes : &s->n.late_bytes;
    const size_t bytes = bytes_in_use();
    if (bytes > *high) *high = bytes;
    must(wb_comm_barrier(s->comm), "all ranks");
    return over == 0;
}

static void *run_rank(void *arg) {
    soaker *s = arg;
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, 2, 0);
    s->shard = rig_open(&config, 1, 1, s->comm);
    for (int v = 0; v < 2; v++) s->weights[v] = rig_open(&config, 2 + (uint64_t)v, 1, s->comm);
    must(wb_engine_open(s->shard.model, &s->options, &s->engine), "engine");
    const double begin = now();
    do run_round(s);
    while (goes_on(s, begin));
    wb_engine_close(s->engine);
    for (int i = 0; i < N_KEPT; i++) wb_completion_free(s->kept[i]);
    for (int v = 0; v < 2; v++) rig_close(&s->weights[v]);
    rig_close(&s->shard);
    return NULL;
}

/* Pools that hold little more than the longest request. */
static wb_engine_options options_of(int rank) {
    wb_engine_options o = wb_engine_options_default();
    o.block_size = 3 + rank;
    o.n_blocks = LONGEST / o.block_size + 6;
    o.max_batch_tokens = 24;
    o.max_prefill_tokens = 10;
    o.max_running = 5;
    o.prefix_cache = o.lend_requests = true;
    o.max_drafts = 3;
    o.max_unfinished = 18;
    o.max_unfinished_bytes = 40000;
    return o;
}

/* False: the command line is none of this program's. */
static bool read_options(int argc, char **argv, uint64_t *seconds, uint64_t *seed) {
    for (int i = 1; i < argc; i += 2) {
        uint64_t *value = strcmp(argv[i], "--seconds") == 0 ? seconds
                          : strcmp(argv[i], "--seed") == 0  ? seed
                                                            : NULL;
        if (!value || i + 1 == argc) return false;
        char *end;
        errno = 0;
        *value = strtoull(argv[i + 1], &end, 10);
        if (argv[i + 1][0] < '0' || argv[i + 1][0] > '9' || *end != '\0' || errno != 0) return false;
    }
    return true;
}

int main(int argc, char **argv) {
    uint64_t seconds = 10, seed = 1;
    const bool help = argc == 2 && strcmp(argv[1], "--help") == 0;
    if (help || !read_options(argc, argv, &seconds, &seed)) {
        fputs("usage: soak [--seconds N] [--seed SEED]\n", help ? stdout : stderr);
        return help ? 0 : 2;
    }
    static soaker ranks[N_RANKS];
    wb_comm *comms[N_RANKS];
    pthread_t threads[N_RANKS];
    must(wb_comm_open_threads(N_RANKS, comms), "comms");
    for (int r = 0; r < N_RANKS; r++) {
        ranks[r] = (soaker){.comm = comms[r], .seconds = (double)seconds, .options = options_of(r)};
        ranks[r].common.state = wb_mix64(seed);
        ranks[r].own.state = wb_mix64(seed + 1 + (uint64_t)r);
        if (pthread_create(&threads[r], NULL, run_rank, &ranks[r]) != 0) abort();
    }
    for (int r = 0; r < N_RANKS; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < N_RANKS; r++) wb_comm_close(comms[r]);
    const counts *n = &ranks[0].n;
    printf("soak: seed %" PRIu64 ", rank 0: %" PRIu64 " rounds, %" PRIu64 " requests, %" PRIu64
           " refused, %" PRIu64 " aborted, %" PRIu64
           " steps that failed; in use at most %zu bytes, in the second half %zu\n",
           seed, n->rounds, n->submitted, n->refused, n->aborted, n->failed_steps, n->high_bytes,
           n->late_bytes);
    /* Buffers that are as large as the largest message so far may still grow a little. */
    if (n->late_bytes <= n->high_bytes + n->high_bytes / 20) return 0;
    printf("expected no growth\n");
    return 1;
}
