/* test_grpo_once.c - a step of waybill-grpo whose ranks between them skip a sample, or train on one twice,
 * fails and names the first: however groups came to the ranks. */
#include "../../examples/grpo/trained_once.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { GROUPS = 3, SAMPLES = 2, N = GROUPS * SAMPLES };

/* The verdict on a step in which `list` [n], of group * SAMPLES + sample, was trained on. */
static wb_status verdict(const int *list, int64_t n) {
    static const options o = {.prompts = GROUPS, .samples = SAMPLES};
    wb_completion completions[N + 1] = {{.record = {.group = 0}}};
    sample samples[N + 1];
    const sample *pointers[N + 1];
    double trained[N] = {0};
    for (int64_t i = 0; i < n; i++) {
        completions[i].record.group = (uint64_t)(list[i] / SAMPLES);
        completions[i].record.sample = (uint32_t)(list[i] % SAMPLES);
        samples[i] = (sample){.record = &completions[i].record};
        pointers[i] = &samples[i];
    }
    trainer t = {.o = &o, .step = 5};
    assert_int_equal(wb_comm_open_self(&t.comm), WB_OK);
    const micro_batch mb = {.n_seqs = n, .samples = pointers};
    trained_count(&t, &mb, trained);
    wb_status status = trained_check(&t, trained);
    wb_comm_close(t.comm);
    return status;
}

static void test_rule_38_each_sample_once(void **unused) {
    (void)unused;
    static const int whole[] = {4, 5, 0, 1, 2, 3};
    assert_int_equal(verdict(whole, N), WB_OK);
}

static void test_rule_38_a_skipped_or_repeated_sample_is_named(void **unused) {
    (void)unused;
    static const int skipped[] = {0, 1, 2, 4, 5}, repeated[] = {0, 1, 2, 3, 4, 5, 4};
    static const int exchanged[] = {0, 1, 2, 3, 5, 5}; /* as many as there should be */
    assert_int_equal(verdict(skipped, N - 1), WB_MISMATCH);
    assert_non_null(strstr(wb_error_message(), "step 5: group 1, sample 1"));
    assert_non_null(strstr(wb_error_message(), "found 0 times"));
    assert_int_equal(verdict(repeated, N + 1), WB_MISMATCH);
    assert_non_null(strstr(wb_error_message(), "step 5: group 2, sample 0"));
    assert_non_null(strstr(wb_error_message(), "found 2 times"));
    assert_int_equal(verdict(exchanged, N), WB_MISMATCH);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rule_38_each_sample_once),
                                       cmocka_unit_test(test_rule_38_a_skipped_or_repeated_sample_is_named)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
