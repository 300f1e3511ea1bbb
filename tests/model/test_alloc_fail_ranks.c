/* test_alloc_fail_ranks.c - every allocation of a workspace's open and of its first step, in training and in
 * inference, of a copy whose experts travel, of mailboxes and of a changed placement, is made to fail in turn
 * on one rank of two: that rank says so, and the other comes back with the name of the rank and not after a
 * timeout. A workspace takes its memory at open, which ranks agree on, so that after most failures the
 * communicator lives. A hang is a failure by alarm. */
#include "model_ranks.h"
#include "support/alloc_fail.h"
#include "support/mailbox_ops.h"
#include "wb_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <unistd.h>

enum { RANKS = 2, POOR = 1, T = 6 };

static wb_config small_config(void) {
    wb_config config = variant_config(VARIANT_QWEN3);
    config.hidden_size = 8;
    config.n_heads = 2;
    config.n_kv_heads = 1;
    config.head_dim = 4;
    config.expert_width = 4;
    config.dense_width = 4;
    config.router.n_experts = 8;
    config.router.top_k = 2;
    config.vocab_size = 11;
    return config;
}

typedef enum step { TRAIN, INFER, CLONE, PLACE, MAILBOXES } step;

/* Of both ranks; n and which step are set before the threads start. */
static long refused_at;
static step which;

typedef struct rank_result {
    wb_comm *comm;
    pthread_t thread;
    wb_status status, after; /* of the step; of a barrier behind it */
    bool refused;
    char message[512];
} rank_result;

static wb_status train_step(wb_train *train) {
    const int32_t tokens[T] = {1, 2, 3, 4, 5, 6}, targets[T] = {2, 3, -1, 5, 6, -1}, start[] = {0, 3, T};
    const float ones[T] = {1, 1, 1, 1, 1, 1};
    uint8_t ids[T * 4], used[T * 4], directions[T] = {WB_ROW_NATIVE, WB_ROW_FORCED, WB_ROW_PADDING};
    float logprobs[T];
    for (int i = 0; i < T * 4; i++) ids[i] = (uint8_t)(i % 4);
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = 2, .seq_start = start};
    const wb_routing routing = {.ids = ids, .direction = directions, .used = used};
    WB_TRY(wb_train_forward(train, &batch, &routing, NULL, logprobs));
    WB_TRY(wb_train_backward(train, ones));
    return wb_train_reduce_grads(train);
}

static wb_status infer_step(wb_infer *infer) {
    const int32_t tokens[T] = {1, 2, 3, 4, 5, 6}, pos[T] = {0, 1, 2, 3, 4, 5}, seq[T] = {0}, block = 0,
                  row = T - 1;
    const wb_infer_batch batch = {.T = T,
                                  .tokens = tokens,
                                  .pos = pos,
                                  .seq = seq,
                                  .n_seqs = 1,
                                  .max_blocks = 1,
                                  .blocks = &block,
                                  .n_logits = 1,
                                  .logit_rows = &row};
    uint8_t ids[T * 4];
    const float *logits;
    return wb_infer_forward(infer, &batch, &(wb_routing){.ids = ids}, &logits);
}

/* With layers kept, which have workers of their own. */
static wb_status open_and_train(fixture *f) {
    wb_train_options options = wb_train_options_default();
    wb_train *train = NULL;
    options.keep_bytes = UINT64_MAX;
    wb_status status = wb_comm_agree(f->comm, wb_train_open(f->model, &options, &train));
    if (status == WB_OK) status = train_step(train);
    wb_train_close(train);
    return status;
}

static wb_status open_and_infer(fixture *f) {
    wb_infer_options options = wb_infer_options_default();
    wb_infer *infer = NULL;
    options.n_blocks = 1;
    wb_status status = wb_comm_agree(f->comm, wb_infer_open(f->model, &options, &infer));
    if (status == WB_OK) status = infer_step(infer);
    wb_infer_close(infer);
    return status;
}

/* With every expert on the other rank, so that all of them travel. */
static wb_status open_exchanged(const wb_model *model, wb_placement **placement_out) {
    const wb_placement *now = wb_model_placement(model);
    int32_t experts[8];
    wb_placement *next;
    WB_TRY(wb_placement_clone(now, &next));
    wb_status status = WB_OK;
    for (int32_t s = 0; s < 8; s++) experts[s] = 7 - s;
    for (uint32_t l = 0; status == WB_OK && l < wb_placement_layers(now); l++)
        status = wb_placement_set_layer(next, l, experts, NULL, 1);
    if (status == WB_OK)
        *placement_out = next;
    else
        wb_placement_close(next);
    return status;
}

static wb_status clone_elsewhere(fixture *f) {
    wb_model_options options = wb_model_options_default();
    wb_placement *placement = NULL;
    wb_model *clone = NULL;
    wb_status status = wb_comm_agree(f->comm, open_exchanged(f->model, &placement));
    options.device = f->device;
    options.comm = f->comm;
    options.dtype = WB_BF16;
    options.placement = placement;
    if (status == WB_OK) status = wb_model_clone(f->model, &options, &clone);
    wb_model_close(clone);
    wb_placement_close(placement);
    return status;
}

/* A model whose ranks store into each other's mailboxes, or none does, where one has no memory for its own:
 * its steps are made in either case. */
static wb_status infer_by_mailboxes(fixture *f) {
    wb_model_options options = wb_model_options_default();
    fixture of_clone = *f;
    options.device = f->device;
    options.comm = f->comm;
    mailbox_ops_give(f->device);
    WB_TRY(wb_model_clone(f->model, &options, &of_clone.model));
    const uint64_t has = wb_has_mailboxes(&of_clone.model->mailboxes);
    wb_status status = wb_comm_check_equal(f->comm, &has, sizeof has, "mailboxes");
    if (status == WB_OK) status = open_and_infer(&of_clone);
    wb_model_close(of_clone.model);
    return status;
}

/* All layers have the new map or none has. */
static wb_status place_elsewhere(fixture *f) {
    wb_placement *placement = NULL;
    wb_status status = wb_comm_agree(f->comm, open_exchanged(f->model, &placement));
    if (status == WB_OK) status = wb_model_set_placement(f->model, placement);
    const wb_placement *now = wb_model_placement(f->model);
    for (uint32_t l = 0; l < wb_placement_layers(now); l++)
        if (wb_placement_layer(now, l).epoch != (status == WB_OK))
            status = wb_fail(WB_CORRUPT, "layer %u is at epoch %d", l, (int)wb_placement_layer(now, l).epoch);
    wb_placement_close(placement);
    return status;
}

static void *run_rank(void *argument) {
    rank_result *me = argument;
    const wb_config config = small_config();
    fixture f = fixture_create(&config, 11, me->comm, 1);
    const bool poor = wb_comm_rank(me->comm) == POOR;
    if (poor) alloc_fail_this_thread_at(refused_at);
    me->status = which == TRAIN   ? open_and_train(&f)
                 : which == INFER ? open_and_infer(&f)
                 : which == CLONE ? clone_elsewhere(&f)
                 : which == PLACE ? place_elsewhere(&f)
                                  : infer_by_mailboxes(&f);
    me->refused = poor && alloc_fail_this_thread_failed();
    snprintf(me->message, sizeof me->message, "%s", me->status == WB_OK ? "" : wb_error_message());
    me->after = wb_comm_barrier(me->comm);
    fixture_close(&f);
    return NULL;
}

/* Both ranks' step with allocation `n` of the poor one refused; false when it has fewer. */
static bool step_without(long n, bool *lives_out) {
    wb_comm *comms[RANKS];
    rank_result ranks[RANKS];
    refused_at = n;
    MUST(wb_comm_open_threads(RANKS, comms));
    for (int r = 0; r < RANKS; r++) {
        ranks[r] = (rank_result){.comm = comms[r]};
        assert_int_equal(0, pthread_create(&ranks[r].thread, NULL, run_rank, &ranks[r]));
    }
    for (int r = 0; r < RANKS; r++) pthread_join(ranks[r].thread, NULL);
    for (int r = 0; r < RANKS; r++) wb_comm_close(comms[r]);
    const rank_result *poor = &ranks[POOR], *other = &ranks[1 - POOR];
    const bool does_without = which == MAILBOXES && poor->status == WB_OK && other->status == WB_OK;
    const bool fails = poor->refused && !does_without;
    if (poor->status != (fails ? WB_OUT_OF_MEMORY : WB_OK) || (fails && other->status != WB_PEER) ||
        (fails && !strstr(other->message, "rank 1")) || poor->after != other->after)
        fail_msg("allocation %ld: rank 1: %s (%s), rank 0: %s (%s); then %d and %d", n,
                 wb_status_string(poor->status), poor->message, wb_status_string(other->status),
                 other->message, (int)poor->after, (int)other->after);
    *lives_out = poor->after == WB_OK;
    return poor->refused;
}

static void every_allocation_of(step s) {
    long n = 0, lives = 0;
    bool alive = false;
    which = s;
    for (; step_without(n, &alive); n++) lives += alive;
    print_message("%ld allocations; after %ld of them the communicator lives\n", n, lives);
    assert_true(n > 8);
    assert_int_equal(lives, n);
}

static void test_rule_30_training_without_memory_on_one_rank(void **unused) {
    (void)unused;
    every_allocation_of(TRAIN);
}

static void test_rule_30_inference_without_memory_on_one_rank(void **unused) {
    (void)unused;
    every_allocation_of(INFER);
}

static void test_rule_30_experts_travel_without_memory_on_one_rank(void **unused) {
    (void)unused;
    every_allocation_of(CLONE);
}

static void test_rule_30_mailboxes_without_memory_on_one_rank(void **unused) {
    (void)unused;
    every_allocation_of(MAILBOXES);
}

static void test_rule_22_a_map_changes_without_memory_on_one_rank(void **unused) {
    (void)unused;
    every_allocation_of(PLACE);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        fprintf(stderr, "skipped: a sanitizer replaces malloc\n");
        return 77;
    }
    alarm(120);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_30_training_without_memory_on_one_rank),
        cmocka_unit_test(test_rule_30_inference_without_memory_on_one_rank),
        cmocka_unit_test(test_rule_30_experts_travel_without_memory_on_one_rank),
        cmocka_unit_test(test_rule_30_mailboxes_without_memory_on_one_rank),
        cmocka_unit_test(test_rule_22_a_map_changes_without_memory_on_one_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
