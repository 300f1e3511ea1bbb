/* test_lending.c - requests that wait on one rank and run on another: who takes which, that they are polled
 * at home as they are alone, their place in the line, aborts, pools that are too small, and memory that is
 * refused on the way. Ranks are threads; a hang ends the test by its alarm. */
#include "engine.h"
#include "engine_rig.h"
#include "support/alloc_fail.h"
#include "wb_comm.h"

#include <math.h>
#include <pthread.h>
#include <unistd.h>

enum { MAX_RANKS = 3, N_ASKS = 6 };

typedef struct rank {
    wb_comm *comm;
    rig rig;
    wb_engine *engine;
    wb_engine_options options;
    void (*play)(struct rank *);
    ask asks[N_ASKS];
    bool busy;
    wb_status status; /* of the latest step */
    uint64_t steps;
    uint32_t n_asks, n_done; /* submitted here, polled here */
} rank;

static int number(const rank *r) {
    return wb_comm_rank(r->comm);
}

/* Asserts would leave the other rank waiting. */
static void expect(const rank *r, bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "rank %d: expected %s; the latest message: %s\n", number(r), what, wb_error_message());
    abort();
}

static void *play_rank(void *arg) {
    rank *r = arg;
    const wb_config c = config();
    r->rig = rig_open(&c, 5, 1, r->comm);
    r->play(r);
    wb_engine_close(r->engine);
    rig_close(&r->rig);
    return NULL;
}

static void play_on(int n_ranks, void (*scene)(rank *)) {
    wb_comm *comms[MAX_RANKS];
    rank ranks[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    must(wb_comm_open_threads(n_ranks, comms), "comms");
    memset(ranks, 0, sizeof ranks);
    for (int i = 0; i < n_ranks; i++) {
        ranks[i].comm = comms[i];
        ranks[i].play = scene;
        ranks[i].options = wb_engine_options_default();
        ranks[i].options.n_blocks = 32;
        ranks[i].options.block_size = 4;
        ranks[i].options.max_batch_tokens = 16;
        ranks[i].options.max_running = 1;
        ranks[i].options.lend_requests = true;
        if (pthread_create(&threads[i], NULL, play_rank, &ranks[i]) != 0) abort();
    }
    for (int i = 0; i < n_ranks; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < n_ranks; i++) wb_comm_close(comms[i]);
}

static void play(void (*scene)(rank *)) {
    play_on(2, scene);
}

static void open_engine(rank *r) {
    must(wb_engine_open(r->rig.model, &r->options, &r->engine), "engine");
}

/* The rank's next request: r0, then r1. */
static void submit(rank *r, uint32_t max_tokens, int32_t priority, uint32_t expected_tokens) {
    const uint32_t i = r->n_asks++;
    char rid[8];
    snprintf(rid, sizeof rid, "r%" PRIu32, i);
    r->asks[i] = ask_fixed(rid, 3 + i, max_tokens);
    r->asks[i].request.priority = priority;
    r->asks[i].request.expected_tokens = expected_tokens;
    r->asks[i].request.seed = i;
    must(wb_engine_submit(r->engine, ask_request(&r->asks[i])), "submit");
}

/* All requests on rank 0, where one runs at a time. */
static void submit_all(rank *r) {
    for (uint32_t i = 0; i < N_ASKS && number(r) == 0; i++) submit(r, 4 + 3 * i, 0, 4 + 3 * i);
}

static void check_done(rank *r) {
    const wb_config c = config();
    rig whole = rig_open(&c, 5, 1, NULL);
    for (wb_completion *found; (found = wb_engine_poll(r->engine)); r->n_done++) {
        const uint32_t i = (uint32_t)strtoul(found->record.rid + 1, NULL, 10);
        wb_completion *alone = run_alone(whole.model, &r->asks[i]);
        expect(r, !difference(wb_model_routes(whole.model), alone, found), "a request as it is alone");
        wb_completion_free(alone);
        wb_completion_free(found);
    }
    rig_close(&whole);
}

static void step_rank(rank *r) {
    r->status = wb_engine_step(r->engine, &r->busy);
    r->steps++;
}

/* The next completion of this rank is r<i>, aborted; the caller's. */
static wb_completion *poll_aborted(rank *r, uint32_t i) {
    wb_completion *c = wb_engine_poll(r->engine);
    expect(r, c && strcmp(c->record.rid, r->asks[i].rid) == 0 && c->record.finish == WB_FINISH_ABORT,
           "the request that its home aborted");
    r->n_done++;
    return c;
}

static void run(rank *r) {
    do {
        step_rank(r);
        expect(r, r->status == WB_OK, "a step");
    } while (r->busy);
    check_done(r);
    const wb_engine_stats stats = wb_engine_get_stats(r->engine);
    expect(r, r->n_done == r->n_asks, "all requests at home");
    expect(r, stats.away == 0 && stats.guests == 0 && stats.unfinished_tokens == 0, "none away at the end");
}

/* ---- scenes -------------------------------------------------------------------------------------- */

/* The longest runs at home from the first step on, the next one is lent, aborted there, and another one is
 * taken in its place. Of 69 new tokens the ranks feed about as many each. */
static void takes_the_longest_first(rank *r) {
    open_engine(r);
    submit_all(r);
    step_rank(r);
    step_rank(r);
    const wb_engine_stats stats = wb_engine_get_stats(r->engine);
    if (number(r) == 0) {
        expect(r, stats.lent == 1 && stats.away == 1 && stats.running == 1 && stats.waiting == 4,
               "1 lent, as there is room for one");
        expect(r, wb_engine_abort(r->engine, "r4") == WB_OK, "r4 is known at home");
    } else {
        expect(r, stats.guests == 1 && stats.running == 1 && stats.waiting == 0, "a guest");
        expect(r, wb_engine_abort(r->engine, "r4") == WB_NOT_FOUND, "r4 is not known where it runs");
    }
    for (int i = 0; i < 3; i++) step_rank(r);
    if (number(r) == 0) {
        wb_completion *c = poll_aborted(r, 4);
        expect(r, c->record.n_tokens > c->record.prompt_len, "with what there was");
        expect(r, c->record.n_routes == 1 && c->record.routes[0].rows == c->record.n_tokens - 1, "its rows");
        wb_completion_free(c);
        expect(r, wb_engine_get_stats(r->engine).aborted == 1, "it counted");
    }
    run(r);
    expect(r, r->steps <= 50, "work on both ranks");
}

static void test_an_idle_rank_takes_the_longest_first(void **state) {
    (void)state;
    play(takes_the_longest_first);
}

/* A pool of 12 tokens holds the two shortest, which are the last ones of the line: once the first of them is
 * lent, one is left to lend of the four that wait. */
static void takes_what_fits(rank *r) {
    if (number(r) == 1) r->options.n_blocks = 3;
    open_engine(r);
    submit_all(r);
    step_rank(r);
    step_rank(r);
    expect(r, r->engine->words[0].lends == 1, "only what fits on the other rank to be lent");
    run(r);
    if (number(r) == 0) expect(r, wb_engine_get_stats(r->engine).lent == 2, "2 of 6 lent");
}

static void test_a_rank_takes_what_its_pool_holds(void **state) {
    (void)state;
    play(takes_what_fits);
}

/* A request that waits while all pause is not moved. */
static void pauses(rank *r) {
    open_engine(r);
    wb_engine_pause(r->engine);
    step_rank(r);
    submit_all(r);
    for (int i = 0; i < 3; i++) step_rank(r);
    expect(r, wb_engine_get_stats(r->engine).guests == 0, "nobody away in a pause");
    wb_engine_resume(r->engine);
    run(r);
}

static void test_a_pause_leaves_requests_where_they_are(void **state) {
    (void)state;
    play(pauses);
}

/* With requests on rank 0 and, where that one lends, room on rank 1, which lends. */
static void refused_in_each_step(rank *r, int not_lending, const char *message) {
    r->options.lend_requests = number(r) != not_lending;
    open_engine(r);
    submit_all(r);
    for (int i = 0; i < 3; i++) {
        step_rank(r);
        expect(r, r->status == WB_PEER && strstr(wb_error_message(), message), "a refusal on all ranks");
    }
}

static void rank_0_does_not_lend(rank *r) {
    refused_in_each_step(r, 0, "rank 1 has lend_requests 1, rank 0 0");
}

static void rank_2_does_not_lend(rank *r) {
    refused_in_each_step(r, 2, "rank 2 has lend_requests 0, rank 0 1");
}

static void test_all_ranks_lend_or_none(void **state) {
    (void)state;
    play(rank_0_does_not_lend);
    play_on(3, rank_2_does_not_lend);
}

/* r4, which ends with token 45, is lent first, and fails where it runs until it is aborted at home. */
static void guest_fails(rank *r) {
    open_engine(r);
    float *number_of_45 = embedding_of(r->rig.model, 45);
    const float before = *number_of_45;
    if (number(r) == 1) *number_of_45 = NAN;
    submit_all(r);
    step_rank(r);
    step_rank(r);
    const char *message = number(r) == 0 ? "rank 1 failed" : "request r4 of rank 0: token at position 7";
    expect(r, r->status == (number(r) == 0 ? WB_PEER : WB_INVALID_ARGUMENT), "a failure where r4 runs");
    expect(r, strstr(wb_error_message(), message), message);
    if (number(r) == 0) expect(r, wb_engine_abort(r->engine, "r4") == WB_OK, "r4 is known at home");
    for (int i = 0; i < 3; i++) step_rank(r);
    *number_of_45 = before;
    if (number(r) == 0) wb_completion_free(poll_aborted(r, 4));
    run(r);
}

static void test_a_guest_that_fails_is_named_with_its_home(void **state) {
    (void)state;
    play(guest_fails);
}

/* ---- two homes, one host --------------------------------------------------------------------------- */

enum { HOST = 2, N_HOMES = 2 };

/* Of each home r0 runs there, and r1, which is of the same number on both, goes to the host in step 2. */
static void open_homes_and_host(rank *r, const int32_t *priorities, const uint32_t *expected_tokens) {
    if (number(r) == HOST) r->options.max_running = N_HOMES;
    open_engine(r);
    if (number(r) != HOST) {
        submit(r, 30, 9, 0);
        submit(r, 20, priorities[number(r)], expected_tokens[number(r)]);
    }
    step_rank(r);
}

/* The host's line after step 2, as home.number from the first one on. Its own requests come a step after the
 * guests: of one priority, the guest stands first; of one place, the one that is expected to be longer. */
static void guests_keep_their_places(rank *r) {
    char line[64] = "";
    open_homes_and_host(r, (int32_t[]){2, -3}, (uint32_t[]){0, 5});
    const int32_t own[] = {4, 2, 0, -2}; /* places -3, -1, 1, 3: the guests' are -2 and 3 */
    for (int i = 0; i < 4 && number(r) == HOST; i++) submit(r, 5, own[i], 0);
    step_rank(r);
    for (wb_sched_entry *entry = r->engine->scheduler.first; entry; entry = entry->next) {
        const wb_sequence *s = wb_sequence_of(entry);
        const size_t n = strlen(line);
        snprintf(line + n, sizeof line - n, " %d.%" PRIu64, (int)s->home, s->number);
    }
    const char *expected = " 2.0 0.1 2.1 2.2 1.1 2.3";
    expect(r, number(r) != HOST || strcmp(line, expected) == 0, "guests where priority and age put them");
    run(r);
}

static void test_guests_keep_their_places_in_the_line(void **state) {
    (void)state;
    play_on(3, guests_keep_their_places);
}

/* The other home's guest of the same number, which stands before it in the host's line, goes on. */
static void one_home_aborts(rank *r, int home) {
    open_homes_and_host(r, (int32_t[]){home, 1 - home}, (uint32_t[]){0, 0});
    step_rank(r);
    expect(r, wb_engine_get_stats(r->engine).guests == (number(r) == HOST ? 2 : 0), "a guest of each home");
    if (number(r) == home) expect(r, wb_engine_abort(r->engine, "r1") == WB_OK, "r1 is known at home");
    for (int i = 0; i < 3; i++) step_rank(r);
    if (number(r) == home) wb_completion_free(poll_aborted(r, 1));
    const wb_engine_stats stats = wb_engine_get_stats(r->engine);
    expect(r, stats.away == (number(r) == 1 - home), "only the other home's guest away");
    run(r);
}

static void home_0_aborts(rank *r) {
    one_home_aborts(r, 0);
}

static void home_1_aborts(rank *r) {
    one_home_aborts(r, 1);
}

static void test_an_abort_reaches_the_guest_of_its_home_only(void **state) {
    (void)state;
    play_on(3, home_0_aborts);
    play_on(3, home_1_aborts);
}

/* ---- memory that is refused ------------------------------------------------------------------------ */

enum { FAILING = 2 }; /* ranks of which each is refused in its turn */

static atomic_bool refused; /* in this round */

/* All requests, while rank `failing` is refused its n-th allocation in steps: that step is made on no rank,
 * and the next one as if nothing had been. */
static void run_refused(rank *r, int failing, long n) {
    long left = number(r) == failing ? n : -1;
    r->n_asks = r->n_done = 0;
    open_engine(r);
    submit_all(r);
    do {
        if (left >= 0) alloc_fail_this_thread_at(left);
        step_rank(r);
        const bool armed = left >= 0;
        if (armed) left = alloc_fail_this_thread_left();
        if (armed && left < 0) {
            refused = true;
            expect(r, r->status == WB_OUT_OF_MEMORY, "a step without memory to fail");
        } else {
            expect(r, r->status == WB_OK || r->status == WB_PEER, "a step");
        }
        check_done(r);
    } while (r->status != WB_OK || r->busy);
    expect(r, r->n_done == r->n_asks, "all requests at home");
    wb_engine_close(r->engine);
    r->engine = NULL;
}

static void memory_is_refused(rank *r) {
    for (int failing = 0; failing < FAILING; failing++) {
        bool goes_on = true;
        long n = 0;
        for (; goes_on; n++) {
            must(wb_comm_barrier(r->comm), "barrier");
            if (number(r) == failing) refused = false;
            run_refused(r, failing, n);
            must(wb_comm_barrier(r->comm), "barrier");
            goes_on = refused;
        }
        expect(r, n > 3, "allocations on the way");
    }
}

static void test_memory_refused_on_the_way(void **state) {
    (void)state;
    if (ALLOC_FAIL_WORKS)
        play(memory_is_refused);
    else
        skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_idle_rank_takes_the_longest_first),
        cmocka_unit_test(test_a_rank_takes_what_its_pool_holds),
        cmocka_unit_test(test_a_pause_leaves_requests_where_they_are),
        cmocka_unit_test(test_all_ranks_lend_or_none),
        cmocka_unit_test(test_a_guest_that_fails_is_named_with_its_home),
        cmocka_unit_test(test_guests_keep_their_places_in_the_line),
        cmocka_unit_test(test_an_abort_reaches_the_guest_of_its_home_only),
        cmocka_unit_test(test_memory_refused_on_the_way),
    };
    alarm(60); /* a hang is a failure */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
