/* test_model_agree.c - what fails on one rank before the first exchange of rows fails on all: the others
 * learn who it was instead of waiting for rows that do not come. A hang is a failure by alarm. */
#include "model_ranks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <unistd.h>

enum { RANKS = 3, FAULTY = 1, T = 4 };

typedef struct rank_case {
    fixture f;
    wb_infer *infer;
    int32_t tokens[T];
    int failures;
} rank_case;

static bool faulty(const rank_case *c) {
    return wb_comm_rank(c->f.comm) == FAULTY;
}

/* INVALID_ARGUMENT with `text` on the faulty rank, PEER that names it on the others. All ranks stay in step
 * whatever came out. */
static void expect_refused(rank_case *c, const char *what, wb_status found, const char *text) {
    const wb_status expected = faulty(c) ? WB_INVALID_ARGUMENT : WB_PEER;
    const char *const part = faulty(c) ? text : "rank 1";
    if (found != expected || !strstr(wb_error_message(), part)) {
        c->failures++;
        fprintf(stderr, "%s, rank %d: expected \"%s\" with %s, found \"%s\": %s\n", what,
                wb_comm_rank(c->f.comm), wb_status_string(expected), part, wb_status_string(found),
                found ? wb_error_message() : "");
    }
    MUST(wb_comm_barrier(c->f.comm));
}

static wb_status infer_forward(rank_case *c) {
    const int32_t pos[T] = {0, 1, 2, 3}, seq[T] = {0}, block = 0, row = T - 1;
    const wb_infer_batch batch = {T, c->tokens, pos, seq, 1, 1, &block, NULL, 1, &row};
    const float *logits;
    void *ids = take(T, c->f.row_bytes);
    const wb_status status = wb_infer_forward(c->infer, &batch, &(wb_routing){.ids = ids}, &logits);
    free(ids);
    return status;
}

/* `ids` stay for the backward. */
static wb_status train_forward(rank_case *c, void *ids) {
    const int32_t targets[T] = {1, 2, 3, -1}, start[] = {0, T};
    const wb_train_batch batch = {
        .T = T, .tokens = c->tokens, .targets = targets, .n_seqs = 1, .seq_start = start};
    float logprobs[T];
    return wb_train_forward(c->f.train, &batch, &(wb_routing){.ids = ids}, NULL, logprobs);
}

static void bad_token(rank_case *c, void *ids) {
    const int32_t kept = c->tokens[2];
    if (faulty(c)) c->tokens[2] = wb_model_config(c->f.model)->vocab_size;
    expect_refused(c, "inference", infer_forward(c), "token 2");
    expect_refused(c, "training", train_forward(c, ids), "token 2");
    c->tokens[2] = kept;
}

/* The faulty rank asks a trainer that has had no forward. */
static void missing_forward(rank_case *c) {
    const float ones[T] = {1, 1, 1, 1};
    wb_train *fresh;
    MUST(wb_train_open(c->f.model, NULL, &fresh));
    expect_refused(c, "backward", wb_train_backward(faulty(c) ? fresh : c->f.train, ones),
                   "expected a forward");
    wb_train_close(fresh);
    MUST(wb_train_backward(c->f.train, ones)); /* still due on all ranks */
}

/* The faulty rank asks a trainer that has no gradients. */
static void forwards_only(rank_case *c) {
    const float ones[T] = {1, 1, 1, 1};
    wb_train_options options = wb_train_options_default();
    options.forward_only = true;
    wb_train *only;
    MUST(wb_train_open(c->f.model, &options, &only));
    wb_train *train = faulty(c) ? only : c->f.train;
    expect_refused(c, "backward without gradients", wb_train_backward(train, ones), "for forwards only");
    expect_refused(c, "reduction without gradients", wb_train_reduce_grads(train), "for forwards only");
    wb_train_close(only);
}

static void *run_rank(void *comm) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    rank_case c = {.f = fixture_create(&config, 11, comm, 1), .tokens = {1, 2, 3, 4}};
    wb_infer_options options = wb_infer_options_default();
    options.n_blocks = 1;
    options.block_size = T;
    MUST(wb_infer_open(c.f.model, &options, &c.infer));
    void *ids = take(T, c.f.row_bytes);
    bad_token(&c, ids);
    MUST(infer_forward(&c)); /* the ranks are still in step */
    MUST(train_forward(&c, ids));
    forwards_only(&c);
    missing_forward(&c);
    free(ids);
    wb_infer_close(c.infer);
    fixture_close(&c.f);
    return (void *)(intptr_t)c.failures;
}

/* The last rank asks for another dtype, other positions, other activations: no rank gets a model. */
static void *run_disagreement(void *comm) {
    int failures = 0;
    wb_device *device;
    MUST(wb_device_open_cpu(1, &device));
    for (int field = 0; field < 3; field++) {
        wb_config config = variant_config(VARIANT_QWEN3);
        wb_model *model = NULL;
        wb_model_options options = wb_model_options_default();
        options.device = device;
        options.comm = comm;
        const bool last = wb_comm_rank(comm) == RANKS - 1;
        if (last && field == 0) options.dtype = WB_BF16;
        if (last && field == 1) config.max_positions++;
        if (last && field == 2) options.activations = WB_BF16;
        const wb_status status = wb_model_create(&config, 1, 0.25F, &options, &model);
        if (status != WB_PEER || !strstr(wb_error_message(), "model dtype, activations and max_positions")) {
            failures++;
            fprintf(stderr, "create, rank %d, field %d: expected a peer that disagrees, found \"%s\": %s\n",
                    wb_comm_rank(comm), field, wb_status_string(status), status ? wb_error_message() : "");
        }
        wb_model_close(model);
    }
    wb_device_close(device);
    return (void *)(intptr_t)failures;
}

/* The last rank asks for a clone of another dtype. */
static void *run_clones(void *comm) {
    const wb_config config = variant_config(VARIANT_QWEN3);
    fixture f = fixture_create(&config, 11, comm, 1);
    wb_model *clone = NULL;
    wb_model_options options = wb_model_options_default();
    options.device = f.device;
    options.comm = comm;
    if (wb_comm_rank(comm) == RANKS - 1) options.dtype = WB_BF16;
    const wb_status status = wb_model_clone(f.model, &options, &clone);
    const bool refused =
        status == WB_PEER && strstr(wb_error_message(), "model dtype, activations and max_positions");
    if (!refused) fprintf(stderr, "clone, rank %d: expected a peer that disagrees\n", wb_comm_rank(comm));
    wb_model_close(clone);
    fixture_close(&f);
    return (void *)(intptr_t)!refused;
}

/* What makes a model, in each of the three ways. */
static wb_status make_model(int way, const fixture *f, const wb_model_options *options, wb_model **out) {
    if (way == 0) return wb_model_open(WB_TEST_DATA "/qwen3_moe", options, out);
    if (way == 1) return wb_model_create(wb_model_config(f->model), 1, 0.25F, options, out);
    return wb_model_clone(f->model, options, out);
}

/* The faulty rank's options are wrong in what does not keep it from telling the others. */
static void *run_bad_options(void *comm) {
    static const char *const texts[] = {"expected a device", "activations: expected f32 or bf16",
                                        "dtype: expected f32 or bf16"};
    const wb_config config = variant_config(VARIANT_QWEN3);
    rank_case c = {.f = fixture_create(&config, 11, comm, 1)};
    for (int fault = 0; fault < 3; fault++) {
        for (int way = 0; way < 3; way++) {
            wb_model *model = NULL;
            wb_model_options options = wb_model_options_default();
            options.device = faulty(&c) && fault == 0 ? NULL : c.f.device;
            options.comm = comm;
            if (faulty(&c) && fault == 1) options.activations = WB_F16;
            if (faulty(&c) && fault == 2) options.dtype = WB_F16;
            expect_refused(&c, "options", make_model(way, &c.f, &options, &model), texts[fault]);
            wb_model_close(model);
        }
    }
    fixture_close(&c.f);
    return (void *)(intptr_t)c.failures;
}

static void run_ranks(void *(*rank)(void *comm)) {
    wb_comm *comms[RANKS];
    pthread_t threads[RANKS];
    MUST(wb_comm_open_threads(RANKS, comms));
    for (int r = 0; r < RANKS; r++) assert_int_equal(0, pthread_create(&threads[r], NULL, rank, comms[r]));
    for (int r = 0; r < RANKS; r++) {
        void *failures;
        pthread_join(threads[r], &failures);
        assert_null(failures);
        wb_comm_close(comms[r]);
    }
}

static void test_one_rank_fails_before_the_first_exchange(void **unused) {
    (void)unused;
    run_ranks(run_rank);
}

static void test_one_rank_has_bad_options(void **unused) {
    (void)unused;
    run_ranks(run_bad_options);
}

static void test_ranks_with_different_models_get_none(void **unused) {
    (void)unused;
    run_ranks(run_disagreement);
    run_ranks(run_clones);
}

int main(void) {
    alarm(60);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rank_fails_before_the_first_exchange),
        cmocka_unit_test(test_one_rank_has_bad_options),
        cmocka_unit_test(test_ranks_with_different_models_get_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
