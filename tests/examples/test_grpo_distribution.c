/* test_grpo_distribution.c - what waybill-grpo trains on is of the distribution that was sampled from, or is
 * refused with both values. */
#include "../../examples/grpo/distribution.c"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { VOCABULARY = 16, PROMPT = 2, TOKENS = 5, NEW = TOKENS - PROMPT };

static const uint32_t tokens[TOKENS] = {1, 2, 3, 4, 5}, ids[6] = {3, 4, 9, 0, 1, 5}, ends[NEW] = {1, 3, 6};
static const float logprobs[NEW] = {-1, -2, -3};

static void refuse(const options *o, const wb_record *record, const char *message) {
    assert_int_equal(WB_MISMATCH, distribution_check(o, VOCABULARY, record));
    assert_string_equal(message, wb_error_message());
}

static void test_rule_31_another_distribution_is_refused(void **state) {
    (void)state;
    const options o = {.temperature = 0.7, .top_k = 4, .top_p = 0.9};
    wb_sampling sampling = {0.7f, 4, 0.9f};
    wb_record record = {.rid = "r",
                        .prompt_len = PROMPT,
                        .n_tokens = TOKENS,
                        .tokens = tokens,
                        .sampling = &sampling,
                        .sampling_logprobs = logprobs,
                        .mask_ids = ids,
                        .mask_ends = ends};
    assert_int_equal(WB_OK, distribution_check(&o, VOCABULARY, &record));
    sampling.temperature = 1;
    refuse(&o, &record, "record r: temperature: expected 0.7, found 1");
    sampling = (wb_sampling){0.7f, 0, 0.9f};
    refuse(&o, &record, "record r: top-k: expected 4, found 0");
    sampling = (wb_sampling){0.7f, 4, 1};
    refuse(&o, &record, "record r: top-p: expected 0.9, found 1");
    sampling.top_p = 0.9f;
    record.mask_ids = record.mask_ends = NULL;
    refuse(&o, &record,
           "record r: top-k 4, top-p 0.9: expected the kept tokens (sampling_mask), found none recorded");
    record.sampling = NULL;
    refuse(&o, &record, "record r: expected how it was sampled, found nothing recorded");

    /* A limit that the vocabulary does not reach keeps everything, and that is recorded. */
    const options wide = {.temperature = 0.7, .top_k = VOCABULARY, .top_p = 1};
    sampling = (wb_sampling){0.7f, VOCABULARY, 1};
    record.sampling = &sampling;
    refuse(&wide, &record,
           "record r: top-k 16, top-p 1: expected the kept tokens (sampling_mask), found none recorded");

    const options unlimited = {.temperature = 0.7, .top_k = 0, .top_p = 1};
    sampling.top_k = 0;
    assert_int_equal(WB_OK, distribution_check(&unlimited, VOCABULARY, &record));
    record.sampling_logprobs = NULL;
    refuse(&unlimited, &record, "record r: expected sampling_logprobs, found none recorded");
}

/* Three records: with a mask, without, with one again. */
static void test_rule_31_rows_have_the_kept_tokens_of_their_target(void **state) {
    (void)state;
    const wb_sampling hot = {1.5f, 4, 0.9f}, plain = {1, 0, 1};
    wb_completion completions[3];
    for (int i = 0; i < 3; i++)
        completions[i].record = (wb_record){.rid = "r",
                                            .prompt_len = PROMPT,
                                            .n_tokens = TOKENS,
                                            .tokens = tokens,
                                            .sampling = i == 1 ? &plain : &hot,
                                            .mask_ids = i == 1 ? NULL : ids,
                                            .mask_ends = i == 1 ? NULL : ends};
    const sample samples[3] = {{.record = &completions[0].record},
                               {.record = &completions[1].record},
                               {.record = &completions[2].record}};
    const sample *list[3] = {&samples[0], &samples[1], &samples[2]};
    int32_t seq_start[4] = {0, 4, 8, 12};
    micro_batch mb = {.T = 12, .n_seqs = 3, .samples = list, .seq_start = seq_start};
    wb_owner owner = {0};
    assert_int_equal(WB_OK, distribution_fill(&owner, &mb));
    const int64_t expected[13] = {0, 0, 1, 3, 6, 6, 6, 6, 6, 6, 7, 9, 12};
    assert_memory_equal(expected, mb.kept_start, sizeof expected);
    assert_memory_equal(ids, mb.kept_ids, sizeof ids);
    assert_memory_equal(ids, mb.kept_ids + 6, sizeof ids);
    for (int t = 0; t < 12; t++) assert_true(mb.temperature[t] == (t / 4 == 1 ? 1.0f : 1.5f));
    wb_owner_close(&owner);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_31_another_distribution_is_refused),
        cmocka_unit_test(test_rule_31_rows_have_the_kept_tokens_of_their_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
