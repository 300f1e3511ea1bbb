/* test_engine_ranks.c - steps of several ranks: made on all of them or on none, whatever one rank fails at or
 * lags behind in. Ranks are threads; a hang ends the test by its alarm. */
#include "engine_rig.h"
#include "wb_comm.h"

#include <pthread.h>
#include <unistd.h>

#define MAX_RANKS 3

typedef struct rank {
    wb_comm *comm;
    rig rig;
    wb_engine *engine;
    ask ask;
    void (*play)(struct rank *);
    bool busy;
    wb_status status; /* of the latest step */
    char message[512];
} rank;

static int number(const rank *r) {
    return wb_comm_rank(r->comm);
}

/* Each rank with the same model and one request of its own. */
static void *play_rank(void *arg) {
    rank *r = arg;
    const wb_config c = config();
    char rid[8];
    snprintf(rid, sizeof rid, "of%d", number(r));
    r->rig = rig_open(&c, 5, 1, r->comm);
    r->engine = engine_of(r->rig.model, 32, 4, 16, 4);
    r->ask = ask_fixed(rid, 4 + (uint32_t)number(r), 8);
    must(wb_engine_submit(r->engine, ask_request(&r->ask)), "submit");
    r->play(r);
    wb_engine_close(r->engine);
    rig_close(&r->rig);
    return NULL;
}

static void play(int n, void (*scene)(rank *)) {
    wb_comm *comms[MAX_RANKS];
    rank ranks[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    must(wb_comm_open_threads(n, comms), "comms");
    memset(ranks, 0, sizeof ranks);
    for (int i = 0; i < n; i++) {
        ranks[i].comm = comms[i];
        ranks[i].play = scene;
        if (pthread_create(&threads[i], NULL, play_rank, &ranks[i]) != 0) abort();
    }
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < n; i++) wb_comm_close(comms[i]);
}

/* Asserts would leave the other ranks waiting. */
static void expect(const rank *r, bool held, const char *what) {
    if (held) return;
    fprintf(stderr, "rank %d: expected %s; the latest step: %s: %s\n", number(r), what,
            wb_status_string(r->status), r->message);
    abort();
}

static void step_rank(rank *r) {
    r->status = wb_engine_step(r->engine, &r->busy);
    snprintf(r->message, sizeof r->message, "%s", r->status == WB_OK ? "" : wb_error_message());
}

static void expect_step(rank *r, wb_status status, const char *message) {
    const wb_engine_stats before = wb_engine_get_stats(r->engine);
    step_rank(r);
    const wb_engine_stats after = wb_engine_get_stats(r->engine);
    const uint64_t fed_before = before.prefill_tokens + before.decode_tokens;
    expect(r, r->status == status, wb_status_string(status));
    expect(r, status == WB_OK || strstr(r->message, message), message);
    expect(r, status == WB_OK || after.prefill_tokens + after.decode_tokens == fed_before,
           "nothing fed by a step that failed");
    expect(r, after.steps == before.steps + (status == WB_OK), "steps that were made counted");
}

/* Goes on to the end, where the request is as in an engine of one rank, but for its spans. */
static void expect_end(rank *r) {
    const wb_config c = config();
    do step_rank(r);
    while (r->status == WB_OK && r->busy);
    expect(r, r->status == WB_OK, "all steps to go well");
    wb_completion *found = wb_engine_poll(r->engine);
    expect(r, found && found->record.finish == WB_FINISH_LENGTH, "a completion");
    rig whole = rig_open(&c, 5, 1, NULL);
    wb_completion *alone = run_alone(whole.model, &r->ask);
    const size_t n = alone->record.n_tokens;
    expect(r, memcmp(alone->record.tokens, found->record.tokens, n * sizeof(uint32_t)) == 0,
           "the same tokens");
    expect(r, memcmp(alone->record.logprobs, found->record.logprobs, 8 * sizeof(float)) == 0,
           "the same logprobs");
    wb_completion_free(alone);
    wb_completion_free(found);
    rig_close(&whole);
}

/* ---- weights ------------------------------------------------------------------------------------- */

/* The last of three ranks is not told of version 7; once it is, all go on. The weights are the same. */
static void one_rank_lags(rank *r) {
    expect_step(r, WB_OK, "");
    if (number(r) < 2) must(wb_engine_set_weights(r->engine, r->rig.model, 7), "weights");
    for (int i = 0; i < 2; i++)
        expect_step(r, WB_PEER, "rank 2 has weights of version 0, rank 0 of version 7");
    if (number(r) == 2) must(wb_engine_set_weights(r->engine, r->rig.model, 7), "weights");
    expect_step(r, WB_OK, "");
    expect_end(r);
}

static void test_rule_36_a_version_set_on_some_ranks_only(void **state) {
    (void)state;
    play(3, one_rank_lags);
}

/* Two ranks name different weights version 7. */
static void weights_differ(rank *r) {
    const wb_config c = config();
    rig next = rig_open(&c, 6, 1, r->comm);
    expect_step(r, WB_OK, "");
    must(wb_engine_set_weights(r->engine, number(r) == 1 ? next.model : r->rig.model, 7), "weights");
    expect_step(r, WB_PEER, "rank 1 and rank 0 have different weights by the name of version 7");
    rig again = rig_open(&c, 5, 1, r->comm);
    must(wb_engine_set_weights(r->engine, again.model, 7), "weights");
    rig_close(&again);
    rig_close(&next);
    expect_end(r);
}

static void test_rule_36_other_weights_by_the_same_name(void **state) {
    (void)state;
    play(2, weights_differ);
}

/* A digest of samples must see an optimizer step, however small: every weight of rank 1 moves by an ulp. */
static void weights_are_an_ulp_apart(rank *r) {
    for (int32_t i = 0; number(r) == 1 && i < wb_model_n_tensors(r->rig.model); i++) {
        const wb_tensor tensor = wb_model_tensor(r->rig.model, i);
        if (!tensor.data) continue;
        for (int64_t j = 0; j < tensor.n; j++) ((uint32_t *)tensor.data)[j]++;
    }
    must(wb_engine_set_weights(r->engine, r->rig.model, 1), "weights");
    expect_step(r, WB_PEER, "different weights");
}

static void test_rule_36_weights_an_ulp_apart(void **state) {
    (void)state;
    play(2, weights_are_an_ulp_apart);
}

/* ---- failures of one rank ------------------------------------------------------------------------ */

/* Rank 1's n-th call of an op fails, then all calls succeed. Only rank 1's thread counts. */
static int calls, failing_call;
static wb_rmsnorm_forward_fn *real_rmsnorm;
static wb_add_rmsnorm_fn *real_add_rmsnorm;
static wb_attention_prepare_fn *real_prepare;
static wb_start_to_host_fn *real_start_to_host;

static wb_status fail_here(void) {
    return wb_fail(WB_DEVICE, "planted");
}

static wb_status counted_rmsnorm(wb_device *dev, int64_t T, int64_t H, wb_rows x, wb_norm norm, wb_rows y) {
    return calls++ == failing_call ? fail_here() : real_rmsnorm(dev, T, H, x, norm, y);
}

static wb_status counted_add_rmsnorm(wb_device *dev, int64_t T, int64_t H, wb_rows x, wb_rows y, wb_norm norm,
                                     wb_rows normed) {
    return calls++ == failing_call ? fail_here() : real_add_rmsnorm(dev, T, H, x, y, norm, normed);
}

static wb_status counted_prepare(wb_device *dev, const wb_attention_inputs *args) {
    return calls++ == failing_call ? fail_here() : real_prepare(dev, args);
}

static wb_status counted_start_to_host(wb_device *dev, void *host, const void *device, size_t bytes,
                                       void *event) {
    return calls++ == failing_call ? fail_here() : real_start_to_host(dev, host, device, bytes, event);
}

/* The ops that have a norm in them. */
static void count_norms(wb_device *dev) {
    dev->rmsnorm_forward = counted_rmsnorm;
    dev->add_rmsnorm = counted_add_rmsnorm;
    dev->attention_prepare = counted_prepare;
}

/* Ops of one step of rank 1, from which the failing one is counted back. */
static void count_ops_of_a_step(rank *r, bool fetch) {
    wb_device *dev = r->rig.device;
    if (number(r) == 1) {
        real_rmsnorm = dev->rmsnorm_forward;
        real_add_rmsnorm = dev->add_rmsnorm;
        real_prepare = dev->attention_prepare;
        real_start_to_host = dev->start_to_host;
        if (fetch)
            dev->start_to_host = counted_start_to_host;
        else
            count_norms(dev);
        calls = 0;
        failing_call = -1;
    }
    expect_step(r, WB_OK, "");
}

static void last_op_fails(rank *r, bool fetch) {
    expect_step(r, WB_OK, ""); /* the prefill; now a decode and its equals */
    count_ops_of_a_step(r, fetch);
    if (number(r) == 1) {
        expect(r, calls > 0, "the op to be called");
        failing_call = calls - 1;
        calls = 0;
    }
    if (number(r) == 1)
        expect_step(r, WB_DEVICE, "planted");
    else
        expect_step(r, WB_PEER, "rank 1 failed: device");
    expect_end(r);
}

/* The norm before the logits comes after the last exchange of the forward. */
static void head_fails(rank *r) {
    last_op_fails(r, false);
}

static void fetch_fails(rank *r) {
    last_op_fails(r, true);
}

static void test_a_step_is_made_on_all_ranks_or_on_none(void **state) {
    (void)state;
    play(3, head_fails);
    play(3, fetch_fails);
}

/* Anywhere in the forward: the others are out of step, and nobody waits for ever once this rank gives up. */
static int nth_norm;

static void a_norm_fails(rank *r) {
    expect_step(r, WB_OK, "");
    count_ops_of_a_step(r, false);
    if (number(r) == 1) {
        failing_call = nth_norm;
        calls = 0;
    }
    step_rank(r);
    expect(r, r->status == (number(r) == 1 ? WB_DEVICE : r->status) && r->status != WB_OK, "a failure");
    wb_comm_abort(r->comm);
}

static void test_an_op_that_fails_on_one_rank_ends_the_step_on_all(void **state) {
    (void)state;
    /* A norm before each of the two parts of three layers, one with q and k, and the last. */
    for (nth_norm = 0; nth_norm < 3 * 3 + 1; nth_norm++) play(2, a_norm_fails);
}

int main(void) {
    alarm(20);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_36_a_version_set_on_some_ranks_only),
        cmocka_unit_test(test_rule_36_other_weights_by_the_same_name),
        cmocka_unit_test(test_rule_36_weights_an_ulp_apart),
        cmocka_unit_test(test_a_step_is_made_on_all_ranks_or_on_none),
        cmocka_unit_test(test_an_op_that_fails_on_one_rank_ends_the_step_on_all),
    };
    return cmocka_run_group_tests_name("engine ranks", tests, NULL, NULL);
}
