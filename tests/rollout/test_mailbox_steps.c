/* test_mailbox_steps.c - steps of several ranks whose rows go into each other's mailboxes, as graphs:
 * whatever the ranks feed, a request gets what it gets alone on one rank. Ranks are threads, each with a
 * device of the CPU that writes its ops down (graph_device.h); a hang ends the test by its alarm.
 *
 * Usage: test_mailbox_steps [first seed [seeds]] */
#include "engine_rig.h"
#include "model_weights.h"
#include "support/graph_device.h"
#include "wb_comm.h"
#include "wb_exchange.h"

#include <pthread.h>
#include <unistd.h>

enum { MAX_RANKS = 4, N_ASKS = 10, MAX_UNFINISHED = 5 };

static uint64_t first_seed = 1, n_seeds = 8, seen_by_exchange, accepted;

typedef struct rank {
    wb_comm *comm;
    uint64_t seed;
    ask asks[N_ASKS];
    wb_completion *done[N_ASKS];
    int captured, launched;
    uint64_t by_exchange; /* all-to-alls of rows */
    uint64_t accepted;    /* drafts */
} rank;

/* Each third one has an MTP layer, and so few tokens that some of its guesses are right. */
static wb_config config_of(uint64_t seed) {
    if (seed % 3 == 0) {
        wb_config c = tiny_config(WB_FAMILY_GLM4_MOE, 12, 3, 3, 1);
        c.vocab_size = 7, c.n_mtp_layers = 1;
        return c;
    }
    return seed % 2 ? tiny_config(WB_FAMILY_QWEN3_MOE, 12, 3, 3, 2)
                    : tiny_config(WB_FAMILY_OLMOE, 12, 3, 3, 0);
}

/* Asks come whenever; a rank may have none for many steps while the others go on. */
static void run_asks(rank *r, wb_engine *engine, dice d) {
    uint32_t submitted = 0;
    for (bool busy = true; busy || submitted < N_ASKS;) {
        const wb_engine_stats stats = wb_engine_get_stats(engine);
        if (submitted < N_ASKS && stats.running + stats.waiting < MAX_UNFINISHED && pick(&d, 0, 6) == 0)
            must(wb_engine_submit(engine, ask_request(&r->asks[submitted++])), "submit");
        must(wb_engine_step(engine, &busy), "step");
        /* Ranks leave together: as long as one has asks, the others step. */
        uint64_t left = N_ASKS - submitted;
        must(wb_comm_all_reduce_max_u64(r->comm, &left), "asks left");
        busy = busy || left > 0;
        for (wb_completion *c; (c = wb_engine_poll(engine));)
            r->done[strtoul(c->record.rid + 1, NULL, 10)] = c;
    }
}

static wb_engine *open_engine(wb_model *model, int32_t n_blocks, int32_t tokens) {
    wb_engine_options options = wb_engine_options_default();
    wb_engine *engine = NULL;
    options.n_blocks = n_blocks, options.block_size = 4;
    options.max_batch_tokens = tokens, options.max_running = 8;
    options.max_drafts = model->mtp ? 2 : 0;
    must(wb_engine_open(model, &options, &engine), "engine");
    return engine;
}

/* MTP layers use the decoder's mailbox, which is large enough. */
static void check_lent(const wb_model *model) {
    const wb_model_mailboxes *lent = &model->mtp->mailboxes;
    assert_true(wb_has_mailboxes(lent));
    assert_true(wb_mailbox_bytes(&lent->boxes) <= model->mailboxes.area.bytes);
}

static void *play_rank(void *arg) {
    rank *r = arg;
    const wb_config c = config_of(r->seed);
    dice shared = {r->seed}, own = {r->seed * 977 + (uint64_t)wb_comm_rank(r->comm)};
    const int32_t tokens = (int32_t)pick(&shared, 5, 40), n_blocks = (int32_t)pick(&own, 14, 40);
    for (uint32_t i = 0; i < N_ASKS; i++) r->asks[i] = ask_random(&own, i, (uint32_t)c.vocab_size, 20, 24);
    wb_device *device = NULL;
    must(wb_device_open_cpu(1, &device), "device");
    graph_device_make(device);
    rig g = rig_open_on(&c, r->seed, device, r->comm, WB_F32);
    /* Some ranks' mailboxes are too small for the longest steps of all. */
    assert_true(wb_has_mailboxes(&g.model->mailboxes));
    if (pick(&own, 0, 2) == 0) g.model->mailboxes.max_tokens = pick(&own, 4, 30);
    if (g.model->mtp) check_lent(g.model);
    wb_engine *engine = open_engine(g.model, n_blocks, tokens);
    must(wb_comm_set_timeout(r->comm, 30), "timeout");
    run_asks(r, engine, own);
    r->accepted = wb_engine_get_stats(engine).accepted_drafts;
    wb_exchange_count count;
    must(wb_exchange_stats(wb_model_exchange(g.model), WB_EXCHANGE_ALL_TO_ALL_V, &count), "stats");
    r->by_exchange = count.calls;
    wb_engine_close(engine);
    r->captured = graph.captured, r->launched = graph.launched;
    rig_close(&g);
    graph_device_close();
    return NULL;
}

/* What each of its asks gives alone. */
static void assert_as_alone(rank *r, wb_model *alone) {
    for (uint32_t i = 0; i < N_ASKS; i++) {
        assert_non_null(r->done[i]);
        wb_completion *expected = run_alone(alone, &r->asks[i]);
        assert_same(alone, expected, r->done[i]);
        wb_completion_free(expected);
        wb_completion_free(r->done[i]);
    }
}

static void play_seed(uint64_t seed) {
    wb_comm *comms[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    const int n = 2 + (int)(seed % 3);
    rank *ranks = take((size_t)n, sizeof *ranks);
    must(wb_comm_open_threads(n, comms), "comms");
    for (int i = 0; i < n; i++) {
        ranks[i].comm = comms[i];
        ranks[i].seed = seed;
        if (pthread_create(&threads[i], NULL, play_rank, &ranks[i]) != 0) abort();
    }
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    const wb_config c = config_of(seed);
    rig alone = rig_open(&c, seed, 1, NULL);
    for (int i = 0; i < n; i++) {
        assert_as_alone(&ranks[i], alone.model);
        assert_true(ranks[i].captured > 0 && ranks[i].launched >= ranks[i].captured);
        seen_by_exchange += ranks[i].by_exchange;
        accepted += ranks[i].accepted;
        wb_comm_close(comms[i]);
    }
    rig_close(&alone);
    free(ranks);
}

static void test_mailboxes_give_what_a_step_alone_computes(void **state) {
    (void)state;
    for (uint64_t i = 0; i < n_seeds; i++) {
        print_message("seed %" PRIu64 "\n", first_seed + i);
        play_seed(first_seed + i);
    }
    /* Both ways in one run. */
    if (n_seeds >= 8) assert_true(seen_by_exchange > 0 && accepted > 0);
}

/* ---- a rank that does not come ------------------------------------------------------------------------ */

/* The last rank leaves before the step, without a word: the others' step ends, soon, and names it. */
typedef struct late_rank {
    wb_comm *comm;
    wb_status status;
    double seconds;
    char message[512];
    int launched;
} late_rank;

static void *play_late(void *arg) {
    late_rank *r = arg;
    const wb_config c = config_of(1);
    const int last = wb_comm_size(r->comm) - 1;
    ask a = ask_fixed("late", 4, 40);
    wb_device *device = NULL;
    bool busy = true;
    must(wb_device_open_cpu(1, &device), "device");
    graph_device_make(device);
    rig g = rig_open_on(&c, 1, device, r->comm, WB_F32);
    wb_engine *engine = engine_of(g.model, 40, 4, 16, 4);
    must(wb_engine_submit(engine, ask_request(&a)), "submit");
    for (int i = 0; i < 6; i++) must(wb_engine_step(engine, &busy), "step");
    must(wb_comm_set_timeout(r->comm, 0.3), "timeout");
    /* With the new timeout a graph is another one. */
    for (int i = 0; i < 2; i++) must(wb_engine_step(engine, &busy), "step");
    if (wb_comm_rank(r->comm) == last) {
        mailbox_sends_fail = true;
        r->status = wb_engine_step(engine, &busy);
    } else {
        const double begin = mailbox_now();
        r->status = wb_engine_step(engine, &busy);
        r->seconds = mailbox_now() - begin;
        snprintf(r->message, sizeof r->message, "%s", wb_error_message());
    }
    r->launched = graph.launched;
    wb_engine_close(engine);
    rig_close(&g);
    graph_device_close();
    return NULL;
}

static void test_rule_30_a_late_rank_of_a_graph_is_named(void **state) {
    (void)state;
    enum { N = 3 };
    wb_comm *comms[N];
    pthread_t threads[N];
    late_rank ranks[N] = {{0}};
    must(wb_comm_open_threads(N, comms), "comms");
    for (int i = 0; i < N; i++) {
        ranks[i].comm = comms[i];
        if (pthread_create(&threads[i], NULL, play_late, &ranks[i]) != 0) abort();
    }
    for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N - 1; i++) {
        assert_int_equal(ranks[i].status, WB_PEER);
        if (!strstr(ranks[i].message, "rank 2 did not come")) fail_msg("%s", ranks[i].message);
        assert_true(ranks[i].seconds < 5 && ranks[i].launched > 0);
    }
    for (int i = 0; i < N; i++) wb_comm_close(comms[i]);
}

/* ---- closing ------------------------------------------------------------------------------------------ */

/* A rank's model of mailboxes, which it closes `late` seconds after the others have come to that, or never as
 * far as they can tell. */
typedef struct closing_rank {
    wb_comm *comm;
    double late;
    double seconds; /* of the close */
} closing_rank;

static void *play_closing(void *arg) {
    closing_rank *r = arg;
    const wb_config c = config_of(1);
    wb_device *device = NULL;
    must(wb_device_open_cpu(1, &device), "device");
    mailbox_ops_give(device);
    rig g = rig_open_on(&c, 1, device, r->comm, WB_F32);
    must(wb_comm_barrier(r->comm), "barrier");
    const double begin = mailbox_now();
    while (mailbox_now() - begin < r->late) usleep(1000);
    const double closing = mailbox_now();
    rig_close(&g);
    r->seconds = mailbox_now() - closing;
    return NULL;
}

/* The last of N ranks closes so much later; what the others' closes took at least and at most. */
static void close_later(double late, double least, double most) {
    enum { N = 3 };
    wb_comm *comms[N];
    pthread_t threads[N];
    closing_rank ranks[N] = {{0}};
    must(wb_comm_open_threads(N, comms), "comms");
    for (int i = 0; i < N; i++) {
        ranks[i] = (closing_rank){.comm = comms[i], .late = i == N - 1 ? late : 0};
        if (pthread_create(&threads[i], NULL, play_closing, &ranks[i]) != 0) abort();
    }
    for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N - 1; i++)
        if (!(ranks[i].seconds >= least && ranks[i].seconds <= most)) fail_msg("%g s", ranks[i].seconds);
    for (int i = 0; i < N; i++) wb_comm_close(comms[i]);
}

static void test_a_mailbox_is_freed_when_nobody_has_it_attached(void **state) {
    (void)state;
    unshared_late = 0;
    close_later(0.4, 0.3, 1.9);
    assert_int_equal(unshared_late, 0);
}

static void test_rule_30_who_does_not_detach_holds_nobody_up(void **state) {
    (void)state;
    unshared_late = 0;
    close_later(4, 1.5, 3.5);
    assert_int_equal(unshared_late, 2); /* they stay until the process ends */
}

int main(int argc, char **argv) {
    if (argc > 1) first_seed = strtoull(argv[1], NULL, 10);
    if (argc > 2) n_seeds = strtoull(argv[2], NULL, 10);
    alarm(120);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mailboxes_give_what_a_step_alone_computes),
                                       cmocka_unit_test(test_rule_30_a_late_rank_of_a_graph_is_named),
                                       cmocka_unit_test(test_a_mailbox_is_freed_when_nobody_has_it_attached),
                                       cmocka_unit_test(test_rule_30_who_does_not_detach_holds_nobody_up)};
    return cmocka_run_group_tests_name("mailbox steps", tests, NULL, NULL);
}
