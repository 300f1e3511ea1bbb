/* test_pack.c - packings of random steps on 1 to 4 ranks: each sequence once, within its update and the room
 * of a micro-batch, the same on every rank, loads exact; records that travel arrive whole; what is refused,
 * and that all ranks learn of it. Argument 1 sets the seed. */
#include "pack_steps.h"
#include "support/test_seed.h"

#include <math.h>

static void test_rule_38_each_sequence_is_packed_once(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed + (uint64_t)R, pack_random_steps);
}

static void test_records_arrive_whole(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed + 100 + (uint64_t)R, move_random_steps);
}

/* ---- refused ------------------------------------------------------------------------------------- */

/* On rank 1 alone `s` is not as described: the others learn it. */
static void expect_refused(rank *r, step *s, wb_status status, const char *message) {
    wb_pack *pack = NULL;
    const wb_status found = wb_pack_open(r->comm, &s->model, &s->options, s->n_own, s->sequences, &pack);
    EXPECT(found == (r->number == 1 ? status : WB_PEER) && !pack);
    EXPECT(r->number != 1 || strstr(wb_error_message(), message));
}

static void refuse_sequences(rank *r, step *s) {
    const wb_pack_sequence good = s->sequences[0];
    const wb_record *record = good.record;
    struct {
        wb_pack_sequence bad;
        const char *message;
    } cases[] = {{{NULL, 1, 0}, "sequence 0: record is NULL"},
                 {{record, 0, 0}, "found 0"},
                 {{record, record->n_tokens + 1, 0}, "as many as a micro-batch has on a rank, found"},
                 {{record, 1, s->options.n_updates}, "update: expected 0.."}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (r->number == 1) s->sequences[0] = cases[i].bad;
        expect_refused(r, s, WB_INVALID_ARGUMENT, cases[i].message);
        s->sequences[0] = good;
    }
    wb_record broken = *record;
    broken.prompt_len = record->n_tokens + 1;
    if (r->number == 1) s->sequences[0].record = &broken;
    expect_refused(r, s, WB_INVALID_ARGUMENT, broken.rid);
    s->sequences[0] = good;
}

static void refuse_options(rank *r, step *s) {
    const wb_pack_options good = s->options;
    struct {
        wb_pack_options bad;
        const char *message;
    } cases[5];
    for (int i = 0; i < 5; i++) cases[i].bad = good;
    cases[0].bad.max_rows = 0;
    cases[0].message = "max_rows: expected 1..";
    cases[1].bad.n_updates = 0;
    cases[1].message = "n_updates: expected 1..";
    cases[2].bad.cost.per_pair = NAN;
    cases[2].message = "cost: expected finite";
    cases[3].bad.cost.per_choice = -1;
    cases[3].message = "cost: expected finite";
    cases[4].bad.reserved[0] = 1;
    cases[4].message = "packing";
    for (int i = 0; i < 5; i++) {
        if (r->number == 1) s->options = cases[i].bad;
        expect_refused(r, s, WB_INVALID_ARGUMENT, cases[i].message);
        s->options = good;
    }
    if (r->number == 1) s->options.max_rows++;
    expect_refused(r, s, WB_PEER, "rank 1 differs from rank 0");
    s->options = good;
}

static void refuse(rank *r) {
    /* Every rank looks at its first sequence, so all need one. */
    step s;
    for (uint64_t i = 0;; i++) {
        step_open(r, i, &s);
        if (s.n[0] > 0 && s.n[1] > 0 && s.n[2] > 0) break;
        step_close(&s);
    }
    refuse_sequences(r, &s);
    refuse_options(r, &s);
    wb_pack *pack = NULL;
    EXPECT(wb_pack_open(r->comm, NULL, NULL, 0, NULL, &pack) == WB_INVALID_ARGUMENT);
    EXPECT(wb_pack_open(NULL, &s.model, NULL, 0, NULL, &pack) == WB_INVALID_ARGUMENT && !pack);
    step_pack(r, &s);
    const bool bad = r->number == 1;
    const wb_status status = wb_pack_move(s.pack, r->comm, 8, bad ? NULL : s.extras);
    EXPECT(status == (bad ? WB_INVALID_ARGUMENT : WB_PEER));
    MUST(wb_pack_move(s.pack, r->comm, sizeof *s.extras, s.extras));
    expect_items(r, &s, true);
    step_close(&s);
}

static void test_all_ranks_learn_what_is_refused(void **unused) {
    (void)unused;
    on_ranks(3, base_seed, refuse);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_38_each_sequence_is_packed_once),
        cmocka_unit_test(test_records_arrive_whole),
        cmocka_unit_test(test_all_ranks_learn_what_is_refused),
    };
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
