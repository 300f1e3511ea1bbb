/* test_steady_state.c - a step allocates nothing, the first one included, on the host or on the device:
 * counted over a workload with chunked prefill, preemption, masks, routes and changes of weights, on one rank
 * and on two. */
#include "engine_fixture.h"
#include "support/alloc_fail.h"
#include "wb_memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <unistd.h>

/* ---- the guard ----------------------------------------------------------------------------------- */

enum { WAYS = 9 };

/* One allocation, in one of the ways that there are. */
static void *allocate(int way) {
    void *block = NULL;
    size_t capacity = 0;
    wb_owner owner = {0};
    switch (way) {
    case 0:
        return malloc(1);
    case 1:
        return calloc(1, 1);
    case 2:
        return realloc(NULL, 1);
    case 3:
        return aligned_alloc(64, 64);
    case 4:
        return posix_memalign(&block, 64, 64) == 0 ? block : NULL;
    case 5:
        return memalign(64, 64);
    case 6:
        return wb_alloc(1, 1, "test");
    case 7:
        return wb_grow(NULL, 1, 1, &capacity, "test");
    default: {
        const bool owned = wb_own(&owner, 1, 1, "test");
        wb_owner_close(&owner);
        return owned ? calloc(1, 1) : NULL; /* what the caller frees: a second one */
    }
    }
}

static void *allocate_in_every_way(void *arg) {
    void *volatile *blocks = arg;
    for (int way = 0; way < WAYS; way++) blocks[way] = allocate(way);
    return NULL;
}

static void test_the_guard_sees_every_allocation(void **state) {
    (void)state;
    void *volatile blocks[4][WAYS] = {{NULL}};
    size_t bytes;
    pthread_t thread;
    alloc_count_start();
    allocate_in_every_way((void *)blocks[0]);
    alloc_count_pause(true); /* pthread_create allocates, and so may this thread, but not the other one */
    assert_int_equal(0, pthread_create(&thread, NULL, allocate_in_every_way, (void *)blocks[1]));
    pthread_join(thread, NULL);
    alloc_count_pause(false);
    blocks[2][0] = malloc(7);
    assert_int_equal(2 * (WAYS + 1) + 1, alloc_count_stop(&bytes));
    assert_int_equal(7, bytes);
    allocate_in_every_way((void *)blocks[3]);
    assert_int_equal(2 * (WAYS + 1) + 1, alloc_count.n);
    free(blocks[2][0]);
    for (int way = 0; way < WAYS; way++)
        for (int i = 0; i < 4; i += i == 1 ? 2 : 1) {
            assert_non_null(blocks[i][way]);
            free(blocks[i][way]);
        }
}

/* A device whose memory is not the host's would not be seen otherwise. */
static _Thread_local wb_mem_alloc_fn *device_mem_alloc; /* of this thread's rank */

static wb_status counted_mem_alloc(wb_device *device, size_t bytes, void **device_out) {
    alloc_count_see(bytes);
    return device_mem_alloc(device, bytes, device_out);
}

/* ---- a workload ---------------------------------------------------------------------------------- */

/* The longest request fills the pool alone, is prefilled in chunks, and has more spans than one has room for
 * at first. */
enum {
    N_ASKS = 60,
    MAX_UNFINISHED = 9,
    N_BLOCKS = 24,
    BLOCK_SIZE = 4,
    MAX_BATCH_TOKENS = 12,
    MAX_CHANGES = 600,
    MAX_PROMPT_TOKENS = 27,
    MAX_NEW_TOKENS = 70
};

typedef struct rank_job {
    wb_comm *comm; /* NULL: one rank */
    uint64_t seed;
    bool indexers; /* a model that has some, and requests that ask what they chose */
    rig own;
    rig other[2]; /* the weights that are set in turn */
    wb_engine *engine;
    ask asks[N_ASKS];
    int submitted, done;
    uint32_t masks, rows, cells, max_spans;
    uint64_t tokens, version, steps, preemptions, taken_over;
} rank_job;

/* What callers ask for may allocate. */
static void submit_and_poll(rank_job *job) {
    alloc_count_pause(true);
    for (wb_completion *c = wb_engine_poll(job->engine); c; c = wb_engine_poll(job->engine)) {
        job->done++;
        job->tokens += c->record.n_tokens;
        job->masks += c->record.mask_ends != NULL;
        job->rows += c->record.n_routes > 0 ? c->record.routes[0].rows : 0;
        job->cells += c->record.indexer ? c->record.indexer->rows : 0;
        if (job->max_spans < c->record.n_spans) job->max_spans = c->record.n_spans;
        wb_completion_free(c);
    }
    while (job->submitted < N_ASKS && job->submitted - job->done < MAX_UNFINISHED)
        must(wb_engine_submit(job->engine, ask_request(&job->asks[job->submitted++])), "submit");
    alloc_count_pause(false);
}

static void set_weights(rank_job *job, uint64_t which) {
    alloc_count_pause(true);
    must(wb_engine_set_weights(job->engine, job->other[which % 2].model, ++job->version), "weights");
    alloc_count_pause(false);
}

/* All requests. */
static void run(rank_job *job) {
    set_weights(job, 0);
    bool busy = true;
    for (uint64_t steps = 0; busy; steps++) {
        submit_and_poll(job);
        /* Under the same weights requests take over from each other. */
        if (steps > 0 && steps < MAX_CHANGES) set_weights(job, steps);
        must(wb_engine_step(job->engine, &busy), "step");
    }
    submit_and_poll(job);
    job->steps = wb_engine_get_stats(job->engine).steps;
    job->preemptions = wb_engine_get_stats(job->engine).preemptions;
    job->taken_over = wb_engine_get_stats(job->engine).taken_over_tokens;
}

static void open_job(rank_job *job) {
    const wb_config config = job->indexers ? tiny_config(WB_FAMILY_DEEPSEEK_V4, 12, 3, 4, 0)
                                           : tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, 3, 2);
    job->own = rig_open(&config, 1, 1, job->comm);
    for (uint64_t i = 0; i < 2; i++) job->other[i] = rig_open(&config, 2 + i, 1, job->comm);
    device_mem_alloc = job->own.device->mem_alloc;
    job->own.device->mem_alloc = counted_mem_alloc;
    wb_engine_options options = wb_engine_options_default();
    options.n_blocks = N_BLOCKS;
    options.block_size = BLOCK_SIZE;
    options.max_batch_tokens = MAX_BATCH_TOKENS;
    options.max_running = 6;
    options.prefix_cache = true;
    options.max_drafts = 3;
    options.indexer = true;
    must(wb_engine_open(job->own.model, &options, &job->engine), "engine");
    dice d = {job->seed};
    for (uint32_t i = 0; i < N_ASKS; i++) {
        job->asks[i] = ask_random(&d, i, (uint32_t)config.vocab_size, MAX_PROMPT_TOKENS, MAX_NEW_TOKENS);
        for (uint32_t t = 0; t < BLOCK_SIZE; t++) job->asks[i].prompt[t] = t; /* taken over where known */
        job->asks[i].request.return_routes = i % 3 != 0;
        job->asks[i].request.return_sampling_mask = i % 2 != 0;
        job->asks[i].request.return_indexer = job->indexers && i % 4 != 0;
    }
}

static void close_job(rank_job *job) {
    wb_engine_close(job->engine);
    for (int i = 0; i < 2; i++) rig_close(&job->other[i]);
    rig_close(&job->own);
}

static void *open_and_count(void *arg) {
    rank_job *job = arg;
    open_job(job);
    if (job->comm) must(wb_comm_barrier(job->comm), "barrier");
    if (!job->comm || wb_comm_rank(job->comm) == 0) alloc_count_start();
    if (job->comm) must(wb_comm_barrier(job->comm), "barrier");
    run(job);
    if (job->comm) must(wb_comm_barrier(job->comm), "barrier");
    return NULL;
}

static void assert_nothing_allocated(rank_job *job, int n_ranks) {
    size_t bytes;
    const long n = alloc_count_stop(&bytes);
    for (int r = 0; r < n_ranks; r++) {
        const rank_job *j = &job[r];
        print_message("rank %d, seed %" PRIu64 ": %" PRIu64 " steps, %" PRIu64 " preemptions, %" PRIu64
                      " tokens, of which %" PRIu64 " taken over, %" PRIu32 " masks, %" PRIu32
                      " rows, %" PRIu32 " spans at most\n",
                      r, j->seed, j->steps, j->preemptions, j->tokens, j->taken_over, j->masks, j->rows,
                      j->max_spans);
        assert_int_equal(N_ASKS, j->done);
        assert_true(j->steps >= 200 && j->taken_over > 0);
        assert_int_equal(j->indexers, j->cells > 0);
        assert_true(j->preemptions > 0 && j->masks > 0 && j->rows > 0 && j->max_spans > 64);
    }
    if (n != 0) fail_msg("%ld allocations in steps, the latest of %zu bytes", n, bytes);
}

static void test_a_step_allocates_nothing(void **state) {
    (void)state;
    rank_job job = {.seed = 11};
    open_and_count(&job);
    assert_nothing_allocated(&job, 1);
    close_job(&job);
}

static void test_a_step_with_what_indexers_chose_allocates_nothing(void **state) {
    (void)state;
    rank_job job = {.seed = 14, .indexers = true};
    open_and_count(&job);
    assert_nothing_allocated(&job, 1);
    close_job(&job);
}

static void test_a_step_of_two_ranks_allocates_nothing(void **state) {
    (void)state;
    wb_comm *comms[2];
    must(wb_comm_open_threads(2, comms), "comms");
    rank_job jobs[2] = {{.comm = comms[0], .seed = 12}, {.comm = comms[1], .seed = 13}};
    pthread_t thread;
    alarm(120); /* a hang is a failure */
    assert_int_equal(0, pthread_create(&thread, NULL, open_and_count, &jobs[1]));
    open_and_count(&jobs[0]);
    pthread_join(thread, NULL);
    alarm(0);
    assert_nothing_allocated(jobs, 2);
    for (int i = 0; i < 2; i++) close_job(&jobs[i]);
    for (int i = 0; i < 2; i++) wb_comm_close(comms[i]);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        printf("skipped: the sanitizer has its own allocator\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_guard_sees_every_allocation),
        cmocka_unit_test(test_a_step_allocates_nothing),
        cmocka_unit_test(test_a_step_with_what_indexers_chose_allocates_nothing),
        cmocka_unit_test(test_a_step_of_two_ranks_allocates_nothing),
    };
    return cmocka_run_group_tests_name("steady_state", tests, NULL, NULL);
}
