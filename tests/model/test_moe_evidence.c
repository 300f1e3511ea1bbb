/* test_moe_evidence.c - what a pass says of the experts that its rows went to is read back from the plan of
 * the rows, and a plan that does not have a row of each token for each of its choices is no evidence: it is
 * refused by token, choice and row. The CPU's plan is damaged after it was made. Argument 1 sets the seed. */
#include "model_fixture.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Rows [0, N_TOKENS) are tokens, the others padding, which has no rows: the plan has room behind the last. */
enum { N_TOKENS = 5, T = 7 };

/* Of choice 0 of token 0. */
typedef enum damage {
    NO_DAMAGE,
    ROW_BEHIND_THE_LAST, /* which says that it is the token's */
    NO_ROW,              /* as padding has */
    ROW_OF_ANOTHER_TOKEN,
    N_DAMAGES
} damage;

static uint64_t base_seed;
static damage to_do;
static int32_t written; /* as its row */
static wb_moe_plan_fn *real_plan;

static wb_status damaging_plan(wb_device *dev, const wb_moe_plan *plan) {
    const wb_status status = real_plan(dev, plan);
    if (status != WB_OK || to_do == NO_DAMAGE) return status;
    written = -1;
    if (to_do == ROW_BEHIND_THE_LAST) {
        written = plan->offsets[plan->n_slots];
        assert_true(written < T * plan->top_k);
        plan->row_token[written] = 0;
    } else if (to_do == ROW_OF_ANOTHER_TOKEN) {
        written = plan->pair_row[plan->top_k];
    }
    plan->pair_row[0] = written;
    return WB_OK;
}

static wb_status run_pass(fixture *f, uint64_t *state) {
    int32_t tokens[T], targets[T];
    const int32_t start[] = {0, T};
    uint8_t directions[T];
    float logprobs[T];
    void *ids = routes_random(f, T, state), *used = take(T, f->row_bytes);
    for (int t = 0; t < T; t++) {
        tokens[t] = random_below(state, wb_model_config(f->model)->vocab_size);
        targets[t] = t < N_TOKENS ? tokens[t] : -1;
        directions[t] = t < N_TOKENS ? WB_ROW_NATIVE : WB_ROW_PADDING;
    }
    const wb_train_batch batch = {
        .T = T, .tokens = tokens, .targets = targets, .n_seqs = 1, .seq_start = start};
    const wb_routing routing = {.ids = ids, .direction = directions, .used = used};
    const wb_status status = wb_train_forward(f->train, &batch, &routing, NULL, logprobs);
    if (status == WB_OK) assert_memory_equal(used, ids, (size_t)T * f->row_bytes);
    free(used);
    free(ids);
    return status;
}

static void run_damaged(variant v, damage d) {
    const wb_config config = variant_config(v);
    uint64_t state = base_seed;
    char message[128];
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    fixture f = fixture_create(&config, base_seed, self, 1);
    real_plan = f.device->moe_plan;
    f.device->moe_plan = damaging_plan;
    to_do = d;
    assert_int_equal(run_pass(&f, &state), d == NO_DAMAGE ? WB_OK : WB_CORRUPT);
    snprintf(message, sizeof message, "token 0, choice 0: expected a row of this token, found row %" PRId32,
             written);
    if (d != NO_DAMAGE) assert_non_null(strstr(wb_error_message(), message));
    fixture_close(&f);
    wb_comm_close(self);
}

static void test_a_plan_without_a_row_for_each_choice_is_refused(void **unused) {
    (void)unused;
    for (int v = 0; v < N_VARIANTS; v++)
        for (int d = 0; d < N_DAMAGES; d++) run_damaged((variant)v, (damage)d);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_plan_without_a_row_for_each_choice_is_refused),
    };
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
