/* test_keep_planned.c - what a trainer keeps of its forwards changes no bit of a step that chooses its
 * experts, replays them or was planned, on 1 to 4 ranks with budgets of their own, under random placements
 * with replicas, with packed sequences, padding rows and micro-batches without tokens; and it takes no more
 * than its budget. Argument 1 sets the seed. */
#include "planned_fixture.h"
#include "train_state.h"

enum { BUDGETS = 2 };

/* The memory that a trainer with a budget takes; its bytes are poisoned. */
static size_t open_trainer(step *s, uint64_t keep_bytes) {
    wb_train_options options = wb_train_options_default();
    options.max_tokens = MAX_T;
    options.keep_bytes = keep_bytes;
    wb_train_close(s->f.train);
    s->f.train = NULL;
    MUST(wb_train_open(s->f.model, &options, &s->f.train));
    return s->f.train->memory.arena.bytes;
}

/* Every row chooses, and chooses what it did before. */
static void run_choosing(step *s) {
    fixture *f = &s->f;
    MUST(wb_train_zero_grads(f->train));
    for (int32_t m = 0; m < MICRO_BATCHES; m++) {
        step_batch *b = &s->batches[m];
        const wb_routing routing = {.ids = b->ids, .direction = b->direction};
        pass_results found = {.used = take(b->T, f->row_bytes)};
        MUST(try_pass(f, b, &routing, &found));
        expect_same_pass(f, b, &found, &s->native[m]);
        free(found.used);
    }
}

static void expect_the_step_of_before(step *s) {
    MUST(wb_train_reduce_grads(s->f.train));
    expect_same_gradients(&s->f, s->gradients);
}

static void run_all_ways(step *s) {
    int64_t n = -1;
    run_choosing(s);
    expect_the_step_of_before(s);
    MUST(wb_replay_begin(s->replay, WB_REPLAY_ROLLOUT, MICRO_BATCHES));
    for (int32_t m = 0; m < MICRO_BATCHES; m++) plan_batch_of(s, m, false);
    run_replayed(s, false);
    expect_the_step_of_before(s);
    MUST(wb_replay_plan_dispatch(s->replay, s->comm, &n));
    EXPECT(n == MICRO_BATCHES * s->f.L);
    run_replayed(s, true);
    expect_the_step_of_before(s);
    MUST(wb_replay_end(s->replay));
}

static void any_budget(rank *r) {
    for (int v = 0; v < N_VARIANTS; v++) {
        step s;
        step_open(r, (variant)v, v % 2 == 0 ? WB_DISPATCH_DYNAMIC : WB_DISPATCH_STATIC, &s);
        s.f.device->mem_alloc = poisoning_alloc;
        uint64_t own = r->state + 77 * (uint64_t)r->number;
        const size_t none = open_trainer(&s, 0), all = open_trainer(&s, UINT64_MAX);
        EXPECT(all > none);
        run_all_ways(&s);
        for (int i = 0; i < BUDGETS; i++) {
            const uint64_t budget = random_bits(&own) % (all - none);
            const size_t taken = open_trainer(&s, budget);
            EXPECT(taken >= none && taken - none <= budget);
            run_all_ways(&s);
        }
        /* As many bytes as all take, and one less. */
        EXPECT(open_trainer(&s, all - none) == all);
        EXPECT(open_trainer(&s, all - none - 1) < all);
        step_close(&s);
    }
}

static void test_what_is_kept_changes_no_bit(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed + (uint64_t)R, any_budget, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    alarm(300);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_what_is_kept_changes_no_bit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
